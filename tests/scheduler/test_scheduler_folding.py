"""Models that are gone: what they used stays their tenants', and nothing is kept of their names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_world import World, model, tenant

from services.scheduler import convert, encode
from services.scheduler.core.catalogue import Key, Slo, TrafficClass
from services.scheduler.core.events import (
    CatalogueChanged,
    ExecutorReported,
    FrontendReported,
    SendFold,
)
from services.scheduler.core.reports import Report, TenantUsage, UsageReport
from services.scheduler.core.requests import Counts
from services.scheduler.core.routes import Route, RouteLog, VersionRoute, VersionState, size_bytes
from services.scheduler.core.scheduler import Scheduler
from services.scheduler.core.state import Policy
from services.scheduler.core.usage import UsageLedger
from tests.reachable import grown, reachable

KEY = Key("search", "embed")


def fold_world(fold_s: float = 60.0) -> World:
    world = World(Policy(settle_s=0, fold_s=fold_s))
    world.add("gpu-0").folds = True
    world.replace_catalogue([tenant("search")], [model("search/embed"), model("search/rank")])
    world.settle()
    world.executors["gpu-0"].use(KEY, 70)
    world.round()
    return world


def folds(world: World) -> list[SendFold]:
    return [each for each in world.story if isinstance(each, SendFold)]


def used(world: World) -> tuple[int, dict[str, int]]:
    (view,) = [each for each in world.scheduler.fleet().tenants if each.name == "search"]
    return view.used.device_ns, {each.key.name: each.used.device_ns for each in view.models if each.used.device_ns}


def test_what_a_removed_model_used_is_told_apart_for_a_while_and_is_its_tenants_from_then_on() -> None:
    world = fold_world()
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    world.round(59)
    world.round()
    assert (folds(world), used(world)) == ([], (70, {"embed": 70}))
    world.round(2)
    assert [(each.key, each.life, each.incarnation) for each in folds(world)] == [(KEY, 1, "1")]
    world.round()
    assert used(world) == (70, {})
    assert world.scheduler.state.fleet.executors["gpu-0"].gone == {}
    assert world.scheduler.state.usage.models() == {}
    world.round(300)
    assert len(folds(world)) == 1


def test_a_fold_that_is_lost_is_sent_again_and_one_for_a_model_that_is_back_is_not() -> None:
    world = fold_world()
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    world.round()
    world.wait(60)
    world.executors["gpu-0"].inbox.clear()
    world.wait(61)
    assert len(folds(world)) == 2
    world.executors["gpu-0"].inbox.clear()
    world.handle(CatalogueChanged(models=(model("search/embed"),)))
    world.round()
    world.round(200)
    world.round()
    assert len(folds(world)) == 2
    assert used(world) == (70, {"embed": 70})


def test_a_model_that_comes_back_is_counted_in_a_life_of_its_own() -> None:
    world = fold_world(fold_s=1)
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    for _ in range(4):
        world.round(2)
    world.handle(CatalogueChanged(models=(model("search/embed"),)))
    world.settle()
    world.executors["gpu-0"].use(KEY, 5)
    world.round()
    assert used(world) == (75, {"embed": 5})


def test_a_model_that_is_only_unloaded_keeps_its_counts() -> None:
    world = fold_world(fold_s=1)
    world.handle(CatalogueChanged(models=(model("search/embed", unloaded=True),)))
    for _ in range(5):
        world.round(20)
    assert (folds(world), used(world)) == ([], (70, {"embed": 70}))


def test_an_executor_that_tells_no_tenants_is_not_told_to_fold() -> None:
    world = fold_world(fold_s=1)
    world.executors["gpu-0"].folds = False
    world.crash("gpu-0")
    world.attach("gpu-0")
    world.executors["gpu-0"].use(KEY, 9)
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    for _ in range(5):
        world.round(20)
    assert folds(world) == []
    assert used(world)[0] == 79


def test_a_scheduler_that_begins_after_a_fold_knows_the_tenants_use() -> None:
    world = fold_world(fold_s=1)
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    for _ in range(4):
        world.round(2)
    world.restart(epoch=8)
    world.replace_catalogue([tenant("search")], [model("search/rank")])
    world.attach("gpu-0")
    world.round()
    assert used(world) == (70, {})


def test_models_of_an_executor_that_never_comes_back_are_forgotten_and_what_they_used_is_not() -> None:
    world = World(Policy(settle_s=0, grace_s=1, forget_s=10))
    world.add("gpu-0").folds = True
    world.replace_catalogue([tenant("search")], [model("search/embed")])
    world.settle()
    world.executors["gpu-0"].use(KEY, 70)
    world.round()
    world.detach("gpu-0")
    world.wait(11)
    assert used(world) == (70, {"embed": 70})
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    assert used(world) == (70, {})
    assert world.scheduler.state.usage.models() == {}


def test_a_report_and_a_fold_survive_the_wire() -> None:
    told = Report(
        usage=(UsageReport(KEY, "one", 5, 10, 2, 1, 3),), tenants=(TenantUsage("search", "one", 7, 14, 4, 2, 9),)
    )
    assert convert.report(encode._report(told), "two") == told
    fold = encode.command(SendFold("gpu-0", "one", KEY, 3, "")).fold
    assert (fold.incarnation, fold.key.tenant, fold.key.name, fold.life) == ("one", "search", "embed", 3)


# The ledger, against a book that folds.

NAMES = st.sampled_from([Key("a", "m"), Key("a", "n"), Key("b", "m")])
STEPS = st.lists(st.tuples(st.sampled_from(["use", "use", "fold", "tell"]), NAMES, st.integers(0, 50)), max_size=40)


class BookOf:
    """One name that counts, as an executor does."""

    def __init__(self, name: str) -> None:
        self.name, self.used, self.rest, self.lives, self.last = name, dict[Key, int](), dict[str, int](), {}, 0

    def use(self, key: Key, more: int) -> None:
        if key not in self.lives:
            self.last += 1
            self.lives[key] = self.last
        self.used[key] = self.used.get(key, 0) + more

    def fold(self, key: Key) -> None:
        if self.lives.pop(key, None) is not None:
            self.rest[key.tenant] = self.rest.get(key.tenant, 0) + self.used.pop(key)

    def tell(self) -> tuple[list[UsageReport], list[TenantUsage]]:
        usage = [UsageReport(key, self.name, ns, 2 * ns, 1, 1, self.lives[key]) for key, ns in self.used.items()]
        sums = dict(self.rest)
        for key, ns in self.used.items():
            sums[key.tenant] = sums.get(key.tenant, 0) + ns
        return usage, [TenantUsage(name, self.name, ns, 2 * ns, 1, 1, self.last) for name, ns in sums.items()]


@settings(max_examples=300)
@given(steps=STEPS, data=st.data())
def test_whatever_is_told_lost_repeated_or_late_tenants_sums_are_exact_and_models_never_more_than_they_used(
    steps, data
) -> None:
    books = {each: BookOf(each) for each in ("one", "two")}
    truth: dict[Key, int] = {}
    told = []
    for number, (what, key, more) in enumerate(steps):
        book = books["one" if number % 3 else "two"]
        if what == "use":
            book.use(key, more)
            truth[key] = truth.get(key, 0) + more
        elif what == "fold":
            book.fold(key)
        else:
            told.append(book.tell())
    kept = [each for each in told if data.draw(st.booleans())]
    again = data.draw(st.lists(st.sampled_from(told), max_size=8)) if told else []
    order = data.draw(st.permutations([*kept, *again]))
    ledger, news, before = UsageLedger(), dict[Key, int](), dict.fromkeys("ab", 0)
    for usage, tenants in [*order, *(book.tell() for book in books.values())]:
        for key, more in ledger.report("gpu-0", usage, tenants).items():
            assert more.device_ns >= 0
            news[key] = news.get(key, 0) + more.device_ns
        for name, least in before.items():
            before[name] = ledger.of(name).device_ns
            assert least <= before[name] <= sum(ns for key, ns in truth.items() if key.tenant == name)
        for key, ns in ledger.models().items():
            assert ns.device_ns == news.get(key, 0) <= truth[key]
    for name in before:
        exact = sum(ns for key, ns in truth.items() if key.tenant == name)
        assert before[name] == exact == sum(ns for key, ns in news.items() if key.tenant == name)
    for key in truth:
        alive = sum(book.used.get(key, 0) for book in books.values())
        assert ledger.of_model(key).device_ns >= alive


# What is kept.


def lives(world: World, name: str) -> None:
    """A model's life: pushed, loaded, used, asked for, unloaded, removed; a moment later it is folded."""
    key = Key("search", name)
    world.handle(CatalogueChanged(models=(model(f"search/{name}"),)))
    world.round()
    world.round()
    world.executors["gpu-0"].use(key, 7)
    world.handle(FrontendReported("front", ((key, Counts(3, 2, 1, 0, ((80, 3),))),)))
    world.round(1)
    world.handle(CatalogueChanged(models=(model(f"search/{name}", unloaded=True),)))
    world.round()
    world.handle(CatalogueChanged(removed_models=(key,)))
    world.handle(FrontendReported("front", ((key, Counts(4, 2, 2, 0, ((80, 4),))),)))
    world.round(2)
    world.round(2)
    world.round()
    world.story.clear()
    world.inspections.clear()


@pytest.mark.slow
def test_the_scheduler_keeps_nothing_of_models_that_are_gone() -> None:
    world = fold_world(fold_s=1)
    world.scheduler = Scheduler(epoch=9, now=world.now, policy=world.policy, route_changes=16)
    world.executors["gpu-0"].replicas = {}
    world.attach("gpu-0")
    world.routes = {}
    world.replace_catalogue([tenant("search")], [])
    for number in range(40):
        lives(world, f"model-{number:04}")
    before = reachable(world.scheduler)
    for number in range(40, 2000):
        lives(world, f"model-{number:04}")
    after = reachable(world.scheduler)
    assert after.objects <= before.objects + 20, grown(before, after)
    assert after.size_bytes <= before.size_bytes + 4096, grown(before, after)
    assert world.scheduler.state.usage.of("search").device_ns == 70 + 2000 * 7


def route(name: str, signature_bytes: int) -> Route:
    version = VersionRoute(1, VersionState.READY, "", b"s" * signature_bytes)
    return Route(Key("search", name), Slo(), TrafficClass.INTERACTIVE, (version,), ())


def test_the_log_of_changes_is_bounded_in_bytes_too() -> None:
    log = RouteLog(length=1000, most_bytes=100_000)
    for number in range(500):
        log.publish({KEY: route("embed", 10_000 + number)}, 0.0)
        assert log.after(log.revision - 1) is not None
    held = next(back for back in range(1, 1000) if log.after(log.revision - back) is None) - 1
    assert 5 <= held <= 10
    log.publish({KEY: route("embed", 1_000_000)}, 0.0)
    assert [change.revision for change in log.after(log.revision - 1) or ()] == [log.revision]
    assert log.after(log.revision - 2) is None
    log.publish({KEY: route("embed", 10)}, 0.0)
    assert log.after(log.revision - 2) is None
    assert log.after(log.revision - 1) is not None


def test_the_log_of_changes_is_bounded_in_time_too() -> None:
    log = RouteLog(length=1000, kept_s=60.0)
    for second in range(200):
        log.publish({KEY: route("embed", second)}, float(second))
        assert log.after(log.revision - min(second, 60)) is not None
    assert [change.revision for change in log.after(log.revision - 61) or ()][:1] == [log.revision - 60]
    assert log.after(log.revision - 62) is None
    log.forget_old(1000.0)
    assert log.after(log.revision) == ()
    assert log.after(log.revision - 2) is None


def test_the_scheduler_holds_no_more_after_many_minutes_of_models_that_come_and_go_than_after_a_few() -> None:
    world = fold_world()
    world.replace_catalogue([tenant("search")], [])
    sizes = []
    for turn in range(150):
        made = model(f"search/guest-{turn % 5}")
        world.handle(CatalogueChanged(models=(replace(made, revision=2 * turn + 1),)))
        world.round(1)
        world.handle(CatalogueChanged(models=(replace(made, revision=2 * turn + 2),)))
        world.executors["gpu-0"].use(made.key, 7)
        world.handle(FrontendReported("front", ((made.key, Counts(turn, turn, 0, 0, ((80, turn),))),)))
        world.round(2)
        world.handle(CatalogueChanged(removed_models=(made.key,)))
        world.round(3)
        world.story.clear()
        world.inspections.clear()
        if turn % 50 == 49:
            sizes.append(reachable(world.scheduler))
    assert sizes[-1].size_bytes <= sizes[0].size_bytes + 4096, grown(sizes[0], sizes[-1])


def test_the_estimate_of_a_changes_size_is_about_what_it_takes() -> None:
    log = RouteLog()
    many = {Key("search", str(number)): route(str(number), 1000 + number) for number in range(100)}
    change = log.publish(many, 0.0)
    assert change is not None
    assert 0.5 < size_bytes(change) / reachable(change).size_bytes < 2


def test_a_report_of_before_a_fold_brings_nothing_back() -> None:
    world = fold_world(fold_s=1)
    early = world.executors["gpu-0"].report()
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    for _ in range(4):
        world.round(2)
    world.handle(ExecutorReported("gpu-0", early))
    assert used(world) == (70, {})


def test_what_a_frontend_still_counts_of_a_model_that_is_gone_is_not_kept() -> None:
    world = fold_world()
    world.handle(CatalogueChanged(removed_models=(KEY,)))
    world.handle(FrontendReported("front", ((KEY, Counts(4)), (Key("search", "rank"), Counts(2)))))
    assert list(world.scheduler.state.requests.recent(world.now)) == [Key("search", "rank")]
