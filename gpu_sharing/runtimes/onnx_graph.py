"""An optimised ONNX graph taken apart: what each node needs and gives, and parts of it as models of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from gpu_sharing.runtimes.cutting import segment_name
from gpu_sharing.units import Bytes


class Uncuttable(Exception):
    """The graph cannot be cut. The message says why, for people."""


class Part:
    """Nodes from `begin` to `end` (excluded) of a graph.

    name: by its first and last node. takes: values it needs, weights not among them. gives: those of its values that later
    parts or the caller need. drops: what nobody needs after it.
    """

    def __init__(self, graph: Graph, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.name = segment_name(graph.names[begin], graph.names[end - 1])
        made = {name for node in graph.nodes[begin:end] for name in node.output if name}
        used = dict.fromkeys(name for uses in graph.uses[begin:end] for name in uses)
        self.weights = tuple(name for name in used if name in graph.weights)
        self.takes = tuple(name for name in used if name in graph.last_use and name not in made)
        self.gives = tuple(name for name in graph.made_in(begin, end) if graph.last_use[name] >= end)
        self.drops = frozenset(name for name in self.takes if graph.last_use[name] < end)


class Graph:
    """The graph of a model whose nodes are in an order in which they can run.

    nodes, names: each node, and what it is called here. uses: the names each node needs, those of its subgraphs included.
    weights: initialisers by name. last_use: by value, the index of the last node that needs it; the number of nodes where
    the caller does.
    """

    def __init__(self, model: Any) -> None:
        """Raises Uncuttable where an output is no node's value."""
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.names = [f"{index} {node.op_type}" for index, node in enumerate(self.nodes)]
        self.weights: dict[str, Any] = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {spec.name: spec for spec in model.graph.input if spec.name not in self.weights}
        self.outputs = tuple(spec.name for spec in model.graph.output)
        self.uses = [tuple(_needed(node)) for node in self.nodes]
        self.made_by = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        if model.graph.sparse_initializer or any(name not in self.made_by for name in self.outputs):
            raise Uncuttable("an output is not computed by a node")
        self.last_use: dict[str, int] = dict.fromkeys([*self.inputs, *self.made_by], -1)
        for index, uses in enumerate(self.uses):
            self.last_use.update((name, index) for name in uses if name in self.last_use)
        self.last_use.update((name, len(self.nodes)) for name in self.outputs)

    def made_in(self, begin: int, end: int) -> list[str]:
        """The values that these nodes compute, in order."""
        return [name for node in self.nodes[begin:end] for name in node.output if name]

    def alive(self) -> list[int]:
        """How many computed values cross the boundary before each node."""
        change = [0] * (len(self.nodes) + 2)
        for name, index in self.made_by.items():
            if self.last_use[name] > index:
                change[index + 1] += 1
                change[self.last_use[name] + 1] -= 1
        alive, count = [], 0
        for step in change[: len(self.nodes)]:
            count += step
            alive.append(count)
        return alive

    def peak_bytes(self, output_bytes: Mapping[str, Bytes]) -> Bytes:
        """The most bytes of computed values that are alive at once. output_bytes: what each node gives, by its own name."""
        peak = held = 0
        leaving: dict[int, Bytes] = {}
        for index, node in enumerate(self.nodes):
            held += output_bytes.get(node.name, 0)
            last = max((self.last_use[name] for name in node.output if name), default=index)
            leaving[max(last, index)] = leaving.get(max(last, index), 0) + output_bytes.get(node.name, 0)
            peak = max(peak, held)
            held -= leaving.pop(index, 0)
        return peak

    def parts(self, points: Sequence[int]) -> list[Part]:
        """The graph cut before the nodes at these indices."""
        edges = [0, *points, len(self.nodes)]
        return [Part(self, begin, end) for begin, end in itertools.pairwise(edges)]

    def model_of(self, part: Part, types: Mapping[str, Any]) -> bytes:
        """A part as a model of its own. types: the ONNX type of every value it takes."""
        whole, small = self.model, onnx.ModelProto()
        small.ir_version = whole.ir_version
        small.opset_import.extend(whole.opset_import)
        small.functions.extend(whole.functions)
        small.graph.name = part.name
        small.graph.node.extend(self.nodes[part.begin : part.end])
        small.graph.initializer.extend(self.weights[name] for name in part.weights)
        small.graph.input.extend(onnx.ValueInfoProto(name=name, type=types[name]) for name in part.takes)
        # onnxruntime finds the types of outputs by itself.
        small.graph.output.extend(onnx.ValueInfoProto(name=name) for name in part.gives)
        return bytes(small.SerializeToString())


def with_named_nodes(data: bytes) -> bytes:
    """The same model, every node of it under a name that no other has, so that measurements can be told apart."""
    model = onnx.ModelProto.FromString(data)
    nodes = []
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            nodes.append(node)
            waiting += [graph.node for graph in _graphs(node)]
    if len({node.name for node in nodes if node.name}) == len(nodes):
        return data
    for number, node in enumerate(nodes):
        node.name = f"~{number}"
    return bytes(model.SerializeToString())


def _needed(node: Any) -> Iterator[str]:
    """The names a node needs from outside: its inputs, and whatever its subgraphs mention."""
    yield from filter(None, node.input)
    waiting = list(_graphs(node))
    while waiting:
        graph = waiting.pop()
        yield from (spec.name for spec in graph.output)
        for inner in graph.node:
            yield from filter(None, inner.input)
            waiting += _graphs(inner)


def _graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g
