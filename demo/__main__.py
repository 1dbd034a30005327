"""`python -m demo`: the whole mesh, three real models, one tenant that floods, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import grpc
import numpy as np

from demo import answers, models, report, sound
from demo.client import Model, encode
from demo.mesh import DemoError, Elsewhere, Mesh
from demo.traffic import Seen, Stream, play
from services.common.channel import connect

CACHE = Path(__file__).parent.parent / ".cache" / "demo"
TRAFFIC_S = 20.0
SEARCH_PER_S = 8.0
VOICE_PER_S = 30.0
FLOOD_PER_S = 36.0
FLOOD_ROWS = 4
TRACES_S = 60.0
GIVEN_UP_S = 2.0
"""The deadline of each request while the flood lasts."""
SERVED = (models.SEARCH, models.FILES, models.VOICE)


async def demo(frontend: str | None = None) -> None:
    """Runs the demo. frontend: of a mesh that runs already; None: one of its own. Raises DemoError where anything is not as it should be."""
    began = time.monotonic()
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with report.console.status("exporting a model and starting the mesh"):
        export = asyncio.create_task(_export())
        try:
            async with Mesh() if frontend is None else Elsewhere(frontend) as mesh:
                report.console.print(f"the mesh is up after {time.monotonic() - began:.1f} s")
                keys = {served.tenant: await mesh.create_tenant(served) for served in SERVED}
                await _push(mesh, export)
                report.console.print(f"three models serve after {time.monotonic() - began:.1f} s")
                async with connect(mesh.addresses["frontend"]) as channel:
                    await _judge(channel, keys)
                    streams, seen = await _flood(mesh, channel, keys)
                await _trace(mesh)
                _check(streams, seen)
        finally:
            export.cancel()
    report.console.print(f"\nnothing is left running; {time.monotonic() - began:.0f} s altogether")


async def _export() -> Path:
    """The exported sentence model, made in a process of its own where it is not there yet."""
    target = models.sentences_artefact(CACHE)
    if not target.exists():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "demo.models",
            str(CACHE),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, err = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise DemoError(f"cannot export the sentence model: {(err.decode().strip().splitlines() or ['?'])[-1]}")
    return target


async def _push(mesh: Mesh, export: asyncio.Task[Path]) -> None:
    """Pushes all three at once; the one that is exported as soon as it is."""

    async def one(served: models.Served, artefact: Path | None) -> None:
        path = artefact or await export
        pushed = await mesh.push(served, path)
        profile = pushed.get("profile") or {}
        point = min(profile.get("points", []), key=lambda point: point["rows"], default=None)
        cost = "" if point is None else f", one row takes {int(point['p50_ns']) / 1e6:.1f} ms"
        segments = len(profile.get("segments", []))
        report.console.print(
            f"  {served.tenant}/{served.model}: {path.stat().st_size / 2**20:.0f} MiB{cost}, {segments} segments"
        )

    await asyncio.gather(
        one(models.SEARCH, None),
        one(models.FILES, models.filetypes_artefact()),
        one(models.VOICE, models.speech_artefact()),
    )


def _model(channel: grpc.aio.Channel, keys: dict[str, str], served: models.Served, deadline_s: float = 20.0) -> Model:
    return Model(channel, served.model, keys[served.tenant], deadline_s=deadline_s)


async def _judge(channel: grpc.aio.Channel, keys: dict[str, str]) -> None:
    """Asks each model something whose answer is known."""
    report.heading("search: sentences that mean about the same")
    pairs = await answers.most_similar(_model(channel, keys, models.SEARCH))
    report.show_pairs(pairs)
    together = {tuple(answers.SENTENCES[k : k + 2]) for k in range(0, len(answers.SENTENCES), 2)}
    _require({(pair.one, pair.other) for pair in pairs} == together, "search: sentences were paired wrongly")
    report.heading("files: what they are")
    found = await answers.file_types(_model(channel, keys, models.FILES), answers.sample_files())
    report.show_files(found)
    _require(all(one.label == one.expected for one in found), "files: a type was told wrongly")
    report.heading("voice: where there is one")
    voice = await answers.where_voice_is(_model(channel, keys, models.VOICE))
    report.show_voice(voice)
    _require(voice.agreement >= 0.95, f"voice: right in {100 * voice.agreement:.0f} % of windows only")


def _streams(channel: grpc.aio.Channel, keys: dict[str, str]) -> list[Stream]:
    sentences = [encode(models.SEARCH.model, answers.tokens((one,))) for one in answers.SENTENCES]
    rows = [answers.features(content) for _, content, _ in answers.sample_files()]
    batch = encode(models.FILES.model, {"bytes": np.stack([rows[k % len(rows)] for k in range(FLOOD_ROWS)])})
    spoken = sound.render(answers.PHRASES, answers.SOUND_S)
    windows = [
        encode(models.VOICE.model, answers.window(spoken, at, answers.silence()))
        for at in range(0, len(spoken) - answers.WINDOW + 1, answers.WINDOW)
    ]
    search, files, voice = (_model(channel, keys, served, GIVEN_UP_S) for served in SERVED)
    return [
        Stream("search", search, sentences, SEARCH_PER_S, models.SEARCH.slo_ms),
        Stream("files", files, [batch], FLOOD_PER_S, models.FILES.slo_ms, flood=True),
        Stream("voice", voice, windows, VOICE_PER_S, models.VOICE.slo_ms),
    ]


async def _flood(mesh: Mesh, channel: grpc.aio.Channel, keys: dict[str, str]) -> tuple[list[Stream], dict[str, Seen]]:
    """Traffic of all three, one of whom sends far more than it has reserved."""
    report.heading(
        f"{TRAFFIC_S:.0f} s of traffic; files floods with {FLOOD_PER_S:g} batches of {FLOOD_ROWS} files a second"
    )
    streams = _streams(channel, keys)
    before = await mesh.device_seconds()
    seen = await play(streams, TRAFFIC_S)
    # Executors report once a second.
    await asyncio.sleep(1.2)
    after = await mesh.device_seconds()
    used = {tenant: after[tenant] - before.get(tenant, 0.0) for tenant in after}
    report.console.print(report.objectives(streams, seen, used, {s.tenant: s.reserve for s in SERVED}))
    report.console.print("[dim]* of those answered: what there is no room for is refused at once[/]")
    return streams, seen


def _check(streams: list[Stream], seen: dict[str, Seen]) -> None:
    """Everybody was answered and met the objective beside the flood, which may be refused but not answered late."""
    for stream in streams:
        one = seen[stream.tenant]
        _require(bool(one.latencies_s), f"{stream.tenant}: no request was answered")
        objective_s = math.inf if stream.slo_ms is None else stream.slo_ms / 1000
        within = one.kept(objective_s) if stream.flood else one.within(objective_s)
        _require(within >= report.ENOUGH, f"{stream.tenant}: {100 * within:.1f} % within its objective")


async def _trace(mesh: Mesh) -> None:
    """One request of a tenant beside the flood, from end to end."""
    report.heading("one request, as its trace tells it")
    ends = time.monotonic() + TRACES_S
    # A collector that samples by what a trace turned out to be holds it for a while.
    while not (listed := json.loads(await mesh.apportion("trace", "list", "--tenant", "search", "--json"))):
        _require(time.monotonic() < ends, "no trace was kept")
        await asyncio.sleep(1)
    slowest = max(listed, key=lambda trace: trace["duration_ns"])
    report.console.print(await mesh.apportion("trace", "show", slowest["trace_id"]), markup=False, end="")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoError(otherwise)


def main() -> int:
    """Runs the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--frontend", metavar="HOST:PORT", help="of a mesh that runs already; APPORTION_REGISTRY, APPORTION_SCHEDULER, APPORTION_QUERY and APPORTION_MESH_TOKEN say where the rest is")  # fmt: skip
    chosen = parser.parse_args()
    try:
        asyncio.run(demo(chosen.frontend))
    except (DemoError, FileNotFoundError, TimeoutError) as error:
        print(f"error: {error or 'the mesh did not start in time'}", file=sys.stderr)
    except grpc.RpcError as error:
        print(f"error: a request failed: {error.code().name}: {error.details()}", file=sys.stderr)
    except Exception as error:
        if os.environ.get("APPORTION_DEBUG") == "1":
            raise
        print(f"error: {type(error).__name__}: {error} (APPORTION_DEBUG=1 shows where)", file=sys.stderr)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
