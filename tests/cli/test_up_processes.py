"""`apportion up` with real processes; the services are small stand-ins that do what every service does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from services.cli.errors import CommandError
from services.cli.up.core import Service
from services.cli.up.files import Folder, Lock, last_error, rotate
from services.cli.up.plan import Listen, Plan
from services.cli.up.shell import Shell

STAND_IN = """
import json, os, signal, sys, threading
name = __spec__.name.rpartition(".")[2] if __spec__.name != "__main__" else sys.argv[0].rpartition(".")[2]
get = lambda key: os.environ[f"APPORTION_{name.upper()}_{key}"]
if os.environ.get("FAIL") == name:
    print("error: " + name + ": cannot listen on a port", file=sys.stderr)
    raise SystemExit(2)
stop = threading.Event()
if os.environ.get("STUBBORN") == name:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
ready = get("READY_FILE")
with open(ready + ".partial", "w") as file:
    json.dump({"pid": os.getpid(), "listen": "127.0.0.1:7", "query_listen": "127.0.0.1:8"}, file)
os.replace(ready + ".partial", ready)
while not stop.wait(0.05): pass
"""


@dataclass(frozen=True)
class StandIns(Plan):
    """Two services that are not real."""

    @property
    def services(self):
        return (Service("registry", level=1), Service("scheduler", frozenset({"registry"}), level=0))

    def module(self, name):
        return f"standins.{name}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    package = tmp_path / "modules" / "standins"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("registry", "scheduler"):
        (package / f"{name}.py").write_text(STAND_IN)
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{root}")
    made = Folder(tmp_path / "data")
    made.make()
    return made


class Up:
    """A shell under test, with what it said."""

    def __init__(self, folder):
        self.said: list[str] = []
        self.shell = Shell(StandIns(Listen(), folder.root), folder, says=self.said.append, announces=lambda _: None)
        self.task: asyncio.Task | None = None

    async def start(self):
        self.task = asyncio.create_task(self.shell.run())
        await self.until(lambda: len(self.shell._addresses) == 2 or self.task.done())

    async def until(self, holds, timeout_s=20):
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def pid(self, name):
        return self.shell._processes[name].pid

    async def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            return await self.task


async def test_services_start_in_order_and_all_are_gone_after_sigterm(folder):
    up = Up(folder)
    await up.start()
    pids = [up.pid("registry"), up.pid("scheduler")]
    finish = await up.stop()
    assert finish.status == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_service_that_is_killed_comes_back(folder):
    up = Up(folder)
    await up.start()
    before = up.pid("scheduler")
    os.kill(before, signal.SIGKILL)
    await up.until(lambda: up.pid("scheduler") != before)
    assert any("scheduler was killed by signal 9" in line for line in up.said)
    assert (await up.stop()).status == 0


async def test_a_service_that_cannot_start_ends_up_with_its_line_and_status_2(folder, monkeypatch):
    monkeypatch.setenv("FAIL", "scheduler")
    up = Up(folder)
    await up.start()
    finish = await asyncio.wait_for(up.task, 20)
    assert (finish.status, finish.error) == (2, "scheduler: cannot listen on a port")
    assert not psutil.pid_exists(up.pid("registry"))


async def test_asking_twice_ends_a_service_that_will_not_stop(folder, monkeypatch):
    monkeypatch.setenv("STUBBORN", "scheduler")
    up = Up(folder)
    await up.start()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.2)
    assert psutil.pid_exists(up.pid("scheduler"))
    assert (await up.stop()).status == 0
    assert not psutil.pid_exists(up.pid("scheduler"))


def test_a_service_ends_when_up_is_killed_outright(folder):
    code = (
        f"import asyncio, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_up_processes import StandIns, Folder, Listen, Shell\n"
        f"f = Folder(Path({str(folder.root)!r}))\n"
        "asyncio.run(Shell(StandIns(Listen(), f.root), f, says=print, announces=print).run())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready = [folder.ready("registry"), folder.ready("scheduler")]
    wait_for(lambda: all(path.exists() for path in ready))
    children = [json.loads(path.read_text())["pid"] for path in ready]
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(pid) for pid in children))


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(holds, timeout_s=20):
    ends = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < ends, "did not happen in time"
        time.sleep(0.02)


def test_a_second_up_on_the_same_data_is_told_who_holds_it(folder):
    first, second = Lock(folder), Lock(folder)
    first.acquire()
    with pytest.raises(
        CommandError, match=rf"already running \(pid {os.getpid()}\) on .*; stop it or choose another --data"
    ):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_log_that_has_grown_too_long_is_put_aside(folder, monkeypatch):
    monkeypatch.setattr("services.cli.up.files.LOG_MOST_BYTES", 10)
    log = folder.log("registry")
    log.write_text("x" * 11)
    rotate(log)
    assert not log.exists()
    assert log.with_suffix(".log.1").read_text() == "x" * 11


def test_the_last_error_is_the_line_that_says_so(folder):
    log = folder.log("registry")
    log.write_text("old: error\nerror: the port is in use\nsome noise\n")
    assert last_error(log, 0) == "the port is in use"
    assert last_error(log, len("old: error\nerror: the port is in use\n")) == "some noise"
    assert last_error(folder.log("nobody"), 0) is None
    log.write_text('Traceback\nNameError: boom\n{"level": "info", "event": "ready"}\n')
    assert last_error(log, 0) == "NameError: boom"
    log.write_text('{"level": "info", "event": "ready"}\n')
    assert last_error(log, 0) is None
