"""The commands that measure on a GPU, as far as they can be tried without one: what they conclude, and that they say so."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

from bench.gpu import ways, whole_mesh

COMMANDS = {"ways": ways.main, "whole_mesh": whole_mesh.main}


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_device_a_command_says_so_and_fails(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"backend": "cpu", "reason": "no CUDA device found"}
    monkeypatch.setattr(sys.modules[f"bench.gpu.{name}"], "environment", lambda: where)
    assert COMMANDS[name]([]) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("no CUDA device: ")
    told = json.loads(said[-1])
    assert told["benchmark"] == name
    assert set(told["not_measured"].values()) == {"no CUDA device"}


def figures(p99: float) -> dict[str, float]:
    return {"n": 800, "p50": p99 / 2, "p99": p99, "max": 2 * p99}


def found(alone: float, beside: float, speed: float, **more: Any) -> dict[str, Any]:
    each = {"beside": figures(beside), "whole_per_s": 100.0, "neighbour_per_s": speed}
    return {"alone": figures(alone), "matmul": each, "memory": each, **more}


def test_what_green_contexts_were_to_show_is_held_against_what_was_found() -> None:
    ratios, holds = ways.judge(
        {
            "green": found(1.0, 1.2, 70.0, sms=[32, 96]),
            "plain": found(0.5, 8.0, 95.0, sms=None),
            "mps": found(1.0, 3.0, 60.0),
            "priority": {"failed": "no answer within 90 s"},
        }
    )
    assert ratios["green_beside_matmul"] == {"p99_over_alone": 1.2, "p99_ms": 1.2, "neighbour_of_the_device": 0.7}
    assert ratios["mps_beside_memory"]["p99_over_alone"] == 3.0
    assert not any(name.startswith("priority") for name in ratios)
    assert all(holds.values())
    assert len(holds) == 3


@pytest.mark.parametrize(
    ("green", "plain", "broken"),
    [
        (found(1.0, 1.4, 70.0, sms=[32, 96]), found(1.0, 8.0, 95.0), "1.35 of alone"),
        (found(1.0, 1.2, 60.0, sms=[32, 96]), found(1.0, 8.0, 95.0), "0.9 of its share"),
        (found(1.0, 1.2, 70.0, sms=[32, 96]), found(1.0, 5.0, 95.0), "a fifth of plain"),
    ],
)
def test_each_of_them_can_fail(green: dict[str, Any], plain: dict[str, Any], broken: str) -> None:
    _, holds = ways.judge({"green": green, "plain": plain})
    assert [broken in name for name, held in holds.items() if not held] == [True]


def test_without_green_contexts_nothing_is_claimed() -> None:
    assert ways.judge({"green": {"failed": "no green contexts"}, "plain": found(1, 9, 90)}) == (
        ways.judge({"plain": found(1, 9, 90)})[0],
        {},
    )


PARTY = """
import json, sys
def say(what): print("SAID " + json.dumps(what), flush=True)
print("a library's own words")
say("ready")
for line in sys.stdin:
    if line.startswith("end"): sys.exit("CUDA_ERROR_MPS_CONNECTION_FAILED")
    say({"measure": {"p99": 2.0}, "start": "started", "stop": 40.0}[line.split()[0]])
"""


def test_a_party_is_asked_line_by_line_and_what_ends_it_is_told() -> None:
    party = ways.Party([sys.executable, "-c", PARTY], {})
    try:
        told = ways.measured(party, party, {"matmul": 80.0})
        assert told["alone"] == {"p99": 2.0}
        assert told["matmul"] == {"beside": {"p99": 2.0}, "whole_per_s": 80.0, "neighbour_per_s": 40.0}
        with pytest.raises(RuntimeError, match="ended with 1: CUDA_ERROR_MPS_CONNECTION_FAILED"):
            party.ask("end")
    finally:
        party.end()


class PretendedDaemon:
    stopped = 0

    def __init__(self, program: str) -> None:
        self.pipe, self.log = "/nowhere/pipe", "/nowhere/log"

    def start(self) -> None:
        pass

    def servers(self) -> list[Any]:
        return []

    def stop(self) -> None:
        PretendedDaemon.stopped += 1


def test_processes_that_run_without_mps_are_noticed_and_the_daemon_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "binary", lambda: "/usr/bin/nvidia-cuda-mps-control")
    monkeypatch.setattr(ways, "Daemon", PretendedDaemon)
    monkeypatch.setattr(ways, "command_of", lambda role: [sys.executable, "-c", PARTY])
    before = PretendedDaemon.stopped
    assert ways.under_mps(False, (25.0, 75.0), {}) == {"failed": "2 of the processes run without MPS"}
    assert PretendedDaemon.stopped == before + 1
    monkeypatch.setattr(ways, "binary", lambda: None)
    assert "is not installed" in ways.under_mps(False, (25.0, 75.0), {})["failed"]


def test_the_limit_is_the_device_else_the_process_whose_thread_has_no_core_left() -> None:
    used = {
        "frontend": {"cores": 1.4, "busiest_thread": 0.7},
        "executor": {"cores": 0.97, "busiest_thread": 0.95},
        "worker 0": {"cores": 1.5, "busiest_thread": 0.8},
    }
    assert whole_mesh.limit_of(used, 0.95) == "device"
    assert whole_mesh.limit_of(used, 0.5) == "executor"
    assert whole_mesh.limit_of({"frontend": used["frontend"]}, 0.5).startswith("none")


def test_the_best_of_the_mesh_is_held_against_the_faster_of_the_bare_loops() -> None:
    parts = [{"rows_per_s": 700.0, "at_once": 2, "limit": "x"}, {"rows_per_s": 900.0, "at_once": 8, "limit": "device"}]
    loops = [{"eager": 800.0, "graph": 900.0}, {"eager": 1000.0, "graph": 1100.0}]
    told = whole_mesh.judge(parts, loops)
    assert (told["ratio"], told["bare"], told["bare_rows_per_s"], told["at_once"]) == (0.9, "graph", 1000.0, 8)


def test_a_thread_is_reckoned_by_what_it_used_meanwhile() -> None:
    before = whole_mesh.Used(10.0, {"a": 5.0}, {"a": {1: 4.0, 2: 1.0}})
    after = whole_mesh.Used(12.0, {"a": 7.4}, {"a": {1: 4.2, 2: 2.8, 3: 0.4}})
    assert after.since(before) == {"a": {"cores": 1.2, "busiest_thread": 0.9}}


def test_a_neighbours_process_obeys_a_line_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class Running:
        def __init__(self, graph: Any, stream: Any) -> None:
            log.append(f"begin {graph}")

        def __enter__(self) -> Running:
            return self

        def __exit__(self, *_: object) -> None:
            log.append("end")

        def per_s(self) -> float:
            return 12.5

    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "stream")
    monkeypatch.setattr(ways, "plain", lambda stream, work: work)
    monkeypatch.setattr(ways, "neighbours", lambda: {"matmul": "m", "memory": "b"})
    monkeypatch.setattr(ways, "Neighbour", Running)
    said: list[Any] = []
    ways.serve_party("neighbour", io.StringIO("start memory\nstop\nstart matmul\nstop\n"), said.append)
    assert said == ["ready", "started", 12.5, "started", 12.5]
    assert log == ["begin b", "end", "begin m", "end"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_whole_mesh_is_measured_on_a_processor_at_small_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    whole_mesh.main(["--anywhere"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"frontend", "executor", "worker 0", "callers"} <= set(told["large"][0]["processes"])
    assert told["found"]["mesh_rows_per_s"] > 0
    assert [part["rows"] for part in told["single"]] == [1, 1]
