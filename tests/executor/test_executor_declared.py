"""What a push declares of its tensors is held against the artefact that was loaded."""

from __future__ import annotations

import msgspec
import pytest
from test_executor_replicas import PROFILE, phase, ready, sent, wanted

from gpu_sharing.tensors import Signature, TensorSpec
from gpu_sharing.worker.messages import Load, Loaded, Unload
from services.executor.core.declared import Disagreement, agreed
from services.executor.core.replica import Phase
from services.executor.core.replica_events import Fetched, Serve

FOUND = Signature(
    inputs=(
        TensorSpec("ids", "INT64", (None, None), ("batch", "n"), 0),
        TensorSpec("bias", "FP32", (None, 3), ("batch", ""), 0, optional=True),
    ),
    outputs=(TensorSpec("scores", "FP32", (None, None), ("batch", ""), 0), TensorSpec("extra", "FP32", (None,), (), 0)),
    max_batch_size=8,
)


def spec(name: str, datatype: str, *shape: int | None) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def test_extents_that_the_artefact_leaves_open_are_narrowed_and_its_batch_axis_is_not():
    declared = Signature((spec("ids", "INT64", 5, 128),), (spec("scores", "FP32", None, 10),))
    narrowed = agreed(FOUND, declared)
    assert narrowed.inputs[0].shape == (None, 128)
    assert narrowed.outputs[0].shape == (None, 10)
    assert narrowed.outputs[1] == FOUND.outputs[1]
    assert narrowed.max_batch_size == 8


def test_nothing_declared_leaves_everything_as_it_is():
    assert agreed(FOUND, Signature((), ())) == FOUND


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ([spec("idz", "INT64", None, None)], [], "input 'idz' is declared, and the artefact has 'ids', 'bias'"),
        ([spec("ids", "INT32", None, None)], [], "input 'ids' is declared INT32, and the artefact has INT64"),
        ([spec("ids", "INT64", None)], [], r"input 'ids' is declared \[any\], and the artefact has \[any, any\]"),
        ([spec("bias", "FP32", None, 3)], [], "input 'ids' of the artefact is not declared"),
        (
            [spec("ids", "INT64", None, None), spec("bias", "FP32", None, 4)],
            [],
            r"declared \[any, 4\], and the artefact has \[any, 3\]",
        ),
        ([], [spec("score", "FP32", None, 1)], "output 'score' is declared"),
    ],
)
def test_an_artefact_that_is_something_else_is_told_with_both_sides(inputs, outputs, says):
    with pytest.raises(Disagreement, match=says):
        agreed(FOUND, Signature(tuple(inputs), tuple(outputs)))


def test_a_replica_that_disagrees_is_refused_and_its_worker_lets_go_and_loads_the_next():
    core = ready()
    declared = Signature((spec("ids", "INT32", None, None),), ())
    core.handle(msgspec.structs.replace(wanted(1), declared=declared), 0)
    core.handle(wanted(2), 0)
    core.handle(Fetched(1, "/a", "onnx"), 0)
    core.handle(Fetched(2, "/b", "onnx"), 0)
    actions = core.handle(Loaded(1, FOUND, PROFILE, 5), 0, 0)
    assert phase(core, 1) is Phase.REFUSED
    assert "declared INT32" in core.get(1).message
    assert sent(actions, Unload) == [Unload(1, 0)]
    assert [load.replica for load in sent(actions, Load)] == [2]
    assert not any(isinstance(each, Serve) for each in actions)
    core.check_invariants()
