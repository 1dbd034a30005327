"""Models through this project's runtime on a lane."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.gpu.cuda.bed import Lanes, check, encoder
from bench.gpu.figures import quantile
from gpu_sharing.units import GiB


@check
def served() -> dict[str, Any]:
    """An exported model through this project's runtime on a lane: results against the processor's, eager against graphs."""
    import tempfile

    import numpy as np
    import torch

    from gpu_sharing.memory.grants import Grant
    from gpu_sharing.runtimes.base import LoadConfig
    from gpu_sharing.runtimes.torch_cuda import CudaExportRuntime, LaneGraphs
    from gpu_sharing.runtimes.torch_export import TorchExportRuntime
    from gpu_sharing.runtimes.warmup import finish

    lanes = Lanes((1,))
    (number,) = lanes.partitions.layouts[0]
    backend, told, config = (
        lanes.backend(number),
        {},
        LoadConfig(threads=8, compute_units=lanes.sms(number), max_batch_size=64, tenant="bench"),
    )
    accounts = lanes.pools(number)
    graphs_of = LaneGraphs(backend, accounts, partition=number)
    holds: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = (("float32", torch.float32, 2e-3), ("float16", torch.float16, 3e-2))
        for replica, (name, dtype, most) in enumerate(kinds):
            torch.manual_seed(0)
            model = encoder().to(dtype).cpu()
            x = torch.randn(4, 128, 384).to(dtype)
            path = Path(folder) / f"{name}.pt2"
            dims = {0: torch.export.Dim("batch", max=64)}
            torch.export.save(torch.export.export(model, (x,), dynamic_shapes=(dims,)), path)
            backend.enter_loading()
            accounts.try_out(replica, "bench", 4 * GiB)
            on_gpu = CudaExportRuntime(graphs_of).load(path, config)
            accounts.tried(replica)
            accounts.settle(replica, Grant(4 * GiB, GiB // 2))
            policy = graphs_of("bench").policy
            before = policy.snapshot().replays
            on_cpu = TorchExportRuntime().load(path, config)
            (spec,) = on_gpu.signature.inputs
            inputs = {spec.name: x.numpy()}
            expected = finish(on_cpu.run(inputs))
            backend.enter_lane()
            given = []
            for _ in range(6):
                made = finish(on_gpu.run(inputs))
                backend.synchronize()
                given.append({key: value.copy() for key, value in made.items()})
            worst = max(
                float(
                    np.abs(each[key].astype(np.float32) - value.astype(np.float32)).max()
                    / max(1.0, np.abs(value).max())
                )
                for each in given
                for key, value in expected.items()
            )
            told[name] = {
                "worst_difference": worst,
                "graphs": policy.snapshot()._asdict(),
                "segments": len(on_gpu.segments),
            }
            holds[f"{name}: eager, captured and replayed equal the processor's within {most:g}"] = worst <= most
            holds[f"{name}: it was captured and replayed"] = policy.snapshot().replays >= before + 3
            told[name]["rates"] = {rows: _rate(on_gpu, backend, rows, dtype) for rows in (1, 8, 64)}
    return {**told, "holds": holds}


def _rate(model: Any, backend: Any, rows: int, dtype: Any) -> dict[str, float]:
    """Rows a second of one batch after another, from arrays to arrays: without graphs and with them."""
    import torch

    from gpu_sharing.runtimes.warmup import finish

    (spec,) = model.signature.inputs
    inputs = {spec.name: torch.randn(rows, 128, 384).to(dtype).numpy()}
    told = {}
    for way, run in (("eager", model.run_eagerly), ("graphs", model.run)):
        took = []
        for turn in range(60):
            began = time.perf_counter()
            finish(run(inputs))
            backend.synchronize()
            if turn >= 10:
                took.append((time.perf_counter() - began) * 1e3)
        told[f"{way}_p50_ms"] = round(quantile(took, 0.5), 4)
        told[f"{way}_rows_per_s"] = round(rows / quantile(took, 0.5) * 1e3)
    return told
