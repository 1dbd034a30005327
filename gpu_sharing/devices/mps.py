"""NVIDIA's multi-process service: a daemon lets workers' processes share a device at the same time.

A process that cannot reach the daemon runs without it and says nothing, and a fault of one client is every client's: so what
the daemon says of its clients is compared with the workers that there are, and never assumed. What it says is parsed here by
PURE functions; `Daemon` runs it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from gpu_sharing.devices.environment import system_variables
from gpu_sharing.units import Bytes, MiB

BINARY = "nvidia-cuda-mps-control"
_PLACES = ("/usr/bin", "/usr/local/cuda/bin", "/usr/local/nvidia/bin", "/opt/nvidia/bin")
_PATIENCE_S = 10.0
_STEP_S = 0.1

_NO_DAEMON = re.compile(r"cannot find mps control daemon|is not running|connection refused", re.IGNORECASE)
_FAULTED = frozenset({"FAULT"})


class MpsFailed(Exception):
    """The daemon cannot be started, or does not answer. The message says what it was asked and what it said."""


# What it says. PURE.


class Server(NamedTuple):
    """One server of a daemon. status: ACTIVE, INITIALIZING, FAULT; clients: processes, as the daemon numbers them."""

    pid: int
    status: str
    clients: frozenset[int]


class Findings(NamedTuple):
    """Workers compared with clients. missing: workers, by lane, that run without MPS. faulted: those whose server is broken.

    strangers: clients that are no worker.
    """

    missing: tuple[int, ...]
    faulted: tuple[int, ...]
    strangers: tuple[int, ...]

    @property
    def to_restart(self) -> tuple[int, ...]:
        """Lanes whose workers are to be drained and started anew."""
        return tuple(sorted({*self.missing, *self.faulted}))


def pids(text: str) -> tuple[int, ...] | None:
    """Process numbers, one a line; None where no daemon answered. ValueError for words that mean neither."""
    if _NO_DAEMON.search(text):
        return None
    numbers = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.isdigit():
            raise ValueError(f"the MPS daemon says {line[:100]!r} where process numbers were asked for")
        numbers.append(int(line))
    return tuple(numbers)


def status(text: str) -> str:
    """A server's, of the first line; UNKNOWN where it says nothing."""
    words = text.split()
    return words[0].strip(".:").upper() if words else "UNKNOWN"


def compare(workers: Mapping[int, int], servers: Iterable[Server]) -> Findings:
    """workers: the process of each lane's worker that uses the device by now."""
    servers = tuple(servers)
    clients = {pid for server in servers for pid in server.clients}
    broken = {pid for server in servers if server.status in _FAULTED for pid in server.clients}
    return Findings(
        missing=tuple(sorted(lane for lane, pid in workers.items() if pid not in clients)),
        faulted=tuple(sorted(lane for lane, pid in workers.items() if pid in broken)),
        strangers=tuple(sorted(clients - set(workers.values()))),
    )


def environment(
    pipe: str, log: str, *, percentage: float, memory_bytes: Bytes | None = None, low_priority: bool = False
) -> dict[str, str]:
    """What a worker is started with: which daemon, and how much of the device it may use at most. Nothing is reserved by it.

    percentage: of the SMs, above 0 and at most 100. ValueError for another one, and for less than a MiB of memory.
    """
    if not 0 < percentage <= 100:
        raise ValueError(f"percentage: must be above 0 and at most 100, is {percentage}")
    if memory_bytes is not None and memory_bytes < MiB:
        raise ValueError(f"memory_bytes: must be at least {MiB}, is {memory_bytes}")
    limit = {} if memory_bytes is None else {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={memory_bytes // MiB}M"}
    return {
        "CUDA_MPS_PIPE_DIRECTORY": pipe,
        "CUDA_MPS_LOG_DIRECTORY": log,
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{percentage:g}",
        "CUDA_MPS_CLIENT_PRIORITY": "1" if low_priority else "0",
        **limit,
    }


# Asking it.


def binary() -> str | None:
    """The daemon's control program, if it is installed."""
    return shutil.which(BINARY) or next(
        (str(Path(place) / BINARY) for place in _PLACES if os.access(Path(place) / BINARY, os.X_OK)), None
    )


def found() -> str | None:
    """The daemon that this process would reach, in words; None where none answers, or none is installed."""
    program = binary()
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    if program is None or not (Path(pipe) / "control").exists():
        return None
    try:
        servers = pids(_ask(program, "get_server_list", system_variables(os.environ)))
    except (MpsFailed, ValueError):
        return None
    return None if servers is None else f"a daemon answers at {pipe}"


def _ask(program: str, question: str, env: Mapping[str, str]) -> str:
    try:
        told = subprocess.run(
            [program], input=question + "\n", text=True, capture_output=True, timeout=_PATIENCE_S, env=dict(env)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpsFailed(f"{question}: {error}") from error
    return told.stdout + told.stderr


class Daemon:
    """A private daemon, ended with whoever started it. pipe, log: its folders, which workers are told."""

    def __init__(self, program: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """program: the control program. Use `start`."""
        self._program, self._sleep = program, sleep
        self._folder = tempfile.TemporaryDirectory(prefix="apportion-mps-")
        self.pipe, self.log = (os.path.join(self._folder.name, name) for name in ("pipe", "log"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers. MpsFailed, with what it wrote, where it does not."""
        for folder in (self.pipe, self.log):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(os.path.join(self.log, "daemon.txt"), "wb") as said:
            try:
                self._process = subprocess.Popen(
                    [self._program, "-f"], stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=self._env()
                )
            except OSError as error:
                raise MpsFailed(f"{self._program} -f: {error}") from error
        for _ in range(round(_PATIENCE_S / _STEP_S)):
            if not self.is_alive:
                break
            if self._answers():
                return
            self._sleep(_STEP_S)
        words = self.words()
        self.stop()
        raise MpsFailed(f"{self._program} -f does not answer: {words}")

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def servers(self) -> list[Server]:
        """What it has now. MpsFailed where it does not answer."""
        numbers = self._pids("get_server_list")
        return [
            Server(pid, status(self._say(f"get_server_status {pid}")), frozenset(self._pids(f"get_client_list {pid}")))
            for pid in numbers
        ]

    def words(self) -> str:
        """The end of what it wrote."""
        try:
            return (Path(self.log) / "daemon.txt").read_text(errors="replace")[-300:].strip() or "it wrote nothing"
        except OSError:
            return "it wrote nothing"

    def stop(self) -> None:
        """Ends it, and with it all its clients' work."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                self._say("quit")
                process.wait(_PATIENCE_S)
        except (MpsFailed, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        self._folder.cleanup()

    def _answers(self) -> bool:
        try:
            return pids(self._say("get_server_list")) is not None
        except (MpsFailed, ValueError):
            return False

    def _pids(self, question: str) -> tuple[int, ...]:
        try:
            found_ = pids(self._say(question))
        except ValueError as error:
            raise MpsFailed(f"{question}: {error}") from error
        if found_ is None:
            raise MpsFailed(f"{question}: no daemon answers")
        return found_

    def _say(self, text: str) -> str:
        return _ask(self._program, text, self._env())

    def _env(self) -> dict[str, str]:
        # Its servers work for every tenant: none of what this process knows is theirs to have.
        own = {"CUDA_MPS_PIPE_DIRECTORY": self.pipe, "CUDA_MPS_LOG_DIRECTORY": self.log}
        return {**system_variables(os.environ), **own}
