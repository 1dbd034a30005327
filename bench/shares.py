"""What is left over of a lane, divided by weight, through the whole mesh: `python -m bench.shares [--quick]`.

Four tenants with equal reservations and weights 4:2:1:1 keep more requests outstanding than the lane can serve. After 30 s the
first one leaves, and breaks off what it has outstanding; its part of the surplus goes to the others. The figures are device time
from the books of the lane's worker, which it tells every half second. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.models import exported_perceptron
from bench.tenants import Account, Generator, Load, accounts, cores, environment, judged, pin
from tests.mesh.running import RunningMesh, running

WEIGHTS = {"heavy": 4, "middle": 2, "light": 1, "slight": 1}
LEAVES = "heavy"
RESERVED = 0.1
BLOCKS = 16
OUTSTANDING = 24
OBJECTIVE_MS = 5_000.0
WARM_S = 3.0
POLL_S = 0.1


class Page(NamedTuple):
    """The books as they were at a moment of time.monotonic."""

    moment: float
    accounts: dict[str, Account]


def watched(mesh: RunningMesh, seconds: float) -> list[Page]:
    """Every page that the books turn to in so many seconds."""
    pages: list[Page] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        found = accounts(mesh)
        if found and (not pages or found != pages[-1].accounts):
            pages.append(Page(time.monotonic(), found))
        time.sleep(POLL_S)
    return pages


def between(pages: Sequence[Page], start: float, end: float) -> tuple[float, dict[str, Account]]:
    """What everyone used between the first and the last page in that time, and how long that was."""
    inside = [page for page in pages if start <= page.moment <= end]
    first, last = inside[0], inside[-1]
    used = {tenant: mine.since(first.accounts.get(tenant, Account())) for tenant, mine in last.accounts.items()}
    return last.moment - first.moment, used


def parts(used: Mapping[str, Account], tenants: Sequence[str]) -> dict[str, float]:
    """Of the surplus that these used, the part of each."""
    total = sum(used[tenant].surplus_s for tenant in tenants)
    return {tenant: used[tenant].surplus_s / total if total else 0.0 for tenant in tenants}


def apart(found: Mapping[str, float]) -> float:
    """How far the parts are from the weights, relative to these, at most."""
    total = sum(WEIGHTS[tenant] for tenant in found)
    return max(abs(part * total / WEIGHTS[tenant] - 1.0) for tenant, part in found.items())


def show(what: str, length: float, used: Mapping[str, Account], tenants: Sequence[str]) -> float:
    """Prints how the lane was divided; how far that is from the weights."""
    found = parts(used, tenants)
    away = apart(found)
    busy = sum(account.device_s for account in used.values()) / length
    print(f"{what}: the lane was busy for {busy:.1%} of {length:.1f} s")
    for tenant in tenants:
        mine = used[tenant]
        print(
            f"  {tenant:<7} weight {WEIGHTS[tenant]}  of the surplus {found[tenant]:6.2%}  "
            f"guaranteed {mine.guaranteed_s / length:6.2%}, surplus {mine.surplus_s / length:6.2%}, "
            f"gaps {mine.gap_s / length:6.2%} of the lane"
        )
    print(f"  at most {away:.2%} from the weights")
    return away


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="before one leaves; a third of it after")
    parser.add_argument("--quick", action="store_true", help="a short run")
    chosen = parser.parse_args()
    seconds = 9.0 if chosen.quick else chosen.seconds
    after_s = max(5.0, seconds / 3)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mesh = stack.enter_context(running(folder / "data", environment=environment()))
        loads = []
        for seed, (tenant, weight) in enumerate(WEIGHTS.items()):
            key = mesh.create_tenant(tenant, reserve=RESERVED, weight=weight)
            path = exported_perceptron(folder / f"{tenant}.pt2", blocks=BLOCKS, seed=seed)
            mesh.push("model", path, tenant=tenant, options=("--slo-ms", f"{OBJECTIVE_MS:g}", "--max-batch", "1"))
            stops_s = seconds if tenant == LEAVES else None
            loads.append(Load(tenant, key, "model", outstanding=OUTSTANDING, deadline_s=10.0, stops_s=stops_s))
        pin(mesh)
        generator = stack.enter_context(Generator(cores()[0]))
        generator.start(mesh.addresses["frontend"], loads, seconds + after_s, warm_s=WARM_S, seed=1)
        pages = watched(mesh, WARM_S + seconds + after_s)
        seen = generator.result()
    begin, left = generator.began, generator.began + seconds
    rest = [tenant for tenant in WEIGHTS if tenant != LEAVES]
    together = show("all four", *between(pages, begin, left), list(WEIGHTS))
    alone = show(f"without {LEAVES}, from 1 s on", *between(pages, left + 1.0, left + after_s), rest)
    around = []
    print(f"around the moment at which {LEAVES} leaves, from page to page:")
    for first, last in itertools.pairwise(pages):
        if left - 1.6 <= first.moment <= left + 2.6:
            used = {tenant: mine.since(first.accounts.get(tenant, Account())) for tenant, mine in last.accounts.items()}
            found, third = parts(used, list(WEIGHTS)), parts(used, rest)
            around.append(
                {"from_s": first.moment - left, "to_s": last.moment - left, "parts": found, "rest": apart(third)}
            )
            shares = "  ".join(f"{tenant} {part:6.1%}" for tenant, part in found.items())
            print(f"  {first.moment - left:+5.2f} … {last.moment - left:+5.2f} s: {shares}")
    refused = {tenant: one.refused for tenant, one in seen.items() if one.refused}
    print(f"refused: {refused or 'nobody'}")
    # A page covers half a second: a request more or less is several per cent of that, so that only who left is judged by pages.
    gone = all(page["parts"][LEAVES] == 0.0 for page in around if page["from_s"] >= 1.0)  # type: ignore[index,operator]
    status = judged({
        "the surplus is divided by weight within 3 %": together <= 0.03,
        "once one has left, its part goes to the others by weight within 3 %, a second later": gone and alone <= 0.03,
    })  # fmt: skip
    print(json.dumps({"apart": together, "apart_after": alone, "around": around, "refused": refused}))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
