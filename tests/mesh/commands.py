"""Runs `apportion` in a process of its own that need not import what every command imports.

A process that has done so forks once for each command. Most of a command's time is its imports, and tests run many.
`python -m services.cli` itself is what `start` in running.py runs, and tests of the terminal.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from services.cli.main import COMMANDS, SERVICES, main

ROOT = Path(__file__).parents[2]
READY = b"ready"
MOST_BYTES = 1 << 20


def apportion(*arguments: str, environment: Mapping[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a command; never raises for its exit status. subprocess.TimeoutExpired where it takes longer."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        written = [Path(folder, name) for name in ("out", "err")]
        asked.connect(_forking())
        asked.settimeout(timeout_s)
        request = {
            "arguments": arguments,
            "environment": dict(environment),
            "folder": os.getcwd(),
            "files": [os.devnull, *map(str, written)],
        }
        asked.send(json.dumps(request).encode())
        pid = int(asked.recv(MOST_BYTES))
        try:
            status = int(asked.recv(MOST_BYTES))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["apportion", *arguments], timeout_s) from None
        out, err = (each.read_text() for each in written)
    return subprocess.CompletedProcess(["apportion", *arguments], status, out, err)


@cache
def _forking() -> str:
    """The socket of this process' forking process, which ends with it."""
    address = str(Path(tempfile.mkdtemp(prefix="commands-")) / "asked")
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, address],
        cwd=ROOT,
        # numpy's threads would not live on in a fork.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(process.stdin.close)
    assert process.stdout.readline().strip() == READY
    return address


def _fork_for_each(address: str) -> None:
    """Until standard input ends, which it does with whoever started this."""
    for name in COMMANDS.keys() - SERVICES.keys():
        import_module(f"services.cli.commands.{name}")
    assert len(os.listdir("/proc/self/task")) == 1, "threads do not live on in a fork"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if os.fork() == 0:
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                _told(connection)
    print(READY.decode(), flush=True)
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _told(connection: socket.socket) -> Any:
    """Runs what is asked for in one more process; tells its id, and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.recv(MOST_BYTES))
    pid = os.fork()
    if pid == 0:
        _become(request)
    connection.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(request: Any) -> Any:
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for number, path in enumerate(request["files"]):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.argv = ["apportion", *request["arguments"]]
    main()


if __name__ == "__main__":
    _fork_for_each(sys.argv[1])
