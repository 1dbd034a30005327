"""Requests that cannot be served: each is refused with a reason, a field and the limit, and costs nobody else anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from services.common.errors import Reason
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh import tiny
from tests.mesh.bad_requests import BAD, INVALID, ROWS, TENANT, Bad, good
from tests.mesh.calling import Caller, refused, request
from tests.mesh.running import RunningMesh, wait_until


@pytest.fixture(scope="module")
def hasty(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """The mesh with a tenant whose models are `linear`, of at most 8 rows, `words`, `inflate`, whose answers can be
    of any size, and `slow` and `slower`, which take their time; what one of them has not yet run, nobody expects to be slow."""
    folder = tmp_path_factory.mktemp("hasty")
    linear = folder / "linear.onnx"
    linear.write_bytes(linear_onnx())
    mesh.create_tenant(TENANT)
    mesh.push("linear", linear, tenant=TENANT, options=("--max-batch", "8"))
    mesh.push("words", tiny.echo(folder / "words.onnx", "object"), tenant=TENANT)
    mesh.push("inflate", tiny.inflate(folder / "inflate.onnx"), tenant=TENANT)
    for name in ("slow", "slower"):
        mesh.push(name, tiny.slow(folder / f"{name}.onnx"), tenant=TENANT)
    return mesh


@pytest.fixture
def caller(hasty: RunningMesh) -> Iterator[Caller]:
    """A caller whose mesh must be the same afterwards: every process of it, and what it answers."""
    with Caller(hasty, TENANT) as made:
        before, expected = everybody(hasty), made.infer("linear", x=ROWS)["y"]
        yield made
        assert np.array_equal(made.infer("linear", x=ROWS)["y"], expected)
        assert everybody(hasty) == before


def everybody(mesh: RunningMesh) -> dict[str, object]:
    """The processes that a request passes."""
    return {**mesh.pids(), "workers": [worker.pid for worker in mesh.workers()]}


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.what)
def test_a_request_is_refused_that_has(caller: Caller, bad: Bad) -> None:
    code, refusal = caller.refusal(bad.asked())
    assert (code.name, refusal.reason, refusal.field) == (*bad.told, bad.field), refusal.message
    assert bad.says in refusal.message
    assert refusal.message.startswith(bad.field or "")


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [("Bearer ap_nobody", Reason.KEY_UNKNOWN), ("Basic dXNlcg==", Reason.KEY_UNKNOWN)],
)
def test_a_key_that_nobody_has_is_refused_before_anything_is_looked_at(
    caller: Caller, authorization: str, reason: Reason
) -> None:
    key, caller.metadata = caller.metadata, (("authorization", authorization),)
    code, refusal = caller.refusal(request("nobody", {}))
    caller.metadata = key
    assert (code.name, refusal.reason) == ("UNAUTHENTICATED", reason)
    assert refusal.message.startswith("authorization: ")


@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", bytes(10)], ids=["ones", "cut", "zeros"]
)
def test_bytes_that_are_no_request_are_refused_as_such(caller: Caller, hasty: RunningMesh, content: bytes) -> None:
    with grpc.insecure_channel(hasty.addresses["frontend"]) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(content, timeout=10, metadata=caller.metadata)
    code, refusal = refused(caught.value)
    assert (code.name, refusal.reason, refusal.field) == (*INVALID, "request")


@contextmanager
def busy_lane(caller: Caller, mesh: RunningMesh, model: str) -> Iterator[None]:
    """The one lane runs something long, unexpectedly, and goes on for longer than the block takes."""
    long = threading.Thread(target=caller.infer, args=(model,), kwargs={"turns": np.array([12_000])})
    long.start()
    labels = {"tenant": TENANT, "model": model}
    wait_until(lambda: mesh.total("apportion_frontend_in_flight", **labels) == 1, what="the slow request's start")
    try:
        yield
        assert long.is_alive(), "the slow model was not slow enough to queue behind"
    finally:
        long.join()


def test_a_deadline_that_passes_behind_other_work_names_the_stage_it_passed_in(
    caller: Caller, hasty: RunningMesh
) -> None:
    with busy_lane(caller, hasty, "slow"):
        code, refusal = caller.refusal(good(timeout=100_000))
    assert (code.name, refusal.reason) == ("DEADLINE_EXCEEDED", Reason.DEADLINE_EXCEEDED)
    # The executor's word, unless this machine was too busy to pass it on in time.
    assert refusal.facts["stage"] in ("queue", "executor"), refusal.message
    assert "deadline" in refusal.message


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_figures(caller: Caller, hasty: RunningMesh) -> None:
    # It has run by now, so that its time is known.
    caller.infer("slow", turns=np.array([12_000]))
    with busy_lane(caller, hasty, "slow"):
        code, refusal = caller.refusal(good(timeout=100_000))
    assert (code.name, refusal.reason) == ("RESOURCE_EXHAUSTED", Reason.OVERLOADED)
    assert refusal.facts.keys() >= {"estimated_start_us", "estimated_us", "left_us"}
    assert "it would start in" in refusal.message


def test_what_grpcs_deadline_gave_up_is_counted_and_does_not_stay_in_flight(caller: Caller, hasty: RunningMesh) -> None:
    outcome = {"tenant": TENANT, "model": "linear", "outcome": "DEADLINE_EXCEEDED"}
    before = hasty.total("apportion_frontend_requests_total", **outcome)
    with busy_lane(caller, hasty, "slower"):
        with pytest.raises(grpc.RpcError) as caught:
            caller.send(good(), timeout_s=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: hasty.total("apportion_frontend_requests_total", **outcome) == before + 1, what="its count")
        assert hasty.total("apportion_frontend_in_flight", tenant=TENANT, model="linear") == 0
