"""Settings: environment, `.env` or a secrets directory, prefix `JELOU_`."""

import os
import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from jelou_rotation.addresses import is_loopback
from jelou_rotation.errors import Fault, SettingsError
from jelou_rotation.references import EXPECTED, Reference

PREFIX = "JELOU_"
_SECRETS_DIR = "/run/secrets"


def _gateway_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is not a web address") from None
    if not host or parts.scheme not in {"http", "https"}:
        raise ValueError("expected an address like https://gateway.jelou.ai/jelouapi/v1")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("must begin with https://, the API key would travel in clear otherwise")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("must hold no user, password, query or fragment")
    return url.rstrip("/")


def _sendable(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value().strip()
    if not (value.isascii() and value.isprintable()):
        raise ValueError("holds a line break or another character that cannot travel in a header")
    if re.match("(env|file|block):", value) and not as_reference(SecretStr(value)):
        raise ValueError(f"looks like a reference and is none: {EXPECTED}")
    return SecretStr(value)


Secret = Annotated[SecretStr, AfterValidator(_sendable)]


class StoreSettings(BaseSettings):
    """What is needed to open the record store, and nothing else."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        # Compose files hand on what is unset as an empty text.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    store_url: Secret = Field(
        SecretStr("sqlite:///jelou-rotation.db"),
        description="The record store: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`.",
    )
    store_key: Secret | None = Field(
        None,
        description="What the store is encrypted with; several keys, separated by commas, the first one encrypts."
        " Unset: nothing is remembered and nothing can be generated.",
    )
    allow_readable_files: bool = Field(False, description="Accept `file:` references to files that others can read.")

    @classmethod
    def load(cls) -> Self:
        """Raises SettingsError with every wrong or missing setting, by its variable's name."""
        folder = os.environ.get(f"{PREFIX}SECRETS_DIR", _SECRETS_DIR)
        try:
            return cls(_secrets_dir=folder if Path(folder).is_dir() else None)
        except ValidationError as error:
            raise SettingsError([_fault(dict(each)) for each in error.errors()]) from None

    def secrets(self) -> dict[str, SecretStr]:
        """The secrets that are set, by variable name: a value, or a reference to one."""
        return {f"{PREFIX}{name.upper()}": value for name, value in self if isinstance(value, SecretStr)}


class Settings(StoreSettings):
    """
    What the README's table of settings says, in its order. Read once a run by `Settings.load()` and handed down.

    Secrets may be given as references (`env:NAME`, `file:PATH`, `block:TYPE/NAME`); see `secrets()`.
    """

    base_url: Annotated[str, AfterValidator(_gateway_address)] = Field(
        "https://gateway.jelou.ai/jelouapi/v1",
        description="Jelou's gateway with the version prefix; `https`, except on loopback.",
    )
    client_id: Secret | None = Field(None, description="Basic authentication: the client id.")
    client_secret: Secret | None = Field(None, description="Basic authentication: the client secret.")
    api_key: Secret | None = Field(
        None,
        validate_default=True,
        description="The key sent as `x-api-key`, or a reference to it."
        " Either this or `JELOU_CLIENT_ID` and `JELOU_CLIENT_SECRET`.",
    )
    concurrency: int = Field(128, ge=1, le=512, description="Projects worked on at once.")
    requests_per_second: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="Most requests to Jelou with one API key; unset: as fast as Jelou allows.",
    )
    timeout_seconds: float = Field(
        30.0, gt=0, le=600, description="How long to wait for one connection and for each part of an answer."
    )
    report_dir: Path = Field(Path("reports"), description="Where each run's report files go, one folder a run.")
    allow_private_hosts: bool = Field(
        False, description="Accept webhooks on loopback and private addresses, also by `http`. For trials."
    )

    @field_validator("api_key")
    @classmethod
    def _one_scheme(cls, api_key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # Declared after the pair, so that its validator sees all three even when another setting is wrong.
        pair = [info.data.get("client_id"), info.data.get("client_secret")]
        if api_key and any(pair):
            raise ValueError("set either this or JELOU_CLIENT_ID and JELOU_CLIENT_SECRET, not both")
        if not api_key and not any(pair):
            raise ValueError("missing; set it (or JELOU_CLIENT_ID and JELOU_CLIENT_SECRET)")
        if not api_key and not all(pair):
            raise ValueError("JELOU_CLIENT_ID and JELOU_CLIENT_SECRET go together, one of them is missing")
        return api_key


def as_reference(secret: SecretStr) -> Reference | None:
    """The reference a setting holds, or None where it holds the value itself."""
    try:
        return Reference.parse(secret.get_secret_value())
    except ValueError:
        return None


def _fault(error: dict[str, object]) -> Fault:
    location = error["loc"]
    name = str(location[0]).upper() if isinstance(location, tuple) and location else ""
    return Fault(f"{PREFIX}{name}", str(error["msg"]).removeprefix("Value error, "))
