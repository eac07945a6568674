"""Everything the simulated provider remembers: one SQLite file and the files beside it. A killed process loses nothing.

Each method that changes something is one committed transaction when it returns. Large content is a file, written under
another name and renamed before the database speaks of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from ..clock import from_us, to_us
from ..types import Tier, Usage
from .answers import AnswerFn, Body, body_sha256
from .bill import BilledBatch, charge
from .clock import Clock
from .life import ENDED, Batch, Phase, draw_course
from .rows import Answered, NotAnswered, input_tokens
from .scenario import TRAITS, Scenario, draw, strikes
from .settle import Harvest, Model, Output, Stopped
from .shapes import ANTHROPIC, OPENAI, OPENAI_AT, Anthropic, OpenAI

_SCHEMA = """
CREATE TABLE IF NOT EXISTS number (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS file (id TEXT PRIMARY KEY, seq INTEGER NOT NULL, account TEXT NOT NULL, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batch (
    seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, shape TEXT NOT NULL, account TEXT NOT NULL, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS bill (seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS executed (id TEXT NOT NULL, body_sha256 TEXT NOT NULL, n INTEGER NOT NULL);
"""

SHAPES: Mapping[str, OpenAI | Anthropic] = {**OPENAI_AT, ANTHROPIC.endpoint: ANTHROPIC}  # by endpoint


class State:
    def __init__(self, folder: Path, clock: Clock, seed: int, scenario: Scenario, answer: AnswerFn) -> None:
        self.seed, self.scenario = seed, scenario
        self.model = Model(answer, scenario, seed)
        self._clock = clock
        self._files = folder / "files"
        self._files.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(folder / "simulator.db", isolation_level=None, check_same_thread=False)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)
        self._workers: dict[str, threading.Thread] = {}
        self._closing = threading.Event()
        self._ahead_us = 0
        self._ahead_us = max(0, self._number("now_us") - self.now_us())  # a restart never turns time back
        with self._transaction():
            if not self._number("born_us"):
                self._set("born_us", self.now_us())  # makes ids of another folder different
        self._salt = f"{seed}/{self._number('born_us')}"

    def close(self) -> None:
        with self._lock:  # from here on no worker starts
            self._closing.set()
            workers = list(self._workers.values())
        for worker in workers:
            worker.join()
        with self._lock:
            self._db.close()

    # ----------------------------------------------------------------------------------------------------- time, chance

    def now_us(self) -> int:
        return to_us(self._clock.now()) + self._ahead_us

    def now(self) -> datetime:
        return from_us(self.now_us())

    def tick(self) -> int:
        """Now, remembered, so that no later process sees an earlier time."""
        with self._transaction():
            self._set("now_us", max(self._number("now_us"), self.now_us()))
        return self.now_us()

    def strikes(self, fault: str) -> bool:
        """Whether this occasion of a fault is one on which it strikes; counts the occasion."""
        if not getattr(self.scenario, fault):
            return False
        with self._transaction():
            return strikes(getattr(self.scenario, fault), fault, self._next(f"seen {fault}"), self.seed)

    def ident(self, *what: object, length: int = 24) -> str:
        """An id that depends on the seed, the folder's birth and `what`."""
        return hashlib.sha256("/".join(map(str, (self._salt, *what))).encode()).hexdigest()[:length]

    # ------------------------------------------------------------------------------------------------------------ files

    @contextmanager
    def writing(self) -> Iterator[tuple[str, BinaryIO]]:
        """(name, open file) of new content; kept under its name when the block ends well, gone otherwise."""
        with self._transaction():
            name = self.ident("content", self._next("contents"))
        part = self._files / f"{name}.part"
        try:
            with part.open("wb") as out:
                yield name, out
            os.replace(part, self._files / name)
        finally:
            part.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        return self._files / name

    def add_file(
        self, account: str, content: str, *, purpose: str, filename: str, expires_us: int | None
    ) -> tuple[str, dict[str, Any]]:
        doc = {
            "content": content,
            "purpose": purpose,
            "filename": filename,
            "bytes": self.path(content).stat().st_size,
            "created_us": self.now_us(),
            "expires_us": expires_us,
        }
        with self._transaction():
            return self._insert_file(account, doc), doc

    def file(self, account: str, file_id: str) -> dict[str, Any] | None:
        """None: never there, deleted or expired."""
        row = self._one("SELECT doc FROM file WHERE id = ? AND account = ?", file_id, account)
        doc: dict[str, Any] = json.loads(row[0]) if row else {}
        return doc if doc and not self._gone(doc) else None

    def files(self, account: str) -> list[tuple[str, dict[str, Any]]]:
        """Newest first."""
        rows = self._all("SELECT id, doc FROM file WHERE account = ? ORDER BY seq DESC", account)
        return [(file_id, doc) for file_id, text in rows if not self._gone(doc := json.loads(text))]

    def delete_file(self, account: str, file_id: str) -> bool:
        doc = self.file(account, file_id)
        if doc is None:
            return False
        with self._transaction():
            text = json.dumps(doc | {"deleted": True})
            self._db.execute("UPDATE file SET doc = ? WHERE id = ?", (text, file_id))
        return True

    def _gone(self, doc: Mapping[str, Any]) -> bool:
        return bool(doc.get("deleted")) or (doc["expires_us"] is not None and doc["expires_us"] <= self.now_us())

    def _insert_file(self, account: str, doc: Mapping[str, Any]) -> str:
        seq = self._next("files")
        file_id = f"file-{self.ident('file', seq)}"
        self._db.execute("INSERT INTO file VALUES (?, ?, ?, ?)", (file_id, seq, account, json.dumps(doc)))
        return file_id

    # ---------------------------------------------------------------------------------------------------------- batches

    def accept(
        self,
        shape: OpenAI | Anthropic,
        account: str,
        content: str,
        rows: Iterable[tuple[str, Body] | dict[str, Any]],
        *,
        input_file_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Batch:
        """A new live batch. `rows`: (custom id, body) of each line of `content`, or a first problem, which fails it.

        Raises OverQuota if the scenario refuses a full queue at create.
        """
        problem, n_rows, tokens, token, models = None, 0, 0, "", set[str]()
        for row in rows:
            if isinstance(row, dict):
                problem = row
                break
            custom_id, body = row
            token = token or custom_id.rpartition("-")[0] or custom_id
            models.add(str(body.get("model")))
            tokens += input_tokens(shape.name, body) if self.scenario.enqueued_limit else 0
            n_rows += 1
        model = models.pop() if len(models) == 1 else None
        now_us = self.now_us()
        with self._transaction():
            seq = self._next("batches")
            limit = self.scenario.enqueued_limit
            limited = limit and shape is not ANTHROPIC and not problem
            if limited and self._enqueued(account, model, now_us) + tokens > limit:
                if self.scenario.fail_fast:
                    raise OverQuota(_quota_problem(model, limit)["message"])
                problem = _quota_problem(model, limit)
            ending = None if problem else next((name for name in shape.endings if self.strikes(name)), None)
            if ending == "bad_line":
                line = 1 + int(draw(self.seed, "bad line", seq) * n_rows)
                words = "This line is not parseable as valid JSON."
                problem = {"code": "invalid_json_line", "line": line, "message": words, "param": None}
            if ending == "token_limit_late":
                problem = _quota_problem(model, limit)
            course = draw_course(
                random.Random(f"{self.seed}/course/{seq}"),
                ending=ending,
                n_rows=n_rows,
                created_us=now_us,
                expires_us=now_us + shape.window_us,
                median_us=us(self.scenario.turnaround),
                sync=shape is ANTHROPIC,
            )
            first_row = self._number("rows")
            if not problem:
                self._set("rows", first_row + n_rows)
            batch = Batch(
                seq=seq,
                id=f"{'msgbatch' if shape is ANTHROPIC else 'batch'}_{self.ident('batch', seq)}",
                shape=shape.name,
                account=account,
                endpoint=shape.endpoint,
                input_file=content,
                input_file_id=input_file_id,
                metadata=metadata,
                model=model,
                token=token,
                n_rows=n_rows,
                first_row=first_row,
                enqueued_tokens=0 if problem else tokens,
                problem=problem,
                ending=ending,
                traits=tuple(name for name in TRAITS if self.strikes(name)),
                n_done=course.n_done,
                offset=course.offset,
                created_us=now_us,
                validated_us=course.validated_us,
                finalizing_us=course.finalizing_us,
                ended_us=course.ended_us,
                expires_us=now_us + shape.window_us,
            )
            self._db.execute(
                "INSERT INTO batch VALUES (?, ?, ?, ?, ?)", (seq, batch.id, shape.name, account, _dump(batch))
            )
        return batch

    def batch(self, shape: str, account: str, batch_id: str) -> Batch | None:
        row = self._one("SELECT doc FROM batch WHERE id = ? AND shape = ? AND account = ?", batch_id, shape, account)
        found = _batch(row) if row else None
        return None if found is None or found.deleted else found

    def batches(self, shape: str | None = None, account: str | None = None, *, deleted: bool = False) -> list[Batch]:
        """Newest first, also those a listing does not show yet; `deleted`: those too."""
        rows = self._all(
            "SELECT doc FROM batch WHERE shape = ifnull(?, shape) AND account = ifnull(?, account) ORDER BY seq DESC",
            shape,
            account,
        )
        return [batch for batch in map(_batch, rows) if deleted or not batch.deleted]

    def archived_us(self, batch: Batch, shape: OpenAI | Anthropic) -> int | None:
        """When its results were put away; None: they are there."""
        over_us = batch.created_us + self.retention_us(shape)
        return over_us if self.now_us() >= over_us else None

    def listed(self, shape: str, account: str) -> list[Batch]:
        """Newest first, without those created within the listing lag."""
        horizon_us = self.now_us() - us(self.scenario.listing_lag)
        return [batch for batch in self.batches(shape, account) if batch.created_us <= horizon_us]

    def cancel(self, batch: Batch) -> Batch:
        """Ask it to stop; one that has ended or was asked before is left alone."""
        with self._transaction():
            batch = self._reload(batch)
            now_us = self.now_us()
            if batch.cancel_us is None and batch.phase(now_us) not in ENDED:
                race, finishes = self.strikes("cancel_race"), self.strikes("cancel_finishes")
                lag_us = None if self.scenario.cancel_lag is None else us(self.scenario.cancel_lag)
                batch = batch.cancelled(now_us, self.seed, race, lag_us=lag_us, finishes=finishes)
                self._update(batch)
        return batch

    def delete(self, batch: Batch) -> None:
        with self._transaction():
            self._update(replace(self._reload(batch), deleted=True))

    def settled(self, batch: Batch, patience_s: float | None = 5) -> tuple[Batch, Phase]:
        """The batch and its phase now. One whose time is over has its rows answered first, behind the scenes.

        While that takes longer than `patience_s` (None: as long as it takes), the batch still counts as finalizing.
        """
        phase = batch.phase(self.now_us())
        if phase not in ENDED or batch.outcome is not None:
            return batch, phase
        with self._lock:
            if self._closing.is_set():
                raise Stopped  # a request that outlived its server
            worker = self._workers.get(batch.id)
            if worker is None or not worker.is_alive():
                worker = threading.Thread(target=self._work, args=(batch.id,), name=batch.id, daemon=True)
                self._workers[batch.id] = worker
                worker.start()
        worker.join(patience_s)
        batch = self._reload(batch)
        if batch.outcome is not None:
            return batch, phase
        return batch, "cancelling" if batch.cancel_us is not None else "finalizing"

    def _enqueued(self, account: str, model: str | None, now_us: int) -> int:
        """Input tokens of the model's batches that have not ended, or ended less than `late_release` ago."""
        late_us = us(self.scenario.late_release)
        return sum(
            batch.enqueued_tokens
            for batch in self.batches("openai", account)
            if batch.model == model and (batch.terminal_us is None or now_us < batch.terminal_us + late_us)
        )

    # ------------------------------------------------------------------------------------------------------- settlement

    def _work(self, batch_id: str) -> None:
        with suppress(Stopped):
            self._settle(batch_id)

    def _settle(self, batch_id: str) -> None:
        """Answer the rows of a batch whose time is over; its files, its outcome and its bill appear together."""
        batch = _batch(self._one("SELECT doc FROM batch WHERE id = ?", batch_id))
        if batch.outcome is not None:
            return
        shape = SHAPES[batch.endpoint]
        harvest, output_file, error_file = Harvest(), None, None
        if not batch.problem and not (batch.ending == "expiry_empty" and shape is not ANTHROPIC):
            with self.writing() as (output_file, out), self.writing() as (error_file, err):
                output, errors = Output(out), Output(err)
                if shape is ANTHROPIC:
                    errors = output  # one stream of results
                requests = self.path(batch.input_file)
                harvest = self.model.settle(batch, shape, requests, output, errors, self.ident, self._closing)
            output_file = output_file if output.n_lines else None
            error_file = error_file if errors.n_lines and errors is not output else None
        billed = self._billed(shape, batch.model, Tier.BATCH, batch.token, batch.created_us, harvest)
        with self._transaction():
            outcome = {
                **{f"n_{kind}": harvest.tally[kind] for kind in ("ok", "failed", "expired", "cancelled")},
                "usage": asdict(harvest.usage()),
                "results": output_file,
                "output_file_id": self._insert_output(batch, output_file, "output") if shape is not ANTHROPIC else None,
                "error_file_id": self._insert_output(batch, error_file, "error") if shape is not ANTHROPIC else None,
            }
            self._update(replace(self._reload(batch), outcome=outcome))
            self._insert_bill(batch.id, billed, harvest)

    def call(self, shape: OpenAI | Anthropic, body: Body) -> tuple[Answered | NotAnswered, bytes]:
        """One synchronous request: the result and, where it is answered, the reply. On the bill when this returns."""
        with self._transaction():
            place = self._next("rows")
        result = self.model.ask(shape, body, place, self.model.fault(place))
        if isinstance(result, NotAnswered):
            return result, b""
        model, ident = str(body["model"]), self.ident("call", place)
        harvest = Harvest(usages={model: [result.usage]}, executed=Counter([body_sha256(body)]))
        tier = Tier.FLEX if shape is OPENAI and body.get("service_tier") == "flex" else Tier.STANDARD
        billed = self._billed(shape, model, tier, "", self.now_us(), harvest)
        with self._transaction():
            self._insert_bill(ident, billed, harvest)
        old_style = self.scenario.old_style
        return result, shape.reply(ident, body, result, self.now_us(), "standard", old_style=old_style)

    def _insert_output(self, batch: Batch, content: str | None, what: str) -> str | None:
        if content is None:
            return None
        doc = {
            "content": content,
            "purpose": "batch_output",
            "filename": f"{batch.id}_{what}.jsonl",
            "bytes": self.path(content).stat().st_size,
            "created_us": batch.over_us,
            "expires_us": batch.over_us + self.retention_us(OPENAI),
        }
        return self._insert_file(batch.account, doc)

    def retention_us(self, shape: OpenAI | Anthropic) -> int:
        stated = self.scenario.retention
        return shape.retention_us if stated is None else us(stated)

    # ------------------------------------------------------------------------------------------------------------- bill

    def _billed(
        self, shape: OpenAI | Anthropic, model: str | None, tier: Tier, token: str, at_us: int, harvest: Harvest
    ) -> dict[str, Any]:
        """A line of the bill, but for its id."""
        return {
            "provider": shape.name,
            "model": model,
            "tier": tier.value,
            "token": token,
            "n_rows": sum(map(len, harvest.usages.values())),
            "usage": asdict(harvest.usage()),
            "micros": charge(shape.name, tier, harvest.usages, from_us(at_us).date()),
        }

    def _insert_bill(self, ident: str, billed: Mapping[str, Any], harvest: Harvest) -> None:
        self._db.execute("INSERT INTO bill (id, doc) VALUES (?, ?)", (ident, json.dumps(billed)))
        ran = [(ident, *item) for item in harvest.executed.items()]
        self._db.executemany("INSERT INTO executed VALUES (?, ?, ?)", ran)

    def bill(self) -> list[BilledBatch]:
        """Everything billed by now, oldest first; batches whose time is over are settled for it."""
        for batch in self.batches(deleted=True):
            self.settled(batch, patience_s=None)
        found = []
        for ident, text in self._all("SELECT id, doc FROM bill ORDER BY seq"):
            doc = json.loads(text)
            doc |= {"tier": Tier(doc["tier"]), "usage": Usage(**doc["usage"])}
            found.append(BilledBatch(id=ident, **doc))
        return found

    def executed(self) -> Counter[str]:
        self.bill()
        return Counter(dict(self._all("SELECT body_sha256, sum(n) FROM executed GROUP BY body_sha256")))

    # --------------------------------------------------------------------------------------------------------- database

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Committed when the outermost block ends well."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _one(self, sql: str, *values: object) -> Any:
        with self._lock:
            return self._db.execute(sql, values).fetchone()

    def _all(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def _number(self, name: str) -> int:
        row = self._one("SELECT value FROM number WHERE name = ?", name)
        return int(row[0]) if row else 0

    def _set(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO number VALUES (?, ?)", (name, value))

    def _next(self, name: str) -> int:
        """0, 1, 2, ..."""
        value = self._number(name)
        self._set(name, value + 1)
        return value

    def _reload(self, batch: Batch) -> Batch:
        return _batch(self._one("SELECT doc FROM batch WHERE id = ?", batch.id))

    def _update(self, batch: Batch) -> None:
        self._db.execute("UPDATE batch SET doc = ? WHERE id = ?", (_dump(batch), batch.id))


class OverQuota(Exception):
    """The model's enqueued tokens are used up."""


def _quota_problem(model: str | None, limit: int) -> dict[str, Any]:
    words = (
        f"Enqueued token limit reached for {model} in organization org-simulated. Limit: {limit:,} enqueued tokens. "
        "Please try again once some in_progress batches have been completed."
    )
    return {"code": "token_limit_exceeded", "line": None, "message": words, "param": None}


def _dump(batch: Batch) -> str:
    return json.dumps(asdict(batch))


def _batch(row: Any) -> Batch:
    doc = json.loads(row[0])
    return Batch(**doc | {"traits": tuple(doc["traits"])})


def us(span: timedelta) -> int:
    return span // timedelta(microseconds=1)
