"""Arrow columns from Python's memory, without `pa.array` and `pa.scalar`: the first call of those imports pandas."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

_KINDS: dict[str, pa.DataType] = {"i": pa.int32(), "q": pa.int64()}


def integers(values: array[int]) -> pa.Array[Any]:
    """Of the array's own type, not copied."""
    return pa.Array.from_buffers(_KINDS[values.typecode], len(values), [None, pa.py_buffer(values)])


def strings(values: Sequence[str]) -> pa.Array[Any]:
    """At most 2 GB of them. Raises UnicodeEncodeError for half of a surrogate pair."""
    together = "".join(values)
    sizes = map(len, values if together.isascii() else [value.encode() for value in values])
    offsets = array("i", accumulate(sizes, initial=0))
    return pa.Array.from_buffers(
        pa.string(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(together.encode())]
    )
