"""What traces cost a request: CPU time with tracing off, as it comes (5 %), and with every trace kept, interleaved in one run.

    python -m bench.trace_cost [--rounds 20] [--seconds 1.5] [--at-once 16] [--rate 500] [--profile FILE] [--json FILE]

Meshes that are alike but for their tracing stand beside one another, each with callers of its own. In every turn two of them have the
same load at the same time, one of which traces nothing: whatever else the machine does, and however its cores share what they
have, meets both. Another one that traces nothing is measured like the others, and says how much of a ratio is chance. What counts is
processor time of frontend, executor and worker over the requests that were answered, from the turn's begin until the spans of its
last requests have left; that of the trace store is told apart, since it may stand on another machine. Ratios are those of one turn;
the last line has their median and the interval it lies in with 95 % confidence.

With --profile, or py-spy on the PATH, a sampling profile of frontend and executor with every trace kept: the functions of tracing by
their part of the time. Ends with a line of JSON, and with status 1 where the default costs more than 8 % over off.
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
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from bench.models import elementwise
from bench.tracing import cpu_ns, middle
from tests.mesh.calling import request
from tests.mesh.running import RunningMesh, running

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TENANT, MODEL = "cost", "identity"
OFF = "off"
MODES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    OFF: ((), {"APPORTION_OTLP_ENDPOINT": ""}),
    "off, too": ((), {"APPORTION_OTLP_ENDPOINT": ""}),
    "default": ((), {}),
    "all": (("--trace-sample", "1"), {}),
}
"""Flags and variables of each mesh."""
PATH, STORE = ("frontend", "executor", "worker"), "tracestore"
MOST = 1.08
WARM_S, START_S = 3.0, 0.1
DRAINED_S = 0.5
"""After a turn, until its last spans have been sent: more than twice telemetry.EXPORT_EVERY_S."""
CALLERS_A_CHANNEL = 4
PROFILE_S = 15
TRACING = ("spans.py", "stages.py", "telemetry.py", "otlp.py", "span_bytes.py", "waits.py")
"""Files whose code runs for traces alone."""
SAMPLE_HZ = 250


class Mode:
    """One mesh, its callers, and the processor time of its processes."""

    def __init__(self, mesh: RunningMesh, callers: Connection) -> None:
        self.mesh, self._callers = mesh, callers
        self._payload: bytes = request(MODEL, {"x": np.ones((1, 16), np.float32)}).SerializeToString()
        pids = mesh.pids()
        self._pids = {name: [pids[name]] for name in ("frontend", "executor", STORE)}
        self._pids["worker"] = [worker.pid for worker in mesh.workers()]

    def cpu_us(self) -> dict[str, float]:
        """So far, by process."""
        return {name: sum(cpu_ns(pid) for pid in members) / 1e3 for name, members in self._pids.items()}

    def begin(self, load: Load) -> None:
        """Loads it; `end` has what came of it."""
        self._callers.send((self.mesh.addresses["frontend"], self._payload, self.mesh.metadata(TENANT), load))

    def end(self) -> tuple[int, float]:
        """Waits for the end of the load: requests answered, and in what time."""
        answered, took_s = self._callers.recv()
        return answered, took_s


class Load(NamedTuple):
    """So many callers, who together send so many requests a second where they are answered that fast. begin_s: on the monotonic
    clock, which processes share."""

    at_once: int
    rate: float
    seconds: float
    begin_s: float = 0.0


def turn(modes: Sequence[Mode], load: Load) -> list[dict[str, float]]:
    """The same load on all of them at the same time; of each, processor microseconds a request by process, and `per_second`."""
    before = [mode.cpu_us() for mode in modes]
    load = load._replace(begin_s=time.monotonic() + START_S)
    for mode in modes:
        mode.begin(load)
    ends = [mode.end() for mode in modes]
    time.sleep(DRAINED_S)
    told = []
    for mode, was, (answered, took_s) in zip(modes, before, ends, strict=True):
        used = {name: (each - was[name]) / answered for name, each in mode.cpu_us().items()}
        told.append(used | {"path": sum(used[name] for name in PATH), "per_second": answered / took_s})
    return told


def call_as_told(told: Connection) -> None:
    """A process of its own that calls as it is told to, over connections that stay."""
    asyncio.run(_call_as_told(told))


async def _call_as_told(told: Connection) -> None:
    channels: list[grpc.aio.Channel] = []
    while (order := await asyncio.to_thread(told.recv)) is not None:
        address, payload, metadata, load = order
        if not channels:
            options = (("grpc.use_local_subchannel_pool", 1),)
            connections = range(-(-load.at_once // CALLERS_A_CHANNEL))
            channels = [grpc.aio.insecure_channel(address, options=options) for _ in connections]
        told.send(await _call(channels, payload, metadata, load))
    for channel in channels:
        await channel.close()


async def _call(
    channels: Sequence[grpc.aio.Channel], payload: bytes, metadata: tuple[tuple[str, str], ...], load: Load
) -> tuple[int, float]:
    """Requests answered, and in what time."""
    answered, number = 0, 0

    async def caller(channel: grpc.aio.Channel) -> None:
        nonlocal answered, number
        call = channel.unary_unary(METHOD)
        while (due_s := number / load.rate) < load.seconds:
            number += 1
            wait_s = load.begin_s + due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            elif wait_s < -load.seconds:
                return
            await call(payload, metadata=metadata, timeout=30)
            answered += 1

    await asyncio.gather(*(caller(channels[each % len(channels)]) for each in range(load.at_once)))
    return answered, time.monotonic() - load.begin_s


@contextmanager
def calling() -> Iterator[Connection]:
    """Callers in a process of their own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=call_as_told, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join(10)


def stand(stack: ExitStack, folder: Path, name: str) -> Mode:
    """One of the meshes."""
    flags, environment = MODES[name]
    callers = stack.enter_context(calling())
    mesh = stack.enter_context(running(folder / name.replace(", ", "-"), *flags, environment=environment))
    mesh.create_tenant(TENANT)
    mesh.push(MODEL, elementwise(folder / "identity.onnx", "Identity"), tenant=TENANT)
    return Mode(mesh, callers)


def measured(modes: dict[str, Mode], rounds: int, load: Load) -> dict[str, Any]:
    """Turns of each mode beside the one that is off, in rounds whose order turns."""
    others = [name for name in modes if name != OFF]
    for name in others:
        turn((modes[OFF], modes[name]), load._replace(seconds=WARM_S))
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in modes}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for number in range(rounds):
        for name in others[number % len(others) :] + others[: number % len(others)]:
            off, own = turn((modes[OFF], modes[name]), load)
            turns[OFF].append(off)
            turns[name].append(own)
            ratios[name].append(own["path"] / off["path"])
    return {
        "us_a_request": {
            name: {what: round(statistics.median(turn[what] for turn in each), 1) for what in each[0]}
            for name, each in turns.items()
        },
        "of_off": {name: middle(each) for name, each in ratios.items()},
        "rounds": rounds,
    }


def profiled(mode: Mode, load: Load, spy: str, folder: Path) -> dict[str, Any]:
    """A sampling profile of frontend and executor under load: what part of their time is tracing's, and where."""
    pids = mode.mesh.pids()
    recorders = {
        name: subprocess.Popen(
            [
                *(spy, "record", "--pid", str(pids[name]), "--duration", str(PROFILE_S), "--rate", str(SAMPLE_HZ)),
                *("--format", "raw", "--gil", "--output", str(folder / f"{name}.txt")),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("frontend", "executor")
    }
    turn((mode,), load._replace(seconds=PROFILE_S + 2.0))
    told = {}
    for name, recorder in recorders.items():
        recorder.wait(60)
        told[name] = tracing_of((folder / f"{name}.txt").read_text())
    return told


def tracing_of(stacks: str) -> dict[str, Any]:
    """From collapsed stacks ("a (file:1);b (file:2) 17"): the part in tracing's files, and its functions by their part."""
    whole, within = 0, Counter[str]()
    for line in stacks.splitlines():
        frames, _, count = line.rpartition(" ")
        whole += int(count)
        ours = [frame for frame in frames.split(";") if any(f"{file}:" in frame for file in TRACING)]
        if ours:
            within[ours[-1].partition(" ")[0]] += int(count)
    parts = {function: round(count / max(1, whole), 4) for function, count in within.most_common(10)}
    return {"samples": whole, "tracing": round(sum(within.values()) / max(1, whole), 4), "functions": parts}


def show(told: dict[str, Any]) -> None:
    print(f"CPU µs a request, medians of {told['rounds']} rounds")
    columns = ("path", *PATH, STORE, "per_second")
    print(f"{'tracing':<9}" + "".join(f"{column:>12}" for column in columns) + f"{'of off':>10}{'from':>10}{'to':>10}")
    for name, used in told["us_a_request"].items():
        ratio = told["of_off"].get(name, {})
        print(
            f"{name:<9}"
            + "".join(f"{used[column]:>12.1f}" for column in columns)
            + "".join(f"{value:>10.3f}" for value in ratio.values())
        )
    for name, profile in told.get("profile_of_all", {}).items():
        print(f"{name}, every trace kept: {profile['tracing']:.1%} of {profile['samples']} samples in tracing")
        for function, part in profile["functions"].items():
            print(f"  {part:6.1%}  {function}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second to each mesh")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument(
        "--profile", type=Path, default=shutil.which("py-spy"), help="py-spy, where it is not on the PATH"
    )
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    load = Load(chosen.at_once, chosen.rate, chosen.seconds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        modes = {name: stand(stack, folder, name) for name in MODES}
        told = measured(modes, chosen.rounds, load)
        if chosen.profile is not None:
            told["profile_of_all"] = profiled(modes["all"], load, str(chosen.profile), folder)
    show(told)
    if chosen.json:
        chosen.json.write_text(json.dumps(told, indent=2))
    print(json.dumps(told))
    sys.exit(0 if told["of_off"]["default"]["median"] <= MOST else 1)


if __name__ == "__main__":
    main()
