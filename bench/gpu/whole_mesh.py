"""MiniLM in float16 through the whole mesh beside the bare torch loop on the same GPU: `python -m bench.gpu.whole_mesh [--out FILE]`.

Requests of 64 rows of 128 tokens, and single rows; the bare loop before and after the mesh, in a process of its own, since clocks
drift. Processor time is told of each process, and of its busiest thread: which of them is the limit. With py-spy installed,
`--profile FOLDER` writes one flame graph a process. A last line of JSON. Ends with 1 where the mesh gives less than 0.8 of the bare
loop, with 2 without a CUDA device; `--anywhere` runs small sizes on a processor, for trying the command itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from bench.gpu.figures import quantile
from bench.gpu.on_cuda import environment
from demo.models import minilm
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running

MODEL, TENANT = "minilm", "bench"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
LEAST = 0.8
BUSY = 0.9
"""Of a core, or of the lane: what that uses is the limit."""
PROFILE_S = 10


@dataclass(frozen=True)
class Size:
    """rows, tokens: of a request. at_once: requests in flight of the large kind; seconds: of each part."""

    rows: int = 64
    tokens: int = 128
    at_once: tuple[int, ...] = (2, 4, 8, 16)
    seconds: float = 8.0
    device: str = "cuda"


SMALL = Size(rows=4, tokens=16, at_once=(2,), seconds=1.0, device="cpu")


def module(size: Size) -> Any:
    """MiniLM and the mean over its tokens; float16 on a GPU."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    class Sentences(torch.nn.Module):  # type: ignore[misc]
        """Token ids, all of them a text's, to embeddings."""

        def __init__(self, bert: BertModel) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            """Both int64 [batch, tokens]; the embedding is [batch, 384]."""
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return {"embedding": (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)}

    bert = BertModel(BertConfig(**json.loads((minilm() / "config.json").read_text())), add_pooling_layer=False)
    weights = load_file(minilm() / "model.safetensors")
    bert.load_state_dict(
        {name: each for name, each in weights.items() if not name.startswith("pooler") and "position_ids" not in name}
    )
    model = Sentences(bert).eval()
    return model.half() if size.device == "cuda" else model


def export(size: Size, target: Path) -> None:
    """The artefact that the mesh serves."""
    import torch

    # Exported where there is no device: the runtime places it.
    ids, mask = torch.full((2, 16), 101), torch.ones((2, 16), dtype=torch.int64)
    axes = {0: torch.export.Dim("batch", min=1, max=size.rows), 1: torch.export.Dim("tokens", min=2, max=256)}
    with torch.no_grad():
        program = torch.export.export(
            module(size), (ids, mask), dynamic_shapes={"input_ids": axes, "attention_mask": axes}
        )
    torch.export.save(program, target)


def tensors(rows: int, tokens: int) -> dict[str, np.ndarray]:
    """A request's."""
    ids = np.random.default_rng(1).integers(1000, 20_000, (rows, tokens), dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones((rows, tokens), np.int64)}


# The bare loop.


def bare(size: Size) -> dict[str, float]:
    """Rows a second of torch by itself: as it is, and as one CUDA graph, copies in and out included; on a processor as it is."""
    import torch

    model = module(size).to(size.device)
    host = {name: torch.from_numpy(each) for name, each in tensors(size.rows, size.tokens).items()}
    if size.device == "cuda":
        host = {name: each.pin_memory() for name, each in host.items()}
    there = {name: each.to(size.device) for name, each in host.items()}

    def eager() -> Any:
        for name, each in host.items():
            there[name].copy_(each, non_blocking=True)
        return model(**there)["embedding"]

    told = {}
    with torch.inference_mode():
        back = torch.empty(eager().shape, dtype=eager().dtype, pin_memory=size.device == "cuda")
        told["eager"] = _rows_per_s(size, lambda: back.copy_(eager(), non_blocking=True))
        if size.device == "cuda":
            for _ in range(3):
                eager()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                given = eager()

            def replay() -> None:
                graph.replay()
                back.copy_(given, non_blocking=True)

            told["graph"] = _rows_per_s(size, replay)
    return told


def _rows_per_s(size: Size, step: Any) -> float:
    import torch

    settle = torch.cuda.synchronize if size.device == "cuda" else lambda: None
    for _ in range(3):
        step()
    settle()
    began, done = time.perf_counter(), 0
    while time.perf_counter() < began + size.seconds:
        for _ in range(8):
            step()
        # As a server would: it may run ahead, and not without end.
        settle()
        done += 8
    return round(done * size.rows / (time.perf_counter() - began), 1)


def bare_apart(anywhere: bool) -> dict[str, float]:
    """In a process of its own. RuntimeError where it fails."""
    command = [sys.executable, "-m", "bench.gpu.whole_mesh", "--bare", *(["--anywhere"] if anywhere else [])]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if told.returncode:
        raise RuntimeError(f"the bare loop ended with {told.returncode}: {told.stderr[-1000:]}")
    return json.loads(told.stdout.splitlines()[-1])


# Callers, in a process of their own.


async def call(
    address: str, metadata: tuple[tuple[str, str], ...], payload: bytes, at_once: int, seconds: float
) -> list[float]:
    """Seconds that each request took."""
    options = (
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.max_send_message_length", 64 << 20),
    )
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(min(at_once, 4))]
    took: list[float] = []
    ends = time.perf_counter() + seconds

    async def caller(channel: grpc.aio.Channel) -> None:
        method = channel.unary_unary(METHOD)
        while (begun := time.perf_counter()) < ends:
            await method(payload, metadata=metadata, timeout=60)
            took.append(time.perf_counter() - begun)

    await asyncio.gather(*(caller(channels[number % len(channels)]) for number in range(at_once)))
    for channel in channels:
        await channel.close()
    return took


def _obey(told: Connection) -> None:
    while (order := told.recv()) is not None:
        try:
            told.send(asyncio.run(call(*order)))
        except Exception as error:
            told.send(f"{type(error).__name__}: {str(error)[:500]}")


@contextmanager
def calling() -> Iterator[tuple[Connection, psutil.Process]]:
    """The callers' process, and what to tell it by."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_obey, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours, psutil.Process(process.pid)
    finally:
        ours.send(None)
        process.join(10)
        if process.is_alive():
            process.kill()


# Who uses how much.


@dataclass
class Used:
    """Processor seconds so far, by process, and by thread of each."""

    at_s: float
    processes: dict[str, float]
    threads: dict[str, dict[int, float]]

    @classmethod
    def now(cls, members: Mapping[str, psutil.Process]) -> Used:
        """Of these processes."""
        threads = {
            name: {each.id: each.user_time + each.system_time for each in process.threads()}
            for name, process in members.items()
        }
        spent = {name: sum(process.cpu_times()[:2]) for name, process in members.items()}
        return cls(time.monotonic(), spent, threads)

    def since(self, before: Used) -> dict[str, dict[str, float]]:
        """Cores in use by each process, and by its busiest thread."""
        passed = self.at_s - before.at_s
        told = {}
        for name, spent in self.processes.items():
            busiest = max(
                (each - before.threads[name].get(number, 0.0) for number, each in self.threads[name].items()), default=0
            )
            told[name] = {
                "cores": round((spent - before.processes[name]) / passed, 3),
                "busiest_thread": round(busiest / passed, 3),
            }
        return told


def workers(executor: psutil.Process) -> list[psutil.Process]:
    """The processes that hold models: a lane's own, or the one of all lanes of a GPU."""
    children = executor.children(recursive=True)
    return [each for each in children if any(part.startswith("gpu_sharing.worker") for part in each.cmdline())]


def limit_of(used: Mapping[str, Mapping[str, float]], lane_busy: float) -> str:
    """Which is the limit: the device where the lane is busy, else the process whose busiest thread has no core to spare. Pure."""
    if lane_busy >= BUSY:
        return "device"
    name = max(used, key=lambda each: used[each]["busiest_thread"])
    return name if used[name]["busiest_thread"] >= BUSY else "none: requests wait for one another's round trips"


def judge(parts: Sequence[Mapping[str, Any]], bare_loops: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The best part against the best bare loop, which is the mean of what was measured before and after. Pure."""
    best = max(parts, key=lambda part: part["rows_per_s"])
    loops = {name: statistics.mean(each[name] for each in bare_loops) for name in bare_loops[0]}
    fastest = max(loops, key=lambda name: loops[name])
    return {
        "mesh_rows_per_s": best["rows_per_s"],
        "at_once": best["at_once"],
        "bare_rows_per_s": round(loops[fastest], 1),
        "bare": fastest,
        "ratio": round(best["rows_per_s"] / loops[fastest], 3),
        "limit": best["limit"],
    }


class Mesh:
    """The mesh under load, and who is in it."""

    def __init__(self, mesh: RunningMesh, callers: Connection, caller: psutil.Process) -> None:
        pids = mesh.pids()
        names = [name for name in pids if name in ("frontend", "executor", "scheduler", "registry", "tracestore")]
        self.members = {name: psutil.Process(pids[name]) for name in names}
        self.members |= {f"worker {at}": each for at, each in enumerate(workers(self.members["executor"]))}
        self.members["callers"] = caller
        self._mesh, self._callers = mesh, callers

    def part(self, rows: int, tokens: int, at_once: int, seconds: float) -> dict[str, Any]:
        """Rows a second, latencies, and who used what. RuntimeError where a request failed."""
        payload = request(MODEL, tensors(rows, tokens)).SerializeToString()
        self._ask(payload, at_once, min(2.0, seconds))  # warms: graphs are captured in the third run of a shape
        before, busy = Used.now(self.members), self._busy_s()
        took = self._ask(payload, at_once, seconds)
        used = Used.now(self.members)
        passed = used.at_s - before.at_s
        lane = round((self._busy_s() - busy) / passed, 3)
        cores = used.since(before)
        return {
            "rows": rows,
            "at_once": at_once,
            "rows_per_s": round(len(took) * rows / passed, 1),
            "p50_ms": round(quantile(took, 0.5) * 1e3, 3),
            "p99_ms": round(quantile(took, 0.99) * 1e3, 3),
            "lane_busy": lane,
            "processes": cores,
            "limit": limit_of(cores, lane),
        }

    def profile(self, folder: Path, size: Size) -> list[str]:
        """Flame graphs of each process under the large load, by py-spy; what is missing otherwise."""
        program = shutil.which("py-spy")
        if program is None:
            return ["py-spy is not installed: no flame graphs"]
        folder.mkdir(parents=True, exist_ok=True)
        recording = [
            subprocess.Popen(
                [program, "record", "-d", str(PROFILE_S), "--native", "-t", "-o", str(folder / f"{name.replace(' ', '-')}.svg"),
                 "-p", str(process.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for name, process in self.members.items()
        ]  # fmt: skip
        self.part(size.rows, size.tokens, size.at_once[-1], PROFILE_S)
        for each in recording:
            each.wait(60)
        return sorted(path.name for path in folder.glob("*.svg"))

    def _busy_s(self) -> float:
        """Of all lanes."""
        return self._mesh.total("apportion_executor_lane_busy_seconds_total", self._mesh.addresses["executor_metrics"])

    def _ask(self, payload: bytes, at_once: int, seconds: float) -> list[float]:
        self._callers.send((self._mesh.addresses["frontend"], self._mesh.metadata(TENANT), payload, at_once, seconds))
        took = self._callers.recv()
        if isinstance(took, str):
            raise RuntimeError(f"a request failed: {took}")
        return took


def measure(size: Size, anywhere: bool, profile: Path | None) -> dict[str, Any]:
    """Bare loop, mesh, bare loop."""
    with tempfile.TemporaryDirectory(prefix="apportion-bench-") as held:
        folder = Path(held)
        export(size, folder / "minilm.pt2")
        loops = [bare_apart(anywhere)]
        print(f"bare: {json.dumps(loops[0])}", flush=True)
        # Batches as large as requests; one large batch may be longer than the quantum.
        settings = {"APPORTION_EXECUTOR_PREWARM": '["torch_export"]', "APPORTION_EXECUTOR_QUANTUM_MS": "1000"}
        with running(folder / "data", environment=settings) as mesh, calling() as (callers, caller):
            mesh.create_tenant(TENANT, reserve=0.5)
            warmup = [part for name in ("input_ids", "attention_mask") for part in ("--warmup", f"{name}=1x16:1:INT64")]
            mesh.push(MODEL, folder / "minilm.pt2", tenant=TENANT, options=("--max-batch", str(size.rows), *warmup))
            under = Mesh(mesh, callers, caller)
            parts = []
            for at_once in size.at_once:
                parts.append(under.part(size.rows, size.tokens, at_once, size.seconds))
                print(f"mesh: {json.dumps(parts[-1])}", flush=True)
            single = [under.part(1, size.tokens, at_once, size.seconds) for at_once in (1, 4 * size.at_once[-1])]
            for each in single:
                print(f"single rows: {json.dumps(each)}", flush=True)
            written = under.profile(profile, size) if profile is not None else []
        loops.append(bare_apart(anywhere))
    return {"bare": loops, "large": parts, "single": single, "profiles": written, "found": judge(parts, loops)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a file for the JSON, instead of the last line")
    parser.add_argument("--profile", type=Path, help="a folder for flame graphs of each process, by py-spy")
    parser.add_argument("--anywhere", action="store_true", help="small sizes, on a processor where there is no GPU")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    size = SMALL if options.anywhere else Size()
    if options.bare:
        print(json.dumps(bare(size)))
        return 0
    where = environment()
    told: dict[str, Any] = {"benchmark": "whole_mesh", "environment": where}
    if not where["backend"].startswith("cuda") and not options.anywhere:
        print(f"no CUDA device: {where['reason']}")
        print(json.dumps({**told, "not_measured": {"MiniLM through the whole mesh": "no CUDA device"}}))
        return 2
    told |= measure(size, options.anywhere, options.profile)
    found = told["found"]
    told["holds"] = {"at least 0.8 of the bare loop": found["ratio"] >= LEAST}
    print(f"{found['ratio']:.3f} of the bare loop ({found['bare']}); the limit: {found['limit']}")
    if options.out is None:
        print(json.dumps(told))
    else:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(not all(told["holds"].values()))


if __name__ == "__main__":
    sys.exit(main())
