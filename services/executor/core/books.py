"""An executor's book as it is written down: what is settled, and which pages are still to be added to it.

A book outlives its executor. It is written whole, in one step, so that a page is either still to be added up, or has been,
and never both or neither. What a book counts is told to the scheduler under the book's name: that is the incarnation of the
executor that began it, and goes on under the executors after it as long as the machine runs. After a reboot another name
begins, since what had not reached the disk is gone and a count must never shrink under its name; what the book had counted
until then goes on being told under the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpu_sharing.units import SECOND, ComputeUnits, Nanoseconds
from gpu_sharing.worker.messages import Reading
from services.executor.core.usage import UNKNOWN, Model, Total, UsageLedger, charged

_A_LONG_LIFE: Nanoseconds = 365 * 86_400 * SECOND


class Entry(msgspec.Struct, frozen=True):
    """What one model used under one name."""

    tenant: str
    model: str
    total: Total


class Closed(msgspec.Struct, frozen=True):
    """What was counted under a name that has ended."""

    name: str
    entries: tuple[Entry, ...]


class Page(msgspec.Struct, frozen=True):
    """A page that is not added up yet: of a worker of a lane with so many compute units, started at `started` on the
    monotonic clock."""

    compute_units: ComputeUnits
    started: Nanoseconds


class Owner(msgspec.Struct, frozen=True):
    """Whose a replica is."""

    replica: int
    tenant: str
    model: str


class Book(msgspec.Struct, frozen=True):
    """boot: names the machine's run; the monotonic clock means something within it alone. pages: by file name. owners: of
    the replicas that pages speak of."""

    name: str
    boot: str
    entries: tuple[Entry, ...] = ()
    closed: tuple[Closed, ...] = ()
    pages: dict[str, Page] = {}
    owners: tuple[Owner, ...] = ()


def entries_of(totals: Mapping[Model, Total]) -> tuple[Entry, ...]:
    """Totals as they are written."""
    return tuple(Entry(tenant, model, total) for (tenant, model), total in sorted(totals.items()))


def totals_of(entries: tuple[Entry, ...]) -> dict[Model, Total]:
    """Entries as they are counted with."""
    return {(entry.tenant, entry.model): msgspec.structs.replace(entry.total) for entry in entries}


def reopened(book: Book, readings: Mapping[str, Reading], name: str, boot: str, now: Nanoseconds) -> Book:
    """The book of an executor that is gone, as the next one goes on with it.

    readings: by file name, of those pages whose workers are gone; others stay to be added up another time. Each slice
    that was running is charged up to its worker's last sign of life. name: for what comes after a reboot.
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
    if boot == book.boot:
        return Book(book.name, boot, entries_of(totals), book.closed, left, kept)
    closed = (*book.closed, Closed(book.name, entries_of(totals))) if totals else book.closed
    return Book(name, boot, (), closed, left, kept)


def _add(
    totals: dict[Model, Total], page: Page, reading: Reading, owners: Mapping[int, Model], ends: Nanoseconds
) -> None:
    known = {used.replica: owners.get(used.replica, UNKNOWN) for used in reading.used}
    ledger = UsageLedger({0: page.compute_units}, totals, known)
    ledger.started(0, page.started)
    ledger.ended(0, charged(reading), ends)
    totals.update(ledger.settled)
