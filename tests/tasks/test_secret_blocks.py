import pytest
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from pydantic import SecretStr

from tasks.secret_blocks import read_secret_block


class Manager(Block):
    """As the secret blocks of prefect-aws, prefect-gcp and prefect-azure are."""

    async def read_secret(self) -> bytes:
        return b"from-a-manager"


class Credentials(Block):
    def get(self) -> SecretStr:
        return SecretStr("from-credentials")


class Note(Block):
    text: str = "canary"


class Broken(Block):
    def read_secret(self) -> str:
        raise RuntimeError("canary")


async def read(block, monkeypatch):
    async def load(_target):
        return block

    monkeypatch.setattr(Block, "aload", load)
    return await read_secret_block("type/name")


@pytest.mark.parametrize("value", ["plain", "0123", "123", "1e3", "null", "true", '{"a": 1}'])
async def test_prefects_own_secret_stays_the_text_it_is(monkeypatch, value):
    assert await read(Secret(value=value), monkeypatch) == value


@pytest.mark.parametrize(("block", "value"), [(Manager(), "from-a-manager"), (Credentials(), "from-credentials")])
async def test_any_block_with_read_secret_or_get_is_read(monkeypatch, block, value):
    assert await read(block, monkeypatch) == value


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (Secret(value={"key": "canary"}), "holds something other than text"),
        (Note(), "holds no secret"),
        (Broken(), "cannot be read from Prefect (RuntimeError)"),
    ],
)
async def test_what_cannot_be_read_is_said_without_a_value(monkeypatch, block, says):
    with pytest.raises(LookupError) as caught:
        await read(block, monkeypatch)

    assert says in str(caught.value)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None
