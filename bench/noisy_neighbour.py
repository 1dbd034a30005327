"""An interactive tenant beside three that flood, through the whole mesh: `python -m bench.noisy_neighbour [--quick]`.

The interactive tenant sends 40 requests a second, open loop, to a perceptron of 16 blocks; its objective is twice its p99 alone.
Each flooding tenant keeps requests for a perceptron of 160 blocks outstanding all the time. Turns without and with the flood, and
of the flood alone, follow each other again and again, so that what else the machine does is in all of them; the figures to read
are ratios within a round. The flood comes once as class `batch` and once with objectives that it cannot all make; and once more
beside an executor that gives its lane to whoever came first. Latencies are taken at the caller. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.models import exported_perceptron
from bench.tenants import SETTLE_S, Generator, Load, Seen, Used, cores, environment, interval, judged, pin, used
from tests.mesh.running import RunningMesh, running

RATE_PER_S = 40.0
FLOODS = ("flood-a", "flood-b", "flood-c")
OUTSTANDING = 6
FLOOD_OBJECTIVE_MS = 500.0
WARM_S = 1.0
RESERVED = 0.85
"""For the interactive tenant: three requests at once are done in time at this pace. The flood has no reservation."""


@dataclass
class Place:
    """A mesh, and what its tenants send. floods: by what kind of flood it is."""

    mesh: RunningMesh
    victim: Load
    floods: dict[str, list[Load]]


@dataclass
class Turn:
    """One turn. used: by tenant."""

    seen: dict[str, Seen]
    used: dict[str, Used]

    def busy(self, tenants: Sequence[str], seconds: float) -> float:
        """What they had of each second, going by what was answered and what a request takes of the device."""
        return sum(len(self.seen[each].latencies_s) * self.used[each].a_request_s for each in tenants) / seconds


class Bench:
    """Two generators, and the turns that they play."""

    def __init__(self, one: Generator, other: Generator, seconds: float) -> None:
        self._one, self._other, self._seconds = one, other, seconds

    def turn(self, place: Place, victim: Sequence[Load], flood: Sequence[Load], seed: int) -> Turn:
        """All of them at once."""
        before = used(place.mesh)
        playing = [(generator, loads) for generator, loads in ((self._one, victim), (self._other, flood)) if loads]
        for generator, loads in playing:
            generator.start(place.mesh.addresses["frontend"], loads, self._seconds, warm_s=WARM_S, seed=seed)
        seen: dict[str, Seen] = {}
        for generator, _ in playing:
            seen |= generator.result()
        time.sleep(SETTLE_S)
        after = used(place.mesh)
        return Turn(seen, {tenant: after[tenant].since(before.get(tenant, Used())) for tenant in after})

    def round(self, place: Place, kind: str, number: int) -> dict[str, float]:
        """Without, with, the flood alone: what came of it."""
        victim, flood = place.victim, place.floods[kind]
        alone = self.turn(place, [victim], [], number)
        beside = self.turn(place, [victim], flood, number)
        without = self.turn(place, [], flood, number)
        mine = beside.seen[victim.tenant]
        quick = beside.busy([victim.tenant], self._seconds)
        # Of the device time that is used: what the lane needs between slices is nobody's.
        share = quick / (quick + beside.busy([each.tenant for each in flood], self._seconds))
        answered, reached = (
            sum(len(turn.seen[each.tenant].latencies_s) for each in flood) / self._seconds for turn in (beside, without)
        )
        return {
            "alone_p50_ms": alone.seen[victim.tenant].quantile_ms(0.5),
            "alone_p99_ms": alone.seen[victim.tenant].quantile_ms(0.99),
            "beside_p50_ms": mine.quantile_ms(0.5),
            "beside_p99_ms": mine.quantile_ms(0.99),
            "ratio": mine.quantile_ms(0.99) / alone.seen[victim.tenant].quantile_ms(0.99),
            "within": mine.within((victim.objective_ms or 0.0) / 1e3) / max(1, mine.sent),
            "sent": mine.sent,
            "share": share,
            "flood_per_s": answered,
            "flood_alone_per_s": reached,
            "flood_kept": answered / reached / (1.0 - share) if reached else float("nan"),
            "flood_within": _within(beside.seen, flood),
        }


def _within(seen: dict[str, Seen], flood: Sequence[Load]) -> float:
    """Of the flood's answers, the part that came within its objectives; nan where it has none."""
    objective_ms = flood[0].objective_ms
    answers = sum(len(seen[each.tenant].latencies_s) for each in flood)
    if objective_ms is None or not answers:
        return float("nan")
    return sum(seen[each.tenant].within(objective_ms / 1e3) for each in flood) / answers


def set_up(mesh: RunningMesh, folder: Path, blocks: int) -> Place:
    """Tenants and models."""
    key = mesh.create_tenant("interactive", reserve=RESERVED)
    once = ("--max-batch", "1")
    mesh.push("quick", folder / "quick.pt2", tenant="interactive", options=("--slo-ms", "100", *once))
    floods: list[Load] = []
    for seed, tenant in enumerate(FLOODS, 1):
        theirs = mesh.create_tenant(tenant)
        path = folder / f"{tenant}.pt2"
        if not path.exists():
            exported_perceptron(path, blocks=blocks, seed=seed)
        mesh.push("long", path, tenant=tenant, options=("--class", "batch", *once))
        floods.append(Load(tenant, theirs, "long", outstanding=OUTSTANDING))
    pin(mesh)
    kinds = {"batch": floods, "objectives": [replace(each, objective_ms=FLOOD_OBJECTIVE_MS) for each in floods]}
    return Place(mesh, Load("interactive", key, "quick", rate_per_s=RATE_PER_S), kinds)


def told(kind: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Prints what came of one kind of flood, and returns it."""
    of = lambda name: [each[name] for each in rounds]
    sent = sum(of("sent"))
    within = sum(each["within"] * each["sent"] for each in rounds) / sent
    print(f"\n{kind}: {len(rounds)} rounds; median [least … most]")
    print(f"  p50  alone {interval(of('alone_p50_ms'))} ms, beside {interval(of('beside_p50_ms'))} ms")
    print(f"  p99  alone {interval(of('alone_p99_ms'))} ms, beside {interval(of('beside_p99_ms'))} ms")
    print(f"  ratio of the p99s {interval(of('ratio'))}")
    print(f"  within its objective {within:.2%} of {sent:.0f}")
    print(
        f"  the flood: {interval(of('flood_per_s'), 1)} a second, alone {interval(of('flood_alone_per_s'), 1)}; "
        f"of its part {interval(of('flood_kept'), 3)}; the interactive tenant's part {interval(of('share'), 3)}"
    )
    if kind.endswith("objectives"):
        print(f"  of the flood's answers within its objectives {interval(of('flood_within'), 3)}")
    medians = {name: statistics.median(of(name)) for name in rounds[0] if name not in ("within", "sent")}
    return {**medians, "within_all": within, "sent_all": sent, "rounds": rounds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each turn")
    parser.add_argument("--blocks", type=int, default=160, help="of the flood's models")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.seconds = 1, 5.0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        exported_perceptron(folder / "quick.pt2", blocks=16)
        places = {}
        for policy in ("reservations", "arrival_order"):
            own = environment(APPORTION_EXECUTOR_POLICY=policy)
            mesh = stack.enter_context(running(folder / policy, environment=own))
            places[policy] = set_up(mesh, folder, chosen.blocks)
        rest = cores()[0]
        bench = Bench(stack.enter_context(Generator(rest)), stack.enter_context(Generator(rest)), chosen.seconds)
        ours = places["reservations"]
        for place in places.values():
            # What is done once only, as models run for the first time, is no part of any turn.
            bench.turn(place, [place.victim], place.floods["batch"], 0)
        first = [bench.turn(ours, [ours.victim], [], 100 + number) for number in range(3)]
        objective_ms = 2 * statistics.median(turn.seen["interactive"].quantile_ms(0.99) for turn in first)
        print(f"objective: twice the p99 alone, {objective_ms:.1f} ms")
        for place in places.values():
            place.victim = replace(place.victim, objective_ms=objective_ms)
        results: dict[str, list[dict[str, float]]] = {}
        for number in range(chosen.rounds):
            for policy, kind in (("reservations", "batch"), ("reservations", "objectives"), ("arrival_order", "batch")):
                results.setdefault(f"{policy}, {kind}", []).append(bench.round(places[policy], kind, number))
    found = {kind: told(kind, rounds) for kind, rounds in results.items()}
    status = judged({
        f"{kind}: {what}": holds
        for kind, each in found.items()
        if kind.startswith("reservations")
        for what, holds in (
            ("within its objective at least 99.5 %", each["within_all"] >= 0.995),
            ("median ratio of the p99s at most 1.25", each["ratio"] <= 1.25),
            ("the flood keeps at least 0.95 of its part", each["flood_kept"] >= 0.95),
        )
    })  # fmt: skip
    print(json.dumps({"objective_ms": objective_ms, **found}))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
