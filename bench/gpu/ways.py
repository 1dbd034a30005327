"""An interactive encoder beside a neighbour that takes all it gets, by each way of sharing: `python -m bench.gpu.ways [--out FILE]`.

Green contexts, plain streams and stream priorities each in a process of their own; MPS with a daemon of its own and a process a
tenant, as `--isolation process` has it: with percentages, and with priorities alone. The neighbour multiplies matrices, or moves
memory. Prints what was found and a last line of JSON; ends with 1 where something does not hold, 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bench.gpu.cuda.bed import Lanes, Neighbour, alone_per_s, captured, device_ms, encoder, half, plain
from bench.gpu.on_cuda import environment
from gpu_sharing.devices.mps import Daemon, MpsFailed, binary, compare
from gpu_sharing.devices.mps import environment as mps_environment

ONE_PROCESS = ("green", "plain", "priority")
MPS = {"mps": (False, (25.0, 75.0)), "mps_priority": (True, (100.0, 100.0))}
"""Whether the neighbour has the lower priority, and the percentages of the encoder and of the neighbour."""

KINDS = ("matmul", "memory")
REQUESTS = 800
LIMIT_S = 90.0
MOST_OVER_ALONE, MOST_OVER_PLAIN, LEAST_SHARE = 1.35, 0.2, 0.9


def victim() -> Callable[[], Any]:
    """The encoder's one request."""
    model, x = encoder(), half(8, 128, 384)
    return lambda: model(x)


def neighbours() -> dict[str, Callable[[], Any]]:
    """By kind: one step of it."""
    import torch

    big, weights = half(8192, 8192), [half(8192, 8192) for _ in range(4)]
    source, sink = torch.ones(128 << 20, device="cuda"), torch.empty(128 << 20, device="cuda")
    torch.cuda.synchronize()
    return {
        "matmul": lambda: [torch.mm(big, each) for each in weights],
        "memory": lambda: [torch.mul(source, 2, out=sink) for _ in range(8)],
    }


# In one process.


def in_one_process(way: str) -> dict[str, Any]:
    """The encoder alone and beside each neighbour; how fast the neighbour is on the whole device, alone, and beside it."""
    import torch

    sys.setswitchinterval(1e-4)
    lanes, own, other = None, torch.cuda.Stream(priority=-3 if way == "priority" else 0), torch.cuda.Stream()
    whole_stream, sms = other, None
    if way == "green":
        lanes = Lanes((1, 3))
        first, second = lanes.partitions.layouts[0]
        own, other, sms = lanes.streams[first], lanes.streams[second], [lanes.sms(first), lanes.sms(second)]

    def capture(lane: int, stream: Any, work: Callable[[], Any]) -> Any:
        if lanes is None:
            return plain(stream, work)
        return captured(lanes.backend(lanes.partitions.layouts[0][lane]), stream, work)

    mine = capture(0, own, victim())
    told: dict[str, Any] = {"alone": device_ms(mine.replay, own, REQUESTS), "sms": sms}
    for kind, work in neighbours().items():
        whole = alone_per_s(plain(whole_stream, work), whole_stream)
        with Neighbour(capture(1, other, work), other) as running:
            beside = device_ms(mine.replay, own, REQUESTS)
            told[kind] = {"beside": beside, "whole_per_s": whole, "neighbour_per_s": running.per_s()}
    return told


def run_one(way: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """A way in a process of its own: what it found, or why nothing."""
    given = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS", "32")}
    command = [sys.executable, "-m", "bench.gpu.ways", "--one", way]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=given, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {limit_s:.0f} s"}
    line = next((each for each in told.stdout.splitlines() if each.startswith("RESULT ")), None)
    return json.loads(line[7:]) if line else {"failed": f"ended with {told.returncode}: {told.stderr[-1000:]}"}


# Under MPS, a process a tenant.


def serve_party(role: str, asked: Iterable[str], say: Callable[[Any], None]) -> None:
    """One tenant's process: it obeys a line at a time. `encoder`: "measure"; `neighbour`: "start KIND", "stop"."""
    import torch

    stream = torch.cuda.Stream()
    if role == "encoder":
        graph = plain(stream, victim())
        say("ready")
        for _ in asked:
            say(device_ms(graph.replay, stream, REQUESTS))
        return
    graphs = {kind: plain(stream, work) for kind, work in neighbours().items()}
    say("ready")
    running: Neighbour | None = None
    for line in asked:
        what, _, kind = line.strip().partition(" ")
        if what == "start":
            running = Neighbour(graphs[kind], stream).__enter__()
            say("started")
        elif running is not None:
            speed = running.per_s()
            running.__exit__()
            say(speed)


class Party:
    """The other end of such a process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """command: that starts it. Waits until it is ready; RuntimeError, with what it wrote, where it ends instead."""
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.pid = self._process.pid
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: TextIO = self._process.stdin
        self._out: TextIO = self._process.stdout
        self._heard()

    def ask(self, line: str) -> Any:
        """What it says to that."""
        self._in.write(f"{line}\n")
        self._in.flush()
        return self._heard()

    def end(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def _heard(self) -> Any:
        for line in self._out:
            if line.startswith("SAID "):
                return json.loads(line[5:])
        assert self._process.stderr is not None
        raise RuntimeError(f"a party ended with {self._process.wait()}: {self._process.stderr.read()[-1000:]}")


def command_of(role: str) -> list[str]:
    """How a party is started."""
    return [sys.executable, "-m", "bench.gpu.ways", "--party", role]


@contextmanager
def parties(environments: Sequence[Mapping[str, str]]) -> Iterator[tuple[Party, Party]]:
    """The encoder's process and the neighbour's."""
    started: list[Party] = []
    try:
        for role, each in zip(("encoder", "neighbour"), environments, strict=True):
            started.append(Party(command_of(role), each))
        yield started[0], started[1]
    finally:
        for party in started:
            party.end()


def measured(mine: Party, other: Party, whole_per_s: Mapping[str, float]) -> dict[str, Any]:
    """The encoder alone and beside each neighbour. whole_per_s: as measured without MPS."""
    told: dict[str, Any] = {"alone": mine.ask("measure")}
    for kind in KINDS:
        other.ask(f"start {kind}")
        beside = mine.ask("measure")
        told[kind] = {"beside": beside, "whole_per_s": whole_per_s.get(kind), "neighbour_per_s": other.ask("stop")}
    return told


def under_mps(low: bool, percentages: Sequence[float], whole_per_s: Mapping[str, float]) -> dict[str, Any]:
    """By a daemon of this command's own. The clients are looked up there: without a daemon a process silently does without."""
    program = binary()
    if program is None:
        return {"failed": "nvidia-cuda-mps-control is not installed"}
    daemon = Daemon(program)
    try:
        daemon.start()
        given = [
            mps_environment(daemon.pipe, daemon.log, percentage=each, low_priority=low and at == 1)
            for at, each in enumerate(percentages)
        ]
        with parties(given) as (mine, other):
            found = compare({0: mine.pid, 1: other.pid}, daemon.servers())
            if found.missing:
                return {"failed": f"{len(found.missing)} of the processes run without MPS"}
            return {"percentages": list(percentages), "low_priority": low, **measured(mine, other, whole_per_s)}
    except (MpsFailed, RuntimeError, OSError) as error:
        return {"failed": str(error)[:1000]}
    finally:
        daemon.stop()


# What it shows. Pure.


def judge(ways: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Ratios by way and kind; and what was asked to hold, where it was measured."""
    ratios: dict[str, Any] = {}
    for way, told in ways.items():
        for kind in KINDS:
            if "failed" in told or kind not in told:
                continue
            beside, speed = told[kind]["beside"]["p99"], told[kind]
            whole = speed["whole_per_s"]
            ratios[f"{way}_beside_{kind}"] = {
                "p99_over_alone": round(beside / told["alone"]["p99"], 3),
                "p99_ms": beside,
                "neighbour_of_the_device": round(speed["neighbour_per_s"] / whole, 3) if whole else None,
            }
    holds: dict[str, bool] = {}
    green, apart = ratios.get("green_beside_matmul"), ratios.get("plain_beside_matmul")
    if green is not None:
        share = ways["green"]["sms"][1] / sum(ways["green"]["sms"])
        holds["green: p99 beside matrix multiplies at most 1.35 of alone"] = green["p99_over_alone"] <= MOST_OVER_ALONE
        holds["green: the neighbour has at least 0.9 of its share"] = (
            green["neighbour_of_the_device"] >= LEAST_SHARE * share
        )
        if apart is not None:
            holds["green: at most a fifth of plain streams' p99"] = green["p99_ms"] <= MOST_OVER_PLAIN * apart["p99_ms"]
    return ratios, holds


def measure_all() -> dict[str, dict[str, Any]]:
    """Each way in turn."""
    ways: dict[str, dict[str, Any]] = {}
    for way in ONE_PROCESS:
        ways[way] = run_one(way)
        print(f"{way}: {json.dumps(ways[way])}", flush=True)
    plainly = ways["plain"]
    whole = {kind: plainly[kind]["whole_per_s"] for kind in KINDS if kind in plainly}
    for way, (low, percentages) in MPS.items():
        ways[way] = under_mps(low, percentages, whole)
        print(f"{way}: {json.dumps(ways[way])}", flush=True)
    return ways


def _child(options: argparse.Namespace) -> None:
    if options.party:
        serve_party(options.party, sys.stdin, lambda said: print(f"SAID {json.dumps(said)}", flush=True))
        return
    try:
        found = in_one_process(options.one)
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:500], "where": traceback.format_exc()[-1500:]}
    print("RESULT " + json.dumps(found), flush=True)
    # A broken device could hang what would be cleaned up.
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a file for the JSON, instead of the last line")
    parser.add_argument("--one", choices=ONE_PROCESS, help=argparse.SUPPRESS)
    parser.add_argument("--party", choices=("encoder", "neighbour"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one or options.party:
        _child(options)
        return 0
    where, began = environment(), time.monotonic()
    told: dict[str, Any] = {"benchmark": "ways", "environment": where}
    if not where["backend"].startswith("cuda"):
        print(f"no CUDA device: {where['reason']}")
        print(json.dumps({**told, "not_measured": dict.fromkeys((*ONE_PROCESS, *MPS), "no CUDA device")}))
        return 2
    ways = measure_all()
    ratios, holds = judge(ways)
    missing = {way: found["failed"] for way, found in ways.items() if "failed" in found}
    told |= {"ways": ways, "ratios": ratios, "holds": holds, "not_measured": missing}
    told["took_s"] = round(time.monotonic() - began, 1)
    for name, each in ratios.items():
        print(f"{name}: {json.dumps(each)}")
    if options.out is None:
        print(json.dumps(told))
    else:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    return int(bool(missing) or not holds or not all(holds.values()))


if __name__ == "__main__":
    sys.exit(main())
