"""Credentials made here."""

import re
import secrets
import string

import pytest
from pydantic import ValidationError

from jelou_rotation import generation
from jelou_rotation.generation import Policy, check, generate
from jelou_rotation.references import Reference, resolve
from jelou_rotation.row import AuthType

WITH_CREDENTIAL = [each for each in AuthType if each is not AuthType.NO_AUTH]
# Every character that a prefix may hold.
WIDE = "".join(chr(code) for code in range(33, 127) if chr(code) != ":")


def made(auth_type=AuthType.BEARER, **policy):
    return generate(Policy(**policy), auth_type).get_secret_value()


@pytest.fixture
def broken_randomness(monkeypatch):
    """A source that always says the same; nothing of it stays."""
    generation._repeats.cache_clear()
    monkeypatch.setattr(secrets, "choice", lambda symbols: symbols[0])
    yield
    generation._repeats.cache_clear()


def test_by_default_a_credential_is_43_urlsafe_characters():
    assert re.fullmatch("[A-Za-z0-9_-]{43}", made())


@pytest.mark.parametrize(
    ("alphabet", "symbols"),
    [
        ("urlsafe", string.ascii_letters + string.digits + "-_"),
        ("alphanumeric", string.ascii_letters + string.digits),
        ("hex", "0123456789abcdef"),
    ],
)
def test_an_alphabet_is_used_in_full_and_nothing_else(alphabet, symbols):
    credentials = [made(alphabet=alphabet, length=512) for _ in range(20)]

    assert set("".join(credentials)) == set(symbols)
    assert {len(credential) for credential in credentials} == {512}


def test_every_credential_is_a_new_one():
    assert len({made() for _ in range(1000)}) == 1000


def test_the_length_counts_what_follows_the_prefix():
    assert re.fullmatch("acme_[0-9a-f]{40}", made(prefix="acme_", length=40, alphabet="hex"))


def test_basic_is_user_and_password_with_one_colon():
    assert re.fullmatch("jelou:acme_[A-Za-z0-9_-]{43}", made(AuthType.BASIC, user="jelou", prefix="acme_"))


def test_only_basic_uses_the_user():
    assert ":" not in made(AuthType.API_KEY, user="jelou")


@pytest.mark.parametrize("auth_type", WITH_CREDENTIAL)
@pytest.mark.parametrize("prefix", ["", "*" * 32, "Bearer", "Basic", WIDE[:32], WIDE[32:64], WIDE[64:]])
async def test_whatever_the_policy_a_credential_is_usable_and_fits_a_header(auth_type, prefix):
    value = made(auth_type, prefix=prefix, user="Basic")

    async def keep(target):
        return value

    reference = Reference("env", "NAME")
    vault = await resolve({reference: "acme"}, {"env": keep})

    assert vault[reference].get_secret_value() == value
    assert value.isascii()
    assert " " not in value


def test_a_credential_is_not_shown():
    secret = generate(Policy(), AuthType.BEARER)

    assert secret.get_secret_value() not in f"{secret} {secret!r}"


@pytest.mark.parametrize(
    "policy",
    [
        {"length": 15},
        {"length": 513},
        {"length": None},
        {"alphabet": "binary"},
        {"prefix": "a b"},
        {"prefix": "a:b"},
        {"prefix": "a\n"},
        {"prefix": "ñ"},
        {"prefix": "a" * 33},
        {"user": ""},
        {"user": "a:b"},
        {"user": "a b"},
        {"user": "a\n"},
        {"user": "a" * 33},
        {"passwordLength": 20},
    ],
    ids=str,
)
def test_a_policy_that_no_header_or_user_name_allows_is_refused(policy):
    with pytest.raises(ValidationError):
        Policy.model_validate(policy)


def test_a_refused_policy_does_not_repeat_what_was_given():
    with pytest.raises(ValidationError) as caught:
        Policy(prefix="canary value")

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "auth_type", "fault"),
    [
        pytest.param({}, "no_auth", "authType no_auth takes no credential", id="no_auth"),
        pytest.param({}, "basic", "authType basic needs a user to generate a password for", id="basic without user"),
        pytest.param(
            {"length": 21},
            "bearer",
            "21 characters of urlsafe hold 126 bits of 128: use a length of at least 22",
            id="urlsafe",
        ),
        pytest.param(
            {"length": 21, "alphabet": "alphanumeric", "prefix": "a-long-prefix-adds-nothing_"},
            "api_key",
            "21 characters of alphanumeric hold 125 bits of 128: use a length of at least 22",
            id="alphanumeric",
        ),
        pytest.param(
            {"length": 31, "alphabet": "hex", "user": "jelou"},
            "basic",
            "31 characters of hex hold 124 bits of 128: use a length of at least 32",
            id="hex",
        ),
    ],
)
def test_a_policy_that_cannot_serve_is_refused_with_the_reason(policy, auth_type, fault):
    assert check(Policy(**policy), AuthType(auth_type)) == fault
    with pytest.raises(ValueError, match=re.escape(fault)):
        generate(Policy(**policy), AuthType(auth_type))


@pytest.mark.parametrize(("alphabet", "length"), [("urlsafe", 22), ("alphanumeric", 22), ("hex", 32)])
@pytest.mark.parametrize("auth_type", WITH_CREDENTIAL)
def test_128_bits_are_enough(alphabet, length, auth_type):
    assert check(Policy(alphabet=alphabet, length=length, user="jelou"), auth_type) is None


@pytest.mark.usefixtures("broken_randomness")
def test_a_source_of_randomness_that_repeats_itself_is_refused():
    assert check(Policy(), AuthType.BEARER) == "the same credential came twice in 1000 samples"


def test_samples_are_drawn_once_and_not_for_every_row(monkeypatch):
    check(Policy(), AuthType.BEARER)
    monkeypatch.setattr(secrets, "choice", lambda _: pytest.fail("drew again"))

    for row in range(10):
        assert check(Policy(user=f"user{row}", prefix=f"row{row}_"), AuthType.BASIC) is None


def test_a_policy_is_written_in_the_manifests_spelling():
    wire = {"length": 32, "alphabet": "hex", "prefix": "acme_", "user": "jelou"}

    assert Policy.model_validate(wire).model_dump(by_alias=True) == wire
