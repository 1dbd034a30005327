"""Clients of the Open Inference Protocol against the whole mesh, unmodified."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services._proto.inference import grpc_service_pb2 as pb
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh import tiny
from tests.mesh.calling import CONTENTS, DATATYPES, Caller, outputs, request
from tests.mesh.running import RunningMesh

TENANT = "clients"
TRITON = Path(__file__).with_name("triton_client.py")
VALUES: dict[str, list[list[object]]] = {
    "bool": [[True, False, True], [False, False, True]],
    **{
        f"{kind}{bits}": [[np.iinfo(f"{kind}{bits}").min, 0, 1], [7, 8, np.iinfo(f"{kind}{bits}").max]]
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    **{f"float{bits}": [[0.5, -0.0, np.inf], [-1.5, 1e-4, 6e4]] for bits in (16, 32, 64)},
    "object": [[b"", b"a", "Grüße".encode()], [b"a\x00b", b"b" * 1000, b"c"]],
}
TENSORS = {f"in_{kind}": np.array(values, kind) for kind, values in VALUES.items()}


@pytest.fixture(scope="module")
def client_mesh(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """The mesh with a tenant whose models are `linear`, `words`, and `echo`, which takes every data type."""
    folder = tmp_path_factory.mktemp("clients")
    linear = folder / "linear.onnx"
    linear.write_bytes(linear_onnx())
    mesh.create_tenant(TENANT)
    mesh.push("linear", linear, tenant=TENANT, options=("--max-batch", "8"))
    mesh.push("words", tiny.echo(folder / "words.onnx", "object"), tenant=TENANT)
    mesh.push("echo", tiny.echo(folder / "echo.onnx", *VALUES), tenant=TENANT)
    return mesh


@pytest.fixture
def caller(client_mesh: RunningMesh) -> Iterator[Caller]:
    with Caller(client_mesh, TENANT) as made:
        yield made


def test_tritonclient_runs_unmodified_in_all_its_three_ways(client_mesh: RunningMesh) -> None:
    command = [sys.executable, str(TRITON), client_mesh.addresses["frontend"], client_mesh.keys[TENANT]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    worked = ["health", "metadata", "config", "infer", "strings", "async_infer", "aio", "errors"]
    assert done.stdout.split() == worked


@pytest.mark.parametrize("kind", list(VALUES))
def test_a_tensor_of_each_data_type_comes_back_as_it_went(caller: Caller, kind: str) -> None:
    given = TENSORS[f"in_{kind}"]
    found = caller.infer("echo", **TENSORS)[f"out_{kind}"]
    assert found.dtype == given.dtype
    assert found.tolist() == given.tolist()


def test_typed_contents_are_taken_for_every_data_type_that_has_them(caller: Caller) -> None:
    asked = request("echo", TENSORS, typed=False)
    assert set(CONTENTS) | {"FP16"} == set(DATATYPES.values())
    del asked.raw_input_contents[:]
    for tensor in asked.inputs:
        if tensor.datatype == "FP16":
            # The protocol has no typed contents for it.
            tensor.contents.fp32_contents.extend([1.0] * 6)
            continue
        getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(TENSORS[tensor.name].ravel().tolist())
    code, refusal = caller.refusal(asked)
    assert (code.name, refusal.field) == ("INVALID_ARGUMENT", "inputs[9] 'in_float16'.contents"), refusal


def test_a_client_that_sends_no_raw_contents_is_served_as_one_that_does(caller: Caller) -> None:
    """As KServe's clients do: tensors as typed contents, the deadline of gRPC, nothing else."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    asked = request("linear", {"x": rows}, typed=True, number="kserve")
    assert not asked.raw_input_contents
    answer = caller.stub.ModelInfer(asked, timeout=20, metadata=caller.metadata)
    assert (answer.model_name, answer.model_version, answer.id) == ("linear", "1", "kserve")
    assert np.array_equal(outputs(answer)["y"], caller.infer("linear", x=rows)["y"])


def test_only_the_outputs_asked_for_are_sent(caller: Caller) -> None:
    asked = request("echo", TENSORS)
    for name in ("out_int8", "out_object"):
        asked.outputs.add(name=name)
    found = outputs(caller.send(asked))
    assert list(found) == ["out_int8", "out_object"]
    assert found["out_object"].tolist() == VALUES["object"]


def test_a_tensor_beyond_one_message_of_the_mesh_comes_back_whole(caller: Caller) -> None:
    """Above 256 KiB a payload goes in chunks, both ways."""
    words = np.array([[bytes([97 + number % 26]) * (100 * number) for number in range(400)]], object)
    assert sum(map(len, words[0])) > 4 << 20
    assert caller.infer("words", in_object=words)["out_object"].tolist() == words.tolist()


def test_a_caller_without_a_key_is_the_tenant_default_and_sees_nobody_elses_models(client_mesh: RunningMesh) -> None:
    with Caller(client_mesh) as anonymous:
        code, refusal = anonymous.refusal(request("linear", {"x": np.ones((1, 4), np.float32)}))
        assert (code.name, refusal.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
        assert not anonymous.stub.ModelReady(pb.ModelReadyRequest(name="linear")).ready
