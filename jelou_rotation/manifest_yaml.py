"""
A manifest in YAML: `defaults:` and `projects:`, every scalar the text a person typed, with its line and column.

Only parser events are read and no value is ever constructed, so `0123`, `yes` and `null` stay text and no tag can
build an object.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from jelou_rotation.errors import Fault

# YAML takes U+0085, U+2028 and U+2029 for line breaks and folds them away; the others end the parser without a line.
_STRAY = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_TOP_LEVEL = ("$schema", "defaults", "projects")
_DEEPEST = 4  # document, projects, row, tags
_USE_DEFAULTS = "are not used here: put what rows share under defaults"


class Place(NamedTuple):
    """Counted from 1; a spreadsheet has no `column`."""

    line: int
    column: int | None = None


class Entry(NamedTuple):
    """One row as it was typed: its settings by key, and where each one stands."""

    place: Place
    values: dict[str, str | list[str]]
    places: dict[str, Place]


class Text(NamedTuple):
    """A scalar; an empty one is not set."""

    text: str
    place: Place


class Items(NamedTuple):
    items: "list[Node]"
    place: Place


class Pairs(NamedTuple):
    pairs: "list[tuple[Text, Node]]"
    place: Place


# None stands for an alias or what is merged by one, refused already.
Node: TypeAlias = Text | Items | Pairs | None


class _TooDeepError(Exception):
    """Nested deeper than a manifest needs."""


def read(text: str, where: str, known: Collection[str]) -> tuple[list[Entry], list[Fault]]:
    """The rows with the defaults merged under them, and what is wrong with the form; such a row is left out."""
    faults = [*_stray_characters(text, where)]
    if faults:
        return [], faults
    nodes = _Nodes(text, where, faults)
    try:
        root = nodes.document()
    except (yaml.YAMLError, _TooDeepError) as error:
        faults.append(_syntax_fault(error, where))
        return [], faults
    return _Form(where, faults, known).entries(root), faults


def write(projects: dict[str, dict[str, Any]]) -> str:
    """The same form again, from settings by projectId. Quoted as JSON, so that every YAML reader sees texts."""
    lines = ["projects:" if projects else "projects: {}"]
    for project_id, settings in projects.items():
        lines.append(f"  {json.dumps(project_id, ensure_ascii=False)}:")
        lines += [f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def json_schema(row: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of the whole form, around that of a row."""
    definitions = row.pop("$defs", {})
    settings = {key: value for key, value in row["properties"].items() if key != "projectId"}
    definitions["row"] = row
    definitions["settings"] = {
        "description": "The settings of one project, with the API's own names.",
        "type": ["object", "null"],
        "properties": settings,
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "jelou-rotation manifest",
        "description": "The webhook settings each Jelou project shall have.",
        "type": "object",
        "required": ["projects"],
        "additionalProperties": False,
        "properties": {
            "$schema": {"type": "string", "description": "Where this schema is found."},
            "defaults": {
                "description": "What rows share. A row's own value wins; tags are joined.",
                "$ref": "#/$defs/settings",
            },
            "projects": {
                "description": "One key for each projectId, or a list of rows with a projectId.",
                "anyOf": [
                    {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/settings"}},
                    {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/row"}},
                ],
            },
        },
        "$defs": definitions,
    }


def _stray_characters(text: str, where: str) -> Iterator[Fault]:
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if found := _STRAY.search(line):
            yield Fault(where, f"control character U+{ord(found[0]):04X}", number, found.start() + 1)


def _syntax_fault(error: yaml.YAMLError | _TooDeepError, where: str) -> Fault:
    """What libyaml says about the place, in its own fixed words; its message would quote the source line."""
    if isinstance(error, _TooDeepError):
        return Fault(where, "nested deeper than a manifest needs", *error.args[0])
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return Fault(where, "not valid YAML")
    message = f"not valid YAML: {error.problem}"
    if error.context_mark is not None and error.context_mark.line != error.problem_mark.line:
        message += f" {error.context} that starts in line {error.context_mark.line + 1}"
    return Fault(where, message, *_place(error.problem_mark))


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


class _Nodes:
    """Parser events to nodes; what a manifest has no use for is a fault."""

    def __init__(self, text: str, where: str, faults: list[Fault]) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
        self._where = where
        self._faults = faults

    def document(self) -> Node:
        root: Node = None
        documents = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "a manifest is one document: remove the line ---")
                    break
            elif isinstance(event, ScalarEvent | AliasEvent | MappingStartEvent | SequenceStartEvent):
                root = self._node(event, depth=1)
        return root

    def _node(self, event: Any, depth: int) -> Node:
        place = _place(event.start_mark)
        if isinstance(event, AliasEvent):
            self._refuse(event, f"aliases {_USE_DEFAULTS}")
            return None
        if event.anchor is not None:
            self._refuse(event, f"anchors {_USE_DEFAULTS}")
        if event.tag is not None:
            self._refuse(event, "YAML tags are not used here: every value is a text")
        if isinstance(event, ScalarEvent):
            is_plain = event.implicit[0]
            return Text("" if is_plain and event.value == "~" else event.value, place)
        if depth > _DEEPEST:
            raise _TooDeepError(place)
        if isinstance(event, SequenceStartEvent):
            return Items([*self._items(depth)], place)
        return Pairs([*self._pairs(depth)], place)

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _pairs(self, depth: int) -> Iterator[tuple[Text, Node]]:
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._node(event, depth + 1)
            value = self._node(next(self._events), depth + 1)
            if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
                self._refuse(event, f"merge keys {_USE_DEFAULTS}")
                yield Text(event.value, _place(event.start_mark)), None
            elif isinstance(key, Text):
                yield key, value
            elif key:
                self._refuse(event, "a key must be a text")

    def _refuse(self, event: Any, message: str) -> None:
        self._faults.append(Fault(self._where, message, *_place(event.start_mark)))


class _Form:
    """Nodes to rows: `projects:` as a mapping or a list, with `defaults:` under each."""

    def __init__(self, where: str, faults: list[Fault], known: Collection[str]) -> None:
        self._where = where
        self._faults = faults
        self._known = known

    def entries(self, root: Node) -> list[Entry]:
        if root is None or (isinstance(root, Text) and not root.text):
            return []
        if not isinstance(root, Pairs):
            self._refuse("expected projects: at the top", root.place)
            return []
        sections = {key.text: (key, node) for key, node in self._unique(root)}
        for name, (key, _) in sections.items():
            if name not in _TOP_LEVEL:
                self._refuse("unknown key, expected defaults or projects", key.place)
        defaults = self._defaults(*sections["defaults"]) if "defaults" in sections else Entry(root.place, {}, {})
        projects = self._projects(sections["projects"][1]) if "projects" in sections else []
        return [_merged(defaults, entry) for entry in projects] if defaults else []

    def _defaults(self, key: Text, node: Node) -> Entry | None:
        """None when they cannot be read: what is missing in a row then would only look like its fault."""
        defaults = self._settings(node, key.place)
        if defaults and "projectId" in defaults.values:
            self._refuse("belongs under projects", defaults.places["projectId"], "projectId")
        return defaults

    def _projects(self, node: Node) -> list[Entry]:
        if isinstance(node, Items):
            rows = [self._settings(item, item.place) for item in node.items if item]
        elif isinstance(node, Pairs):
            rows = [self._project(key, settings) for key, settings in node.pairs]
        else:
            rows = []
            if node and node.text:
                self._refuse("expected one key for each projectId, or a list", node.place, "projects")
        return [row for row in rows if row]

    def _project(self, key: Text, node: Node) -> Entry | None:
        entry = self._settings(node, key.place)
        if entry and "projectId" in entry.values:
            self._refuse("is the key of this row already", entry.places["projectId"], "projectId")
        if entry:
            entry.values["projectId"], entry.places["projectId"] = key.text, key.place
        return entry

    def _settings(self, node: Node, place: Place) -> Entry | None:
        """None when something in it is no setting at all, which is a fault already."""
        entry = Entry(place, {}, {})
        if node is None:
            return None
        if isinstance(node, Text) and not node.text:
            return entry
        if not isinstance(node, Pairs):
            self._refuse("expected settings such as webhookUrl and authType", node.place)
            return None
        readable = True
        for key, value in self._unique(node):
            is_known = key.text in self._known
            setting = self._value(key.text, value) if is_known or value is None else ""
            readable = readable and setting is not None
            entry.places[key.text] = value.place if is_known and value else key.place
            if setting or not is_known:
                entry.values[key.text] = setting or ""
        return entry if readable else None

    def _value(self, key: str, node: Node) -> str | list[str] | None:
        """The text, or the texts of `tags`; empty when not set; None when it is neither, which is a fault."""
        if isinstance(node, Text) and (key != "tags" or not node.text):
            return node.text
        if isinstance(node, Items) and key == "tags":
            tags = [item.text for item in node.items if isinstance(item, Text)]
            if len(tags) == len(node.items):
                return tags
        if node:
            expected = "expected a list such as [north, pilot]" if key == "tags" else "expected a text"
            self._refuse(expected, node.place, key)
        return None

    def _unique(self, node: Pairs) -> Iterator[tuple[Text, Node]]:
        first: dict[str, Place] = {}
        for key, value in node.pairs:
            if key.text in first:
                field = key.text if key.text in {*self._known, *_TOP_LEVEL} else None
                self._refuse(f"duplicate key, first in line {first[key.text].line}", key.place, field)
            else:
                first[key.text] = key.place
                yield key, value

    def _refuse(self, message: str, place: Place, field: str | None = None) -> None:
        self._faults.append(Fault(self._where, message, *place, field))


def _merged(defaults: Entry, own: Entry) -> Entry:
    """A row's own value wins, tags are joined; a row that says no_auth does not inherit an authorization."""
    values = defaults.values | own.values
    places = own.places | {key: defaults.places[key] for key in defaults.values if key not in own.values}
    if own.values.get("authType") == "no_auth" and "authorization" not in own.values:
        values.pop("authorization", None)
    if "tags" in own.values:
        values["tags"] = [*defaults.values.get("tags", ()), *own.values["tags"]]
    return Entry(own.place, values, places)
