"""Logs as people have them: files, folders of files, standard input, compressed or not. What each holds is found out by
looking, and calls are streamed: memory is a line, a block of a Parquet file, or one JSON document of a stated size.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any, cast

import orjson

from ..errors import CanwaitError, Problem, SourceError
from .calls import Asked, BadLine, Bucket, Call, Format, Item
from .findings import LogFile
from .formats import FORMATS, Faults
from .formats.plain import ALIASES, NAMES

ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".log")  # of what a folder is searched for
MAX_LINE_BYTES = 16 << 20  # of an export request of a collector, or of a row of a table; what is longer is neither
MAX_DOCUMENT_BYTES = 64 << 20  # a document is held as a whole, in about six times its size
MAX_VALUES = 1_000_000  # objects and arrays of a line or a document: each takes many times its two characters
N_LOOKED_AT = 10_000  # records, before a file is said to be no log
N_BAD_KEPT = 5  # lines shown of a file

_BUFFER_BYTES = 1 << 20
_PACKED = {".gz", ".zst"}
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BINARY: Mapping[bytes, str] = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "an image or a sound",
    b"%PDF": "a PDF, such as an invoice",
    b"PK\x03\x04": "a ZIP archive, such as a spreadsheet",
    b"SQLite format 3": "a SQLite database",
    b"\x7fELF": "a program",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"Obj\x01": "an Avro file",
    b"ARROW1": "an Arrow file",
    codecs.BOM_UTF16_LE: "UTF-16 text",
    codecs.BOM_UTF16_BE: "UTF-16 text",
}
# Where answers of an API hold what they list.
_PAGES = ("data", "observations", "logEvents", "records", "rows", "items")
_PYTHON = re.compile(r"\s*(#!|# -\*-|from \w[\w.]* import |import \w|def \w+\(|class \w+|@\w[\w.]*(\(|\s*\n)|\"\"\")")
_MARKDOWN = re.compile(r"\s*(#{1,6} \w|\* \w|- \w)")
_YAML = re.compile(r"(---\s|%YAML|[\w-]+:(\s|$))")
_DELIMITERS = ",\t;|"

_BATCH_OUTPUT = "the output of a batch job, which is work that waits already"
_BATCH_INPUT = "the requests of a batch job, which is work that waits already"
# Fields that tell what a record is, where it is no call: the first row whose fields all stand in the record.
_KINDS: Sequence[tuple[str, str]] = (
    ("custom_id response", _BATCH_OUTPUT),
    ("custom_id result", _BATCH_OUTPUT),
    ("custom_id error", _BATCH_OUTPUT),
    ("processed_time request", _BATCH_OUTPUT),
    ("key response", _BATCH_OUTPUT),
    ("modelInput modelOutput", _BATCH_OUTPUT),
    ("custom_id body", _BATCH_INPUT),
    ("custom_id params", _BATCH_INPUT),
    ("key request", _BATCH_INPUT),
    ("modelInput", _BATCH_INPUT),
    ("resourceMetrics", "OpenTelemetry metrics, which hold no calls: export the spans"),
    ("resourceLogs", "OpenTelemetry log records, which hold no spans: export the traces"),
    ("nbformat cells", "a notebook"),
    ("BilledCost ChargePeriodStart", "a cost export in FOCUS columns"),
    ("lineItem/UsageStartDate", "an AWS cost and usage report"),
    ("InvoiceId", "an invoice"),
    ("invoice_id", "an invoice"),
    ("invoice_number", "an invoice"),
    ("amount_due", "an invoice"),
)


class _Bad(str):
    """Why a record cannot be read."""

    __slots__ = ()


_Found = tuple[int, "Mapping[str, Any] | _Bad"]  # line or number of a record


def read_logs(paths: Sequence[Path], asked: Asked, stdin: BufferedReader | None = None) -> Iterator[Log]:
    """The logs of files, of all files below folders, and of "-", in that order. Each is read by iterating over it.

    Raises SourceError for a named file that is no log before any is read, and for a folder in which there is none.
    """
    _must_be_known(asked)
    for path in paths:
        if str(path) != "-" and (path.is_file() or not path.exists()):  # what can be read again
            Log(path, asked).look()
    for path in paths:
        if not path.is_dir():
            yield Log(path, asked, stdin)
            continue
        refused: list[str] = []
        n_logs = 0
        for file in _files(path):
            log = Log(file, asked, among_others=True)
            yield log
            n_logs += log.is_log
            refused += [] if log.is_log else [str(file)]
        if not n_logs:
            seen = f"; looked at {', '.join(refused[:3])}{' ...' if refused[3:] else ''}" if refused else ""
            raise _refused(str(path), f"is a folder without a log: expected files ending in {', '.join(ENDINGS)}{seen}")


class Log:
    """One log: iterate over it once, then ask for its summary."""

    def __init__(
        self, path: Path, asked: Asked, stdin: BufferedReader | None = None, *, among_others: bool = False
    ) -> None:
        self.file = "standard input" if str(path) == "-" else str(path)
        self.title = ""
        self.is_log = True  # False: one of a folder that turned out to be none
        self._path, self._asked, self._stdin, self._among_others = path, asked, stdin, among_others
        self._n_calls = self._n_buckets = self._n_bad = 0
        self._bad: list[BadLine] = []

    def look(self) -> None:
        """Find out what it is. Raises SourceError when it is no log of calls, or cannot be opened."""
        with self._opened() as stream:
            self.title = self._recognised(self._records(stream))[0].title

    def __iter__(self) -> Iterator[Item]:
        """Every call and bucket, and every line that is neither.

        Raises SourceError when it is no log; of a folder's files it is then one bad line.
        """
        for item in self._items():
            if type(item) is Call:
                self._n_calls += 1
            elif type(item) is Bucket:
                self._n_buckets += 1
            elif type(item) is BadLine:
                self._n_bad += 1
                if len(self._bad) < N_BAD_KEPT:
                    self._bad.append(item)
            yield item

    def summary(self, n_repeated: int = 0) -> LogFile:
        """What was read so far; which records were repeated is known to whoever keeps their ids."""
        return LogFile(self.file, self.title, self._n_calls, self._n_buckets, self._n_bad, n_repeated, tuple(self._bad))

    def _items(self) -> Iterator[Item]:
        file, line, asked = self.file, 0, self._asked
        try:
            with self._opened() as stream:
                read, records = self._recognised(self._records(stream))
                self.title = read.title
                for line, record in records:
                    if isinstance(record, _Bad):
                        yield BadLine(file, line, record)
                        continue
                    try:
                        yield from read.items(record, asked)
                    except Faults as error:
                        yield from [BadLine(file, line, why) for why in error.whys]
                    except ValueError as error:
                        yield BadLine(file, line, str(error))
        except SourceError as error:
            if not self.title and not self._among_others:
                raise
            self.is_log, self.title = bool(self.title), self.title or "not a log"
            yield BadLine(file, error.problems[0].line or line, error.problems[0].message)

    def _recognised(self, records: Iterator[_Found]) -> tuple[Format, Iterator[_Found]]:
        """The format, and all records. Those before the first that is recognised are bad."""
        seen: list[_Found] = []
        first: Mapping[str, Any] | None = None
        for found in records:
            line, record = found
            if not isinstance(record, _Bad):
                if format := self._format_of(record):
                    return format, chain(seen, [found], records)
                first = record if first is None else first
                found = (line, _Bad("no record of a log that is known"))
            seen.append(found)
            if len(seen) >= N_LOOKED_AT:
                break
        if first is not None:
            raise _refused(self.file, f"looks like {_kind_of(first)}")
        if seen:
            raise _refused(self.file, f"no line of it can be read; the first: {seen[0][1]}", seen[0][0])
        raise _refused(self.file, "holds no records")

    def _format_of(self, record: Mapping[str, Any]) -> Format | None:
        if columns := self._asked.columns:
            if missing := [c for c in columns.values() if c not in record]:
                found = ", ".join(map(repr, [*record][:30]))
                raise _refused(self.file, f"has no column {', '.join(map(repr, missing))}; its columns are {found}")
            return FORMATS["plain"]
        if self._asked.format:
            return FORMATS[self._asked.format]
        return next((f for f in FORMATS.values() if f.claims(record)), None)

    # ------------------------------------------------------------------------------------------------------- records

    def _records(self, stream: BufferedReader) -> Iterator[_Found]:
        """The records of a stream: of JSON lines or documents, of a table, or of a Parquet file."""
        head = stream.peek(_BUFFER_BYTES)
        if not head:
            raise _refused(self.file, "is empty")
        if head.startswith(b"PAR1"):
            return self._rows()
        for magic, kind in _BINARY.items():
            if head.startswith(magic):
                raise _refused(self.file, f"looks like {kind}")
        if b"\0" in head[:4096]:
            raise _refused(self.file, "looks like binary data")
        start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:4096]
        if start[:1] in (b"{", b"["):
            return self._json(stream)
        text = start.decode(errors="replace")
        line = text.partition("\n")[0]
        delimiter = max(_DELIMITERS, key=line.count)
        if what := _text_kind(self.file, text, table=delimiter in line):
            raise _refused(self.file, f"looks like {what}")
        return self._table(stream, delimiter)

    def _json(self, stream: BufferedReader) -> Iterator[_Found]:
        """One object a line, or documents that begin and end at the start of a line."""
        number, first, lines = 0, b"", _physical(stream)
        for number, raw in enumerate(lines, 1):
            first = raw.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else raw.strip()
            if first:
                break
        second = next(lines, b"") if first == b"[" else b""
        if second and _is_json(second.strip().removesuffix(b",")):  # an array of one object a line
            return _lines(chain([second], lines), number + 1, array=True)
        if second or (first[-1:] in (b"{", b"[", b",") and not _is_json(first)):
            return self._documents(chain([first + b"\n", second], lines))
        return _lines(chain([first], lines), number)

    def _documents(self, lines: Iterator[bytes]) -> Iterator[_Found]:
        """The records of each document, numbered through the file."""
        number, held, size = 0, list[bytes](), 0
        for line in lines:
            held.append(line)
            size += len(line)
            if size > MAX_DOCUMENT_BYTES:
                raise _refused(
                    self.file,
                    f"one JSON document of more than {MAX_DOCUMENT_BYTES >> 20} MB, which is not held in memory",
                    hint="write one record a line: `jq -c '.[]? // .data[]' FILE > FILE.jsonl`",
                )
            if line[:1] in (b"}", b"]"):
                for record in _parsed(b"".join(held)):
                    yield (number := number + 1), record
                held, size = [], 0
        if any(line.strip() for line in held):
            for record in _parsed(b"".join(held)):
                yield number + 1, record

    def _table(self, stream: BufferedReader, delimiter: str) -> Iterator[_Found]:
        """The rows of a CSV by the names of its columns."""
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        text = _Text(stream)
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        header: list[str] = []
        while True:
            line = reader.line_num + 1
            text.n_bytes = 0
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield line, _Bad(f"no row of a table: {error}")
                continue
            if row is None:
                return
            if not header:
                header = row
            elif len(row) == len(header):
                yield line, dict(zip(header, row, strict=True))
            elif row:
                yield line, _Bad(f"expected {len(header)} fields, found {len(row)}")

    def _rows(self) -> Iterator[_Found]:
        from ..sources.files import SourceFile  # brings Arrow along
        from ..sources.parquet import ParquetSource

        if str(self._path) == "-":
            raise _refused(self.file, "a Parquet file cannot be read from standard input")
        source = ParquetSource(SourceFile(self.file, self._path))
        for batch in source.batches():
            for line, *values in zip(batch.lines, *batch.columns.values(), strict=True):
                yield line, dict(zip(batch.columns, values, strict=True))

    @contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        """The text of the file, unpacked. Raises SourceError where it cannot be opened, or ends too early."""
        try:
            with self._raw() as file:
                magic = file.peek(4)[:4]
                codec = next((codec for start, codec in _MAGIC.items() if magic.startswith(start)), None)
                if codec is None:
                    yield file
                    return
                from ..compression import Damaged, decompressed  # brings Arrow along

                try:
                    yield decompressed(file, cast(Any, codec))
                except Damaged as error:
                    raise _refused(self.file, error.what, error.line) from error
        except OSError as error:
            raise _refused(self.file, f"cannot be read: {error.strerror or error}") from error

    @contextmanager
    def _raw(self) -> Iterator[BufferedReader]:
        if str(self._path) == "-":
            yield self._stdin or cast(BufferedReader, sys.stdin.buffer)
            return
        with self._path.open("rb", _BUFFER_BYTES) as file:
            yield cast(BufferedReader, file)


# ---------------------------------------------------------------------------------------------------------------- lines


def _lines(lines: Iterator[bytes], first: int, *, array: bool = False) -> Iterator[_Found]:
    """The records of JSON lines, the first of which has this number; in an array, commas stand behind them."""
    loads = orjson.loads
    for number, raw in enumerate(lines, first):
        if array:
            raw = raw.strip().removesuffix(b",")
            if raw == b"]":
                continue
        if len(raw) > MAX_VALUES and _n_values(raw) > MAX_VALUES:
            yield number, _Bad(_TOO_MANY)
            continue
        try:
            value = loads(raw)
        except orjson.JSONDecodeError as error:
            if not raw or raw.isspace():
                continue
            if len(raw) >= MAX_LINE_BYTES - 1:  # the first comes without the space around it
                yield number, _Bad(f"longer than {MAX_LINE_BYTES >> 20} MB: expected one record a line")
            else:
                yield number, _Bad(_no_json(error, raw))
            continue
        if type(value) is dict and _listed(value) is None:
            yield number, value
        else:
            for record in _unwrapped(value):
                yield number, record


def _physical(stream: BufferedReader) -> Iterator[bytes]:
    """Lines with their ends. Of one that is too long there is only the start."""
    while raw := stream.readline(MAX_LINE_BYTES):
        if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (more := stream.readline(_BUFFER_BYTES)) and not more.endswith(b"\n"):
                pass
        yield raw


class _Text:
    """The lines of a table as text. Raises csv.Error for a row that spans too many of them."""

    def __init__(self, stream: BufferedReader) -> None:
        self.n_bytes = 0  # since the row began
        self._lines = _physical(stream)
        self._mark = codecs.BOM_UTF8

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.n_bytes > MAX_LINE_BYTES:
            raise csv.Error(f"longer than {MAX_LINE_BYTES >> 20} MB")
        raw, self._mark = next(self._lines).removeprefix(self._mark), b""
        self.n_bytes += len(raw)
        return raw.replace(b"\0", b"").decode(errors="replace")


def _n_values(raw: bytes) -> int:
    """Objects and arrays, at most."""
    return raw.count(b"{") + raw.count(b"[")


_TOO_MANY = f"holds more than {MAX_VALUES:,} objects and arrays: expected one record a line"


def _parsed(document: bytes) -> Iterator[Mapping[str, Any] | _Bad]:
    if len(document) > MAX_VALUES and _n_values(document) > MAX_VALUES:
        yield _Bad(_TOO_MANY)
        return
    try:
        value = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        yield _Bad(_no_json(error, document))
    else:
        yield from _unwrapped(value)


def _unwrapped(value: object, nested: int = 0) -> Iterator[Mapping[str, Any] | _Bad]:
    """The records of an array, or of a page of an API."""
    if type(value) is dict:
        held = _listed(value)
        if held is None or nested > 2:
            yield value
            return
        value = held
    if type(value) is list and nested <= 2:
        for one in value:
            yield from _unwrapped(one, nested + 1)
    else:
        yield _Bad(f"found {_json_name(value)}, expected an object")


def _listed(value: dict[str, Any]) -> list[Any] | None:
    """What a page lists. An answer with embeddings lists vectors, and says what they cost."""
    for name in _PAGES:
        if name in value:
            held = value[name]
            if type(held) is list and "usage" not in value and all(type(x) is dict for x in held[:3]):
                return held
    return None


def _is_json(text: bytes) -> bool:
    if len(text) > MAX_VALUES and _n_values(text) > MAX_VALUES:
        return True  # a line that is told to hold too many
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _no_json(error: orjson.JSONDecodeError, raw: bytes) -> str:
    cut = "" if raw.endswith((b"\n", b"}", b"]")) else "; the file ends inside this line: is it cut off?"
    return f"not JSON: {error.msg}{cut}"


def _json_name(value: object) -> str:
    return (
        "null"
        if value is None
        else {str: "a string", list: "an array", bool: "true or false"}.get(type(value), "a number")
    )


# ----------------------------------------------------------------------------------------------------- what it looks like


def _must_be_known(asked: Asked) -> None:
    if asked.format is not None and asked.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise _option("--format", f"unknown log format {asked.format!r}; expected one of: {known}")
    for field in asked.columns:
        if ALIASES.get(field, field) not in NAMES:
            raise _option("--column", f"a call has no field {field!r}; expected one of: {', '.join(NAMES)}")
    if asked.columns and asked.format not in (None, "plain", "canwait"):
        raise _option("--column", f"columns are named for plain tables, not for the format {asked.format!r}")


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder that may be logs, in order of their names. Hidden ones and links to folders are left."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            bare = path.with_suffix("") if path.suffix.lower() in _PACKED else path
            if not name.startswith(".") and bare.suffix.lower() in ENDINGS and path.is_file():
                yield path


def _kind_of(record: Mapping[str, Any]) -> str:
    """What a record that is no call looks like."""
    for fields, kind in _KINDS:
        if all(name in record for name in fields.split()):
            return kind
    names = [repr(str(name)[:40]) for name in record]
    more = ", ..." if names[12:] else ""
    return f"records with the fields {', '.join(names[:12])}{more}" if names else "empty records"


def _text_kind(file: str, text: str, *, table: bool) -> str | None:
    """What a text looks like that is neither JSON nor a table; None for a table."""
    if file.endswith((".py", ".pyi")) or _PYTHON.match(text):
        return "Python source: `canwait audit` reads folders of it"
    if text.startswith("<"):
        return "HTML or XML"
    if _MARKDOWN.match(text):
        return "Markdown"
    if not table and _YAML.match(text):
        return "YAML"
    return None if table else "text"


def _option(option: str, why: str) -> CanwaitError:
    return SourceError([Problem(option, None, None, None, why)], hint="see docs/audit-logs.md")


def _refused(file: str, why: str, line: int | None = None, hint: str | None = None) -> SourceError:
    return SourceError(
        [Problem(file, line, None, None, f"{why}; expected a log of calls" if why.startswith("looks") else why)],
        hint=hint
        or "logs of these are known: OpenTelemetry, LiteLLM, Langfuse, Helicone, OpenAI, Anthropic, Bedrock, Vertex; "
        "of any other table name the columns: `canwait audit FILE --column start=COLUMN --column model=COLUMN` "
        "(docs/audit-logs.md)",
    )
