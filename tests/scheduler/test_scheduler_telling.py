"""What the registry is told of use: everything, in the end, whoever dies on the way; and memory within a quota."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_world import World, device, model

from services.registry.core.usage import NOTHING, Book, Counts, taken
from services.registry.core.usage import Part as RegistryPart
from services.scheduler.core.catalogue import Key, Quota, Tenant
from services.scheduler.core.reports import Report, TenantUsage, UsageReport
from services.scheduler.core.requests import Moved
from services.scheduler.core.telling import Statement, Telling
from services.scheduler.core.usage import Used

KEY = Key("t", "m")


def report(ns: int, *, folded: int = 0, name: str = "book") -> Report:
    usage = UsageReport(KEY, name, ns, 2 * ns, ns // 10, ns // 20)
    whole = ns + folded
    tenants = (TenantUsage("t", name, whole, 2 * whole, whole // 10, whole // 20, 1),)
    return Report(usage=(usage,), tenants=tenants)


class SimRegistry:
    """The registry's books, as its core keeps them."""

    def __init__(self) -> None:
        self.books: dict[object, Book] = {}
        self.found = NOTHING

    def hear(self, statements: list[Statement]) -> None:
        for each in statements:
            total = None if each.total is None else _counts(each.total)
            parts = {
                RegistryPart(one.model, one.life): _counts(one.used)._replace(
                    bytes_in=one.bytes_in, bytes_out=one.bytes_out
                )
                for one in each.parts
            }
            self.books[each.place], news = taken(self.books.get(each.place, Book(NOTHING, {})), total, parts)
            for more in news.values():
                self.found = self.found.plus(more)


def _counts(used: Used) -> Counts:
    return Counts(used.device_ns, used.compute_unit_ns, used.requests, used.batches)


def test_only_what_is_new_is_told():
    telling = Telling()
    telling.executor("e", "cpu", 4, report(10))
    (statement,) = telling.take(10)
    assert (statement.device_kind, statement.device_units, statement.total) == ("cpu", 4, Used(10, 1, 20, 0))
    telling.executor("e", "cpu", 4, report(10))
    assert telling.take(10) == []
    telling.executor("e", "cpu", 4, report(30))
    (statement,) = telling.take(10)
    telling.put_back([statement])
    telling.executor("e", "cpu", 4, report(50))
    (statement,) = telling.take(10)
    assert statement.parts[0].used.device_ns == 50, "what was put back is told as it is by then"


def test_bytes_wait_until_their_executor_is_known():
    telling = Telling()
    telling.frontend("frontend-1", [(KEY, (Moved("e", 5, 6),))])
    assert telling.take(10) == []
    telling.executor("e", "cpu", 4, Report())
    (statement,) = telling.take(10)
    assert (statement.place.book, statement.device_kind, statement.total) == ("frontend-1", "cpu", None)
    telling.frontend("frontend-1", [(KEY, (Moved("e", 50, 60),))])
    telling.put_back([statement])
    (statement,) = telling.take(10)
    assert (statement.parts[0].bytes_in, statement.parts[0].bytes_out) == (50, 60)


@given(
    st.lists(
        st.tuples(st.sampled_from(["run", "run", "report", "tell", "lose", "scheduler dies"]), st.integers(0, 1000)),
        max_size=60,
    )
)
@settings(deadline=None)
def test_whatever_dies_or_is_lost_the_registry_has_each_nanosecond_and_each_byte_once(story):
    telling, registry, used = Telling(), SimRegistry(), 0

    def told() -> None:
        telling.executor("e", "cpu", 4, report(used))
        telling.frontend("frontend-1", [(KEY, (Moved("e", used, 2 * used),))])

    for what, amount in story:
        if what == "run":
            used += amount
        elif what == "report":
            told()
        elif what == "scheduler dies":
            telling = Telling()
        else:
            statements = telling.take(1 + amount % 3)
            if what == "tell" or amount % 2:
                registry.hear(statements)
            if what == "lose":
                # It is not known whether the registry has heard.
                telling.put_back(statements)
    told()
    while statements := telling.take(2):
        registry.hear(statements)
    found = registry.found
    assert (found.device_ns, found.bytes_in, found.bytes_out) == (used, used, 2 * used)


def test_replicas_hold_no_more_memory_than_their_tenants_quota_and_whoever_has_no_place_is_told_why():
    world = World()
    quota = Quota(memory_bytes=500)
    tenants = [Tenant("t", quota=quota), Tenant("u")]
    world.replace_catalogue(tenants, [model("t/a"), model("t/b"), model("t/c"), model("u/d")])
    world.add("e", device())
    world.settle()
    fleet = world.scheduler.fleet()
    (unplaced,) = fleet.unplaced
    assert unplaced.key.tenant == "t"
    assert "of at most 500 bytes of device memory" in unplaced.message
    (use,) = world.scheduler.quotas(world.now)
    assert (use.tenant, use.memory_bytes) == ("t", 400)
