"""What answering for thirty days costs: `python -m bench.verifier [--models N] [--requests N]`.

Fills a trace store's rollups as thirty days of exports would, for N models; prints their size on disk, what an export and a night's
trimming take, how long a report on thirty days reads and judges, what judging the traces of 5 % violators takes, and what counting
adds to a request at the frontend. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import services.common.attributes as names
from services.cli.slo.page import page
from services.frontend.core.measured import Measured
from services.tracestore.core.budgets import Objective
from services.tracestore.core.report import report
from services.tracestore.core.rollups import Counts, Slot
from services.tracestore.core.spans import SpanView
from services.tracestore.rollups import FINE_S, HOUR_S, MINUTE_S, Rollups

DAYS = 30
NOW_S = 1_790_000_000 // HOUR_S * HOUR_S
MS = 1_000_000
BUCKETS = 60
"""Buckets of the histogram that a minute's requests lie in: as many as five octaves and a tail have."""


def timed(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    before = time.process_time()
    work()
    return time.process_time() - before


def counts(requests: int, place: int) -> Counts:
    """A minute's."""
    missed = requests // 200
    return Counts(
        outcomes={"ok": requests - missed, "late": missed},
        met=requests - missed,
        missed=missed,
        violated=missed,
        within={50_000: (requests - missed, missed), 100_000: (requests, 0)},
        latencies={-130 + n: requests // BUCKETS + (n + place) % 3 for n in range(BUCKETS)},
        sum_us=requests * 20_000,
        kept=requests // 20,
        kept_violated=missed,
        causes={"queue": missed},
    )


def filled(rollups: Rollups, models: int) -> float:
    """Thirty days; returns the seconds that one export of all models took, on the average."""
    spent, exports = 0.0, 0
    for number in range(DAYS * 24):
        hour_s = NOW_S - (DAYS * 24 - number) * HOUR_S
        fine = hour_s >= NOW_S - FINE_S
        for minute in range(60 if fine else 1):
            width_s = MINUTE_S if fine else HOUR_S
            made = [
                Slot("acme", f"m{n}", hour_s + minute * MINUTE_S, width_s, counts(600, minute)) for n in range(models)
            ]
            spent += timed(lambda made=made: rollups.settle(made, 0))  # type: ignore[misc]
            exports += 1
    return spent / exports


def spans(requests: int, violators: int) -> list[SpanView]:
    """Kept requests of six spans each."""
    found = []
    for number in range(requests):
        start, violated = (NOW_S - 1800) * 10**9 + number * MS, number < violators
        took = 80 * MS if violated else 9 * MS
        facts = {
            names.TENANT_NAME: "acme",
            names.MODEL_NAME: "m0",
            names.SLO_VIOLATED: violated,
            names.SLO_OBJECTIVE_US: 50_000,
        }
        trace, own = f"{number:032x}", f"{number:016x}"
        found.append(SpanView(trace, own, None, "ModelInfer", "f", start, start + took, "server", facts))
        for place, stage in enumerate(names.STAGES[:5]):
            facts = {names.SLO_STAGE: stage, names.TENANT_NAME: "acme"}
            at = start + place * took // 5
            found.append(
                SpanView(trace, f"{place + 1}{own[1:]}", own, stage, "e", at, at + took // 5, "internal", facts)
            )
    return found


def counting_ns(objectives: int) -> float:
    """Nanoseconds that a request's counting for histogram and SLOs takes."""
    measured, rounds = Measured(), 200_000
    measured.judge_by(tuple(50_000 * (n + 1) for n in range(objectives)))

    def work() -> None:
        for elapsed_ns in range(9 * MS, 9 * MS + rounds):
            measured.add(elapsed_ns, None, 60_000 * MS)

    return min(timed(work) for _ in range(5)) / rounds * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--requests", type=int, default=50_000)
    arguments = parser.parse_args()
    figures: dict[str, float] = {"models": arguments.models, "requests": arguments.requests}
    with tempfile.TemporaryDirectory() as folder:
        rollups = Rollups(Path(folder) / "rollups.db", retention_s=400 * 86_400, retention_bytes=1 << 30)
        figures["export_ms"] = 1000 * filled(rollups, arguments.models)
        figures["trim_ms"] = 1000 * timed(lambda: rollups.trim(NOW_S + HOUR_S))
        figures["disk_mib"] = sum(file.stat().st_size for file in Path(folder).iterdir()) / (1 << 20)
        objectives = [
            Objective("acme", f"m{n}", name, 990_000, objective_us, DAYS * 86_400)
            for n in range(arguments.models)
            for name, objective_us in (("promise", None), ("fast", 50_000))
        ]
        slots: list[Slot] = []
        start_s = NOW_S - DAYS * 86_400

        def read() -> None:
            slots.extend(
                slot for model in rollups.models(start_s, NOW_S) for slot in rollups.slots(*model, start_s, NOW_S)
            )

        figures["read_s"] = timed(read)
        rollups.close()
    figures["slots"] = len(slots)
    figures["judge_s"] = timed(lambda: report(slots, objectives, None, start_s, NOW_S))
    made = report(slots, objectives, None, start_s, NOW_S)
    windows: dict[tuple[str, str], list[Slot]] = {}
    for slot in slots:
        windows.setdefault((slot.tenant, slot.model), []).append(slot)
    drawn: list[str] = []
    figures["page_s"] = timed(lambda: drawn.append(page(made, dict(windows))))
    figures["page_kib"] = len(drawn[0].encode()) / 1024
    violators, kept = arguments.requests // 20, arguments.requests // 20 + arguments.requests // 100
    held = spans(kept, violators)
    figures["traces"] = kept
    figures["traces_s"] = timed(lambda: report([], objectives, held, NOW_S - HOUR_S, NOW_S))
    for objectives_count in (0, 1, 2):
        figures[f"counting_{objectives_count}_slos_ns"] = counting_ns(objectives_count)
    for name, value in figures.items():
        print(f"{name:>22}  {value:,.4g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
