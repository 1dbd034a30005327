"""`apportion top` over a real mesh: one frame, one object, and a terminal that is given back."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import numpy as np
import pytest

from tests.mesh.calling import Caller
from tests.mesh.running import RunningMesh, wait_until
from tests.mesh.tiny import echo

ESCAPES = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")
WIDTH = 64


@pytest.fixture(scope="module")
def watched(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    mesh.create_tenant("topped", reserve=0.25, weight=3)
    path = echo(tmp_path_factory.mktemp("top") / "echo.onnx", "float32")
    mesh.push("echo", path, tenant="topped", options=("--slo-ms", "2000"))
    return mesh


def ask(mesh: RunningMesh, times: int) -> None:
    with Caller(mesh, "topped") as caller:
        for _ in range(times):
            caller.infer("echo", in_float32=np.ones((1, 4), np.float32))


def figures(mesh: RunningMesh) -> dict:
    (tenant,) = json.loads(mesh.command("top", "--json", "--tenant", "topped"))["tenants"]
    return tenant


def test_one_object_has_what_executors_and_frontends_know(watched):
    ask(watched, 30)
    wait_until(lambda: figures(watched)["models"] and figures(watched)["attainment"] is not None, what="the figures")
    ask(watched, 30)
    wait_until(lambda: figures(watched)["requests_per_s"] >= 3, what="the rate")
    told = figures(watched)
    assert (told["reserved_devices"], told["weight"], told["attainment"]) == (0.25, 3, 1.0)
    assert 0 < told["p99_ms"] < 2000
    assert told["device_s"] > 0
    assert told["models"][0]["model"] == "echo"
    where = watched.addresses["executor_metrics"]
    seconds = lambda: watched.total("apportion_executor_device_seconds_total", where, tenant="topped")
    # The scheduler hears of it a moment after the executor counts it.
    wait_until(lambda: figures(watched)["device_s"] == pytest.approx(seconds(), rel=0.01), what="one figure for both")
    units = watched.total("apportion_executor_compute_unit_seconds_total", where)
    assert units > 0


def test_one_frame_names_lanes_and_tenants(watched):
    ask(watched, 3)
    shown = watched.command("top", "--once", "--models")
    assert not ESCAPES.search(shown), "nobody watches"
    header = next(line for line in shown.splitlines() if line.startswith("TENANT"))
    assert header.split() == [
        "TENANT",
        "RESERVED",
        "WEIGHT",
        "USED",
        "OF",
        "RES.",
        "REQ/S",
        "WAITING",
        "IN",
        "OBJ.",
        "P99",
        "UNIT-S",
    ]
    row = next(line for line in shown.splitlines() if line.startswith("topped"))
    assert row.split()[1:3] == ["0.25", "3"]
    assert any(line.startswith("  echo") for line in shown.splitlines())
    assert any("/0" in line and "%" in line for line in shown.splitlines())


@pytest.mark.parametrize("end", ["q", "ctrl-c", "SIGTERM"])
def test_the_terminal_is_given_back_as_it_was(watched, end):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, WIDTH, 0, 0))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "top", "--interval", "0.2", "--data", str(watched.data)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={name: value for name, value in watched.environment.items() if name not in ("COLUMNS", "LINES")},
        preexec_fn=lambda: (os.setsid(), ioctl(0, termios.TIOCSCTTY, 0)),
    )
    try:
        said = until_said(ours, b"TENANT", 3)
        if end == "SIGTERM":
            process.send_signal(signal.SIGTERM)
        else:
            os.write(ours, b"q" if end == "q" else b"\x03")
        said += until_said(ours, b"\x1b[?1049l", 1)
        assert process.wait(10) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
    text = said.decode()
    assert text.index("\x1b[?1049h") < text.index("TENANT") < text.rindex("\x1b[?25h\x1b[?1049l")
    drawn = text[text.index("\x1b[H") : text.rindex("\x1b[?25h")]
    lines = [ESCAPES.sub("", line) for line in re.split(r"\r\n|\x1b\[J", drawn)]
    assert max(map(len, lines)) <= WIDTH
    os.close(ours)
    os.close(theirs)


def until_said(fd: int, what: bytes, times: int, timeout_s: float = 20.0) -> bytes:
    said, ends = b"", time.monotonic() + timeout_s
    readable = select.poll()
    readable.register(fd, select.POLLIN)
    while said.count(what) < times:
        assert time.monotonic() < ends, said
        if readable.poll(100):
            said += os.read(fd, 1 << 16)
    return said


def test_a_scheduler_that_is_not_there_is_one_line(watched, tmp_path: Path):
    done = watched.apportion("top", "--once", "--scheduler", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: cannot reach the scheduler at 127.0.0.1:1: is `apportion up` running?\n"
