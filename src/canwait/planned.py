"""A plan that is ready to run, and which job file it came from: kept under its id, so that exactly it can be run."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .blobs import Blobs
from .durable import sync_folder, writing
from .errors import BlobError, NotFound
from .types import Plan

_PLAN_ID = re.compile("p_[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan, and how many dataset rows wait for each line of the shards that answer it."""

    plan: Plan
    answering: tuple[tuple[str, bytes], ...]  # by ordinal: shard id, weights as uint32 LE per line
    source: str | None = None  # the fingerprint of its rows alone


def keep_plan(blobs: Blobs, plan: str, job_file: Path | None) -> None:
    """Keep which file a plan was made from, so that it can be run by its id. Raises BlobError for a full disk.

    No more of it is kept: who runs it plans again, and runs exactly this id or nothing.
    """
    path = _path(blobs, plan)
    with blobs.scratch() as folder, writing(blobs.folder, "plan again; nothing was sent"):
        draft = folder / path.name
        with draft.open("wb") as file:
            file.write(json.dumps({"job_file": job_file and str(job_file)}).encode())
            file.flush()
            os.fsync(file.fileno())
        path.parent.mkdir(exist_ok=True)
        draft.replace(path)
        sync_folder(path.parent)


def planned_file(blobs: Blobs, plan: str) -> Path | None:
    """The job file a plan was made from; None for a job that has none. Raises NotFound, BlobError when it is damaged."""
    path = _path(blobs, plan)
    if not path.is_file():
        raise NotFound(
            f"No plan {plan} is kept in {blobs.folder}.", what="plan", name=plan, hint="`canwait plan` makes one"
        )
    try:
        file = json.loads(path.read_bytes())["job_file"]
        return Path(file) if file else None
    except (ValueError, TypeError, KeyError) as error:
        raise BlobError(f"{path} is damaged: {error}", hint="`canwait plan` makes it again") from error


def _path(blobs: Blobs, plan: str) -> Path:
    if not _PLAN_ID.fullmatch(plan):
        raise NotFound(f"{plan!r} is not the id of a plan.", what="plan", name=plan, hint="`canwait plan` prints one")
    return blobs.folder / "plans" / f"{plan}.json"
