"""Rows into an object of S3, Google Cloud Storage or Azure: a file is made here and takes the object's place at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import pyarrow as pa

from ..addresses import Unusable
from ..errors import SinkBusy, SinkError
from ..objects import Changed, Object
from . import Sink


class ObjectSink:
    """A merge or an append begins with a copy of the object, and ends only if the object is still that version."""

    def __init__(
        self,
        name: str,
        target: Object,
        local: Callable[[Path], Sink],  # what writes the file
        mode: Literal["merge", "append", "replace"],
        scratch: Path | None,
    ) -> None:
        self.name = name
        self._target = target
        self._local = local
        self._mode = mode
        self._scratch = scratch

    def check(self) -> None:
        """Raises SinkError when the store cannot be reached or does not let us see. Writes nothing."""
        try:
            self._target.exists()
        except Unusable as error:
            raise SinkError(f"{self.name}: {error}", hint="mend `load` or the environment") from error

    def load(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> int:
        try:
            if self._scratch is not None:
                self._scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="canwait-object-", dir=self._scratch) as folder:
                path = Path(folder, "rows")
                old = self._target.download(path) if self._mode != "replace" else None
                n_rows = self._local(path).load(batches, schema)
                if self._mode == "replace":
                    self._target.upload(path)
                else:
                    self._target.exchange(path, old)
                return n_rows
        except Changed as error:
            what = f"{self.name}: {error}; what it wrote is kept, and nothing of this load is in it"
            raise SinkBusy(what, hint="run again: the rows are merged into what is there now") from error
        except Unusable as error:
            hint = "mend it and run again: what is paid is kept"
            raise SinkError(f"{self.name}: {error}; the target is as it was", hint=hint) from error
        except OSError as error:
            what = f"{self.name}: {error.strerror or error}; the target is as it was"
            raise SinkError(what, hint="mend it and run again: what is paid is kept") from error
