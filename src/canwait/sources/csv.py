"""CSV and TSV (RFC 4180, UTF-8): every value is text, exactly as it stands; there is no null.

Two readers give the same rows. Arrow's is twice as fast, takes some files that are no CSV, and tells no line numbers;
Python's is strict and knows its place. So a file is cut into blocks of whole records: Arrow reads those that
both would read alike, Python reads the rest of a file from the first block where they might differ, and the lines of a
block when somebody asks for them.
"""

from __future__ import annotations

import csv
import io
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, BinaryIO, cast, overload

import pyarrow as pa
from pyarrow import csv as arrow_csv

from . import BATCH_ROWS, RowBatch
from .files import MAX_LINE_BYTES, Problems, SourceFile, text_lines

Record = tuple[int, list[str]]  # the line it starts at, its fields

_BLOCK_BYTES = 1 << 20  # in the second-level cache all the way through Arrow
_MOST_HELD_BYTES = 16 << 20  # of a record; longer ones are Python's
_QUOTE, _LF, _CR = b'"\n\r'
_bare_return = re.compile(rb"\r(?!\n)").search


class CsvSource:
    """The first record names the columns; blank lines are no rows. A header alone is a file without rows."""

    def __init__(self, file: SourceFile, delimiter: str) -> None:
        self.name = file.name
        self._file = file
        self._delimiter = delimiter
        problems = Problems(file.name)
        with file.open() as stream:
            records = _Records(stream, delimiter, problems)
            line, header = next(records, (0, []))
            self._header_lines = records.n_lines
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

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        wanted = self.columns if columns is None else tuple(columns)
        with self._file.open() as stream:
            for _ in range(self._header_lines):
                stream.readline()
            line = self._header_lines + 1
            for read, end, is_plain in _blocks(stream, self._delimiter):
                rows = _arrow_rows(read, end, self._delimiter, self.columns) if is_plain else None
                if rows is None:
                    break
                yield from self._fast(read, end, line, rows, wanted)
                line += read.count(b"\n", 0, end)
            else:
                return
            yield from self._careful(io.BufferedReader(_Rest(read, stream)), line, wanted)

    def fingerprint(self) -> str:
        return self._file.fingerprint()

    def _fast(self, read: bytearray, end: int, line: int, rows: pa.Table, wanted: Sequence[str]) -> Iterator[RowBatch]:
        lines = _Lines(read, end, line, self._delimiter, self.columns)
        columns = [rows.column(name) for name in wanted]
        for start in range(0, rows.num_rows, BATCH_ROWS):
            values = {n: c.slice(start, BATCH_ROWS).to_pylist() for n, c in zip(wanted, columns, strict=True)}
            yield RowBatch(values, _Part(lines, range(start, min(start + BATCH_ROWS, rows.num_rows))))

    def _careful(self, stream: BinaryIO, line: int, wanted: Sequence[str]) -> Iterator[RowBatch]:
        problems = Problems(self.name)
        records = _Records(stream, self._delimiter, problems, line, self.columns)
        places = [self.columns.index(name) for name in wanted]
        while chunk := list(islice(records, BATCH_ROWS)):
            lines, rows = zip(*chunk, strict=True)
            yield RowBatch({n: [row[i] for row in rows] for n, i in zip(wanted, places, strict=True)}, lines)
        problems.check()


# ---------------------------------------------------------------------------------------------------- Arrow's reader


def _blocks(stream: BinaryIO, delimiter: str) -> Iterator[tuple[bytearray, int, bool]]:
    """The stream in blocks of whole records: each with what was read beyond it, where it ends, and whether it is plain.

    The first that is not plain is the last: with quotes that are no CSV nobody knows where records end.
    """
    read, end = bytearray(), 0
    while more := _more(read, end, stream):
        read, end = more, 0
        quotes = _quotes(read)
        end = _record_end(read, quotes)
        if not end and len(read) <= _MOST_HELD_BYTES:
            continue
        yield read, end, end > 0 and _is_plain(read, end, quotes, ord(delimiter))
    if end < len(read):
        read = read[end:]
        quotes = _quotes(read)
        yield read, len(read), len(quotes) % 2 == 0 and _is_plain(read, len(read), quotes, ord(delimiter))


def _more(read: bytearray, end: int, stream: BinaryIO) -> bytearray | None:
    """What was read beyond a block and what follows in the stream, never copied again; None when nothing follows."""
    n = len(read) - end
    more = bytearray(n + _BLOCK_BYTES)
    more[:n] = read[end:]
    with memoryview(more) as view, view[n:] as room:
        n += (found := cast("io.RawIOBase", stream).readinto(room) or 0)
    del more[n:]
    return more if found else None


def _quotes(held: bytearray) -> list[int]:
    """Where its quotes stand: one search each, for they are far apart."""
    quotes = []
    at = held.find(_QUOTE)
    while at >= 0:
        quotes.append(at)
        at = held.find(_QUOTE, at + 1)
    return quotes


def _record_end(held: bytearray, quotes: list[int]) -> int:
    """Where the last whole record ends: at the last line end outside quotes; 0 when none does.

    Quotes behind it are taken off the list.
    """
    end = len(held)
    while True:
        start = quotes[-1] + 1 if quotes else 0
        if len(quotes) % 2 == 0 and (newline := held.rfind(b"\n", start, end)) >= 0:
            return newline + 1
        if not quotes:
            return 0
        end = quotes.pop()


def _is_plain(block: bytearray, end: int, quotes: list[int], delimiter: int) -> bool:
    """Whether up to `end` every quote opens, closes or doubles as RFC 4180 has it, and lines end only at line ends.

    A quote opens where a field begins and closes where one ends; one that opens right behind one that closes is doubled.
    """
    if block.startswith(BOM_UTF8):  # Arrow would take it for the file's mark, wherever the block begins
        return False
    before = {block[at - 1] for at in quotes[::2] if at}
    after = {block[at + 1] for at in quotes[1::2] if at + 1 < end}
    if not (before <= {delimiter, _LF, _QUOTE} and after <= {delimiter, _LF, _CR, _QUOTE}):
        return False
    if block.find(b"\0", 0, end) >= 0:
        return False
    if not _bare_return(block, 0, end):
        return True
    bounds = zip([0, *quotes[1::2]], [*quotes[::2], end], strict=True)  # of what lies outside of quotes
    return not any(_bare_return(block, start, stop) for start, stop in bounds)


def _arrow_rows(read: bytearray, end: int, delimiter: str, columns: Sequence[str]) -> pa.Table | None:
    """The rows of a plain block; None where Python's reader must look."""
    try:
        return arrow_csv.read_csv(
            cast("Any", pa.BufferReader(pa.py_buffer(read).slice(0, end))),
            arrow_csv.ReadOptions(use_threads=False, block_size=end + 1, column_names=list(columns)),
            arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:  # a record of another length, bytes that are no UTF-8
        return None


class _Lines:
    """The lines at which the rows of a block start. Nobody asks for most of them."""

    def __init__(self, read: bytearray, end: int, line: int, delimiter: str, columns: Sequence[str]) -> None:
        self._given = read, end, line, delimiter, columns

    @cached_property
    def all(self) -> list[int]:
        read, end, line, delimiter, columns = self._given
        return [at for at, _ in _Records(io.BytesIO(read[:end]), delimiter, Problems(""), line, columns)]


class _Part(Sequence[int]):
    """Some rows of a block."""

    def __init__(self, lines: _Lines, rows: range) -> None:
        self._lines, self._rows = lines, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[int]: ...
    def __getitem__(self, at: int | slice) -> int | Sequence[int]:
        if isinstance(at, slice):
            return _Part(self._lines, self._rows[at])
        return self._lines.all[self._rows[at]]


# --------------------------------------------------------------------------------------------------- Python's reader


class _Records(Iterator[Record]):
    """The header, if it is not given, then every row that fits it. What does not fit is a problem."""

    def __init__(
        self, stream: BinaryIO, delimiter: str, problems: Problems, first_line: int = 1, header: Sequence[str] = ()
    ) -> None:
        # The limit is one per process and lower than a field may be; raising it takes nothing from other users of csv.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        self._feed = _Feed(text_lines(stream, problems, first_line))
        self._reader = csv.reader(self._feed, delimiter=delimiter, strict=True)
        self._before, self._problems, self._header = first_line - 1, problems, header

    @property
    def n_lines(self) -> int:
        """Lines read so far."""
        return self._reader.line_num

    def __next__(self) -> Record:
        problems, reader = self._problems, self._reader
        while True:
            line, n_before = self._before + reader.line_num + 1, problems.count
            try:
                fields = next(reader)
            except csv.Error as error:
                last = self._before + reader.line_num
                problems.add(line, _explained(str(error), self._feed, f" on line {last}" if last > line else ""))
                if "field larger" in str(error):
                    problems.check()  # the lines that follow are inside that field
                fields = []
            if self._header and fields and len(fields) != len(self._header):
                short = self._feed.cut and len(fields) < len(self._header)
                cut = "; the file ends inside this line: is it cut off?" if short else ""
                wanted = f"expected {len(self._header)} fields ({_shown(self._header)})"
                problems.add(line, f"{wanted}, found {len(fields)}{cut}")
            if problems.count > n_before:
                if not self._header:
                    problems.check()  # without a header no row can be judged
            elif fields:
                self._header = self._header or fields
                return line, fields


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


class _Rest(io.RawIOBase):
    """What was read already, then the rest of the stream."""

    def __init__(self, read: bytearray, stream: BinaryIO) -> None:
        self._read, self._stream = memoryview(read), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._read[: len(buffer)] or self._stream.read(len(buffer))
        self._read = self._read[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)


def _explained(error: str, feed: _Feed, place: str) -> str:
    if "field larger" in error:
        return f"a field longer than {MAX_LINE_BYTES:,} characters: is a quote never closed?"
    if "new-line" in error:
        return rf"a carriage return outside quotes{place}; rows end with \n or \r\n"
    if feed.ended:
        return "a quote opened in this row is never closed: the file ends inside it"
    return f'text after a closing quote{place}; a quote inside a quoted field is written twice: ""'


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else ", ".join([*names[:12], "..."])
