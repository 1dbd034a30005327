"""Quotas with their tenants, what is stored within them, and who used how much; on both databases."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_world import World, refusal

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason
from services.registry.core.prices import Price, Prices
from services.registry.core.usage import NOTHING, Book, Counts, Part, taken
from services.registry.usage import DAY_US

CODE = grpc.StatusCode
UNTOLD = ""


async def test_a_quota_is_kept_with_its_tenant_told_to_watchers_and_taken_away_again(world: World) -> None:
    await world.tenant()
    quota = pb.Quota(millirequests_per_s=50_500, concurrent_requests=4, device_ms=60_000, stored_bytes=1 << 20)
    updated = (await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", quota=quota))).tenant
    assert (updated.quota.burst, updated.quota.device_interval_s) == (50, 3600), "what was not said has its default"
    assert updated.quota.millirequests_per_s == 50_500
    assert not updated.quota.HasField("memory_bytes")
    assert updated.reservation.millidevices == 250
    assert (await world.snapshot()).tenants["acme"].quota == updated.quota
    assert (await world.call.GetTenant(pb.GetTenantRequest(name="acme"))).tenant == updated
    weight = (await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", weight=3))).tenant
    assert weight.quota == updated.quota, "what is not named stays"
    gone = (await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", quota=pb.Quota()))).tenant
    assert not gone.HasField("quota")
    made = pb.CreateTenantRequest(name="with-one", quota=pb.Quota(concurrent_requests=1))
    assert (await world.call.CreateTenant(made)).tenant.quota.concurrent_requests == 1
    await world.call.DeleteTenant(pb.DeleteTenantRequest(name="with-one"))


@pytest.mark.parametrize(
    ("quota", "field"),
    [
        (pb.Quota(millirequests_per_s=0), "quota.millirequests_per_s"),
        (pb.Quota(concurrent_requests=10**6 + 1), "quota.concurrent_requests"),
        (pb.Quota(concurrent_requests=1, burst=10**7), "quota.burst"),
        (pb.Quota(device_ms=1, device_interval_s=1 << 30), "quota.device_interval_s"),
        (pb.Quota(stored_bytes=1 << 61), "quota.stored_bytes"),
    ],
)
async def test_a_quota_that_cannot_be_is_refused_by_field(world: World, quota: pb.Quota, field: str) -> None:
    request = pb.CreateTenantRequest(name="acme", quota=quota)
    found = await refusal(world.call.CreateTenant(request), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
    assert found.field == field


async def test_no_artefact_goes_beyond_the_stored_bytes_and_the_refusal_says_by_how_much(world: World) -> None:
    await world.tenant()
    await world.call.UpdateTenant(pb.UpdateTenantRequest(name="acme", quota=pb.Quota(stored_bytes=100)))
    await world.upload(b"a" * 60)
    await world.upload(b"a" * 60)
    assert (await world.call.GetTenant(pb.GetTenantRequest(name="acme"))).stored_bytes == 60, (
        "the same bytes count once"
    )
    found = await refusal(world.upload(b"b" * 41), Reason.QUOTA_EXCEEDED, CODE.RESOURCE_EXHAUSTED)
    assert {name: found.facts[name] for name in ("quota", "limit", "use", "asked", "subject")} == {
        "quota": "stored_bytes",
        "limit": "100",
        "use": "60",
        "asked": "41",
        "subject": "tenant:acme",
    }
    await world.upload(b"b" * 40)


def book(
    tenant: str = "acme", *, total: int | None = None, name: str = "book", executor: str = "e", **models: int
) -> pb.UsageBook:
    """Everything that was counted, in nanoseconds of two units; requests are a hundredth of it."""
    return pb.UsageBook(
        tenant=tenant,
        executor_id=executor,
        book=name,
        device_kind="cpu",
        device_compute_units=4,
        total=None if total is None else counts(total),
        models=[pb.ModelUsage(name=model, counts=counts(ns)) for model, ns in models.items()],
    )


def counts(ns: int) -> pb.UsageCounts:
    return pb.UsageCounts(device_ns=ns, compute_unit_ns=2 * ns, requests=ns // 100)


async def used(world: World, **request: str) -> dict[tuple[str, str], int]:
    """Nanoseconds by tenant and model, over all hours."""
    found: dict[tuple[str, str], int] = {}
    for row in (await world.call.GetUsage(pb.GetUsageRequest(**request))).rows:
        place = (row.key.tenant, row.key.name)
        found[place] = found.get(place, 0) + row.counts.device_ns
        assert row.counts.compute_unit_ns == 2 * row.counts.device_ns
        assert row.whole_device_ns == row.counts.compute_unit_ns // 4
    return found


async def test_what_is_told_is_counted_once_however_often_and_in_which_order(world: World) -> None:
    await world.tenant()
    first, second = book(total=1000, m=600, n=400), book(total=5000, m=2600, n=2400)
    for told in (first, first, second, first, second):
        await world.call.RecordUsage(pb.RecordUsageRequest(books=[told, told]))
    assert await used(world) == {("acme", "m"): 2600, ("acme", "n"): 2400}
    await world.call.RecordUsage(
        pb.RecordUsageRequest(books=[book(name="other", total=7, m=7), book("b", total=3, m=3)])
    )
    assert await used(world, tenant="acme") == {("acme", "m"): 2607, ("acme", "n"): 2400}
    assert await used(world, tenant="b") == {("b", "m"): 3}
    assert await used(world, tenant="acme", model="n") == {("acme", "n"): 2400}


async def test_models_that_are_folded_stay_what_they_were_and_their_tenants_sum_goes_on(world: World) -> None:
    await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=1000, m=600, n=400)]))
    await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=1100, n=450)]))
    assert await used(world) == {("acme", UNTOLD): 50, ("acme", "m"): 600, ("acme", "n"): 450}
    again = book(total=1200, n=450)
    again.models.add(name="m", life=2, counts=counts(100))
    await world.call.RecordUsage(pb.RecordUsageRequest(books=[again]))
    assert await used(world) == {("acme", UNTOLD): 50, ("acme", "m"): 700, ("acme", "n"): 450}


async def test_bytes_are_told_by_frontends_under_names_of_their_own(world: World) -> None:
    moved = pb.UsageBook(tenant="acme", executor_id="e", book="frontend-1", device_kind="cpu", device_compute_units=4)
    moved.models.add(name="m", counts=pb.UsageCounts(bytes_in=10, bytes_out=20))
    for _ in range(2):
        await world.call.RecordUsage(pb.RecordUsageRequest(books=[moved, book(total=4, m=4)]))
    (row,) = (await world.call.GetUsage(pb.GetUsageRequest())).rows
    assert (row.counts.bytes_in, row.counts.bytes_out, row.counts.device_ns) == (10, 20, 4)
    assert (row.device_kind, row.device_compute_units) == ("cpu", 4)


async def test_a_removed_tenants_use_stays(world: World) -> None:
    await world.tenant()
    await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=9, m=9)]))
    await world.call.DeleteTenant(pb.DeleteTenantRequest(name="acme"))
    assert await used(world) == {("acme", "m"): 9}


async def test_use_costs_what_its_kind_of_device_did_in_its_hour(world: World) -> None:
    second = 2 * 10**9
    await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=second, m=second)]))
    (row,) = (await world.call.GetUsage(pb.GetUsageRequest())).rows
    assert not row.HasField("price_nanos")
    assert not row.HasField("cost_nanos")
    await world.call.SetPrice(pb.SetPriceRequest(price_nanos=5))
    await world.call.SetPrice(pb.SetPriceRequest(device_kind="cpu", price_nanos=7))
    await world.call.SetPrice(pb.SetPriceRequest(device_kind="cpu", price_nanos=9))
    (row,) = (await world.call.GetUsage(pb.GetUsageRequest())).rows
    assert (row.price_nanos, row.cost_nanos) == (9, 9), "two seconds on half of a device are one second of it"
    prices = (await world.call.ListPrices(pb.ListPricesRequest())).prices
    assert [(each.device_kind, each.price_nanos) for each in prices] == [("", 5), ("cpu", 9)]
    request = pb.SetPriceRequest(price_nanos=10**15 + 1)
    await refusal(world.call.SetPrice(request), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)


async def test_pages_of_usage_follow_one_another_and_hours_can_be_chosen(world: World) -> None:
    models = {f"m{place}": place for place in range(1, 8)}
    await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=sum(models.values()), **models)]))
    found, token = [], ""
    while True:
        page = await world.call.GetUsage(pb.GetUsageRequest(page_size=3, page_token=token))
        found += [row.key.name for row in page.rows]
        if not (token := page.next_page_token):
            break
    assert found == sorted(models)
    hour = (await world.call.GetUsage(pb.GetUsageRequest(page_size=1))).rows[0].hour
    request = pb.GetUsageRequest()
    request.since.FromSeconds(hour.seconds + 1)
    assert not (await world.call.GetUsage(request)).rows
    request = pb.GetUsageRequest()
    request.until.FromSeconds(hour.seconds)
    assert not (await world.call.GetUsage(request)).rows
    bad = pb.GetUsageRequest(page_token="AAAA")
    await refusal(world.call.GetUsage(bad), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)


async def test_what_cannot_have_been_told_is_refused_whole(world: World) -> None:
    wrong = book(total=1, m=1)
    wrong.models[0].counts.device_ns = 1 << 63
    request = pb.RecordUsageRequest(books=[book(total=5, m=5), wrong])
    await refusal(world.call.RecordUsage(request), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
    assert await used(world) == {}


part = st.builds(Part, st.sampled_from("mn"), st.integers(0, 2))
sizes = st.builds(Counts, *[st.integers(0, 10**6)] * 6)


@given(st.lists(st.tuples(st.dictionaries(part, sizes, max_size=4), sizes), max_size=20), st.randoms())
@settings(deadline=None)
def test_what_is_new_adds_up_to_the_most_that_was_told_whatever_is_lost_late_or_told_twice(growth, chance):
    known: dict[Part, Counts] = {}
    rest, told = NOTHING, []
    for parts, folded in growth:
        for each, more in parts.items():
            known[each] = known.get(each, NOTHING).plus(more)
        rest = rest.plus(folded)
        if known and chance.random() < 0.2:
            # A model that is gone is folded.
            gone = chance.choice(sorted(known))
            rest = rest.plus(known.pop(gone))
        total = rest
        for counts_of_part in known.values():
            total = total.plus(counts_of_part)
        told.append((total, dict(known)))
    heard = [each for each in told if chance.random() < 0.7] + told[-1:]
    stale = [each for each in heard if chance.random() < 0.5]
    book_now, found = Book(NOTHING, {}), NOTHING
    for total, parts in [*heard, *stale]:
        book_now, news = taken(book_now, total, parts)
        for more in news.values():
            found = found.plus(more)
    assert found == (told[-1][0] if told else NOTHING)
    assert book_now.total == found


def test_a_price_holds_from_its_hour_on_and_its_own_kind_goes_first():
    prices = Prices([Price("gpu", 10, 5), Price("gpu", 20, 7), Price("", 15, 1)])
    assert [prices.of("gpu", hour) for hour in (9, 10, 19, 20, 99)] == [None, 5, 5, 7, 7]
    assert [prices.of("cpu", hour) for hour in (14, 15)] == [None, 1]


async def test_names_of_counts_that_are_old_are_let_go_of_and_what_was_counted_stays(world: World) -> None:
    from services.registry.database import Database
    from services.registry.store import Store
    from services.registry.usage import Usage

    await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=9, m=9)]))
    store = Store(Database(world.settings.database), history=100)
    await store.prepare()
    try:
        usage = Usage(store)
        await usage.forget(DAY_US)
        await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=9, m=9)]))
        assert await used(world) == {("acme", "m"): 9}, "a day has not passed: it is still known"
        await usage.forget(-DAY_US)
        await world.call.RecordUsage(pb.RecordUsageRequest(books=[book(total=9, m=9)]))
        assert await used(world) == {("acme", "m"): 18}
    finally:
        await store.close()


async def test_a_share_is_no_quota_and_a_quota_no_share(world: World) -> None:
    made = await world.tenant()
    assert not made.tenant.HasField("quota")
    share = common_pb2.Share(millidevices=100)
    quota = pb.Quota(memory_bytes=1 << 30)
    request = pb.UpdateTenantRequest(name="acme", reservation=share, quota=quota)
    after = (await world.call.UpdateTenant(request)).tenant
    assert (after.reservation.millidevices, after.quota.memory_bytes) == (100, 1 << 30)
