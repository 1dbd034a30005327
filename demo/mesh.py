"""A mesh of the demo's own: `apportion up` on free ports and a folder that is thrown away."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from demo.models import Served

FREE = "127.0.0.1:0"
START_S = 60.0
STOP_S = 30.0


class DemoError(Exception):
    """The demo cannot go on; the message is one line."""


class Mesh:
    """A running mesh. `addresses` are those of mesh.json."""

    def __init__(self) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="apportion-demo-"))
        self.addresses: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Mesh:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def apportion(self, *arguments: str) -> str:
        """Runs a command against this mesh; its standard output. Raises DemoError with the command's own line."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", *arguments, "--data", str(self.data)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(),
        )
        try:
            out, err = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            lines = err.decode(errors="replace").strip().splitlines()
            raise DemoError(f"apportion {' '.join(arguments[:3])}: {(lines or ['failed'])[-1].removeprefix('error: ')}")
        return out.decode()

    def environment(self) -> dict[str, str]:
        """The variables that commands are run with."""
        return _environment()

    async def create_tenant(self, served: Served) -> str:
        """Creates a model's tenant; its API key."""
        made = await self.apportion("tenant", "create", served.tenant, "--reserve", f"{served.reserve:g}", "--json")
        return json.loads(made)["api_key"]

    async def push(self, served: Served, artefact: Path) -> Any:
        """Pushes a model and waits until it serves; what `model push --json` says."""
        promise = ("--class", "batch") if served.slo_ms is None else ("--slo-ms", f"{served.slo_ms:g}")
        what = ("model", "push", served.model, str(artefact), "--tenant", served.tenant)
        return json.loads(await self.apportion(*what, *promise, *served.options, "--json"))

    async def device_seconds(self) -> dict[str, float]:
        """Device time that each tenant has used, in seconds."""
        fleet = json.loads(await self.apportion("status", "--json"))
        return {one["tenant"]: int(one["device_ns"]) / 1e9 for one in fleet["tenants"]}

    async def _start(self) -> None:
        ports = ("frontend", "metrics", "registry", "scheduler", "executor", "otlp", "query", "executor-metrics")
        flags = [part for name in ports for part in (f"--{name}", FREE)]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "up", "--data", str(self.data), "--trace-sample", "0.1", *flags),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
        )
        written = self.data / "mesh.json"
        async with asyncio.timeout(START_S):
            while not written.exists():
                if self._process.returncode is not None:
                    raise DemoError(await self._last_words())
                await asyncio.sleep(0.05)
        self.addresses = json.loads(written.read_text())["addresses"]

    async def _last_words(self) -> str:
        stderr = None if self._process is None else self._process.stderr
        lines = [] if stderr is None else (await stderr.read()).decode(errors="replace").strip().splitlines()
        return (lines or ["apportion up ended"])[-1].removeprefix("error: ")

    async def _stop(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        shutil.rmtree(self.data, ignore_errors=True)


class Elsewhere(Mesh):
    """A mesh that runs already, as Compose or Kubernetes run it. What the demo makes there, it removes.

    frontend: HOST:PORT. The rest is where the command line finds it: APPORTION_REGISTRY, APPORTION_SCHEDULER,
    APPORTION_QUERY, APPORTION_MESH_TOKEN.
    """

    def __init__(self, frontend: str) -> None:
        super().__init__()
        self.addresses = {"frontend": frontend}
        self._made: list[tuple[str, ...]] = []

    async def create_tenant(self, served: Served) -> str:
        """Creates a model's tenant; its API key."""
        key = await super().create_tenant(served)
        self._made.append(("tenant", "remove", served.tenant))
        return key

    async def push(self, served: Served, artefact: Path) -> Any:
        """Pushes a model and waits until it serves; what `model push --json` says."""
        self._made.append(("model", "remove", served.model, "--tenant", served.tenant))
        return await super().push(served, artefact)

    def environment(self) -> dict[str, str]:
        """All of the user's variables."""
        return dict(os.environ)

    async def _start(self) -> None:
        """It runs."""

    async def _stop(self) -> None:
        for arguments in reversed(self._made):
            with suppress(DemoError):
                await self.apportion(*arguments)
        shutil.rmtree(self.data, ignore_errors=True)


def _environment() -> dict[str, str]:
    """The user's variables, those apart that would lead to another mesh."""
    return {name: value for name, value in os.environ.items() if not name.startswith("APPORTION_")}
