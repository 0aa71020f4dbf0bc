"""Credentials made here, from the operating system's randomness."""

import math
import secrets
import string
from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from pydantic.alias_generators import to_camel

LEAST_BITS = 128

_SAMPLES = 1000
_SYMBOLS = {
    "urlsafe": string.ascii_letters + string.digits + "-_",
    "alphanumeric": string.ascii_letters + string.digits,
    "hex": "0123456789abcdef",
}

# What any header carries, with no colon that would end a user name and no space that would end a scheme.
_Word = Annotated[str, StringConstraints(pattern=r"^[!-9;-~]*$", max_length=32)]


class Policy(BaseModel):
    """
    How a credential is made: `user:` for basic, then the prefix, then `length` random characters.

    The default is as strong as a 256-bit key.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )

    length: int = Field(43, ge=16, le=512, description="Random characters, not counting the prefix.")
    alphabet: Literal["urlsafe", "alphanumeric", "hex"] = Field(
        "urlsafe", description="urlsafe: letters, digits, - and _; alphanumeric: letters and digits; hex: 0-9 and a-f."
    )
    prefix: _Word = Field(
        "", description="What every credential begins with, as acme_; printable ASCII without space or colon."
    )
    user: Annotated[_Word, StringConstraints(min_length=1)] | None = Field(
        None, description="The user name for authType basic; printable ASCII without space or colon."
    )


def generate(policy: Policy, auth_type: str) -> SecretStr:
    """A new credential for this authType, as a manifest would hold it. Raises ValueError with what `check` says."""
    if fault := check(policy, auth_type):
        raise ValueError(fault)
    credential = policy.prefix + _random(policy.length, policy.alphabet)
    return SecretStr(f"{policy.user}:{credential}" if auth_type == "basic" else credential)


def check(policy: Policy, auth_type: str) -> str | None:
    """Why this policy cannot serve this authType, in a sentence; None when it can."""
    if auth_type == "no_auth":
        return "authType no_auth takes no credential"
    if auth_type == "basic" and policy.user is None:
        return "authType basic needs a user to generate a password for"
    bits_each = math.log2(len(_SYMBOLS[policy.alphabet]))
    bits, shortest = math.floor(policy.length * bits_each), math.ceil(LEAST_BITS / bits_each)
    if policy.length < shortest:
        return (
            f"{policy.length} characters of {policy.alphabet} hold {bits} bits of {LEAST_BITS}:"
            f" use a length of at least {shortest}"
        )
    if _repeats(shortest, policy.alphabet):
        return f"the same credential came twice in {_SAMPLES} samples"
    return None


@cache
def _repeats(length: int, alphabet: str) -> bool:
    """Whether the source of randomness repeats itself; cached, because a manifest asks for every row."""
    return len({_random(length, alphabet) for _ in range(_SAMPLES)}) < _SAMPLES


def _random(length: int, alphabet: str) -> str:
    return "".join(secrets.choice(_SYMBOLS[alphabet]) for _ in range(length))
