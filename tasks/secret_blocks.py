"""Reads and writes the secret behind `block:TYPE/NAME`, in any Prefect block that holds one."""

import inspect
from typing import Any

import anyio
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from pydantic import SecretStr

# Prefect's server on SQLite answers 503 to writes that meet, and its client then waits for seconds (measured).
_ONE_AT_A_TIME = anyio.Lock()


async def read_secret_block(target: str) -> str:
    """
    The text in the block `TYPE/NAME`: `secret/...`, or any block with `read_secret` or `get`.

    Raises LookupError in words: no such block, a type whose package is not installed, or a value that is not text.
    """
    try:
        value = await _read(await Block.aload(target))
    except LookupError:
        raise
    except Exception as error:  # noqa: BLE001 - each package raises its own, and the text may hold the secret
        raise LookupError(f"cannot be read from Prefect ({type(error).__name__}): is there such a block?") from None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        raise LookupError("holds something other than text")  # noqa: TRY004 - a handler's one error
    return value


async def write_secret_block(target: str, document: bytes) -> None:
    """
    Put a document into the block `TYPE/NAME`: `secret/...`, or any block with `write_secret`.

    Raises LookupError in words. A `secret` block is overwritten whole, and made when there is none yet.
    """
    try:
        await _write(target, document)
    except LookupError:
        raise
    except Exception as error:  # noqa: BLE001 - each package raises its own, and the text may hold the secret
        raise LookupError(f"cannot be written through Prefect ({type(error).__name__})") from None


async def _write(target: str, document: bytes) -> None:
    kind, _, name = target.partition("/")
    if kind == "secret":
        async with _ONE_AT_A_TIME:
            await Secret(value=SecretStr(document.decode())).asave(name, overwrite=True)
        return
    block = await Block.aload(target)
    writer = getattr(block, "awrite_secret", None) or getattr(block, "write_secret", None)
    if writer is None:
        raise LookupError("is a block that cannot write: it has no write_secret")
    written = writer(document)
    if inspect.isawaitable(written):
        await written


async def _read(block: Block) -> Any:
    # Not `get()` for Prefect's own Secret: it parses the text as JSON, so the password 123 would become a number.
    if isinstance(block, Secret):
        return block.value.get_secret_value()
    for name in ("aread_secret", "read_secret", "aget", "get"):
        if reader := getattr(block, name, None):
            found = reader()
            found = await found if inspect.isawaitable(found) else found
            return found.get_secret_value() if isinstance(found, SecretStr) else found
    raise LookupError("is a block that holds no secret: it has neither read_secret nor get")
