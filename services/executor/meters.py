"""The meters of an executor's workers: a page for each life of a worker, and the ledger that adds them up."""

from __future__ import annotations

import time
from collections.abc import Mapping

from gpu_sharing.units import ComputeUnits, Nanoseconds
from services.executor.books import Books, MeterPage
from services.executor.core.usage import UsageLedger


class Meters:
    """Of one executor. compute_units: of each lane. pages: of the workers that live, by lane."""

    def __init__(self, compute_units: Mapping[int, ComputeUnits], books: Books) -> None:
        self._compute_units, self._books = compute_units, books
        self.usage = UsageLedger(compute_units, books.settled, books.owners, books.lives)
        books.settled = self.usage.settled
        self.pages: dict[int, MeterPage] = {}

    def open(self, lane: int) -> MeterPage:
        """The page of a worker that is about to start."""
        page = self.pages[lane] = self._books.page(lane, self._compute_units[lane])
        self.usage.started(lane, time.monotonic_ns())
        return page

    def close(self, lane: int) -> None:
        """The lane's worker is gone: its last counts, up to now, are settled."""
        page = self.pages.pop(lane, None)
        self.usage.ended(lane, page.read() if page is not None else None, time.monotonic_ns())
        if page is not None:
            self._books.settle(page)

    def close_all(self) -> None:
        """Every worker is gone."""
        for lane in list(self.pages):
            self.close(lane)

    def read(self, now: Nanoseconds) -> None:
        """Counts every slice that has ended by now."""
        for lane, page in self.pages.items():
            reading = page.read()
            if reading is not None:
                self.usage.read(lane, reading, now)
