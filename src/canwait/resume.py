"""Whether the plan that a job runs under is what planning again would make, told without reading the rows.

Rows are the same when the bytes they come from are, and a file's bytes are the same when its inode says so: device,
number, size and both times, on one host. That is trusted only of a file that was last changed some seconds before it was
read: a later change may fall into the same tick of the file system's clock and keep the size. Otherwise the fingerprint
of all bytes decides.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from hashlib import sha256
from typing import Any

from . import __version__
from .addresses import local_path
from .codec import plain, plan_from_json
from .plan import fingerprint_of, rates
from .types import Job, Plan, Price

FileState = dict[str, Any]  # the host, and what `stat` says there; JSON-ready

_SAFE_S = 2  # the coarsest clock of a file system in use (FAT)
# What may change and leave a job's plan as it is; a field that is added to Job decides until it stands here.
_IDLE = {"budget", "deadline_s", "load", "quality", "freshness", "schedule", "owner", "fallback", "base_dir", "notify"}


def kept(body: str, job: Job) -> tuple[Plan, FileState | None] | None:
    """A plan as the ledger keeps it, and the file it was read from; None unless this version made it for this job."""
    raw = json.loads(body)
    grounds = raw.pop("grounds", None)
    if grounds is None or grounds["version"] != __version__ or grounds["job"] != _decided(job):
        return None
    return plan_from_json(raw), grounds["file"]


def grounds(job: Job, file: FileState | None) -> Mapping[str, Any]:
    """What is kept beside a plan for `kept`, JSON-ready."""
    return {"version": __version__, "job": _decided(job), "file": file}


def holds(
    plan: Plan, read: FileState | None, job: Job, price: Price, now: FileState | None, fingerprint: Callable[[], str]
) -> bool:
    """Whether rates and rows are still the plan's. `read` and `now`: the file then and now; `fingerprint`: of its bytes."""
    if rates(plan.price) != rates(price):
        return False
    return (read is not None and read == now) or plan.source_fingerprint == fingerprint_of(job, fingerprint())


def state_of(job: Job) -> FileState | None:
    """Which bytes the job's file holds, by its inode; None for rows that come from anything but one local file."""
    path = local_path(job.source.uri, job.base_dir)
    if path is None or job.source.uri == "-" or not path.is_file():
        return None
    stat = path.stat()
    told = {
        "dev": stat.st_dev,
        "ino": stat.st_ino,
        "size": stat.st_size,
        "mtime": stat.st_mtime_ns,
        "ctime": stat.st_ctime_ns,
    }
    return {"host": socket.gethostname(), **told}


def trusted(file: FileState | None, read_at: datetime) -> FileState | None:
    """The state of a file that is read from `read_at` on, if every later change must show in it."""
    return file if file and max(file["mtime"], file["ctime"]) <= (read_at.timestamp() - _SAFE_S) * 1e9 else None


def _decided(job: Job) -> str:
    decisive = {f.name: plain(getattr(job, f.name)) for f in fields(job) if f.name not in _IDLE}
    return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
