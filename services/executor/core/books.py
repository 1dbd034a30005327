"""An executor's book as it is written down: what is settled, and which pages are still to be added to it.

A book outlives its executor. It is written whole, in one step, so that a page is either still to be added up, or has been,
and never both or neither. What a book counts is told to the scheduler under the book's name: that is the incarnation of the
executor that began it, and goes on under the executors after it as long as the machine runs. After a reboot another name
begins, since what had not reached the disk is gone and a count must never shrink under its name; what the book had counted
until then goes on being told under the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from gpu_sharing.units import SECOND, ComputeUnits, Nanoseconds
from gpu_sharing.worker.messages import Reading, Used
from services.executor.core.usage import UNKNOWN, Lives, Model, Total, UsageLedger, charged

FORMAT = 2
"""Of books as they are written; one that does not say is of the first, which knew no lives."""

_A_LONG_LIFE: Nanoseconds = 365 * 86_400 * SECOND


class Entry(msgspec.Struct, frozen=True):
    """What one model used under one name, or, where the model's is empty, all those of the tenant that are not told apart any
    more. life: of the model's counts."""

    tenant: str
    model: str
    total: Total
    life: int = 0


class Closed(msgspec.Struct, frozen=True):
    """What was counted under a name that has ended. lives: the latest number that it gave."""

    name: str
    entries: tuple[Entry, ...]
    lives: int = 0


class Page(msgspec.Struct, frozen=True):
    """A page that is not added up yet: of a worker of a lane with so many compute units, started at `started` on the
    monotonic clock. over: what of its records is settled already."""

    compute_units: ComputeUnits
    started: Nanoseconds
    over: tuple[Used, ...] = ()


class Owner(msgspec.Struct, frozen=True):
    """Whose a replica is."""

    replica: int
    tenant: str
    model: str


class Book(msgspec.Struct, frozen=True):
    """boot: names the machine's run; the monotonic clock means something within it alone. pages: by file name. owners: of
    the replicas that pages speak of. lives: the latest number that was given."""

    name: str
    boot: str
    entries: tuple[Entry, ...] = ()
    closed: tuple[Closed, ...] = ()
    pages: dict[str, Page] = {}
    owners: tuple[Owner, ...] = ()
    lives: int = 0
    format: int = 1


def entries_of(totals: Mapping[Model, Total], lives: Lives | None = None) -> tuple[Entry, ...]:
    """Totals as they are written, with every model that is told apart."""
    lives = Lives() if lives is None else lives
    nothing = {model: Total() for model in lives.numbers}
    return tuple(
        Entry(tenant, model, total, lives.of((tenant, model)))
        for (tenant, model), total in sorted({**nothing, **totals}.items())
    )


def lives_of(entries: tuple[Entry, ...], last: int) -> Lives:
    """The lives that entries are of. last: the latest number."""
    return Lives(last, {(entry.tenant, entry.model): entry.life for entry in entries if entry.life})


def tenants_of(entries: tuple[Entry, ...]) -> dict[str, Total]:
    """Each tenant's sum."""
    tenants: dict[str, Total] = {}
    for entry in entries:
        tenants.setdefault(entry.tenant, Total()).merge(entry.total)
    return tenants


def folded(closed: Closed, model: Model, life: int) -> Closed:
    """What was counted under a name that has ended, without a model that is gone; its tenant's sum stays what it was."""
    totals, lives = totals_of(closed.entries), lives_of(closed.entries, closed.lives)
    ledger = UsageLedger({}, totals, lives=lives)
    return Closed(closed.name, entries_of(ledger.settled, lives), closed.lives) if ledger.fold(model, life) else closed


def totals_of(entries: tuple[Entry, ...]) -> dict[Model, Total]:
    """Entries as they are counted with."""
    return {(entry.tenant, entry.model): msgspec.structs.replace(entry.total) for entry in entries}


def reopened(
    book: Book, readings: Mapping[str, Reading], name: str, boot: str, now: Nanoseconds, *, lives: int = 0
) -> Book:
    """The book of an executor that is gone, as the next one goes on with it.

    readings: by file name, of those pages whose workers are gone; others stay to be added up another time. Each slice
    that was running is charged up to its worker's last sign of life. name: for what comes after a reboot. lives: numbers up
    to here may have been given and not written down.
    """
    owners = {owner.replica: (owner.tenant, owner.model) for owner in book.owners}
    totals = totals_of(book.entries)
    for file, reading in readings.items():
        page = book.pages.get(file)
        if page is not None:
            ends = now if boot == book.boot else page.started + _A_LONG_LIFE
            _add(totals, page, reading, owners, ends)
    left = {file: page for file, page in book.pages.items() if file not in readings}
    kept = book.owners if left else ()
    entries, last = entries_of(totals, lives_of(book.entries, book.lives)), max(book.lives, lives)
    if boot == book.boot:
        return Book(book.name, boot, entries, book.closed, left, kept, last, FORMAT)
    closed = (*book.closed, Closed(book.name, entries, book.lives)) if entries else book.closed
    return Book(name, boot, (), closed, left, kept, last, FORMAT)


def _add(
    totals: dict[Model, Total], page: Page, reading: Reading, owners: Mapping[int, Model], ends: Nanoseconds
) -> None:
    known = {used.replica: owners.get(used.replica, UNKNOWN) for used in reading.used}
    ledger = UsageLedger({0: page.compute_units}, totals, known)
    ledger.started(0, page.started)
    ledger.ended(0, Reading(tuple(_left_of(charged(reading), page.over))), ends)
    totals.update(ledger.settled)


def _left_of(reading: Reading, over: tuple[Used, ...]) -> Iterator[Used]:
    """What a page says and was not settled before."""
    before = {used.replica: used for used in over}
    for used in reading.used:
        known = before.get(used.replica)
        if known is None:
            yield used
        else:
            more = (
                max(0, used.device_ns - known.device_ns),
                max(0, used.requests - known.requests),
                max(0, used.batches - known.batches),
            )
            yield Used(used.replica, *more, 0)
