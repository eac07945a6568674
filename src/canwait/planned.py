"""Plans kept under their ids, so that exactly what was shown can be run."""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .blobs import Blobs
from .codec import plan_from_json, plan_to_json
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


def save_plan(blobs: Blobs, prepared: Prepared, job_file: Path | None = None) -> None:
    """Keep a plan, so that it can be run by its id. A later plan of the same id takes its place."""
    answering = [[shard, base64.b64encode(zlib.compress(w)).decode()] for shard, w in prepared.answering]
    kept = {"plan": plan_to_json(prepared.plan), "answering": answering, "source": prepared.source}
    blob = blobs.put(json.dumps(kept).encode())
    path = _path(blobs, prepared.plan.id)
    with blobs.scratch() as folder, writing(blobs.folder, "plan again; nothing was sent"):
        draft = folder / path.name
        with draft.open("wb") as file:
            file.write(json.dumps({"blob": blob, "job_file": job_file and str(job_file)}).encode())
            file.flush()
            os.fsync(file.fileno())
        path.parent.mkdir(exist_ok=True)
        draft.replace(path)
        sync_folder(path.parent)


def load_plan(blobs: Blobs, plan: str) -> Prepared:
    """The plan kept under an id. Raises NotFound when there is none, BlobError when it is damaged."""
    with _kept(blobs, plan) as kept:
        saved = json.loads(blobs.read(kept["blob"]))
        answering = tuple((shard, zlib.decompress(base64.b64decode(weights))) for shard, weights in saved["answering"])
        return Prepared(plan_from_json(saved["plan"]), answering, saved.get("source"))


def planned_file(blobs: Blobs, plan: str) -> Path | None:
    """The job file a kept plan was made from; None for a job that has none. Raises as `load_plan`."""
    with _kept(blobs, plan) as kept:
        return Path(kept["job_file"]) if kept["job_file"] else None


@contextmanager
def _kept(blobs: Blobs, plan: str) -> Iterator[Mapping[str, Any]]:
    """What is kept under a plan's id; whatever is found wrong with it is damage."""
    path = _path(blobs, plan)
    if not path.is_file():
        raise NotFound(
            f"No plan {plan} is kept in {blobs.folder}.", what="plan", name=plan, hint="`canwait plan` makes one"
        )
    try:
        yield json.loads(path.read_bytes())
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        raise BlobError(f"{path} is damaged: {error}", hint="`canwait plan` makes it again") from error


def _path(blobs: Blobs, plan: str) -> Path:
    if not _PLAN_ID.fullmatch(plan):
        raise NotFound(f"{plan!r} is not the id of a plan.", what="plan", name=plan, hint="`canwait plan` prints one")
    return blobs.folder / "plans" / f"{plan}.json"
