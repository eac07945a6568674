"""Columns from Python's memory hold what `pa.array` would."""

from __future__ import annotations

import subprocess
import sys
from array import array

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canwait.columns import integers, strings


@given(st.lists(st.text(max_size=5)))
def test_strings_are_those_given(values: list[str]) -> None:
    """Texts of any script come back, and the column is one that Arrow finds sound."""
    column = strings(values)
    column.validate(full=True)
    assert (column.type, column.to_pylist()) == (pa.string(), values)


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_integers_are_those_given(values: list[int]) -> None:
    """Integers of 32 and of 64 bits come back."""
    for code, kind in (("i", pa.int32()), ("q", pa.int64())):
        column = integers(array(code, values))
        assert (column.type, column.to_pylist()) == (kind, values)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    """What UTF-8 cannot hold is an error, not another text."""
    with pytest.raises(UnicodeEncodeError):
        strings(["\ud800"])


def test_pandas_stays_where_it_is() -> None:
    """Making columns imports no pandas, however many are installed."""
    code = "import sys; from canwait.columns import strings; strings(['a']); sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
