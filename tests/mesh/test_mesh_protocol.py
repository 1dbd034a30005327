"""The protocol's extensions against the whole mesh: streaming, shared memory, classes, statistics, the repository."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from services._proto.inference import grpc_service_pb2 as pb
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh import tiny
from tests.mesh.calling import Caller, outputs, request
from tests.mesh.running import RunningMesh

TENANT = "protocol"
TRITON = Path(__file__).with_name("triton_protocol.py")
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def protocol_mesh(mesh_of_two: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """With a tenant whose models are `linear` and `words`."""
    folder = tmp_path_factory.mktemp("protocol")
    linear = folder / "linear.onnx"
    linear.write_bytes(linear_onnx())
    mesh_of_two.create_tenant(TENANT)
    mesh_of_two.push("linear", linear, tenant=TENANT, options=("--max-batch", "8"))
    mesh_of_two.push("words", tiny.echo(folder / "words.onnx", "object"), tenant=TENANT)
    return mesh_of_two


def test_tritonclient_uses_every_extension_unmodified(protocol_mesh: RunningMesh) -> None:
    command = [sys.executable, str(TRITON), protocol_mesh.addresses["frontend"], protocol_mesh.keys[TENANT]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    worked = ["stream", "order", "stream errors", "shared memory", "classes", "statistics", "repository"]
    assert done.stdout.splitlines() == worked


def test_every_frontend_tells_the_same_statistics(protocol_mesh: RunningMesh) -> None:
    """A connection belongs to one frontend: of twelve, both have some."""
    callers = [Caller(protocol_mesh, TENANT) for _ in range(12)]
    try:
        for caller in callers:
            caller.infer("linear", x=ROWS)
        asked = pb.ModelStatisticsRequest(name="linear")
        told = [caller.stub.ModelStatistics(asked, metadata=caller.metadata, timeout=20) for caller in callers]
    finally:
        for caller in callers:
            caller.__exit__(None, None, None)
    assert len({each.SerializeToString(deterministic=True) for each in told}) == 1
    assert told[0].model_stats[0].inference_count >= 24


def test_a_stream_carries_what_single_calls_carry(protocol_mesh: RunningMesh) -> None:
    with Caller(protocol_mesh, TENANT) as caller:
        asked = [request("linear", {"x": ROWS + number}, number=str(number)) for number in range(20)]
        stream = caller.stub.ModelStreamInfer(iter(asked), metadata=caller.metadata, timeout=20)
        answers = {each.infer_response.id: outputs(each.infer_response)["y"] for each in stream}
        for number in (0, 19):
            assert np.array_equal(answers[str(number)], caller.infer("linear", x=ROWS + number)["y"])
    assert len(answers) == 20


def test_a_streams_deadline_ends_it(protocol_mesh: RunningMesh) -> None:
    with Caller(protocol_mesh, TENANT) as caller:
        stream = caller.stub.ModelStreamInfer(_never_ending(), metadata=caller.metadata, timeout=0.5)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]


def _never_ending() -> Iterator[pb.ModelInferRequest]:
    import time

    for _ in range(100):
        yield request("linear", {"x": ROWS})
        time.sleep(0.05)
