"""Device time as the scheduler adds it up, its rates, and what frontends saw of their requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.core.catalogue import Key
from services.scheduler.core.reports import UsageReport
from services.scheduler.core.requests import Counts, Recent, RequestHistory, upper_us
from services.scheduler.core.usage import UsageLedger, UsageRates, Used
from tests.reachable import reachable

KEY = Key("search", "embed")
OTHER = Key("ads", "rank")


def usage(incarnation: str, device_ns: int, requests: int = 1, key: Key = KEY) -> list[UsageReport]:
    return [UsageReport(key, incarnation, device_ns, 2 * device_ns, requests, requests)]


def test_device_time_is_counted_once_however_often_it_is_told():
    ledger = UsageLedger()
    for told in (usage("one", 100), usage("one", 150, 2), usage("one", 150, 2), usage("one", 100)):
        ledger.report("gpu-0", told)
    assert ledger.of("search") == ledger.of_model(KEY) == Used(150, 2, 300, 2)


def test_device_time_is_summed_over_the_names_and_the_executors_that_count_it():
    ledger = UsageLedger()
    ledger.report("gpu-0", usage("one", 100))
    ledger.report("gpu-0", [*usage("one", 500), *usage("two", 30)])
    ledger.report("gpu-1", usage("one", 7))
    ledger.report("gpu-1", usage("one", 1, key=OTHER))
    assert (ledger.of("search").device_ns, ledger.of("ads").device_ns, ledger.of("nobody").device_ns) == (537, 1, 0)


def test_what_was_used_before_the_scheduler_began_is_counted():
    ledger = UsageLedger()
    ledger.report("gpu-0", usage("one", 1000, 10))
    assert ledger.of("search") == Used(1000, 10, 2000, 10)


NAMES = st.tuples(st.sampled_from(["gpu-0", "gpu-1"]), st.sampled_from("abc"), st.sampled_from([KEY, OTHER]))
STEPS = st.lists(st.tuples(NAMES, st.integers(0, 50), st.booleans()), min_size=1, max_size=30)


@given(steps=STEPS, data=st.data())
def test_whatever_is_told_late_twice_out_of_order_or_not_at_all_the_sum_is_exact(steps, data):
    used: dict[tuple[str, str, Key], int] = {}
    messages = []
    for name, more, _ in steps:
        used[name] = used.get(name, 0) + more
        messages.append((name, used[name]))
    kept = [message for message, (_, _, arrives) in zip(messages, steps, strict=True) if arrives]
    again = data.draw(st.lists(st.sampled_from(messages), max_size=10))
    # What is told last of all is known in the end, since executors tell everything from its beginning, every time.
    final = list(used.items())
    ledger = UsageLedger()
    for (executor, book, key), total in data.draw(st.permutations([*kept, *again, *final])):
        ledger.report(executor, usage(book, total, key=key))
    for key in (KEY, OTHER):
        expected = sum(total for (_, _, each), total in used.items() if each == key)
        assert ledger.of_model(key).device_ns == ledger.of(key.tenant).device_ns == expected
        assert ledger.of_model(key).compute_unit_ns == 2 * expected


@given(steps=STEPS)
def test_counted_time_never_falls_and_never_exceeds_what_was_used(steps):
    ledger, used, before = UsageLedger(), {}, 0
    for (executor, book, _), more, arrives in steps:
        used[executor, book] = used.get((executor, book), 0) + more
        if arrives:
            ledger.report(executor, usage(book, used[executor, book]))
        counted = ledger.of("search").device_ns
        assert before <= counted <= sum(used.values())
        before = counted


# Rates.


def rates(*told: tuple[int, int]) -> UsageRates:
    made = UsageRates()
    for at_us, used in told:
        report = [UsageReport(KEY, "one", used // 2, used)]
        made.report("gpu-0", "one", at_us, report, at_us / 1e6)
    return made


def test_a_model_that_uses_half_of_a_device_of_four_units_is_said_to():
    made = rates((1_000_000, 0), (2_000_000, 2 * 10**9), (2_500_000, 3 * 10**9), (3_000_000, 4 * 10**9))
    assert made.used_ppm("gpu-0", 4, 3.1) == {KEY: 500_000}


def test_a_rate_is_of_the_last_second_and_ends_when_nothing_more_is_heard():
    made = rates((1_000_000, 0), (2_000_000, 10**9), (3_000_000, 10**9), (4_000_000, 10**9))
    assert made.used_ppm("gpu-0", 1, 4.0) == {}
    busy = rates((1_000_000, 0), (2_000_000, 10**9))
    assert busy.used_ppm("gpu-0", 1, 2.0) == {KEY: 1_000_000}
    assert busy.used_ppm("gpu-0", 1, 6.0) == busy.used_ppm("gpu-9", 1, 2.0) == {}


def test_one_report_makes_no_rate_and_another_incarnation_starts_anew():
    made = rates((1_000_000, 5 * 10**9))
    assert made.used_ppm("gpu-0", 1, 1.0) == {}
    made.report("gpu-0", "two", 500, [UsageReport(KEY, "one", 0, 9 * 10**9)], 1.5)
    assert made.used_ppm("gpu-0", 1, 1.5) == {}


# Requests.


def told(requests: int, within: int = 0, missed: int = 0, in_flight: int = 0, bucket: int = 80) -> tuple[Key, Counts]:
    return KEY, Counts(requests, within, missed, in_flight, ((bucket, requests),))


def test_the_last_minute_is_what_came_in_it_over_all_frontends():
    history = RequestHistory(began=0.0)
    for second in range(121):
        history.report("a", [told(10 * second, 9 * second, second, 3)], float(second))
        history.report("b", [told(2 * second, 2 * second)], float(second))
    recent = history.recent(120.0)[KEY]
    assert (recent.requests, recent.within, recent.missed, recent.in_flight) == (720, 660, 60, 3)
    assert recent.requests_per_s == pytest.approx(12.0)
    assert recent.window_s == 60.0
    assert sum(recent.latencies.values()) == 720


def test_what_a_frontend_counted_before_the_scheduler_began_is_not_of_the_last_minute():
    history = RequestHistory(began=100.0)
    history.report("a", [told(1_000_000)], 101.0)
    assert history.recent(101.0)[KEY].requests == 0
    history.report("a", [told(1_000_010)], 102.0)
    assert history.recent(102.0)[KEY].requests == 10


def test_a_model_that_a_known_frontend_tells_of_for_the_first_time_started_at_nothing():
    history = RequestHistory(began=0.0)
    history.report("a", [], 1.0)
    history.report("a", [told(5)], 2.0)
    assert history.recent(2.0)[KEY].requests == 5


def test_a_frontend_that_is_gone_has_nothing_in_hand_and_is_forgotten():
    history = RequestHistory(began=0.0)
    history.report("a", [], 0.0)
    history.report("a", [told(5, in_flight=4)], 1.0)
    assert history.recent(3.0)[KEY].in_flight == 4
    assert (history.recent(20.0)[KEY].in_flight, history.recent(20.0)[KEY].requests) == (0, 5)
    history.forget_old(70.0)
    assert history.recent(70.0) == {}


def test_a_minute_of_latencies_takes_no_more_room_for_all_that_was_counted_before() -> None:
    def held(buckets: int) -> int:
        history = RequestHistory()
        for step in range(240):
            still = tuple((bucket, 1_000 + bucket) for bucket in range(8, buckets))
            grown = tuple((bucket, 1_000 * step + bucket) for bucket in range(8))
            history.report("a", [(KEY, Counts(step, latencies=(*grown, *still)))], step / 2)
        return reachable(history).size_bytes

    assert held(200) < 2 * held(20)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300))
def test_the_99th_percentile_is_within_an_eighth(latencies_us):
    recent = Recent()
    for each in latencies_us:
        v = max(8, each * 8)
        exponent = v.bit_length() - 4
        bucket = 8 * exponent + (v >> exponent) - 8
        recent.latencies[bucket] = recent.latencies.get(bucket, 0) + 1
    exact = sorted(latencies_us)[-(len(latencies_us) // 100) - 1]
    assert exact <= recent.p99_us <= exact * 9 / 8 + 1
    assert upper_us(0) == 1


def test_requests_of_models_that_are_gone_are_forgotten():
    history = RequestHistory(began=0.0)
    history.report("a", [told(5), (OTHER, Counts(3))], 1.0)
    history.keep({OTHER})
    assert list(history.recent(2.0)) == [OTHER]
