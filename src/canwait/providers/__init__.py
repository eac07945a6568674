"""The provider seam: six verbs, and the encoding of a line.

An adapter knows one wire protocol and nothing else: not the ledger, not money, not retries. It says what is *certain*
by the error it raises, because the engine holds or releases money by it:

    Rejected      certainly not accepted, repeating will not help     (400, 404, 413, 422 on create)
    Busy          certainly not accepted, repeating later may         (429 on create, queue full)
    OutOfCredit   certainly not accepted, the account must be mended
    KeyRefused    certainly not accepted, the key is missing or wrong  (401, 403)
    Unreachable   certainly never arrived                              (connection refused, name not resolved)
    Ambiguous     may have arrived: any 5xx, a timeout, a dropped connection, a reply that is not JSON, on create
    CannotTell    find only: neither presence nor absence can be proved yet
    BatchUnknown  poll, results, cancel: the provider does not know the batch
    Garbled       poll, find, results: the reply is not what the protocol says

Reading verbs (find, poll, results) may be repeated by the adapter's wrapper; `submit` is called exactly once per call of
the engine, never repeated by an adapter, a wrapper or an HTTP library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ..types import Answer, Batch, Limits, MarkClass, Plain, ShardFile

Guard = Callable[[], None]  # raises LeaseLost when this caller no longer holds the shard; call it right before a create


class Provider(Protocol):
    name: str  # "openai"
    account: str  # which account at which host, never a secret: batches of one account are told apart by it
    mark: MarkClass

    def limits(self, model: str) -> Limits:
        """What one batch may hold. Pure."""
        ...

    def encode(self, custom_id: str, body: bytes, endpoint: str) -> bytes:
        """One line of the request file as it goes over the wire, without the newline. Pure."""
        ...

    def submit(self, shard: ShardFile, guard: Guard) -> Batch:
        """Create the batch. Uploading may be repeated and costs nothing; `guard()` is called after it and before the create.

        For class A a second submit of one token is the same batch. Raises as the module says.
        """
        ...

    def find(self, shard: ShardFile) -> Sequence[Batch]:
        """Every batch that carries the shard's token, oldest first; empty when none is listed *now*.

        Whether an empty answer is proof of absence is the engine's to decide, by `Limits.settle_s` since the last try.
        Raises CannotTell while a candidate can neither be confirmed nor excluded (class C, before results exist).
        """
        ...

    def poll(self, batch_id: str) -> Batch:
        """What the provider says now. Raises BatchUnknown, Garbled, Busy, Unreachable or Ambiguous; none ends a batch."""
        ...

    def results(self, batch: Batch) -> Iterator[bytes]:
        """The raw output of an ended batch, in pieces of any size, exactly as sent; several files one after another.

        Every piece boundary that ends a file also ends a line. The engine stores all of it before `decode` sees a byte.
        """
        ...

    def decode(self, line: bytes) -> Answer:
        """One line of raw output. Never raises for hostile input: what cannot be understood is FAILED/malformed. Pure."""
        ...

    def plain(self, line: bytes) -> Plain | None:
        """The same of an ordinary line, in short: exactly what `decode` says of it, or None, and `decode` is asked. Pure."""
        ...

    def cancel(self, batch_id: str) -> None:
        """Ask the provider to stop. Finished rows are kept and billed; may be repeated; an ended batch is left alone."""
        ...
