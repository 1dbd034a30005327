"""Stories as text: what happened, and what was decided.

Each file of scenarios/ is played line by line. A line that begins with ">" happens; the lines under it are what followed.
With APPORTION_REWRITE_SCENARIOS=1 the files are written anew instead of compared: read the difference before keeping it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from scheduler_world import World, device, model, tenant

from services.scheduler.core.catalogue import Key
from services.scheduler.core.events import (
    Action,
    CatalogueChanged,
    Noted,
    Passed,
    RecordInspection,
    SendLoad,
    SendUnload,
    SendUpdate,
)
from services.scheduler.core.reports import Seen
from services.scheduler.core.routes import Route, VersionState
from services.scheduler.core.state import Policy

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
REWRITES = os.environ.get("APPORTION_REWRITE_SCENARIOS") == "1"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_what_is_decided_in_a_story_is_what_was_agreed(path: Path) -> None:
    told = path.read_text()
    played = "".join(f"{line}\n" for line in play(told))
    if REWRITES:
        path.write_text(played)
    assert played == told or REWRITES


def test_there_are_stories() -> None:
    assert len(SCENARIOS) >= 8


def play(told: str) -> Iterator[str]:
    """Every line that is not an outcome, with the outcomes that follow it now."""
    stage = Stage()
    for line in told.splitlines():
        if line.startswith(">"):
            yield line
            verb, *words = shlex.split(line[1:])
            for outcome in getattr(stage, f"do_{verb}")(*words):
                yield f"    {outcome}"
            stage.world.check_invariants()
        elif not line.startswith("    "):
            yield line


class Stage:
    """The verbs that stories are told in."""

    def __init__(self) -> None:
        self.world = World(Policy(settle_s=0.0))
        self.epoch = 7
        self.world.replace_catalogue([], [])

    def do_policy(self, *words: str) -> list[str]:
        """Starts over with other settings: policy settle_s 2."""
        given = {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}
        self.world = World(Policy(**({"settle_s": 0.0} | given)))
        return []

    def do_catalogue(self, *words: str) -> list[str]:
        """The registry answers for the first time, with what was told so far."""
        return self.show(self.world.replace_catalogue([], []))

    def do_tenant(self, name: str, *words: str) -> list[str]:
        """tenant search reserve 800 weight 2."""
        given = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        promised = tenant(name, given.get("reserve", 0), given.get("weight", 1))
        return self.show(self.world.handle(CatalogueChanged(tenants=(promised,))))

    def do_model(self, key: str, *words: str) -> list[str]:
        """model search/embed versions 1,2 traffic 1=900000,2=100000 replicas 2 size 100 slo_ms 20 isolated 1 unloaded 1."""
        given = dict(zip(words[::2], words[1::2], strict=True))
        numbers = [int(number) for number in given.get("versions", "1").split(",")]
        parts = [part.split("=") for part in given.get("traffic", "").split(",") if part]
        slo_ms = given.get("slo_ms")
        changed = model(
            key,
            *numbers,
            replicas=int(given.get("replicas", "1")),
            size_bytes=int(given.get("size", "100")),
            traffic={int(number): int(ppm) for number, ppm in parts},
            objective_us=int(slo_ms) * 1000 if slo_ms else None,
            isolated="isolated" in given,
            unloaded="unloaded" in given,
        )
        return self.show(self.world.handle(CatalogueChanged(models=(changed,))))

    def do_remove(self, key: str) -> list[str]:
        """remove search/embed."""
        return self.show(self.world.handle(CatalogueChanged(removed_models=(Key(*key.split("/")),))))

    def do_attach(self, name: str, *words: str) -> list[str]:
        """attach gpu-0 lanes 2 memory 1000 workers 2; without words where it is known."""
        given = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        before = len(self.world.story)
        if name in self.world.executors:
            self.world.attach(name)
        else:
            self.world.add(
                name, device(given.get("lanes", 1), given.get("memory", 10_000), workers=given.get("workers", 1))
            )
        return self.show(self.world.story[before:])

    def do_detach(self, name: str) -> list[str]:
        """Its stream ends."""
        return self.show(self.world.detach(name))

    def do_crash(self, name: str) -> list[str]:
        """Its process dies."""
        return self.show(self.world.crash(name))

    def do_drain(self, name: str) -> list[str]:
        """It says that it is about to stop."""
        self.world.executors[name].draining = True
        return self.show(self.world.report(name))

    def do_obey(self, name: str) -> list[str]:
        """It takes in its commands and reports."""
        self.world.executors[name].obey()
        return self.show(self.world.report(name))

    def do_progress(self, name: str) -> list[str]:
        """What loads becomes ready, what drains goes; it reports."""
        self.world.executors[name].obey()
        self.world.executors[name].progress()
        return self.show(self.world.report(name))

    def do_fail(self, name: str, what: str, message: str) -> list[str]:
        """A replica fails."""
        return self._break(name, what, Seen.FAILED, message)

    def do_refuse(self, name: str, what: str, message: str) -> list[str]:
        """A replica's artefact is refused."""
        return self._break(name, what, Seen.REFUSED, message)

    def do_reload(self, name: str, what: str) -> list[str]:
        """A replica's worker died; the executor loads it again."""
        return self._break(name, what, Seen.LOADING, "")

    def do_wait(self, seconds: str) -> list[str]:
        """Time passes."""
        return self.show(self.world.wait(float(seconds)))

    def do_settle(self) -> list[str]:
        """Everybody obeys and progresses until nothing is decided any more."""
        before = len(self.world.story)
        self.world.settle()
        return self.show(self.world.story[before:])

    def do_restart(self) -> list[str]:
        """The scheduler dies and starts anew, with the registry's catalogue."""
        tenants, models = self.world.scheduler.state.tenants, self.world.scheduler.state.models
        self.epoch += 1
        self.world.restart(self.epoch)
        return self.show(self.world.replace_catalogue(list(tenants.values()), list(models.values())))

    def do_placed(self) -> list[str]:
        """Who holds what."""
        return [f"{name}: {', '.join(held) or 'nothing'}" for name, held in self.world.placed().items()]

    def do_grants(self) -> list[str]:
        """What each lane has been granted."""
        found = []
        for name, executor in sorted(self.world.scheduler.state.fleet.executors.items()):
            for lane in executor.hello.device.lanes:
                granted = executor.grants.get(lane.number, {})
                listed = ", ".join(f"{who} {share}" for who, share in sorted(granted.items())) or "nothing"
                found.append(f"{name} lane {lane.number}: {listed} of {executor.hello.device.capacity(lane.number)}")
        return found

    def do_check(self, name: str, asked: str) -> list[str]:
        """Could a tenant be promised so much?"""
        promise = self.world.scheduler.check_reservation(name, int(asked))
        return [promise.refusal or f"yes, {promise.free_after} of {promise.capacity} are left"]

    def _break(self, name: str, what: str, state: Seen, message: str) -> list[str]:
        executor = self.world.executors[name]
        executor.obey()
        number = next(each for each, held in executor.replicas.items() if f"{held.ref.key}:{held.ref.version}" == what)
        executor.put(number, state, message)
        return self.show(self.world.report(name))

    def show(self, actions: list[Action]) -> list[str]:
        """Decisions, a line each."""
        return [line for action in actions for line in self._lines(action)]

    def _lines(self, action: Action) -> list[str]:
        if isinstance(action, SendLoad):
            at = f"{action.executor_id} lane {action.lane}"
            number = _short(action.replica_id)
            return [f"load {number} {action.ref} on {at} with {action.terms.bandwidth}: {action.why}"]
        if isinstance(action, SendUnload):
            return [
                f"unload {_short(action.replica_id)} of {action.executor_id} within {action.drain_s:g} s: {action.why}"
            ]
        if isinstance(action, SendUpdate):
            terms = action.terms
            told = f"{terms.bandwidth}, weight {terms.weight}, objective {terms.objective_us}"
            return [f"update {_short(action.replica_id)} of {action.executor_id}: {told}"]
        if isinstance(action, RecordInspection):
            said = "passed" if isinstance(action.outcome, Passed) else f"refused: {action.outcome.message}"
            return [f"record {action.ref} {said}"]
        if isinstance(action, Noted):
            return [f"note {_shortened(action.what)}: {action.why}"]
        return [*map(_route, action.upserts), *(f"route {key} is gone" for key in action.removals)]


def _short(replica_id: int) -> str:
    return f"#{replica_id >> 32}.{replica_id & 0xFFFFFFFF}"


def _shortened(text: str) -> str:
    return " ".join(_short(int(word)) if word.isdigit() and int(word) >> 32 else word for word in text.split(" "))


def _route(route: Route) -> str:
    parts = []
    for version in route.versions:
        where = ", ".join(f"{_short(each.replica_id)} at {each.executor_id}" for each in version.replicas)
        told = where if version.state is VersionState.READY else version.message
        parts.append(f"{version.version} {version.state.value}{f' ({told})' if told else ''}")
    shares = ", ".join(f"{split.version}={split.ppm}" for split in route.splits)
    return f"route {route.key}: {'; '.join(parts) or 'no version'}; traffic {shares or 'nobody'}"
