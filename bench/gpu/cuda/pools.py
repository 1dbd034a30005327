"""Tenants' pools on a lane: who runs out and who does not, torch and CuPy on one budget, graphs under a budget."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu.cuda.bed import Lanes, check
from bench.gpu.figures import summary_us
from gpu_sharing.units import MS, Bytes, MiB

WIDTH = 1024
SMALL, LARGE = 8, 4096
"""Rows: a batch of the first takes some ten KiB a tensor, one of the second 16 MiB."""
ROUNDS = 200
BUDGET: Bytes = 12 * MiB
"""For the chains of twelve shapes, each of which takes a piece of 2 MiB at least."""


class Tenants:
    """Replicas of one artefact on one lane, each of a tenant of its own, tried and settled as the worker does it."""

    def __init__(self, folder: Path, graph_bytes: Bytes) -> None:
        import torch

        from gpu_sharing.runtimes.torch_cuda import CudaExportRuntime, LaneGraphs

        self.lanes = Lanes((1,))
        (self.number,) = self.lanes.partitions.layouts[0]
        self.backend = self.lanes.backend(self.number)
        self.accounts = self.lanes.pools(self.number, graph_bytes)
        self.graphs_of = LaneGraphs(self.backend, self.accounts, partition=self.number)
        self.runtime = CudaExportRuntime(self.graphs_of)
        torch.manual_seed(0)
        layers = [layer for _ in range(4) for layer in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU())]
        model, x = torch.nn.Sequential(*layers).eval(), torch.randn(2, WIDTH)
        self.path = folder / "model.pt2"
        torch.export.save(
            torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=LARGE)},)), self.path
        )
        self.models: dict[str, Any] = {}

    def load(self, tenant: str, activations: Bytes, graphs: Bytes) -> Any:
        """Loads it for the tenant, whose pool may draw so much afterwards."""
        from gpu_sharing.memory.grants import Grant
        from gpu_sharing.runtimes.base import LoadConfig

        replica = len(self.models) + 1
        self.backend.enter_loading()
        self.accounts.try_out(replica, tenant, 512 * MiB)
        config = LoadConfig(threads=4, compute_units=self.lanes.sms(self.number), tenant=tenant)
        model = self.runtime.load(self.path, config)
        self.tried_bytes = self.accounts.tried(replica)
        self.accounts.settle(replica, Grant(activations, graphs))
        self.models[tenant] = model
        self.backend.enter_lane()
        return model

    def run(self, tenant: str, rows: int) -> Any:
        """One batch, waited for: its output."""
        import numpy as np

        from gpu_sharing.runtimes.warmup import finish

        model = self.models[tenant]
        (spec,), (output,) = model.signature.inputs, model.signature.outputs
        made = finish(model.run({spec.name: np.ones((rows, WIDTH), np.float32)}))
        self.backend.synchronize()
        return made[output.name].copy()


@check
def out_of_memory_of_one() -> dict[str, Any]:
    """A tenant whose batches want more than its pool: each of them fails, and every request beside succeeds, its own small ones too."""
    import numpy as np

    from gpu_sharing.memory.accounts import PoolFull

    with tempfile.TemporaryDirectory() as folder:
        tenants = Tenants(Path(folder), 256 * MiB)
        tenants.load("greedy", 24 * MiB, 0)
        tenants.load("neighbour", 64 * MiB, 0)
        one, other = (tenants.accounts.of(name) for name in ("greedy", "neighbour"))
        expected = tenants.run("neighbour", SMALL)
        drawn_before = other.budget.used_bytes
        took: dict[str, list[float]] = {"alone": [], "beside": []}
        failed, right, own = 0, True, 0
        for beside in ("alone", "beside"):
            for turn in range(ROUNDS):
                if beside == "beside" and turn % 2:
                    try:
                        tenants.run("greedy", LARGE)
                    except PoolFull:
                        failed += 1
                    own += int(np.allclose(tenants.run("greedy", SMALL), expected, rtol=1e-3, atol=1e-3))
                began = time.perf_counter_ns()
                given = tenants.run("neighbour", SMALL)
                took[beside].append(time.perf_counter_ns() - began)
                right = right and bool(np.allclose(given, expected, rtol=1e-3, atol=1e-3))
        told = {name: summary_us(each) for name, each in took.items()}
        drawn = {"greedy": one.budget.used_bytes, "neighbour": other.budget.used_bytes}
        numbers = {"drawn": drawn, "refusals": one.budget.refusals, "tried_bytes": tenants.tried_bytes}
        within = one.budget.used_bytes <= one.budget.limit_bytes
        # What the driver took is given back with the tenant.
        for name in list(tenants.models):
            tenants.models.pop(name).close()
        for replica in (1, 2):
            tenants.accounts.drop(replica)
    return {
        **told,
        **numbers,
        "holds": {
            "every batch beyond the budget fails with the typed error": failed == ROUNDS // 2,
            "all of the neighbour's batches succeed, with the right outputs": right,
            "so do the tenant's own that fit": own == ROUNDS // 2,
            "nothing of the neighbour's is refused, nor does its pool grow": other.budget.refusals == 0
            and drawn["neighbour"] == drawn_before,
            "the tenant stays within its budget": within,
            "everything is given back with the tenants": (one.budget.used_bytes, other.budget.used_bytes) == (0, 0),
        },
    }


@check
def torch_and_cupy_on_one_budget() -> dict[str, Any]:
    """Tensors of torch and arrays of CuPy in one part of a tenant's budget: counted together, wiped, and full for both."""
    import torch

    from gpu_sharing.memory.grants import Grant
    from gpu_sharing.runtimes.python_device import CupyLibrary, DevicePlace

    lanes = Lanes((1,))
    (number,) = lanes.partitions.layouts[0]
    backend, accounts = lanes.backend(number), lanes.pools(number)
    backend.enter_loading()
    accounts.try_out(1, "a", 256 * MiB)
    part = accounts.part(256 * MiB)
    place = DevicePlace(backend, CupyLibrary(0), part)
    accounts.tried(1)
    accounts.settle(1, Grant(256 * MiB))
    whole, held, full, zero = accounts.of("a").budget, [], {}, True
    with place.working():
        held.append(torch.empty(60 * MiB, dtype=torch.uint8, device=backend.device))
        by_torch = part.used_bytes
        held.append(place.xp.empty(60 * MiB, "u1"))
        by_both = part.used_bytes
        zero = not bool(held[0].any()) and not bool(held[1].any())
        for name, draw in (
            ("torch", lambda: torch.empty(200 * MiB, dtype=torch.uint8, device=backend.device)),
            ("cupy", lambda: place.xp.empty(200 * MiB, "u1")),
        ):
            try:
                draw()
                full[name] = False
            except (MemoryError, torch.OutOfMemoryError):
                full[name] = True
    counted = whole.used_bytes == by_both
    return {
        "drawn_mib": {"torch": by_torch // MiB, "both": by_both // MiB},
        "holds": {
            "both are counted in the tenant's budget": 60 * MiB <= by_torch
            and by_torch + 60 * MiB <= by_both
            and counted,
            "beyond it torch is out of memory": full["torch"],
            "and so is CuPy": full["cupy"],
            "what they get is wiped": zero,
        },
    }


@check
def graphs_within_a_budget() -> dict[str, Any]:
    """More shapes than a tenant's graphs have room for: the oldest go, memory stays within the budget, a neighbour's chains stay."""
    with tempfile.TemporaryDirectory() as folder:
        tenants = Tenants(Path(folder), 512 * MiB)
        tenants.load("many", 128 * MiB, BUDGET)
        tenants.load("neighbour", 128 * MiB, 64 * MiB)
        many, neighbour = (tenants.graphs_of(name) for name in ("many", "neighbour"))
        for _ in range(5):
            tenants.run("neighbour", SMALL)
        before, most, took = neighbour.policy.snapshot(), 0, []
        for rows in range(1, 13):
            for _ in range(5):
                began = time.perf_counter_ns()
                tenants.run("many", rows * 8)
                took.append(time.perf_counter_ns() - began)
                most = max(most, many.account.graphs.used_bytes)
        found = many.policy.snapshot()
        tenants.run("neighbour", SMALL)
        after = neighbour.policy.snapshot()
    return {
        "chains": found._asdict(),
        "most_drawn_mib": round(most / MiB, 1),
        "slowest_ms": round(max(took) / MS, 2),
        "holds": {
            "graphs never draw more than their budget": most <= BUDGET,
            "chains give way to others": found.evictions > 0 and found.captures > found.chains > 0,
            "what is counted is what is drawn": found.size_bytes == many.account.graphs.used_bytes,
            "a neighbour's chains stay, and are replayed": (after.chains, after.captures, after.evictions)
            == (before.chains, before.captures, before.evictions)
            and after.replays == before.replays + 1,
        },
    }
