"""Objects of S3, Google Cloud Storage and Azure, fetched once: rows are read more than once, and Parquet seeks."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from ..addresses import Unusable
from ..compression import Codec
from ..errors import Problem, SourceError
from ..objects import Changed, Object
from .files import SourceFile


def fetched(name: str, found: Object, codec: Codec | None, folder: Path | None) -> SourceFile:
    """A copy of one version of the object, below `folder`; it goes when nobody holds the file. Raises SourceError."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix="canwait-object-", dir=folder))
        try:
            if found.download(home / "rows") is None:
                raise Unusable("no such object")
            file = SourceFile(name, home / "rows", codec)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise
    except Changed as error:
        raise _refused(name, "changed while it was read", "wait until nothing writes it, then plan again") from error
    except Unusable as error:
        raise _refused(name, str(error), "mend `source` or the environment, then plan again") from error
    except OSError as error:
        raise _refused(
            name, f"no room for a copy: {error.strerror or error}", "free some space, then plan again"
        ) from error
    weakref.finalize(file, shutil.rmtree, home, ignore_errors=True)
    return file


def _refused(name: str, why: str, hint: str) -> SourceError:
    return SourceError([Problem(name, None, None, None, why)], hint=f"{hint}; nothing was sent")
