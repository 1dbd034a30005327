"""Books of device time: whatever dies, in whatever order, what was used is counted once."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import services.executor.books as module
from gpu_sharing.worker.messages import Reading, Running, Statistics, Used
from gpu_sharing.worker.meter import Meter
from services.executor.books import Books, MeterPage
from services.executor.core.books import Book, Entry, Owner, Page, reopened, totals_of
from services.executor.core.usage import Total, UsageLedger, charged
from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import UsageReport
from services.scheduler.core.usage import UsageLedger as SchedulersLedger

UNITS = 3
OWNERS = {1: ("acme", "m"), 2: ("acme", "n"), 3: ("umbrella", "m")}


class Life:
    """One executor's life with one lane, as far as books are concerned."""

    def __init__(self, folder: Path | None, incarnation: str) -> None:
        self.incarnation = incarnation
        self.books = Books(folder, "gpu-0", incarnation)
        self.books.open()
        self.ledger = UsageLedger({0: UNITS}, self.books.settled, self.books.owners)
        self.books.settled = self.ledger.settled
        self.ledger.models.update(OWNERS)
        self.start_worker()

    def start_worker(self) -> None:
        self.page: MeterPage = self.books.page(0, UNITS)
        self.ledger.started(0, time.monotonic_ns())
        self.meter = Meter.of(self.page.fd)

    def runs(self, replica: int, took: int) -> None:
        self.meter.begin(replica, time.monotonic_ns(), 1)
        self.meter.end(took)

    def lose_worker(self, replica: int | None, ran: int) -> None:
        now = time.monotonic_ns()
        if replica is not None:
            self.meter.begin(replica, now, 1)
        self.ledger.ended(0, self.page.read(), now + ran)
        self.books.settle(self.page)
        self.start_worker()

    def die(self, replica: int | None = None, ran: int = 0) -> None:
        """kill -9, in the middle of a slice or not: nothing more is written by anybody."""
        if replica is not None:
            now = time.monotonic_ns()
            self.meter.begin(replica, now, 1)
            self.meter.beat(now + ran)
        del self.meter
        self.page.close()
        self.books.close()

    def report(self) -> list[UsageReport]:
        reading = self.page.read()
        assert reading is not None
        self.ledger.read(0, reading, time.monotonic_ns())
        names = [*self.books.earlier, (self.books.name, self.ledger.totals)]
        return [
            UsageReport(Key(*key), name, total.device_ns, total.compute_unit_ns, total.requests, total.batches)
            for name, totals in names
            for key, total in totals.items()
        ]


REPLICA = st.sampled_from([1, 2, 3])
TIME = st.integers(0, 40)
STEP = st.one_of(
    st.tuples(st.just("slice"), REPLICA, TIME),
    st.tuples(st.just("slice"), REPLICA, TIME),
    st.tuples(st.just("worker dies"), st.one_of(st.none(), REPLICA), TIME),
    st.tuples(st.just("executor dies"), st.one_of(st.none(), REPLICA), TIME),
    st.tuples(st.just("reboot"), st.one_of(st.none(), REPLICA), TIME),
    st.tuples(st.just("scheduler dies"), st.none(), TIME),
    st.tuples(st.just("report"), st.none(), TIME),
    st.tuples(st.just("late report"), st.none(), TIME),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_whatever_dies_in_whatever_order_every_nanosecond_is_counted_once(steps):
    truth: dict[tuple[str, str], int] = {}
    folder = Path(tempfile.mkdtemp())
    boots = 0
    patched = pytest.MonkeyPatch()
    patched.setattr(module, "_boot", lambda: f"boot-{boots}")
    life, lives = Life(folder, "i0"), 1
    scheduler, late = SchedulersLedger(), []
    try:
        for what, replica, took in steps:
            if what == "slice":
                life.runs(replica, took)
            elif what == "worker dies":
                life.lose_worker(replica, took)
            elif what in ("executor dies", "reboot"):
                life.die(replica, took)
                boots += what == "reboot"
                life, lives = Life(folder, f"i{lives}"), lives + 1
            elif what == "scheduler dies":
                scheduler = SchedulersLedger()
            elif what == "report":
                scheduler.report("gpu-0", life.report())
                late.append(life.report())
            elif late:
                scheduler.report("gpu-0", late[took % len(late)])
            if replica is not None:
                truth[OWNERS[replica]] = truth.get(OWNERS[replica], 0) + took
            for key, used in scheduler.models().items():
                assert used.device_ns <= truth[key.tenant, key.name]
        scheduler.report("gpu-0", life.report())
        told = {(key.tenant, key.name): used for key, used in scheduler.models().items()}
        assert {key: used.device_ns for key, used in told.items() if used.device_ns} == {
            key: ns for key, ns in truth.items() if ns
        }
        assert all(used.compute_unit_ns == UNITS * used.device_ns for used in told.values())
        life.die()
    finally:
        patched.undo()
        shutil.rmtree(folder)


def test_counts_go_on_under_their_name_until_the_machine_starts_again(tmp_path, monkeypatch):
    first = Life(tmp_path, "one")
    first.runs(1, 10)
    first.die()
    second = Life(tmp_path, "two")
    second.runs(1, 5)
    assert [(each.incarnation, each.device_ns) for each in second.report()] == [("one", 15)]
    second.die()
    monkeypatch.setattr(module, "_boot", lambda: "another boot")
    third = Life(tmp_path, "three")
    third.runs(1, 1)
    assert [(each.incarnation, each.device_ns) for each in third.report()] == [("one", 15), ("three", 1)]
    assert len(list(tmp_path.glob("gpu-0/*.page"))) == 1, "pages that were added up are gone"
    third.die()


def test_two_executors_of_one_name_do_not_share_a_book(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    first = Life(tmp_path, "one")
    first.runs(1, 10)
    with capture_logs() as logs:
        second = Life(tmp_path, "two")
    assert [each["reason"] for each in logs if each["log_level"] == "warning"] == [
        "another executor of this name keeps it"
    ]
    second.runs(1, 3)
    assert [(each.incarnation, each.device_ns) for each in second.report()] == [("two", 3)]
    second.die()
    first.die()
    third = Life(tmp_path, "three")
    assert [(each.incarnation, each.device_ns) for each in third.report()] == [("one", 10)]
    third.die()


def test_a_worker_that_outlives_its_executor_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    first = Life(tmp_path, "one")
    first.runs(1, 10)
    held = os.dup(first.page.fd)
    first.die()
    second = Life(tmp_path, "two")
    assert second.report() == [], "what it uses still can change"
    second.die()
    os.close(held)
    third = Life(tmp_path, "three")
    assert [(each.incarnation, each.device_ns) for each in third.report()] == [("one", 10)]
    third.die()


def test_a_book_that_is_broken_is_put_aside(tmp_path):
    first = Life(tmp_path, "one")
    first.die()
    (tmp_path / "gpu-0" / "book.json").write_text('{"name": 4')
    second = Life(tmp_path, "two")
    second.runs(1, 4)
    assert [(each.incarnation, each.device_ns) for each in second.report()] == [("two", 4)]
    assert list(tmp_path.glob("gpu-0/*.broken"))
    second.die()


def test_where_the_folder_cannot_be_used_device_time_is_counted_all_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        life = Life(tmp_path / "file" / "books", "one")
    assert "lost with this executor" in logs[0]["event"]
    life.runs(1, 6)
    life.lose_worker(2, 5)
    assert {each.key.name: each.device_ns for each in life.report()} == {"m": 6, "n": 5}
    life.die()


def test_on_a_full_disk_a_worker_counts_in_memory_and_the_book_is_written_once_there_is_room(tmp_path, monkeypatch):
    life = Life(tmp_path, "one")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(os, "posix_fallocate", full)
        patched.setattr(module, "_replace", full)
        life.runs(1, 6)
        life.lose_worker(None, 0)
        assert life.page.file is None
        life.runs(1, 5)
    assert [each["reason"] for each in logs] == ["No space left on device"], "said once"
    life.lose_worker(None, 0)
    life.die()
    again = Life(tmp_path, "two")
    assert [(each.incarnation, each.device_ns) for each in again.report()] == [("one", 11)]
    again.die()


def test_a_hostile_worker_cannot_have_used_more_than_it_lived_nor_speak_of_others_replicas():
    ledger = UsageLedger({0: 2}, models={1: ("a", "m")})
    ledger.started(0, 1000)
    most = (1 << 64) - 1
    ledger.take(0, Statistics(most, 0, (Used(1, most, most, most, 0), Used(9, 50, 1, 1, 0)), 7), 1500)
    total = ledger.totals["a", "m"]
    assert (total.device_ns, total.compute_unit_ns, ledger.lanes[0].busy_ns) == (500, 1000, 500)
    assert total.requests < 1 << 60
    assert list(ledger.totals) == [("a", "m")]


def test_a_slice_that_never_ended_is_charged_up_to_the_end_that_is_known():
    reading = Reading((Used(1, 10, 1, 1, 0),), Running(1, 100, 130))
    assert charged(reading).used[0].device_ns == 40
    assert charged(reading, 125).used[0].device_ns == 35
    assert charged(reading, 90).used[0].device_ns == 10


def test_what_nobody_is_known_to_own_is_not_given_to_anybody():
    book = Book("one", "b", (Entry("a", "m", Total(5, 10, 1, 1)),), (), {"p": Page(2, 0)}, (Owner(1, "a", "m"),))
    reading = Reading((Used(1, 10, 1, 1, 0), Used(2, 3, 1, 1, 0)))
    after = reopened(book, {"p": reading}, "two", "b", 10**9)
    assert totals_of(after.entries) == {("a", "m"): Total(15, 30, 2, 2), ("", ""): Total(3, 6, 1, 1)}
    assert (after.pages, after.owners, after.name) == ({}, (), "one")
