"""Counts from a Prometheus, for meshes whose traces go to a Jaeger: the counters as they were scraped, subtracted here.

Quantiles are coarser than from the trace store: a request counts at the upper bound of its bucket of the classic histogram.
"""

from __future__ import annotations

import asyncio
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

from services.cli.errors import CommandError
from services.common.exponential import PER_OCTAVE, index_of
from services.tracestore.core.rollups import Counts, Slot, plus

TIMEOUT_S = 30.0
MOST_BYTES = 256 << 20
FINE_S, MINUTE_S, HOUR_S = 3 * 86_400, 60, 3600
MOST_POINTS = 10_000
"""Prometheus answers at most 11,000 a series."""
PREFIX = "apportion_frontend_"
METRICS = (
    "requests_total",
    "objective_requests_total",
    "slo_requests_total",
    "violations_total",
    "request_seconds_bucket",
)


async def read_prometheus(url: str, start_s: int, end_s: int, *, tenant: str = "", model: str = "") -> list[Slot]:
    """What was counted within [start_s, end_s): by minute for the last three days, by hour before. Raises CommandError."""
    given = {key: value for key, value in (("tenant", tenant), ("model", model)) if value}
    matchers = ",".join(f"{key}={json.dumps(value)}" for key, value in given.items())
    slots: dict[tuple[str, str, int, int], Counts] = {}
    for metric in METRICS:
        query = f"{PREFIX}{metric}{{{matchers}}}"
        for first_s, last_s, step_s in steps(start_s, end_s):
            found = await asyncio.to_thread(_ask, url, query, first_s, last_s, step_s)
            for series in found:
                _take(slots, metric, series, (first_s, step_s))
    for counts in slots.values():
        counts.latencies = apart(counts.latencies)
    return sorted(
        (Slot(key[0], key[1], key[2], key[3], counts) for key, counts in slots.items()),
        key=lambda slot: (slot.tenant, slot.model, slot.start_s),
    )


def steps(start_s: int, end_s: int) -> Iterable[tuple[int, int, int]]:
    """(first sample, last sample, step): what a sample says beyond the one before it was counted in the step that it ends."""
    fine_s = max(start_s, (end_s - FINE_S) // HOUR_S * HOUR_S)
    for first_s, last_s, step_s in ((start_s // HOUR_S * HOUR_S, fine_s, HOUR_S), (fine_s, end_s, MINUTE_S)):
        at_s = first_s
        while at_s < last_s:
            until_s = min(last_s, at_s + MOST_POINTS * step_s)
            yield at_s, until_s, step_s
            at_s = until_s


def grown(samples: Iterable[tuple[float, str]], first_s: int) -> Iterable[tuple[int, int]]:
    """(moment, how much a counter has grown since the sample before); one that is smaller has begun anew.

    When that was counted which a series begins with is not known where it was there at first_s; one that came later began at 0.
    """
    before: float | None = None
    for at, text in samples:
        value = float(text)
        if not math.isfinite(value):
            continue
        if before is None:
            before = value if at <= first_s else 0.0
        yield int(at), round(value - before if value >= before else value)
        before = value


def apart(cumulative: Mapping[int, int]) -> dict[int, int]:
    """Counts by bucket from those of all that lies at or below each. What lies beyond all bounds is put an octave above the last."""
    made, below, last = {}, 0, 0
    for index, count in sorted(cumulative.items()):
        if count > below:
            made[index if index != BEYOND else last + PER_OCTAVE] = count - below
            below = count
        last = index
    return made


def _take(
    slots: dict[tuple[str, str, int, int], Counts], metric: str, series: Mapping[str, Any], since: tuple[int, int]
) -> None:
    labels, (first_s, step_s) = series["metric"], since
    for at_s, count in grown(series["values"], first_s):
        if count:
            key = (str(labels.get("tenant", "")), str(labels.get("model", "")), at_s - step_s, step_s)
            slots[key] = plus(slots.get(key, Counts()), _counted(metric, labels, count))


def _counted(metric: str, labels: Mapping[str, str], count: int) -> Counts:
    met = labels.get("met") == "true"
    if metric == "requests_total":
        return Counts(outcomes={labels.get("outcome", ""): count})
    if metric == "violations_total":
        return Counts(violated=count)
    if metric == "objective_requests_total":
        return Counts(met=count if met else 0, missed=0 if met else count)
    if metric == "slo_requests_total":
        objective = labels.get("objective_us", "")
        judged = (count, 0) if met else (0, count)
        return Counts(within={int(objective): judged}) if objective.isdigit() else Counts()
    return _bucket(labels.get("le", ""), count)


def _bucket(bound: str, count: int) -> Counts:
    """All that lies at or below a bound, at the bound's place; `apart` takes them apart."""
    seconds = float(bound) if bound else math.inf
    return Counts(latencies={index_of(round(seconds * 1e9)) if math.isfinite(seconds) else BEYOND: count})


BEYOND = 10_000
"""The place of the bucket that has no bound."""


def _ask(url: str, query: str, first_s: int, last_s: int, step_s: int) -> list[Any]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CommandError(f"--prometheus: {url!r} is not http://HOST:PORT")
    asked = urllib.parse.urlencode({"query": query, "start": first_s, "end": last_s, "step": step_s})
    target = f"{url.rstrip('/')}/api/v1/query_range?{asked}"
    try:
        with urllib.request.urlopen(target, timeout=TIMEOUT_S) as answer:
            told = json.loads(answer.read(MOST_BYTES))
        if told["status"] != "success" or told["data"]["resultType"] != "matrix":
            raise CommandError(f"--prometheus: {url} answered with {told.get('error') or told['status']}")
        return list(told["data"]["result"])
    except urllib.error.HTTPError as error:
        raise CommandError(f"--prometheus: {url} answered {error.code} {error.reason}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"--prometheus: {url} cannot be asked: {error}") from error
