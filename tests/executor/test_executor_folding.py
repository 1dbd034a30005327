"""Replicas and models that are gone: what they used is counted once, and nothing goes on growing with their names."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import services.executor.books as module
from gpu_sharing.worker.messages import Reading, Settled, Used
from gpu_sharing.worker.meter import Meter
from services._proto.apportion.v1 import scheduler_pb2
from services.executor.books import BOOK, Books
from services.executor.core.books import Book, Closed, Entry, Owner, Page, entries_of, folded, reopened, tenants_of
from services.executor.core.usage import Lives, Total, UsageLedger
from services.executor.forgetting import Forgetting
from services.executor.reports import tenants_to, usage_of
from services.scheduler import convert
from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import Report
from services.scheduler.core.usage import UsageLedger as SchedulersLedger

UNITS = 3
MODELS = [("acme", "m"), ("acme", "n"), ("umbrella", "m")]


class Life:
    """One executor's life with one lane: real books, a real page, what lets go of things, and a worker that obeys."""

    def __init__(self, folder: Path, incarnation: str) -> None:
        self.books = Books(folder, "gpu-0", incarnation)
        self.books.open()
        self.ledger = UsageLedger({0: UNITS}, self.books.settled, self.books.owners, self.books.lives)
        self.books.settled = self.ledger.settled
        self.held: dict[int, tuple[str, str]] = {}
        self.pages = {}
        lanes = {0: SimpleNamespace(client=SimpleNamespace(send=self.obey))}
        self.forgetting = Forgetting(self.ledger, self.books, self.pages, lanes, self.held)  # type: ignore[arg-type]
        self.start_worker()

    def obey(self, command: object) -> None:
        assert isinstance(command, Settled)
        assert command.replica not in self.held
        self.meter.free(command.replica)

    def start_worker(self) -> None:
        self.page = self.pages[0] = self.books.page(0, UNITS)
        self.ledger.started(0, time.monotonic_ns())
        self.meter = Meter.of(self.page.fd)

    def load(self, replica: int, model: tuple[str, str]) -> None:
        self.held[replica] = model
        if self.ledger.owns(replica, model):
            self.books.write()

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
        """kill -9, in the middle of a slice or not, and its worker with it."""
        if replica is not None:
            now = time.monotonic_ns()
            self.meter.begin(replica, now, 1)
            self.meter.beat(now + ran)
        del self.meter
        self.page.close()
        self.books.close()

    def report(self) -> Report:
        """What it tells the scheduler, over the wire."""
        reading = self.page.read()
        assert reading is not None
        self.ledger.read(0, reading, time.monotonic_ns())
        self.forgetting.run(time.monotonic_ns())
        entries = entries_of(self.ledger.totals, self.ledger.lives)
        accounts = [*self.books.accounts, Closed(self.books.name, entries, self.ledger.lives.last)]
        message = scheduler_pb2.ExecutorReport(
            usage=chain.from_iterable(map(usage_of, accounts)), tenants=chain.from_iterable(map(tenants_to, accounts))
        )
        return convert.report(scheduler_pb2.ExecutorReport.FromString(message.SerializeToString()), "unused")


class Heard:
    """A scheduler's ledger, and what it said was new."""

    def __init__(self) -> None:
        self.ledger = SchedulersLedger()
        self.news: dict[Key, int] = {}

    def hear(self, report: Report) -> None:
        for key, used in self.ledger.report("gpu-0", report.usage, report.tenants).items():
            assert min(used.device_ns, used.requests, used.compute_unit_ns, used.batches) >= 0
            self.news[key] = self.news.get(key, 0) + used.device_ns


PICK, TIME = st.integers(0, 9), st.integers(0, 40)
COMMON = ("load", "load", "slice", "slice", "slice", "unload", "fold", "fold", "report", "lost report", "late report")
DEATHS = (
    "worker dies",
    "worker dies in a slice",
    "executor dies",
    "executor dies in a slice",
    "reboot",
    "scheduler dies",
)
WHAT = st.sampled_from([*COMMON, *DEATHS])


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(WHAT, PICK, TIME), max_size=40))
def test_whatever_is_folded_dies_or_is_told_late_every_nanosecond_is_counted_once(steps):
    truth: dict[tuple[str, str], int] = {}
    folder, ids, boots, lives = Path(tempfile.mkdtemp()), count(1), 0, count(1)
    patched = pytest.MonkeyPatch()
    patched.setattr(module, "_boot", lambda: f"boot-{boots}")
    life, heard, late, ended = Life(folder, "i0"), Heard(), list[Report](), set[tuple[str, str]]()
    before = dict.fromkeys(("acme", "umbrella"), 0)
    try:
        for what, pick, took in steps:
            replica = sorted(life.held)[pick % len(life.held)] if life.held else None
            used = replica is not None and (what == "slice" or what.endswith("in a slice"))
            if used:
                truth[life.held[replica]] = truth.get(life.held[replica], 0) + took
            if what == "load":
                life.load(next(ids), MODELS[pick % len(MODELS)])
            elif what == "slice" and used:
                life.runs(replica, took)
            elif what == "unload" and replica is not None:
                del life.held[replica]
            elif what == "fold" and late:
                told = late[took % len(late)].usage
                if told:
                    counted = told[pick % len(told)]
                    life.forgetting.fold(counted.incarnation, tuple(counted.key), counted.life)
                    ended.add(tuple(counted.key))
            elif what in ("report", "lost report"):
                late.append(life.report())
                if what == "report":
                    heard.hear(late[-1])
            elif what == "late report" and late:
                heard.hear(late[took % len(late)])
            elif what.startswith("worker dies"):
                life.lose_worker(replica if used else None, took)
            elif what.startswith("executor dies") or what == "reboot":
                life.die(replica if used else None, took)
                boots += what == "reboot"
                life = Life(folder, f"i{next(lives)}")
            elif what == "scheduler dies":
                heard, before = Heard(), dict.fromkeys(before, 0)
            for tenant, least in before.items():
                most = sum(ns for (owner, _), ns in truth.items() if owner == tenant)
                before[tenant] = heard.ledger.of(tenant).device_ns
                assert least <= before[tenant] <= most
            for key, told in heard.ledger.models().items():
                assert told.device_ns <= truth.get(tuple(key), 0)
        heard.hear(life.report())
        for tenant in before:
            exact = sum(ns for (owner, _), ns in truth.items() if owner == tenant)
            counted = heard.ledger.of(tenant)
            assert (counted.device_ns, counted.compute_unit_ns) == (exact, UNITS * exact)
            assert sum(ns for key, ns in heard.news.items() if key.tenant == tenant) == exact
        for model, ns in truth.items():
            told = heard.ledger.of_model(Key(*model)).device_ns
            assert heard.news.get(Key(*model), 0) == told <= ns
            assert model in ended or told == ns
        assert life.ledger.models == life.held
        life.die()
    finally:
        patched.undo()
        shutil.rmtree(folder)


def test_a_book_a_page_and_a_report_do_not_grow_with_the_names_that_there_were(tmp_path):
    life, heard, sizes = Life(tmp_path, "one"), Heard(), set()
    for replica in range(1, 2001):
        life.load(replica, ("acme", f"model-{replica:04}"))
        life.runs(replica, 7)
        heard.hear(life.report())
        del life.held[replica]
        heard.hear(life.report())
        (told,) = life.report().usage
        life.forgetting.fold(told.incarnation, tuple(told.key), told.life)
        heard.hear(life.report())
        heard.ledger.keep((), {"gpu-0"})
        if replica > 10:
            page = life.page.read()
            assert page is not None
            book = msgspec.json.decode((tmp_path / "gpu-0" / BOOK).read_bytes(), type=Book)
            counts = len(book.entries), len(book.owners), len(page.used), len(life.ledger.models)
            sizes.add((*counts, len(life.ledger.lanes[0].used), len(heard.ledger.models())))
    assert len(sizes) == 1, sizes
    assert sizes.pop() == (1, 0, 1, 0, 0, 0)
    assert heard.ledger.of("acme").device_ns == 14_000
    life.die()


def test_a_model_that_comes_back_is_counted_from_nothing_and_its_tenant_goes_on(tmp_path):
    life, heard = Life(tmp_path, "one"), Heard()
    key = Key("acme", "m")
    life.load(1, tuple(key))
    life.runs(1, 100)
    early = life.report()
    heard.hear(early)
    life.forgetting.fold("one", tuple(key), early.usage[0].life)
    heard.hear(life.report())
    assert heard.ledger.of_model(key).device_ns == 100, "it has a replica: it is not gone"
    del life.held[1]
    life.report()
    life.forgetting.fold("one", tuple(key), early.usage[0].life)
    heard.hear(life.report())
    heard.ledger.keep((), {"gpu-0"})
    life.load(2, tuple(key))
    life.runs(2, 30)
    for report in (life.report(), early, life.report(), early):
        heard.hear(report)
        assert (heard.ledger.of_model(key).device_ns, heard.ledger.of("acme").device_ns) == (30, 130)
    life.die()


def test_a_page_has_room_for_more_replicas_than_it_has_records_one_after_another(tmp_path):
    life = Life(tmp_path, "one")
    for replica in range(1, 1500):
        life.load(replica, ("acme", "m"))
        life.runs(replica, 2)
        del life.held[replica]
        life.report()
    life.die()
    again = Life(tmp_path, "two")
    assert again.ledger.totals == {("acme", "m"): Total(2 * 1499, UNITS * 2 * 1499, 1499, 1499)}
    again.die()


def test_a_record_is_not_given_away_before_what_it_says_is_on_disk(tmp_path, monkeypatch):
    life = Life(tmp_path, "one")
    life.load(1, ("acme", "m"))
    life.runs(1, 50)
    del life.held[1]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_replace", full)
        life.report()
        life.load(2, ("acme", "n"))
        life.runs(2, 5)
        assert [used.replica for used in life.page.read().used] == [1, 2]
    life.report()
    life.load(3, ("acme", "n"))
    life.runs(3, 5)
    assert [used.replica for used in life.page.read().used] == [3, 2], (
        "there is room again, and the record is another's"
    )
    life.die()
    again = Life(tmp_path, "two")
    assert {entry.model: entry.total.device_ns for entry in entries_of(again.ledger.settled)} == {"m": 50, "n": 10}
    again.die()


def test_a_replica_whose_slice_still_runs_is_not_settled_yet(tmp_path):
    life = Life(tmp_path, "one")
    life.load(1, ("acme", "m"))
    life.meter.begin(1, time.monotonic_ns(), 1)
    del life.held[1]
    life.report()
    life.meter.end(20)
    assert life.report().tenants[0].device_ns == 20
    assert life.ledger.models == {}
    life.die()


def test_whose_replicas_are_of_a_worker_that_outlives_its_executor_is_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    first = Life(tmp_path, "one")
    first.load(1, ("acme", "m"))
    first.runs(1, 10)
    held = os.dup(first.page.fd)
    first.die()
    second = Life(tmp_path, "two")
    (told,) = second.report().usage
    second.forgetting.fold(told.incarnation, ("acme", "m"), told.life)
    assert second.report().usage == (told,), "what it uses is still to be counted"
    second.die()
    os.close(held)
    third = Life(tmp_path, "three")
    assert [(each.key.name, each.device_ns, each.life) for each in third.report().usage] == [("m", 10, told.life)]
    third.die()


def test_a_book_of_the_first_format_is_read_and_goes_on(tmp_path):
    old = {
        "name": "one",
        "boot": module._boot(),
        "entries": [
            {
                "tenant": "acme",
                "model": "m",
                "total": {"device_ns": 9, "compute_unit_ns": 27, "requests": 1, "batches": 1},
            }
        ],
        "closed": [
            {
                "name": "zero",
                "entries": [
                    {
                        "tenant": "acme",
                        "model": "gone",
                        "total": {"device_ns": 4, "compute_unit_ns": 12, "requests": 1, "batches": 1},
                    }
                ],
            }
        ],
        "pages": {},
        "owners": [],
    }
    os.makedirs(tmp_path / "gpu-0")
    (tmp_path / "gpu-0" / BOOK).write_bytes(msgspec.json.encode(old))
    life, heard = Life(tmp_path, "two"), Heard()
    heard.ledger.report("gpu-0", life.report().usage)
    life.load(1, ("acme", "m"))
    life.runs(1, 1)
    heard.hear(life.report())
    assert heard.ledger.of_model(Key("acme", "m")).device_ns == 10
    assert heard.ledger.of("acme").device_ns == 14
    life.forgetting.fold("zero", ("acme", "gone"), 0)
    report = life.report()
    assert [each.key.name for each in report.usage] == ["m"]
    assert sum(each.device_ns for each in report.tenants) == 14
    life.die()
    again = Life(tmp_path, "three")
    assert sum(each.device_ns for each in again.report().tenants) == 14
    again.die()


def test_a_book_of_a_later_format_is_put_aside_and_not_misread(tmp_path):
    Life(tmp_path, "one").die()
    path = tmp_path / "gpu-0" / BOOK
    path.write_bytes(path.read_bytes().replace(b'"format":2', b'"format":3'))
    again = Life(tmp_path, "two")
    assert again.books.name == "two"
    assert list((tmp_path / "gpu-0").glob("*.broken"))
    again.die()


def test_what_a_page_says_of_what_is_settled_is_not_added_again():
    page = Page(2, 0, (Used(1, 10, 1, 1, 0),))
    book = Book("one", "b", (Entry("a", "m", Total(10, 20, 1, 1), 5),), (), {"p": page}, (Owner(2, "a", "m"),), 7)
    reading = Reading((Used(1, 10, 1, 1, 0), Used(2, 3, 1, 1, 0)))
    after = reopened(book, {"p": reading}, "two", "b", 10**9, lives=6)
    assert after.entries == (Entry("a", "m", Total(13, 26, 2, 2), 5),)
    assert after.lives == 7


def test_numbers_of_lives_that_were_given_and_not_written_down_are_not_given_again():
    book = Book("one", "b", lives=7)
    assert reopened(book, {}, "two", "b", 0, lives=100).lives == 100


def test_of_models_that_nobody_says_are_gone_the_oldest_are_folded_where_there_are_too_many():
    ledger = UsageLedger({}, lives=Lives())
    for number in range(10):
        ledger.owns(number, ("acme", f"m{number}"))
        ledger.settled["acme", f"m{number}"] = Total(number + 1)
    del ledger.models[3], ledger.models[1], ledger.models[7]
    assert ledger.fold_beyond(8)
    assert not ledger.fold_beyond(8)
    assert set(ledger.settled) == {("acme", ""), *(("acme", f"m{each}") for each in range(10))} - {
        ("acme", "m1"),
        ("acme", "m3"),
    }
    assert tenants_of(entries_of(ledger.settled)) == {"acme": Total(55)}


def test_a_fold_of_another_life_changes_nothing():
    closed = Closed("one", (Entry("acme", "m", Total(5), 3),), 4)
    assert folded(closed, ("acme", "m"), 2) == closed
    assert folded(closed, ("acme", "n"), 3) == closed
    assert folded(closed, ("acme", "m"), 3).entries == (Entry("acme", "", Total(5)),)
