"""One row of the manifest: the settings a project's integration shall have, and the rules they obey."""

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from jelou_rotation import manifest_csv
from jelou_rotation.addresses import address_of, host_name, is_private
from jelou_rotation.generation import Policy, check
from jelou_rotation.references import EXPECTED, PATTERN, Reference

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TAG_BREAK = re.compile(r"[\s,;]+")
_HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_DURATION = re.compile(r"(\d{1,5})([smhd])|0")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

GENERATE = Reference("generate", "")
"""What stands in `authorization` when the credential is made here."""


class AuthType(StrEnum):
    """How Jelou authenticates at the webhook: with what is in `authorization`, or with nothing at all."""

    BEARER = "bearer"
    API_KEY = "api_key"
    BASIC = "basic"
    NO_AUTH = "no_auth"


def _plain(value: Any) -> Any:
    """A text without the blanks around it; what an editor would not show is refused."""
    if not isinstance(value, str):
        return value
    text = value.strip(manifest_csv.BLANK)
    if found := _CONTROL.search(text):
        raise ValueError(f"control character U+{ord(found[0]):04X}")
    return text


def _project_id(text: str) -> str:
    """It becomes one segment of a URL path."""
    if not text:
        raise ValueError("no projectId")
    if text in {".", ".."} or not text.strip("/"):
        raise ValueError("cannot be used in a URL path")
    if len(text) > 200:
        raise ValueError("longer than 200 characters")
    return text


def _reference(value: Any) -> Reference:
    return value if isinstance(value, Reference) else Reference.parse(_plain(str(value)))


def _authorization(value: Any) -> Reference:
    if value == GENERATE or (isinstance(value, str) and _plain(value) == "generate"):
        return GENERATE
    try:
        return _reference(value)
    except ValueError:
        raise ValueError(f"{EXPECTED} or generate".replace(" or block", ", block")) from None


def _block(value: Any) -> Reference:
    reference = _reference(value)
    if reference.scheme != "block":
        raise ValueError("expected block:TYPE/NAME")
    return reference


def _duration(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(_plain(str(value)))
    if not match:
        raise ValueError("expected a time such as 90m, 24h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])}) if match[2] else timedelta(0)


def _shown_duration(value: timedelta) -> str:
    return f"{value.days}d" if value.days and not value.seconds else f"{round(value.total_seconds())}s"


def _whole_number(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"\d{1,6}", _plain(value)):
        raise ValueError("expected a whole number")
    return value


def _tags(value: Any) -> Any:
    return [tag for tag in _TAG_BREAK.split(value) if tag] if isinstance(value, str) else value


def _tag(text: str) -> str:
    if not text or _TAG_BREAK.search(text):
        raise ValueError("a tag is one word without commas or semicolons")
    return text


def _once(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tags))


def _webhook_url(url: str, info: ValidationInfo) -> str:
    """Judged as written: no name is ever resolved."""
    if re.search(r"[\s\\]", url):
        raise ValueError("a URL holds no spaces or backslashes")
    parts = _split(url)
    if parts is None:
        raise ValueError("the host or port of the URL cannot be read")
    allows_private = bool(info.context and info.context.get("allow_private_hosts"))
    private = is_private(parts.hostname or "")
    if parts.scheme != "https" and not (parts.scheme == "http" and private and allows_private):
        raise ValueError("expected an https:// URL")
    if not parts.hostname:
        raise ValueError("the URL has no host")
    if "@" in parts.netloc:
        raise ValueError("a user or password does not belong in a URL: use authorization")
    if "#" in url:
        raise ValueError("a webhook URL has no fragment (#)")
    if private and not allows_private:
        raise ValueError("the host is not public (for trials: JELOU_ALLOW_PRIVATE_HOSTS)")
    return url


def _split(url: str) -> SplitResult | None:
    """None when the host or the port makes no sense; urllib's own messages would quote them."""
    try:
        parts = urlsplit(url)
        host, port = host_name(parts.hostname or ""), parts.port
    except ValueError:
        return None
    is_host = not host or _HOST_NAME.fullmatch(host) or (":" in host and address_of(host))
    return parts if is_host and port != 0 else None


class Probe(StrEnum):
    """Whether the receiver is asked, and what its answer decides."""

    REQUIRED = "required"
    BEST_EFFORT = "best_effort"
    OFF = "off"


ReferenceText = Annotated[
    Reference,
    PlainValidator(_reference),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": PATTERN}),
]


Duration = Annotated[
    timedelta,
    PlainValidator(_duration),
    PlainSerializer(_shown_duration, when_used="json"),
    WithJsonSchema({"type": ["string", "number"], "pattern": "^([0-9]{1,5}[smhd]|0)$"}),
]


class Row(BaseModel):
    """One project: the settings its integration shall have, with the API's own names on the wire."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        field_title_generator=lambda name, _: to_camel(name),
    )

    project_id: Annotated[
        str,
        AfterValidator(_plain),
        AfterValidator(_project_id),
        # An editor takes an unquoted 4711 for a number; here it stays the text it is.
        WithJsonSchema({"type": ["string", "number"]}),
    ] = Field(description="The project, as it stands in the address of Jelou's API.")
    webhook_url: Annotated[str, AfterValidator(_plain), AfterValidator(_webhook_url)] | None = Field(
        default=None,
        description="Where Jelou delivers events: a public https:// URL without user, password or fragment.",
        json_schema_extra={"format": "uri", "pattern": "^https://"},
    )
    auth_type: Annotated[AuthType, BeforeValidator(_plain)] | None = Field(
        default=None,
        description="How Jelou authenticates at the webhook. All but no_auth need an authorization.",
    )
    authorization: (
        Annotated[
            Reference,
            PlainValidator(_authorization),
            PlainSerializer(str, when_used="json"),
            WithJsonSchema({"type": "string", "pattern": f"{PATTERN[:-1]}|^generate$"}),
        ]
        | None
    ) = Field(
        default=None,
        validate_default=True,
        description="Where the credential Jelou presents is found: env:NAME, file:PATH or block:TYPE/NAME, never the"
        " credential itself. Or generate: a new one is made and kept in the record store.",
    )
    api_key: ReferenceText | None = Field(
        default=None,
        description="Where the Jelou API key for this project alone is found, when it differs from the one"
        " in the settings: env:NAME, file:PATH or block:TYPE/NAME.",
    )
    tags: Annotated[
        tuple[Annotated[str, AfterValidator(_plain), AfterValidator(_tag)], ...],
        BeforeValidator(_tags),
        AfterValidator(_once),
    ] = Field(default=(), description="Words to select rows by, as in tag:pilot.")

    probe: Annotated[Probe, BeforeValidator(_plain)] | None = Field(
        default=None,
        description="Whether the receiver is asked if it accepts the new credential, before and after Jelou gets it."
        " Default: required where the credential is generated, else off.",
    )
    signing_secret: ReferenceText | None = Field(
        default=None,
        description="Where the project's signing secret is found, so that a probe is signed as Jelou signs.",
    )
    overlap: Duration | None = Field(
        default=None,
        description="How long the receiver should still accept the former credential."
        " Default: 24h where the credential is generated, else none is kept.",
    )
    rotate_every: Duration | None = Field(
        default=None, description="How old a generated credential gets before it is due, as 30d. Default: at every run."
    )
    minimum_age: Duration = Field(
        default=timedelta(hours=1), description="A generated credential younger than this is never due. Default: 1h."
    )
    publish_to: Annotated[ReferenceText, AfterValidator(_block)] | None = Field(
        default=None,
        description="A Prefect block that can write_secret, block:TYPE/NAME: the credentials the receiver should accept"
        " are written there before it is asked.",
    )
    length: Annotated[int, BeforeValidator(_whole_number)] = Field(
        default=43, ge=16, le=512, description="generate: how many random characters."
    )
    alphabet: Annotated[Literal["urlsafe", "alphanumeric", "hex"], BeforeValidator(_plain)] = Field(
        default="urlsafe", description="generate: which characters."
    )
    prefix: Annotated[str, AfterValidator(_plain)] = Field(
        default="", pattern=r"^[!-9;-~]{0,32}$", description="generate: what every credential begins with, as acme_."
    )
    user: Annotated[str, AfterValidator(_plain)] | None = Field(
        default=None, pattern=r"^[!-9;-~]{1,32}$", description="generate: the user name for authType basic."
    )

    @property
    def generates(self) -> bool:
        return self.authorization == GENERATE

    @property
    def needs_record(self) -> bool:
        """Whether it asks for something that only a record can keep."""
        return self.generates or self.publish_to is not None or self.overlap is not None

    @property
    def policy(self) -> Policy:
        return Policy(length=self.length, alphabet=self.alphabet, prefix=self.prefix, user=self.user)

    @property
    def probing(self) -> Probe:
        return self.probe or (Probe.REQUIRED if self.generates else Probe.OFF)

    @property
    def overlap_kept(self) -> timedelta | None:
        """None: the former credential is not kept."""
        return timedelta(hours=24) if self.overlap is None and self.generates else self.overlap

    @model_validator(mode="after")
    def _can_be_generated(self) -> Self:
        if self.generates and self.auth_type and (fault := check(self.policy, self.auth_type)):
            raise PydanticCustomError("row", "{fault}", {"fault": fault})
        return self

    @field_validator("authorization")
    @classmethod
    def _fits_the_auth_type(cls, value: Reference | None, info: ValidationInfo) -> Reference | None:
        """Here and not on the whole row, so that a fault in another field does not hide this one."""
        if "auth_type" not in info.data:
            return value
        auth_type = info.data["auth_type"]
        if auth_type is None and value is None and info.data.get("webhook_url", "") is None:
            raise PydanticCustomError("row", "changes nothing: give it a webhookUrl or an authType")
        if auth_type is None and value is not None:
            # What Jelou does with a new credential under a stored authType is not documented.
            raise ValueError("needs an authType beside it")
        if auth_type is AuthType.NO_AUTH and value is not None:
            raise ValueError("authType no_auth takes no authorization")
        if auth_type not in {None, AuthType.NO_AUTH} and value is None:
            raise ValueError(f"authType {auth_type} needs an authorization")
        return value
