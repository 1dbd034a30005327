"""Letting go of what was known of replicas and models that are gone, once what they used is settled for good.

Memory, the book and reports would otherwise grow with every name that there ever was.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpu_sharing.units import Nanoseconds
from gpu_sharing.worker.messages import Settled
from services.executor.books import Books, MeterPage
from services.executor.core.replicas import Replicas
from services.executor.core.usage import Model, UsageLedger
from services.executor.inflight import Lane

MOST_MODELS = 1024
"""Models whose device time is told apart, though nobody has said that they are gone for good."""


class Forgetting:
    """Of one executor. pages: of its workers, by lane."""

    def __init__(
        self,
        usage: UsageLedger,
        books: Books,
        pages: Mapping[int, MeterPage],
        lanes: Mapping[int, Lane],
        replicas: Replicas,
    ) -> None:
        self._usage, self._books, self._pages = usage, books, pages
        self._lanes, self._replicas = lanes, replicas
        self._unwritten = False
        self._settled: list[tuple[int, int]] = []

    def fold(self, name: str, model: Model, life: int) -> None:
        """A model is gone for good, says the scheduler: under this name its counts end. Nothing happens where they have, or where
        a replica of it is here."""
        open_name = name == self._books.name
        if self._usage.fold(model, life) if open_name else self._books.fold(name, model, life):
            self._unwritten = True

    def run(self, now: Nanoseconds) -> None:
        """Settles what is gone, in one step of the book. Only once that is on disk may workers use its records again."""
        gone = [
            number
            for number in self._usage.models
            if self._replicas.get(number) is None and number not in self._books.strangers
        ]
        if gone:
            self._settle(gone, now)
        if self._usage.fold_beyond(MOST_MODELS):
            self._unwritten = True
        if self._unwritten and self._books.write():
            self._unwritten = False
            self._tell_workers()

    def _settle(self, gone: list[int], now: Nanoseconds) -> None:
        self._unwritten, runs = True, set[int]()
        for lane, page in self._pages.items():
            reading = page.read()
            if reading is None:
                runs |= self._usage.lanes[lane].used.keys()
                continue
            if reading.running is not None:
                runs.add(reading.running.replica)
            done = self._usage.settle_gone(lane, gone, reading, now)
            self._settled += ((lane, replica) for replica in done)
            self._books.over(page, self._usage.lanes[lane].over.values())
        for number in gone:
            if number not in runs:
                del self._usage.models[number]

    def _tell_workers(self) -> None:
        told, self._settled = self._settled, []
        for lane, replica in told:
            client = self._lanes[lane].client
            if client is not None:
                client.send(Settled(replica))
