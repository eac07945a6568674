"""JSONL: one JSON object a line (RFC 8259, UTF-8); blank lines are no rows.

Integers are exact up to 308 digits; numbers with a point or an exponent are doubles. Of a name that stands twice in one
object the last value counts: it is not noticed. A field that a row lacks is None there, as is a null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import orjson

from . import BATCH_ROWS, RowBatch
from .files import Problems, SourceFile, text_lines

MAX_COLUMNS = 10_000  # more different names are data, not columns, and would not fit in memory

_EXACT = {str, int, bool, type(None)}
_long_number = re.compile("[0-9]{19}").search  # may be an integer beyond 64 bits, of which orjson makes a double


class JsonlSource:
    """Its columns are all names that any row has, in order of appearance, found by one more streaming pass."""

    def __init__(self, file: SourceFile) -> None:
        self.name = file.name
        self._file = file
        self.columns = self._names()

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        names = self.columns if columns is None else tuple(columns)
        problems = Problems(self.name)
        with self._file.open() as stream:
            objects = _objects(stream, problems)
            while chunk := list(islice(objects, BATCH_ROWS)):
                lines, rows = zip(*chunk, strict=True)
                yield RowBatch({name: [row.get(name) for row in rows] for name in names}, lines)
        problems.check()

    def fingerprint(self) -> str:
        return self._file.fingerprint()

    def _names(self) -> tuple[str, ...]:
        names: dict[str, None] = {}
        with self._file.open() as stream:
            problems = Problems(self.name)  # reported by `batches`, but for those that would end that, too
            for line, row in _objects(stream, problems):
                names.update(dict.fromkeys(row))
                if len(names) > MAX_COLUMNS:
                    problems.add(line, f"the {MAX_COLUMNS + 1:,}th different field name, {list(names)[-1]!r}")
                    problems.check()
        return tuple(names)


def _objects(stream: BinaryIO, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    n_before = 0
    for line, text in enumerate(text_lines(stream, problems), 1):
        if problems.count > n_before or not text.strip():
            n_before = problems.count
            continue
        try:
            row = orjson.loads(text)
            if not (isinstance(row, dict) and _EXACT.issuperset(map(type, row.values()))) and _long_number(text):
                row = json.loads(text)
        except orjson.JSONDecodeError as error:
            cut = "" if text.endswith("\n") else "; the file ends inside this line: is it cut off?"
            problems.add(line, f"not JSON: {error.msg}{cut}", error.colno)
        except RecursionError:  # from json, which goes less deep than orjson
            problems.add(line, "nested too deeply to be read")
        else:
            if isinstance(row, dict):
                yield line, row
            else:
                problems.add(line, f"found {_json_name(row)}, expected one JSON object a line")
        n_before = problems.count


def _json_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case _:
            return "an array"
