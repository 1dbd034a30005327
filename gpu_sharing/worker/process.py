"""A worker's process as its executor sees it: started with nothing it does not need, reaped when it is gone."""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from gpu_sharing.devices.environment import driver_variables
from gpu_sharing.devices.probe import BACKEND
from gpu_sharing.units import MiB
from gpu_sharing.worker.config import WorkerConfig

KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""What a worker's environment keeps of its executor's: a tenant's artefact runs there, so no credentials."""

CONNECTIONS = "32"
"""Hardware queues. By default streams share 8, and disjoint lanes that share one wait for each other."""

_ROOT = str(Path(__file__).resolve().parents[2])
_TAIL_LINES = 40
_SOCKET_BUFFER_BYTES = 1 << 20


def environment(config: WorkerConfig) -> dict[str, str]:
    """The whole environment of a worker."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    threads = str(config.threads or len(config.cores) or 1)
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
    return {
        **kept,
        **dict.fromkeys(pools, threads),
        # Threads that spin while they wait for work would take the cores that the services run on.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Large tensors come from a heap that keeps its blocks: mapping each afresh costs a fault for every page.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(512 * MiB),
        "MALLOC_TOP_PAD_": str(64 * MiB),
        "PYTHONPATH": path,
        # Whatever lies in the working directory must not be imported in place of what is installed.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        **config.environment,
    }


def cuda_environment(backend: str) -> dict[str, str]:
    """What CUDA must find in a process when it starts there; which devices are its own; which backend its probe is to choose."""
    kept = driver_variables(os.environ)
    # Under MPS every client's queues are set aside: few are to be had.
    queues = {} if backend == "cuda_mps" else {"CUDA_DEVICE_MAX_CONNECTIONS": CONNECTIONS}
    return {**queues, **kept, BACKEND: backend}


class WorkerProcess:
    """A started process, our end of its socket, and what it writes to standard error."""

    def __init__(self, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        """Use `spawn`."""
        self._process = process
        self._tail: collections.deque[bytes] = collections.deque(maxlen=_TAIL_LINES)
        self._stderr: asyncio.Task[None] | None = None
        self.socket = ours
        self.pid = process.pid

    @classmethod
    def spawn(cls, config: WorkerConfig, inputs_fd: int, outputs_fd: int, meter_fd: int) -> WorkerProcess:
        """Starts a worker. The descriptors are given to it and closed here."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        ours.setblocking(False)
        fds = (theirs.fileno(), inputs_fd, outputs_fd, meter_fd)
        arguments = [*map(str, fds), str(os.getpid()), msgspec.json.encode(config).decode()]
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "gpu_sharing.worker", *arguments],
                pass_fds=fds,
                env=environment(config),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        finally:
            theirs.close()
            os.close(inputs_fd)
            os.close(outputs_fd)
            os.close(meter_fd)
        return cls(process, ours)

    async def forward_stderr(self) -> None:
        """From here on, what the worker writes goes to our standard error; its end is kept for `stderr_tail`."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        self._stderr = asyncio.ensure_future(self._forward(reader))

    async def _forward(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(1 << 16):
            self._tail.extend(data.splitlines(keepends=True))
            sys.stderr.write(data.decode("utf-8", "replace"))
            sys.stderr.flush()

    def stderr_tail(self) -> str:
        """The last lines that the worker wrote."""
        return b"".join(self._tail).decode("utf-8", "replace")

    async def kill(self, after_s: float = 0.0) -> str:
        """Waits at most after_s for the process to exit, kills it if it has not, reaps it; says in words how it ended."""
        await asyncio.to_thread(self._reap, after_s)
        if self._stderr is not None:
            await asyncio.wait([self._stderr], timeout=1.0)
        return ending(self._process.returncode)

    def _reap(self, after_s: float) -> None:
        try:
            self._process.wait(after_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Lets go of the descriptors."""
        self.socket.close()
        if self._stderr is not None:
            self._stderr.cancel()


def ending(status: int) -> str:
    """How a process with this return code ended, in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
