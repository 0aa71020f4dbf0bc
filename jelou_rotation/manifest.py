"""The manifest: the file a person keeps, projectId -> webhook settings, read whole or refused whole."""

import codecs
import difflib
import hashlib
import io
import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePath
from typing import IO, Annotated, Any, Self
from urllib.parse import SplitResult, urlsplit

import fsspec  # type: ignore[import-untyped]  # fsspec ships no types
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from jelou_rotation import manifest_csv, manifest_yaml
from jelou_rotation.errors import Fault, ManifestError
from jelou_rotation.manifest_yaml import Entry, Place
from jelou_rotation.references import PATTERN, Reference

MAX_BYTES = 32 * 1024 * 1024
PASTED = "pasted text"
_MOST_FAULTS = 50
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")
_TAG_BREAK = re.compile(r"[\s,;]+")
_HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")


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
    is_private = _is_private(parts.hostname or "")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_private and allows_private):
        raise ValueError("expected an https:// URL")
    if not parts.hostname:
        raise ValueError("the URL has no host")
    if "@" in parts.netloc:
        raise ValueError("a user or password does not belong in a URL: use authorization")
    if "#" in url:
        raise ValueError("a webhook URL has no fragment (#)")
    if is_private and not allows_private:
        raise ValueError("the host is not public (for trials: JELOU_ALLOW_PRIVATE_HOSTS)")
    return url


def _split(url: str) -> SplitResult | None:
    """None when the host or the port makes no sense; urllib's own messages would quote them."""
    try:
        parts = urlsplit(url)
        host, port = _host_name(parts.hostname or ""), parts.port
    except ValueError:
        return None
    is_host = not host or _HOST_NAME.fullmatch(host) or (":" in host and _address(host))
    return parts if is_host and port != 0 else None


def _host_name(host: str) -> str:
    """As a resolver would read it: full-width letters are letters, and a dot at the end changes nothing."""
    return unicodedata.normalize("NFKC", host).replace("\u3002", ".").lower().removesuffix(".")


def _is_private(host: str) -> bool:
    name = _host_name(host)
    if name == "localhost" or name.endswith((".localhost", ".local", ".internal")):
        return True
    address = _address(name)
    return address is not None and (not address.is_global or address.is_multicast or address.is_reserved)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address in any spelling a resolver takes, such as 127.1 or 0x7f000001; None for a real name."""
    try:
        if ":" not in name:
            return ipaddress.IPv4Address(socket.inet_aton(name))
        address = ipaddress.IPv6Address(name)
    except (OSError, ValueError):
        return None
    return address.ipv4_mapped or address.sixtofour or address


ReferenceText = Annotated[
    Reference,
    PlainValidator(_reference),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": PATTERN}),
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
    authorization: ReferenceText | None = Field(
        default=None,
        validate_default=True,
        description="Where the credential Jelou presents is found: env:NAME, file:PATH or block:TYPE/NAME."
        " Never the credential itself.",
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


COLUMNS = tuple(to_camel(name) for name in Row.model_fields)
_LIST = ", ".join(COLUMNS)


@dataclass(frozen=True)
class Manifest:
    """All rows of one file; `name` is the file's name without its folder, `sha256` that of its bytes."""

    name: str
    sha256: str
    rows: tuple[Row, ...]

    def select(self, only: Sequence[str]) -> Self:
        """
        The rows that `only` names, each entry a projectId or `tag:NAME`, in the manifest's order; none means all.

        Raises ManifestError when an entry matches no row.
        """
        if not only:
            return self
        wanted = {entry.strip() for entry in only}
        names = {name for row in self.rows for name in _names(row)}
        unmatched = [entry for entry in dict.fromkeys(map(str.strip, only)) if entry not in names]
        if unmatched:
            # Finding the nearest name takes a while among thousands, so only for those that are shown.
            shown = [Fault(self.name, _no_match(entry, names), field="only") for entry in unmatched[:_MOST_FAULTS]]
            raise _refusal(shown, len(unmatched) - len(shown))
        return replace(self, rows=tuple(row for row in self.rows if not wanted.isdisjoint(_names(row))))


def _names(row: Row) -> list[str]:
    return [row.project_id, *(f"tag:{tag}" for tag in row.tags)]


def _no_match(entry: str, names: Iterable[str]) -> str:
    shown = f"'{entry}'" if _WORD.fullmatch(entry.removeprefix("tag:")) else "an entry"
    near = _nearest(entry, names)
    return f"{shown} matches no row" + (f", did you mean {near}?" if near else "")


def load(source: str, *, allow_private_hosts: bool = False) -> Manifest:
    """
    The manifest at a local path or any fsspec URL, or the text itself when it has a line break; 32 MiB at most.

    Raises ManifestError with every fault at once, and without quoting a value.
    """
    name, data = _fetch(source)
    entries, faults = _entries(_decode(data, name), name)
    rows = tuple(_rows(entries, name, faults, allow_private_hosts=allow_private_hosts))
    if not rows and not faults:
        faults.append(Fault(name, "no rows: a manifest names at least one project"))
    if faults:
        raise _refusal(faults)
    return Manifest(name, hashlib.sha256(data).hexdigest(), rows)


def dump(rows: Iterable[Row]) -> str:
    """The rows as YAML that `load` reads back to the same rows."""
    wire = [row.model_dump(mode="json", by_alias=True, exclude_defaults=True) for row in rows]
    return manifest_yaml.write({row.pop("projectId"): row for row in wire})


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the YAML form, for an editor's completion and hover help."""
    return manifest_yaml.json_schema(Row.model_json_schema())


def _fetch(source: str) -> tuple[str, bytes]:
    """The name people see, and the bytes."""
    name = display_name(source)
    try:
        with _open(source) as file:
            data = _read_up_to_the_limit(file)
    except Exception as error:  # noqa: BLE001 - a driver may raise anything
        fault = Fault(name, _why_unreadable(error))
    else:
        if len(data) <= MAX_BYTES:
            return name, data
        fault = Fault(name, "larger than 32 MiB, the most a manifest may be")
    # Not inside `except`: the driver's error may hold the URL with its password.
    raise ManifestError([fault])


def display_name(source: str) -> str:
    """The file's name alone: a folder, user, password or query is nobody's business in a report."""
    if "\n" in source or "\r" in source:
        return PASTED
    if "://" not in source:
        return PurePath(source).name or "manifest"
    address = re.split("[?#]", source.partition("://")[2])[0].rstrip("/")
    return address.rpartition("/")[2].rpartition("@")[2] or "manifest"


def _open(source: str) -> Any:
    if "\n" in source or "\r" in source:
        return io.BytesIO(source.encode())
    return fsspec.open(source, "rb") if "://" in source else Path(source).open("rb")


def _read_up_to_the_limit(file: IO[bytes]) -> bytes:
    """One byte past the limit at most; a network file hands out less than asked for."""
    data = bytearray()
    while len(data) <= MAX_BYTES and (chunk := file.read(MAX_BYTES + 1 - len(data))):
        data += chunk
    return bytes(data)


def _why_unreadable(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "not found"
        case IsADirectoryError():
            return "is a folder, not a file"
        case PermissionError():
            return "may not be read by this user"
        case ImportError():
            return "the fsspec driver for this kind of URL is not installed"
        case ValueError():
            return "not a usable path, URL or text"
    return f"cannot be read ({type(error).__name__})"


def _decode(data: bytes, name: str) -> str:
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
        at = text.find("\0")
        line = None if at < 0 else text.count("\n", 0, at) + 1
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    if line is None:
        return text
    # Not inside `except`: the decoder's error holds the whole file.
    raise ManifestError([Fault(name, "not UTF-8 text: save it as UTF-8 (in Excel: CSV UTF-8)", line)])


def _entries(text: str, name: str) -> tuple[list[Entry], list[Fault]]:
    suffix = PurePath(name).suffix.lower()
    is_yaml = suffix in {".yaml", ".yml", ".json"}
    if is_yaml or (suffix not in {".csv", ".tsv"} and not manifest_csv.looks_like_csv(text, COLUMNS)):
        return manifest_yaml.read(text, name, COLUMNS)
    table, faults = manifest_csv.read(text, name, COLUMNS)
    return [_csv_entry(record, table) for record in table.records], faults


def _csv_entry(record: manifest_csv.Record, table: manifest_csv.Table) -> Entry:
    """An unknown column stands in the header, whatever is under it; an empty cell is not set."""
    values: dict[str, str | list[str]] = {}
    places = {}
    for column, cell in record.cells.items():
        if column not in COLUMNS:
            values[column], places[column] = "", Place(table.line, table.columns.index(column) + 1)
        elif cell:
            values[column], places[column] = cell, Place(record.line)
    return Entry(Place(record.line), values, places)


def _rows(entries: Iterable[Entry], name: str, faults: list[Fault], *, allow_private_hosts: bool) -> Iterator[Row]:
    context = {"allow_private_hosts": allow_private_hosts}
    first: dict[str, int] = {}
    for entry in entries:
        project_id = str(entry.values.get("projectId", "")).strip(manifest_csv.BLANK)
        if project_id in first:
            message = f"duplicate projectId, first in line {first[project_id]}"
            faults.append(Fault(name, message, *entry.places["projectId"], "projectId"))
        elif project_id:
            first[project_id] = entry.place.line
        try:
            yield Row.model_validate(entry.values, context=context, by_alias=True, by_name=False)
        except ValidationError as error:
            faults += [_fault(details, entry, name) for details in error.errors(include_input=False)]


def _fault(details: ErrorDetails, entry: Entry, name: str) -> Fault:
    """A pydantic error with its place in the file; of its words only those written in this module."""
    key = str(details["loc"][0])
    place = entry.places.get(key, entry.place)
    match details["type"]:
        case "extra_forbidden":
            return Fault(name, _unknown("key" if entry.place.column else "column", key), *place)
        case "row":
            return Fault(name, details["msg"], *entry.place)
        case "value_error":
            message = details["msg"].removeprefix("Value error, ")
        case "enum":
            message = "expected bearer, api_key, basic or no_auth"
        case "missing":
            message = f"no {key}"
        case _:
            message = "expected a text"
    return Fault(name, message, *place, key)


def _unknown(what: str, name: str) -> str:
    """Quoted only when it is a known name mistyped: a credential may have slipped in here."""
    near = _nearest(name, COLUMNS) if _WORD.fullmatch(name) else None
    return f"unknown {what} '{name}', did you mean {near}?" if near else f"unknown {what}, expected {_LIST}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    spelling = {each.lower(): each for each in known}
    return next((spelling[near] for near in difflib.get_close_matches(name.lower(), spelling, n=1)), None)


def _refusal(faults: Iterable[Fault], unshown: int = 0) -> ManifestError:
    """Each fault once, by line; the rest of a long list is only counted."""
    ordered = sorted(dict.fromkeys(faults), key=lambda fault: (fault.line or 0, fault.column or 0))
    shown = ordered[:_MOST_FAULTS]
    unshown += len(ordered) - len(shown)
    if unshown:
        shown[-1] = replace(shown[-1], message=f"{shown[-1].message} (and {unshown} more)")
    return ManifestError(shown)
