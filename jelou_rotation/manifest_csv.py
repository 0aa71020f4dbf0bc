"""A manifest as spreadsheets really save it: the texts under each column, and the line each record starts in."""

import csv
import io
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from jelou_rotation.errors import Fault

BLANK = " \t\r\n\u00a0"
_DELIMITERS = ";,\t"
_SEP_LINE = re.compile(rf'"?sep=[{_DELIMITERS}]"?[{_DELIMITERS}]*', re.IGNORECASE)


class Record(NamedTuple):
    """One record: the line it starts in, and the text under each column."""

    line: int
    cells: dict[str, str]


class Table(NamedTuple):
    """A header and its records; `columns` has a known name in its own spelling, any other as it was typed."""

    line: int
    columns: list[str]
    records: list[Record]


def looks_like_csv(text: str, known: Collection[str]) -> bool:
    """Whether the first line that says anything is a header with two known columns or more, and no comment."""
    header, delimiter = _dialect(_lines(text), known)
    return not header.lstrip(BLANK).startswith("#") and _known_columns(header, delimiter, known) >= 2


def read(text: str, where: str, known: Collection[str]) -> tuple[Table, list[Fault]]:
    """The table, and what is wrong with its shape; a record that does not fit the header is left out."""
    lines = _lines(text)
    _, delimiter = _dialect(lines, known)
    faults: list[Fault] = []
    records = _records(lines, delimiter, where, faults)
    line, header = next(records, (1, []))
    columns = _columns(header, known)
    faults += _header_faults(columns, where, line, known)
    table = Table(line, columns, [])
    if header and "projectId" not in columns:
        return table, faults
    for start, cells in records:
        if any(cells[len(columns) :]) or any(c for c, name in zip(cells, columns, strict=False) if not name):
            faults.append(Fault(where, "more cells than the header", start))
        else:
            named = {name: cell for name, cell in zip(columns, cells, strict=False) if name}
            table.records.append(Record(start, named))
    return table, faults


def _lines(text: str) -> list[str]:
    """Physical lines as an editor counts them: CRLF, a lone CR and LF all end one. Excel's `sep=;` is blanked."""
    lines = list(io.StringIO(text, newline=None))
    if lines and _SEP_LINE.fullmatch(lines[0].strip(BLANK)):
        lines[0] = "\n"
    return lines


def _dialect(lines: list[str], known: Collection[str]) -> tuple[str, str]:
    """The header line, and the delimiter that finds the most known columns in it."""
    header = next((line for line in lines if line.strip(BLANK + _DELIMITERS)), "")
    return header, max(_DELIMITERS, key=lambda mark: (_known_columns(header, mark, known), header.count(mark)))


def _known_columns(header: str, delimiter: str, known: Collection[str]) -> int:
    try:
        cells = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return 0
    return len({*_columns(cells, known)} & {*known})


def _columns(header: list[str], known: Collection[str]) -> list[str]:
    spelling = {name.lower(): name for name in known}
    names = [cell.strip(BLANK) for cell in header]
    return [spelling.get(name.lower(), name) for name in names]


def _header_faults(columns: list[str], where: str, line: int, known: Collection[str]) -> Iterator[Fault]:
    if columns and "projectId" not in columns:
        yield Fault(where, f"no column projectId, expected {', '.join(known)}", line)
    for name in known:
        if columns.count(name) > 1:
            yield Fault(where, "duplicate column", line, field=name)


def _records(lines: list[str], delimiter: str, where: str, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """Every record that is not blank. Strict: a quote left open would otherwise swallow all rows after it."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    start = 1
    try:
        for record in reader:
            cells = [cell.strip(BLANK) for cell in record]
            if any(cells):
                yield start, cells
            start = reader.line_num + 1
    except csv.Error:
        faults.append(Fault(where, "a quote in this record is not closed or not doubled", start))
