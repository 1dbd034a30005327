"""An executor's book on disk: one file that is replaced whole, and a page for each worker that lives."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from urllib.parse import quote

import msgspec
import structlog

from gpu_sharing.memory.arena import create_memory
from gpu_sharing.units import ComputeUnits
from gpu_sharing.worker.messages import Reading, Used
from gpu_sharing.worker.meter import PAGE_BYTES, read
from services.common.machine import boot_id as _boot
from services.executor.core.books import (
    FORMAT,
    Book,
    Closed,
    Owner,
    Page,
    entries_of,
    folded,
    lives_of,
    reopened,
    totals_of,
)
from services.executor.core.usage import Lives, Model, Total

log = structlog.get_logger()

BOOK = "book.json"
PAGES = ".page"
PATIENCE_S, STEP_S = 3.0, 0.02
"""How long to wait for the end of an executor that was killed, and of its workers, which die with it."""
_LIVES_A_SECOND = 1 << 20
"""More than ever begin: numbers of lives that an executor gave and could not write down are not given again by the next."""


class MeterPage:
    """A worker's page. fd: for the worker to map; file: None where it is memory, and dies with this executor."""

    def __init__(self, fd: int, file: str | None) -> None:
        self.fd, self.file = fd, file

    def read(self) -> Reading | None:
        """What the worker has used so far; None where that cannot be read."""
        try:
            return read(self.fd)
        except OSError as error:
            log.warning("a worker's meter page cannot be read", reason=error.strerror)
            return None

    def close(self) -> None:
        """Lets go of it."""
        os.close(self.fd)


class Books:
    """The books of one executor. Where its folder cannot be used it counts all the same, and what it counted ends with it.

    settled: what was counted before under the name that goes on. owners: by replica; add to it, then `write`. lives: of the
    models that are told apart. strangers: replicas of workers of an earlier executor that have not ended.
    """

    def __init__(self, folder: Path | None, executor_id: str, incarnation: str) -> None:
        """folder: for the books of all executors of a machine; None: nothing outlives this executor."""
        self._folder = None if folder is None else folder.expanduser() / quote(executor_id, safe="")
        self._incarnation = incarnation
        self._book = Book(incarnation, _boot())
        self._lives = count(1)
        self._lock: int | None = None
        self._failed = False
        self.settled: dict[Model, Total] = {}
        self.owners: dict[int, Model] = {}
        self.strangers: frozenset[int] = frozenset()
        self.lives = Lives()

    @property
    def name(self) -> str:
        """What its counts go by now."""
        return self._book.name

    @property
    def earlier(self) -> list[tuple[str, dict[Model, Total]]]:
        """What was counted under names that have ended."""
        return [(closed.name, totals_of(closed.entries)) for closed in self._book.closed]

    @property
    def accounts(self) -> tuple[Closed, ...]:
        """The same, as it is told."""
        return self._book.closed

    def fold(self, name: str, model: Model, life: int) -> bool:
        """Ends a life of a model that is gone under a name that has ended; see UsageLedger.fold. `write` it."""
        before = self._book.closed
        after = tuple(folded(each, model, life) if each.name == name else each for each in before)
        self._book = msgspec.structs.replace(self._book, closed=after)
        return after != before

    def over(self, page: MeterPage, over: Iterable[Used]) -> None:
        """So much of what a page says is settled by now. `write` it with that."""
        if page.file is not None and page.file in self._book.pages:
            known = self._book.pages[page.file]
            self._book.pages[page.file] = msgspec.structs.replace(known, over=tuple(over))

    def open(self) -> None:
        """Goes on with the book that is there, adding up what workers of executors before this one left behind."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._folder / "lock", time.monotonic() + PATIENCE_S)
            if self._lock is None:
                self._give_up("another executor of this name keeps it")
                return
            self._go_on(self._folder)
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def close(self) -> None:
        """Lets another executor have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def page(self, lane: int, compute_units: ComputeUnits) -> MeterPage:
        """A page for a worker that is about to start. Where there is no room for a file, memory. OSError where not even that."""
        if self._lock is not None and self._folder is not None:
            file = f"{self._incarnation}.{lane}.{next(self._lives)}{PAGES}"
            try:
                fd = _new_page(self._folder / file)
            except OSError as error:
                self._warn(error)
            else:
                self._book.pages[file] = Page(compute_units, time.monotonic_ns())
                self.write()
                return MeterPage(fd, file)
        return MeterPage(create_memory(PAGE_BYTES, "meter"), None)

    def settle(self, page: MeterPage) -> None:
        """What is settled has this page's counts by now."""
        if page.file is not None:
            self._book.pages.pop(page.file, None)
        page.close()
        self.write()

    def write(self) -> bool:
        """Puts what is settled, whose replicas are whose and which pages there are on disk, in one step.

        Not through to the medium: it outlives every process, and not the machine. A disk that is full is a warning, and
        what could not be written is written with the next that can. False where something is to be on disk and is not.
        """
        if self._lock is None or self._folder is None:
            return True
        owners = tuple(Owner(replica, *model) for replica, model in self.owners.items()) if self._book.pages else ()
        entries = entries_of(self.settled, self.lives)
        self._book = msgspec.structs.replace(
            self._book, entries=entries, owners=owners, lives=self.lives.last, format=FORMAT
        )
        try:
            _replace(self._folder / BOOK, msgspec.json.encode(self._book))
            self._sweep(self._folder)
        except OSError as error:
            self._warn(error)
            return False
        self._failed = False
        return True

    def _go_on(self, folder: Path) -> None:
        book = self._read(folder)
        if book is None:
            self.write()
            return
        ends, readings = time.monotonic() + PATIENCE_S, {}
        for file in book.pages:
            reading = _left_behind(folder / file, ends)
            if reading is not None:
                readings[file] = reading
        lives, now = int(time.time()) * _LIVES_A_SECOND, time.monotonic_ns()
        self._book = reopened(book, readings, self._incarnation, _boot(), now, lives=lives)
        self.settled = totals_of(self._book.entries)
        self.lives = lives_of(self._book.entries, self._book.lives)
        self.owners.update({owner.replica: (owner.tenant, owner.model) for owner in self._book.owners})
        self.strangers = frozenset(self.owners)
        log.info("usage goes on", book=self.name, pages=len(readings), left=len(self._book.pages))
        self.write()

    def _read(self, folder: Path) -> Book | None:
        """What is there; None where nothing is, or nothing that can be understood, which is put aside."""
        try:
            book = msgspec.json.decode((folder / BOOK).read_bytes(), type=Book)
            if book.format > FORMAT:
                raise msgspec.DecodeError(f"its format is {book.format}, and {FORMAT} is the latest that is known here")
            return book
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            (folder / BOOK).replace(folder / f"{BOOK}.{self._incarnation}.broken")
            log.error(
                "the book of device time cannot be understood; another begins", folder=str(folder), why=str(error)
            )
            return None

    def _sweep(self, folder: Path) -> None:
        for path in folder.glob(f"*{PAGES}"):
            if path.name not in self._book.pages:
                path.unlink(missing_ok=True)

    def _give_up(self, why: str) -> None:
        self.close()
        log.warning(
            "device time is counted in memory alone, and is lost with this executor",
            folder=str(self._folder),
            reason=why,
        )

    def _warn(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            log.warning(
                "the book of device time cannot be written: what is used meanwhile is lost if this executor dies",
                folder=str(self._folder),
                reason=error.strerror or str(error),
            )


def _locked(path: Path, ends: float) -> int | None:
    """A descriptor that holds the lock; None where another has it until `ends` on the monotonic clock."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if _holds(fd, ends):
        return fd
    os.close(fd)
    return None


def _holds(fd: int, ends: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= ends:
                return False
            time.sleep(STEP_S)


def _new_page(path: Path) -> int:
    """A page of zeros, locked as long as this process or the worker that gets it lives. OSError where there is no room.

    Its blocks are there from the start: a mapped page that the disk has no room for would kill whoever writes it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, PAGE_BYTES)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd


def _left_behind(path: Path, ends: float) -> Reading | None:
    """The last counts of a worker that is gone; empty where its page is, None where it has not ended by `ends`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Reading()
    try:
        if not _holds(fd, ends):
            log.warning(
                "a worker of an earlier executor has not ended; its device time is counted later", page=path.name
            )
            return None
        return read(fd)
    finally:
        os.close(fd)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
