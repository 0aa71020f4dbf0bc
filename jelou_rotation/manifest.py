"""The manifest: the file a person keeps, projectId -> webhook settings, read whole or refused whole."""

import codecs
import difflib
import hashlib
import io
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import IO, Any, Self

import fsspec  # type: ignore[import-untyped]  # fsspec ships no types
from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from jelou_rotation import manifest_csv, manifest_yaml
from jelou_rotation.errors import Fault, ManifestError
from jelou_rotation.manifest_yaml import Entry, Place
from jelou_rotation.row import Row

MAX_BYTES = 32 * 1024 * 1024
PASTED = "pasted text"
_MOST_FAULTS = 50
_FILE_NAME = re.compile(r"[\w.-]+\.(csv|tsv|ya?ml|json)", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


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
        self._require(only, {name for row in self.rows for name in _names(row)}, "only")
        return replace(self, rows=tuple(row for row in self.rows if not wanted.isdisjoint(_names(row))))

    def require(self, project_ids: Sequence[str]) -> None:
        """Raises ManifestError for each that has no row, so that an order for a mistyped project is not lost."""
        self._require(project_ids, {row.project_id for row in self.rows}, "order")

    def _require(self, entries: Sequence[str], names: Collection[str], field: str) -> None:
        unmatched = [entry for entry in dict.fromkeys(map(str.strip, entries)) if entry not in names]
        if unmatched:
            # Finding the nearest name takes a while among thousands, so only for those that are shown.
            shown = [Fault(self.name, _no_match(entry, names), field=field) for entry in unmatched[:_MOST_FAULTS]]
            raise _refusal(shown, len(unmatched) - len(shown))


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
    return _parsed(*_fetch(source), allow_private_hosts=allow_private_hosts)


# A command in a terminal looks at its manifest before Prefect starts, and its flow does so again.
@lru_cache(maxsize=1)
def _parsed(name: str, data: bytes, *, allow_private_hosts: bool) -> Manifest:
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
    if "\n" not in source and "@" in source.partition("://")[2].partition("/")[0]:
        # Prefect keeps the parameters of a run in clear.
        raise _refusal([Fault(name, "a user or password does not belong in the address of a manifest")])
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
    # The last part that looks like a file: in a mistyped URL anything else may be a piece of a password.
    parts = re.split(r"[/?#]", source.partition("://")[2])
    return next((part for part in reversed(parts) if _FILE_NAME.fullmatch(part)), "manifest")


def _open(source: str) -> Any:
    if "\n" in source or "\r" in source:
        return io.BytesIO(source.encode())
    if "://" not in source:
        return Path(source).open("rb")
    for name in ("fsspec", "fsspec.http"):
        # At DEBUG they log the whole address, and its query may be a signature.
        logging.getLogger(name).setLevel(logging.INFO)
    return fsspec.open(source, "rb")


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
    key = str(details["loc"][0]) if details["loc"] else ""
    place = entry.places.get(key, entry.place)
    match details["type"]:
        case "extra_forbidden":
            return Fault(name, _unknown("key" if entry.place.column else "column", key), *place)
        case "row":
            return Fault(name, details["msg"], *entry.place)
        case "value_error":
            message = details["msg"].removeprefix("Value error, ")
        case "enum" | "literal_error":
            message = f"expected {details['ctx']['expected'].replace(chr(39), '')}"
        case "greater_than_equal" | "less_than_equal":
            message = details["msg"].replace("Input should be", "expected a number")
        case "string_pattern_mismatch":
            message = "expected 1 to 32 printable ASCII characters without space or colon"
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
