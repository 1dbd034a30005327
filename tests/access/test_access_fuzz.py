"""Requests of any bytes at all: each gets a typed refusal or goes on its way; nothing crashes, nothing is UNKNOWN or INTERNAL.

A few hundred examples run always; `python -m pytest tests/access/test_access_fuzz.py -m slow` runs APPORTION_FUZZ_EXAMPLES of
them, 20,000 unless set: `APPORTION_FUZZ_EXAMPLES=1000000` for the whole million.
"""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from access_world import bearing, running
from google.protobuf.message import DecodeError
from hypothesis import given, settings

from services._proto.inference import grpc_service_pb2 as pb
from services.common.errors import Refusal
from services.common.status import from_rpc_error
from services.executor.core.heads import Limits as ExecutorLimits
from services.executor.decode import Decoder, check_elements, shape_key
from services.frontend.core.wire import Limits, request_id, scan
from tests.access.fuzzed import ANYTHING, MANY, QUICK, SIGNATURE, typed, variants

LIMITS = Limits(4096, 128, 1024, 256)


def scanned(data: bytes) -> None:
    """The frontend's part, and whether the two who read a request read the same."""
    request_id(data, LIMITS)
    try:
        head = scan(data, LIMITS)
    except Refusal as refusal:
        typed(refusal)
        return
    try:
        parsed = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        # What the frontend passes on without reading it whole is the executor's to refuse.
        return
    assert (head.model_name, head.model_version, head.request_id) == (
        parsed.model_name,
        parsed.model_version,
        parsed.id.encode(),
    )


def decoded(data: bytes) -> None:
    """The executor's part: a request against a signature, and its elements of text."""
    try:
        found = Decoder(SIGNATURE, ExecutorLimits(utf8=True)).decode(data)
        contents = [data[start : start + length] for start, length in found.spans]
        if not found.plan.raw:
            contents = [each.typed or b"" for each in found.plan.inputs]
        check_elements(found.plan, contents)
        shape_key(found.plan, contents, 1)
    except Refusal as refusal:
        typed(refusal)


PARTS = {"a frontend": scanned, "an executor": decoded}


@pytest.mark.parametrize("who", PARTS)
@given(data=ANYTHING)
@QUICK
def test_any_bytes_are_read_or_refused_with_a_reason_by(who: str, data: bytes) -> None:
    PARTS[who](data)


@pytest.mark.slow
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("who", PARTS)
@given(data=ANYTHING)
@MANY
def test_any_bytes_are_read_or_refused_with_a_reason_very_often_by(who: str, data: bytes) -> None:
    for variant in variants(data):
        PARTS[who](variant)


async def test_any_bytes_over_the_wire_are_answered_with_a_status_that_means_something(tmp_path: Path) -> None:
    """The same through a real frontend: whatever is sent, nothing is UNKNOWN or INTERNAL, and the next call is served."""
    chosen: list[bytes] = []

    @given(data=ANYTHING)
    @settings(QUICK, max_examples=300)
    def choose(data: bytes) -> None:
        chosen.append(data)

    choose()
    async with running(tmp_path, only=("scheduler", "frontend")) as mesh:
        await mesh.tenant("alice")
        await mesh.known("alice")
        infer = mesh.channels["frontend"].unary_unary("/inference.GRPCInferenceService/ModelInfer")
        codes = set()
        for data in chosen:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(data, metadata=bearing(mesh.keys["alice"]), timeout=20)
            codes.add(caught.value.code().name)
            assert from_rpc_error(caught.value) is not None, caught.value
        assert codes <= {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}, codes
        assert len(codes) > 1
