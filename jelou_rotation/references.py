"""
References: where a credential is found, never the credential itself.

    env:NAME            an environment variable
    file:PATH           a file that only its owner can read
    block:TYPE/NAME     a Prefect block that holds a secret
"""

import asyncio
import os
import re
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from jelou_rotation.errors import Fault, UnresolvedReferences

EXPECTED = "expected env:NAME, file:PATH or block:TYPE/NAME"

_FORMS = {
    "env": r"[A-Za-z_][A-Za-z0-9_]*",
    "file": r"[^\u0000-\u001f\u007f]+",
    "block": r"[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9-]*",
}
# Also what the manifest's JSON Schema says, hence a form that JavaScript reads the same way.
PATTERN = f"^({'|'.join(f'{scheme}:{form}' for scheme, form in _FORMS.items())})$"

# Where container runtimes mount secrets; they choose the permissions, and only the container sees the files.
_MOUNTED_SECRETS = (Path("/run/secrets"), Path("/var/run/secrets"))
_MAX_FILE_BYTES = 64 * 1024
# Enough to hide a secret manager's latency, few enough for its rate limits.
_RESOLVED_AT_ONCE = 16

Handler = Callable[[str], Awaitable[str]]
"""Reads the value behind a target. Raises LookupError with a sentence that holds no value."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`scheme` is env, file or block; `target` what follows the colon."""

    scheme: str
    target: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError with what was expected, never with the text: it may be a credential typed by mistake."""
        scheme, _, target = text.partition(":")
        if not re.fullmatch(_FORMS.get(scheme, "(?!)"), target):
            raise ValueError(EXPECTED)
        return cls(scheme, target)

    def __str__(self) -> str:
        return f"{self.scheme}:{self.target}" if self.target else self.scheme


class Vault:
    """The values behind references, in memory only; its repr shows how many, never which."""

    def __init__(self, values: Mapping[Reference, SecretStr]) -> None:
        self._values = dict(values)

    def __getitem__(self, reference: Reference) -> SecretStr:
        return self._values[reference]

    def __repr__(self) -> str:
        return f"<Vault of {len(self._values)} values>"


async def resolve(wanted: Mapping[Reference, str], handlers: Mapping[str, Handler]) -> Vault:
    """
    Read every value, or say of every one that cannot be read why.

    `wanted` says for each reference who asks for it, in words for the message. Raises UnresolvedReferences.
    """
    slots = asyncio.Semaphore(_RESOLVED_AT_ONCE)
    faults: list[Fault] = []
    values: dict[Reference, SecretStr] = {}

    async def read(reference: Reference, asked_by: str) -> None:
        try:
            async with slots:
                value = await handlers[reference.scheme](reference.target)
            values[reference] = SecretStr(_usable(value))
        except LookupError as error:
            faults.append(Fault(str(reference), str(error.args[0]), field=asked_by))

    await asyncio.gather(*(read(reference, asked_by) for reference, asked_by in wanted.items()))
    if faults:
        raise UnresolvedReferences(sorted(faults, key=str))
    return Vault(values)


def local_handlers(*, allow_readable_files: bool = False) -> dict[str, Handler]:
    """The schemes that need nothing but this machine: env and file."""

    async def read_file(target: str) -> str:
        return _read_file(target, allow_readable=allow_readable_files)

    return {"env": _read_variable, "file": read_file}


async def _read_variable(name: str) -> str:
    if name not in os.environ:
        raise LookupError("this environment variable is not set")
    return os.environ[name]


def _read_file(target: str, *, allow_readable: bool) -> str:
    path = Path(target).expanduser()
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise LookupError(f"cannot be read ({error.strerror})") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH) and not allow_readable and not _is_mounted_secret(path):
        raise LookupError("others can read this file: chmod 600 it, or set JELOU_ALLOW_READABLE_FILES=true")
    if len(content) > _MAX_FILE_BYTES:
        raise LookupError(f"is larger than {_MAX_FILE_BYTES // 1024} KiB, too large for a credential")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise LookupError("is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r")


def _is_mounted_secret(path: Path) -> bool:
    # abspath, not resolve: Kubernetes mounts each secret as a link to a dated folder.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow the links
    return any(absolute.is_relative_to(folder) for folder in _MOUNTED_SECRETS)


def _usable(value: str) -> str:
    if not value:
        raise LookupError("is empty")
    if not value.isprintable():
        raise LookupError("holds a line break or another character that does not print")
    if value != value.strip():
        raise LookupError("begins or ends with a space")
    if set(value) == {"*"}:
        raise LookupError("holds only asterisks: that is the mask of a secret, not the secret")
    return value
