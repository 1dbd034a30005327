"""An exported program's module as segments: measured operator by operator, cut, and each part compiled to one function."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpu_sharing.runtimes.cutting import cut_points, points_of, segment_name
from gpu_sharing.units import Bytes, Nanoseconds

MEASURED_RUNS = 3


@dataclass(frozen=True)
class Segment:
    """One part of a program.

    takes: names of the values it needs. gives: names of the values that it returns, in order; the last segment returns the
    program's flat outputs instead. drops: names that nobody needs after it.
    """

    name: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    drops: frozenset[str]
    compute: Any


def whole(module: torch.fx.GraphModule) -> tuple[Segment, ...]:
    """The program as one segment."""
    return _compiled(module, ())


def cut(
    module: torch.fx.GraphModule, arguments: Sequence[Any], settle: Callable[[], None] | None = None
) -> tuple[Segment, ...]:
    """The program as segments of about one quantum, as measured on these flat arguments.

    settle: waits for the device that operators run on; None: they run where they are called.
    """
    operators = _operators(module)
    costs = _measured(module, operators, arguments, settle or (lambda: None))
    return _compiled(module, cut_points(costs, _alive(operators)))


def cut_again(module: torch.fx.GraphModule, names: Sequence[str]) -> tuple[Segment, ...] | None:
    """The program as the segments of these names, without measuring; None where they are not segments of it."""
    points = points_of(names, [node.name for node in _operators(module)])
    return None if points is None else _compiled(module, points)


def run_all(segments: Sequence[Segment], values: dict[str, Any]) -> list[Any]:
    """Runs every segment after the other; the flat outputs."""
    flat: list[Any] = []
    for segment in segments:
        flat = run_one(segment, values)
    return flat


def run_one(segment: Segment, values: dict[str, Any]) -> list[Any]:
    """Runs one segment over the values alive, which it updates; the flat outputs where it is the last one."""
    given = segment.compute(*(values[name] for name in segment.takes))
    for name in segment.drops:
        values.pop(name, None)
    if segment.gives:
        values.update(zip(segment.gives, given, strict=True))
    return list(given)


def placeholders(module: torch.fx.GraphModule) -> tuple[str, ...]:
    """The names under which the flat arguments enter."""
    return tuple(node.name for node in module.graph.nodes if node.op == "placeholder")


def peak_bytes(module: torch.fx.GraphModule, arguments: Sequence[Any]) -> Bytes:
    """The most memory that the program's values, its weights not counted, hold at once while it runs on these arguments."""
    peak = 0

    class Weighed(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            nonlocal peak
            result = super().run_node(n)
            held = [value for node, value in self.env.items() if node.op != "get_attr"]
            peak = max(peak, _storage_bytes([*held, result] if n.op != "get_attr" else held))
            return result

    with torch.inference_mode():
        Weighed(module).run(*arguments, enable_io_processing=False)
    return peak


def _storage_bytes(values: Sequence[Any]) -> Bytes:
    """Views share their storage, which is counted once."""
    flat = [item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,))]
    storages = [value.untyped_storage() for value in flat if isinstance(value, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _operators(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [node for node in module.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


def _measured(
    module: torch.fx.GraphModule,
    operators: Sequence[torch.fx.Node],
    arguments: Sequence[Any],
    settle: Callable[[], None],
) -> list[Nanoseconds]:
    """The shortest of a few runs of each operator: what it costs when nothing else disturbs it."""
    shortest: dict[torch.fx.Node, Nanoseconds] = {}

    class Timed(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            started = time.perf_counter_ns()
            result = super().run_node(n)
            settle()
            took = time.perf_counter_ns() - started
            shortest[n] = min(took, shortest.get(n, took))
            return result

    with torch.inference_mode():
        for _ in range(MEASURED_RUNS):
            Timed(module).run(*arguments, enable_io_processing=False)
    return [shortest[node] for node in operators]


def _alive(operators: Sequence[torch.fx.Node]) -> list[int]:
    """How many values cross the boundary before each operator."""
    at = {node: index for index, node in enumerate(operators)}
    change = [0] * (len(operators) + 2)
    for index, node in enumerate(operators):
        users = [at.get(user, len(operators)) for user in node.users]
        if users:
            change[index + 1] += 1
            change[max(users) + 1] -= 1
    alive, count = [], 0
    for index in range(len(operators)):
        count += change[index]
        alive.append(count)
    return alive


def _compiled(module: torch.fx.GraphModule, points: Sequence[int]) -> tuple[Segment, ...]:
    operators = _operators(module)
    edges = [0, *points, len(operators)]
    parts = [operators[begin:end] for begin, end in itertools.pairwise(edges)]
    segment_of = {node: index for index, part in enumerate(parts) for node in part}
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    last_use = _last_uses(module, segment_of, len(parts) - 1)
    segments = []
    for index, part in enumerate(parts):
        final = output if index == len(parts) - 1 else None
        segments.append(_segment(module, part, index, segment_of, last_use, final))
    return tuple(segments)


def _last_uses(
    module: torch.fx.GraphModule, segment_of: dict[torch.fx.Node, int], last: int
) -> dict[torch.fx.Node, int]:
    """The last segment that uses each value; the program's output counts as the last one."""
    return {
        node: max((segment_of.get(user, last) for user in node.users), default=-1)
        for node in module.graph.nodes
        if node.op not in ("get_attr", "output")
    }


def _segment(
    module: torch.fx.GraphModule,
    part: Sequence[torch.fx.Node],
    index: int,
    segment_of: dict[torch.fx.Node, int],
    last_use: dict[torch.fx.Node, int],
    final: torch.fx.Node | None,
) -> Segment:
    graph = torch.fx.Graph()
    copied: dict[torch.fx.Node, torch.fx.Node] = {}
    body = [*part, *([final] if final is not None else [])]
    used = dict.fromkeys(needed for node in body for needed in node.all_input_nodes)
    taken = [node for node in used if node.op != "get_attr" and segment_of.get(node) != index]
    for node in taken:
        copied[node] = graph.placeholder(node.name)
    for node in used:
        if node.op == "get_attr":
            copied[node] = graph.node_copy(node, copied.__getitem__)
    for node in part:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    given = [node for node in part if last_use[node] > index]
    if final is not None:
        graph.output(torch.fx.map_arg(final.args[0], copied.__getitem__))
    else:
        graph.output(tuple(copied[node] for node in given))
    return Segment(
        name=segment_name(part[0].name, part[-1].name) if part else "nothing",
        takes=tuple(node.name for node in taken),
        gives=() if final is not None else tuple(node.name for node in given),
        drops=frozenset(node.name for node in taken if last_use[node] <= index),
        compute=torch.fx.GraphModule(module, graph),
    )
