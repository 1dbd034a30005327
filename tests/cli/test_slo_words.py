"""Objectives as people say them, and as OpenSLO and Prometheus take them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.cli.errors import CommandError
from services.cli.slo import exports
from services.cli.slo.prometheus import apart, grown, read_prometheus, steps
from services.cli.slo.words import parsed, said, short_span
from services.common.exponential import index_of
from services.tracestore.core.budgets import Objective
from services.tracestore.core.rollups import Slot, total

DAY_S = 86_400


@pytest.mark.parametrize(
    ("text", "ppm", "objective_us", "window_s"),
    [
        ("99 % within 50 ms over 30 days", 990_000, 50_000, 30 * DAY_S),
        ("99.9% within 1.5s over 7d", 999_000, 1_500_000, 7 * DAY_S),
        ("  95 %  within 250 us over 6 hours ", 950_000, 250, 21_600),
        ("99.9999 %", 999_999, None, 30 * DAY_S),
        ("100 % over 1 w", 1_000_000, None, 7 * DAY_S),
        ("90 % within 30 s over 45 minutes", 900_000, 30_000_000, 2_700),
    ],
)
def test_a_sentence_is_an_objective(text: str, ppm: int, objective_us: int | None, window_s: int) -> None:
    slo = parsed(text)
    found = slo.objective_us if slo.HasField("objective_us") else None
    assert (slo.ratio_ppm, found, slo.window_s) == (ppm, objective_us, window_s)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "99",
        "99 % within 50",
        "101 %",
        "0 %",
        "99.99999 %",
        "99 % within 0 ms",
        "99 % within 0.0001 us",
        "99 % over 3 moons",
    ],
)
def test_what_is_no_objective_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(CommandError) as refused:
        parsed(text)
    assert "\n" not in refused.value.message


@given(
    st.integers(1, 1_000_000),
    st.one_of(st.none(), st.integers(1, 86_400_000_000)),
    st.integers(1, 366 * 24 * 60).map(lambda minutes: minutes * 60),
)
def test_what_is_said_of_an_objective_is_read_as_the_same(ppm: int, objective_us: int | None, window_s: int) -> None:
    slo = parsed(said(ppm, objective_us, window_s))
    found = slo.objective_us if slo.HasField("objective_us") else None
    assert (slo.ratio_ppm, found, slo.window_s) == (ppm, objective_us, window_s)


FAST = Objective("acme", "m", "fast", 990_000, 50_000, 30 * DAY_S)
PROMISED = Objective("acme", "m", "promise", 999_000, None, 7 * DAY_S)
ODD = Objective('a"}: \n- x', "m\\", "{{ $labels }} # '", 990_000, 50_000, 30 * DAY_S)


def test_openslo_documents_say_what_is_good_and_what_is_all() -> None:
    service, fast, promised = yaml.safe_load_all(exports.openslo([FAST, PROMISED]))
    assert (service["kind"], service["metadata"]["name"]) == ("Service", "acme")
    assert {each["apiVersion"] for each in (service, fast, promised)} == {"openslo/v1"}
    spec = fast["spec"]
    assert (spec["service"], spec["budgetingMethod"]) == ("acme", "Occurrences")
    assert spec["timeWindow"] == [{"duration": "30d", "isRolling": True}]
    assert spec["objectives"] == [{"displayName": "99 %", "target": 0.99}]
    ratio = spec["indicator"]["spec"]["ratioMetric"]
    labels = 'tenant="acme",model="m",objective_us="50000"'
    assert ratio["good"]["metricSource"]["spec"]["query"] == (
        f'sum(apportion_frontend_slo_requests_total{{{labels},met="true"}})'
    )
    assert ratio["total"]["metricSource"]["spec"]["query"] == f"sum(apportion_frontend_slo_requests_total{{{labels}}})"
    promise = promised["spec"]["indicator"]["spec"]["ratioMetric"]["good"]["metricSource"]["spec"]["query"]
    assert promise == 'sum(apportion_frontend_objective_requests_total{tenant="acme",model="m",met="true"})'


def test_prometheus_rules_record_each_window_and_alert_on_each_pair() -> None:
    (group,) = yaml.safe_load(exports.prometheus([FAST]))["groups"]
    recorded = [rule for rule in group["rules"] if "record" in rule]
    assert [rule["record"].rpartition("ratio_rate")[2] for rule in recorded] == ["5m", "30m", "1h", "6h", "3d", "30d"]
    assert all(rule["labels"] == {"tenant": "acme", "model": "m", "slo": "fast"} for rule in recorded)
    alerts = [rule for rule in group["rules"] if "alert" in rule]
    own = '{tenant="acme",model="m",slo="fast"}'
    assert [rule["expr"] for rule in alerts] == [
        f"apportion:slo_missed:ratio_rate1h{own} > 0.144 and apportion:slo_missed:ratio_rate5m{own} > 0.144",
        f"apportion:slo_missed:ratio_rate6h{own} > 0.06 and apportion:slo_missed:ratio_rate30m{own} > 0.06",
        f"apportion:slo_missed:ratio_rate3d{own} > 0.01 and apportion:slo_missed:ratio_rate6h{own} > 0.01",
    ]
    assert [rule["labels"]["severity"] for rule in alerts] == ["page", "page", "ticket"]
    assert alerts[0]["annotations"]["summary"] == "acme/m fast spends 2 % of its budget within 1h"


def test_every_series_an_alert_reads_is_recorded() -> None:
    for objective in (FAST, PROMISED):
        (group,) = yaml.safe_load(exports.prometheus([objective]))["groups"]
        recorded = {rule["record"] for rule in group["rules"] if "record" in rule}
        read = {
            name
            for rule in group["rules"]
            if "alert" in rule
            for name in re.findall(r"apportion:\w+:\w+", rule["expr"])
        }
        assert read <= recorded


def test_no_name_breaks_out_of_its_place() -> None:
    service, slo = yaml.safe_load_all(exports.openslo([ODD]))
    assert service["metadata"]["displayName"] == ODD.tenant
    for name in (service["metadata"]["name"], slo["metadata"]["name"]):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)
    (group,) = yaml.safe_load(exports.prometheus([ODD]))["groups"]
    assert group["rules"][0]["labels"]["tenant"] == ODD.tenant
    query = slo["spec"]["indicator"]["spec"]["ratioMetric"]["total"]["metricSource"]["spec"]["query"]
    assert json.loads(re.findall(r'tenant=("(?:[^"\\]|\\.)*")', query)[0]) == ODD.tenant


@given(st.lists(st.text(max_size=80), min_size=1, max_size=3), st.lists(st.text(max_size=80), min_size=1, max_size=3))
def test_different_names_stay_different_as_host_names(one: list[str], other: list[str]) -> None:
    names = [exports.dns_name(*parts) for parts in (one, other)]
    assert all(len(name) <= 63 for name in names)
    assert (one == other) == (names[0] == names[1]) or "/".join(one) == "/".join(other)


def test_nothing_to_export_is_a_document_without_content() -> None:
    assert list(yaml.safe_load_all(exports.openslo([]))) == []
    assert yaml.safe_load(exports.prometheus([])) == {"groups": []}


@contextmanager
def prometheus(
    series: dict[str, list[Any]], status: int = 200, body: bytes | None = None
) -> Iterator[tuple[str, list[Any]]]:
    """Answers query_range as Prometheus does, from series whose samples are a function of time."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            asked.append((parts.path, query))
            times = range(int(query["start"]), int(query["end"]) + 1, int(query["step"]))
            metric = query["query"].partition("{")[0]
            found = [
                {"metric": labels, "values": [[at, str(value(at))] for at in times if value(at) is not None]}
                for labels, value in series.get(metric, [])
            ]
            told = body or json.dumps({"status": "success", "data": {"resultType": "matrix", "result": found}}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


END_S = 1_790_000_000 // 3600 * 3600


async def test_counts_of_a_prometheus_are_those_of_its_counters_over_a_restart() -> None:
    about = {"tenant": "acme", "model": "m"}
    # One request a second; half an hour before the end the frontend begins anew.
    counter = lambda at: at - END_S + 100_000 if at < END_S - 1800 else at - (END_S - 1800)
    part = lambda share: lambda at: counter(at) * share // 100
    series = {
        "apportion_frontend_requests_total": [({**about, "outcome": "ok"}, counter)],
        "apportion_frontend_objective_requests_total": [
            ({**about, "met": "true"}, part(90)),
            ({**about, "met": "false"}, part(10)),
        ],
        "apportion_frontend_slo_requests_total": [({**about, "objective_us": "50000", "met": "true"}, part(80))],
        "apportion_frontend_violations_total": [(about, part(10))],
        "apportion_frontend_request_seconds_bucket": [
            ({**about, "le": "0.01"}, part(60)),
            ({**about, "le": "0.1"}, part(99)),
            ({**about, "le": "+Inf"}, counter),
        ],
    }
    with prometheus(series) as (url, asked):
        slots = await read_prometheus(url, END_S - 4 * DAY_S, END_S, tenant='a"c', model="m")
    assert asked[0][1]["query"] == 'apportion_frontend_requests_total{tenant="a\\"c",model="m"}'
    assert {slot.width_s for slot in slots} == {60, 3600}
    hour = total(slot.counts for slot in slots if slot.start_s >= END_S - 3600)
    # What was counted between the last sample before the restart and the restart is nobody's to know.
    assert 3600 - 60 <= hour.outcomes["ok"] <= 3600
    assert hour.met == pytest.approx(0.9 * 3600, rel=0.03)
    assert hour.within[50_000][0] == pytest.approx(0.8 * 3600, rel=0.03)
    assert hour.latencies[index_of(10_000_000)] == pytest.approx(0.6 * 3600, rel=0.03)
    assert hour.measured == hour.requests
    one_by_one = sorted((slot.start_s, slot.start_s + slot.width_s) for slot in slots)
    assert all(before[1] <= after[0] for before, after in pairwise(one_by_one))


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"{}"), (200, b"<html>"), (200, b'{"status":"error","error":"no"}'), (200, b"[]")]
)
async def test_a_prometheus_that_cannot_answer_is_one_line(status: int, body: bytes) -> None:
    with prometheus({}, status, body) as (url, _), pytest.raises(CommandError, match="--prometheus"):
        await read_prometheus(url, END_S - 3600, END_S)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:1", "http://127.0.0.1:1"])
async def test_an_address_that_is_no_prometheus_is_one_line(url: str) -> None:
    with pytest.raises(CommandError, match="--prometheus"):
        await read_prometheus(url, END_S - 3600, END_S)


def test_a_series_that_comes_later_began_at_nothing() -> None:
    assert list(grown([(60, "5"), (120, "7"), (180, "NaN"), (240, "3")], 60)) == [(60, 0), (120, 2), (240, 3)]
    assert list(grown([(120, "7")], 60)) == [(120, 7)]


def test_cumulative_buckets_are_taken_apart() -> None:
    assert apart({-3: 5, 2: 5, 7: 9}) == {-3: 5, 7: 4}
    assert apart({}) == {}


def test_long_ranges_are_asked_for_in_parts_that_prometheus_answers() -> None:
    parts = list(steps(END_S - 400 * DAY_S, END_S))
    assert all((last - first) // step <= 10_000 for first, last, step in parts)
    assert parts[0][0] <= END_S - 400 * DAY_S
    assert parts[-1][1] == END_S
    assert all(one[1] == other[0] for one, other in pairwise(parts))


def test_slots_without_counts_are_no_slots() -> None:
    assert total(slot.counts for slot in [Slot("a", "m", 0, 60, total([]))]).requests == 0


@given(st.integers(1, 400 * DAY_S))
def test_a_span_as_prometheus_writes_it_is_the_same_span(seconds: int) -> None:
    text = short_span(seconds)
    assert re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", text)
    units = {"d": DAY_S, "h": 3600, "m": 60, "s": 1}
    assert sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)([dhms])", text)) == seconds
