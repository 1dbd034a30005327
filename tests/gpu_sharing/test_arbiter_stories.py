"""Stories in `scenarios/*.txt`: what happened, and under it what the arbiter decided.

    PYTHONPATH=. python tests/gpu_sharing/test_arbiter_stories.py --rewrite

writes down what it decides now, to be read before it is kept. Times are in milliseconds.

    lane POLICY [capacity=…]
    T load REPLICA [tenant=…] [reserve=…] [weight=…] [segments=…] [fixed=…] [each=…] [batch=…] [slower=…]
    T update REPLICA reserve=… weight=…
    T unload REPLICA drain=…
    T arrive REPLICA [within=…] [patience=…] [rows=…] [priority=…] [times=…]
    T cancel CALL
    T break
    T end
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from arbiter_world import Model, World

from gpu_sharing.arbiter.events import (
    Abandon,
    Arrived,
    Complete,
    Drop,
    ReplicaGone,
    ReplicaRemoved,
    ReplicaUpdated,
)
from gpu_sharing.arbiter.policies import arbiter_of
from gpu_sharing.units import MS

FOLDER = Path(__file__).parent / "scenarios"
TIERS = ("guaranteed", "surplus", "gap")


class Told(World):
    """A lane that tells what happens on it."""

    def __init__(self, policy: str, capacity: int) -> None:
        super().__init__(arbiter_of(policy, capacity=capacity), audit_every=1)
        self.lines: list[str] = []
        self._last = 0

    def tell(self, text: str) -> None:
        self.lines.append(f"    {self.now / MS:g}: {text}")

    def take(self, event: object) -> list:
        before = self._admitted()
        actions = super().take(event)
        if isinstance(event, Arrived):
            gained = [name for name, then, now in zip(TIERS, before, self._admitted(), strict=True) if now > then]
            if gained:
                self.tell(f"call {event.request.call} waits: {gained[0]}")
        for action in actions:
            self._tell_of(action)
        return actions

    def _tell_of(self, action: object) -> None:
        if isinstance(action, Drop):
            facts = " ".join(f"{name}={value}" for name, value in action.facts.items())
            self.tell(f"call {action.call} is answered {action.reason} {facts}".rstrip())
        elif isinstance(action, Complete):
            late = [call for call in action.calls if not self.endings[call].is_good]
            self.tell(f"calls {_list(action.calls)} are answered" + (f", {_list(late)} late" if late else ""))
        elif isinstance(action, Abandon):
            self.tell(f"batch {action.batch} is abandoned")
        elif isinstance(action, ReplicaGone):
            self.tell(f"replica {action.replica} is gone")

    def _admitted(self) -> tuple[int, ...]:
        tenants = self.arbiter.statistics().tenants
        return tuple(sum(getattr(tenant, name) for tenant in tenants) for name in TIERS)

    def _begin(self) -> None:
        super()._begin()
        chosen = self._running
        if chosen is not None and chosen.batch != self._last:
            verb = "begins" if chosen.first else "goes on"
            self.tell(f"batch {chosen.batch} of replica {chosen.replica} {verb}: calls {_list(chosen.calls)}")
        self._last = 0 if chosen is None else chosen.batch


def _list(calls: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, calls))


def play(text: str) -> str:
    """The story with what is decided now."""
    told: list[str] = []
    world: Told | None = None
    for line in text.splitlines():
        if line.startswith("    "):
            continue
        words = line.split()
        if not words or line.startswith("#"):
            told.append(line)
        elif words[0] == "lane":
            world = Told(words[1], int(_fields(words[2:]).get("capacity", "1000")))
            told.append(line)
        else:
            assert world is not None, "a story begins with its lane"
            world.run(until=int(float(words[0]) * MS) - 1)
            told += world.lines
            world.lines = []
            told.append(line)
            world.schedule(int(float(words[0]) * MS), lambda words=words, world=world: act(world, words[1], words[2:]))
            if words[1] == "end":
                world.run()
                told += world.lines
    return "\n".join(told) + "\n"


def act(world: Told, verb: str, words: list[str]) -> None:
    """Does what one line says."""
    given = _fields(words)
    number = int(words[0]) if words and "=" not in words[0] else 0
    if verb == "load":
        model = Model(
            int(given.get("segments", "1")),
            _ns(given, "fixed", 0),
            _ns(given, "each", MS),
            int(given.get("batch", "0")),
        )
        share = {"bandwidth": int(given.get("reserve", "0")), "weight": int(given.get("weight", "1"))}
        world.host(number, model, tenant=given.get("tenant"), **share)
        factor = float(given.get("slower", "1"))
        world.models[number] = Model(*list(vars(model).values())[:4], truth=lambda batch: factor)
    elif verb == "update":
        world.take(ReplicaUpdated(number, int(given["reserve"]), int(given["weight"])))
    elif verb == "unload":
        world.take(ReplicaRemoved(number, world.now + _ns(given, "drain", 0)))
    elif verb == "arrive":
        for _ in range(int(given.get("times", "1"))):
            within, patience = (_ns(given, name, None) for name in ("within", "patience"))
            rows, priority = int(given.get("rows", "1")), int(given.get("priority", "0"))
            world.arrive(number, within=within, patience=patience, rows=rows, priority=priority)
    elif verb == "cancel":
        world.cancel(number, world.now)
    elif verb == "break":
        world.break_running()
    elif verb != "end":
        raise ValueError(f"nobody can {verb}")


def _fields(words: list[str]) -> dict[str, str]:
    return dict(word.split("=") for word in words if "=" in word)


def _ns(given: dict[str, str], name: str, otherwise: int | None) -> int | None:
    return int(float(given[name]) * MS) if name in given else otherwise


STORIES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_arbiter_still_decides_as_written_down(path: Path) -> None:
    assert play(path.read_text()) == path.read_text(), "if that is right, --rewrite it"


def test_there_are_stories() -> None:
    assert len(STORIES) >= 8


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        sys.exit(__doc__)
    for story in STORIES:
        story.write_text(play(story.read_text()))
