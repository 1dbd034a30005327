"""The files of a local mesh: the lock, the logs, and mesh.json, which tells other commands where it is."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.cli.errors import CommandError

LOG_MOST_BYTES = 8 << 20
"""A log longer than this is put aside when its service starts."""


@dataclass(frozen=True)
class Folder:
    """The data folder of a local mesh."""

    root: Path

    @property
    def mesh(self) -> Path:
        """Where the addresses of the running mesh are written."""
        return self.root / "mesh.json"

    def ready(self, name: str) -> Path:
        """Where a service says that it is ready."""
        return self.root / "run" / f"{name}.ready"

    def log(self, name: str) -> Path:
        """A service's log."""
        return self.root / "logs" / f"{name}.log"

    def make(self) -> None:
        """Makes the folders. Raises CommandError where that is not allowed."""
        try:
            for folder in (self.root, self.root / "run", self.root / "logs"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"--data: cannot make {error.filename}: {error.strerror}") from None

    def publish(
        self, up_pid: int, addresses: Mapping[str, str], pids: Mapping[str, int], certs: Path | None = None
    ) -> None:
        """Writes mesh.json whole. certs: the folder with the certificates that the mesh was started with."""
        partial = self.mesh.with_suffix(".partial")
        told = {"pid": up_pid, "addresses": dict(addresses), "pids": dict(pids)}
        partial.write_text(json.dumps(told if certs is None else {**told, "certs": str(certs)}, indent=2))
        partial.replace(self.mesh)


class Lock:
    """Held by the one `apportion up` of a data folder; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock. Raises CommandError that names the holder."""
        descriptor = os.open(self._folder.root / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            os.close(descriptor)
            raise CommandError(
                f"already running (pid {holder}) on {self._folder.root}; stop it or choose another --data"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Lets go of the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def rotate(log: Path) -> None:
    """Puts a log that has grown too long aside, in place of the one put aside before."""
    if log.exists() and log.stat().st_size > LOG_MOST_BYTES:
        log.replace(log.with_suffix(".log.1"))


def last_error(log: Path, start: int) -> str | None:
    """What a service said of its end, in what it wrote after `start`: its line "error: …", else the last line that is
    neither a log line nor empty (of a traceback, the error itself); None where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = [line for line in file.read()[-16_384:].decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return None
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    kept = told or [line for line in lines if not line.startswith("{")]
    return kept[-1] if kept else None
