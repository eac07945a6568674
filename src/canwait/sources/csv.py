"""CSV and TSV (RFC 4180, UTF-8): every value is text, exactly as it stands; there is no null."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from . import BATCH_ROWS, RowBatch
from .files import MAX_LINE_BYTES, Problems, SourceFile, text_lines

Record = tuple[int, list[str]]  # the line it starts at, its fields


class CsvSource:
    """The first record names the columns; blank lines are no rows. A header alone is a file without rows."""

    def __init__(self, file: SourceFile, delimiter: str) -> None:
        self.name = file.name
        self._file = file
        self._delimiter = delimiter
        problems = Problems(file.name)
        with file.open() as stream:
            records = _records(stream, delimiter, problems)
            line, header = next(records, (0, []))
            if not header:
                problems.add(None, "empty file, expected a header that names the columns")
            for place, name in enumerate(header):
                if (first := header.index(name)) < place:
                    problems.add(
                        line, f"column {name!r} stands twice in the header: fields {first + 1} and {place + 1}"
                    )
            if problems.count:
                for _ in records:  # what else is wrong belongs into the same message
                    pass
        problems.check()
        self.columns = tuple(header)

    def batches(self) -> Iterator[RowBatch]:
        problems = Problems(self.name)
        with self._file.open() as stream:
            records = _records(stream, self._delimiter, problems)
            next(records, None)
            while chunk := list(islice(records, BATCH_ROWS)):
                lines, rows = zip(*chunk, strict=True)
                yield RowBatch(dict(zip(self.columns, zip(*rows, strict=True), strict=True)), lines)
        problems.check()

    def fingerprint(self) -> str:
        return self._file.fingerprint()


def _records(stream: BinaryIO, delimiter: str, problems: Problems) -> Iterator[Record]:
    """The header, then every row that fits it. What does not fit is a problem."""
    # The limit is one per process and lower than a field may be; raising it takes nothing from other users of csv.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    feed = _Feed(text_lines(stream, problems))
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line, n_before = reader.line_num + 1, problems.count
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            place = f" on line {reader.line_num}" if reader.line_num > line else ""
            problems.add(line, _explained(str(error), feed, place))
            if "field larger" in str(error):
                problems.check()  # the lines that follow are inside that field
            fields = []
        if header and fields and len(fields) != len(header):
            cut = "; the file ends inside this line: is it cut off?" if feed.cut and len(fields) < len(header) else ""
            problems.add(line, f"expected {len(header)} fields ({_shown(header)}), found {len(fields)}{cut}")
        if problems.count > n_before:
            if header is None:
                problems.check()  # without a header no row can be judged
        elif fields:
            header = header or fields
            yield line, fields


class _Feed:
    """Lines for a reader that can tell afterwards where they ended."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.cut = False  # the last line read has no end
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.cut = not line.endswith("\n")
            yield line
        self.ended = True


def _explained(error: str, feed: _Feed, place: str) -> str:
    if "field larger" in error:
        return f"a field longer than {MAX_LINE_BYTES:,} characters: is a quote never closed?"
    if "new-line" in error:
        return rf"a carriage return outside quotes{place}; rows end with \n or \r\n"
    if feed.ended:
        return "a quote opened in this row is never closed: the file ends inside it"
    return f'text after a closing quote{place}; a quote inside a quoted field is written twice: ""'


def _shown(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else ", ".join([*names[:12], "..."])
