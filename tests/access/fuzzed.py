"""Requests of any bytes: what Hypothesis makes of the protocol's messages, and what chance makes of those.

Two rooms are tried with them: what a frontend and a decoder read, and what an executor takes from a stream.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from gpu_sharing.tensors import Signature, TensorSpec
from services._proto.inference import grpc_service_pb2 as pb
from services.common.errors import Reason, Refusal
from services.common.status import CODES, to_status

EXAMPLES = int(os.environ.get("APPORTION_FUZZ_EXAMPLES", "20000"))
ALWAYS = 200
VARIANTS = 50
"""Of each input that Hypothesis makes, so many are tried, spoilt by chance: it takes a thousand times as long to make one."""
UNTYPED = (Reason.INTERNAL,)
QUICK = settings(max_examples=ALWAYS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
# Nothing is shrunk or replayed: of a million examples, the one that fails is told as it is.
MANY = settings(QUICK, max_examples=max(1, EXAMPLES // VARIANTS), phases=[Phase.explicit, Phase.generate])

NAMES = st.sampled_from(
    [
        "",
        "m",
        "bob/m",
        "x",
        "timeout",
        "slo_ms",
        "priority",
        "sequence_id",
        "sequence_start",
        "binary_data",
        "\u0000",
        "a" * 300,
    ]
)
PARAMETERS = st.dictionaries(
    NAMES,
    st.one_of(
        st.builds(lambda v: pb.InferParameter(bool_param=v), st.booleans()),
        st.builds(lambda v: pb.InferParameter(int64_param=v), st.integers(-(1 << 63), (1 << 63) - 1)),
        st.builds(lambda v: pb.InferParameter(uint64_param=v), st.integers(0, (1 << 64) - 1)),
        st.builds(lambda v: pb.InferParameter(double_param=v), st.floats()),
        st.builds(lambda v: pb.InferParameter(string_param=v), st.text(max_size=12)),
        st.builds(pb.InferParameter),
    ),
    max_size=4,
)
TYPES = st.sampled_from(["FP32", "INT64", "BYTES", "BOOL", "FP16", "BF16", "UINT8", "NONE", ""])
EXTENTS = st.one_of(st.integers(-2, 9), st.sampled_from([1 << 31, 1 << 62, -(1 << 63), (1 << 63) - 1]))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request that is one, with anything in it."""
    request = pb.ModelInferRequest(model_name=draw(NAMES), model_version=draw(NAMES), id=draw(NAMES))
    for name, value in draw(PARAMETERS).items():
        request.parameters[name].CopyFrom(value)
    for _ in range(draw(st.integers(0, 3))):
        tensor = request.inputs.add(name=draw(NAMES), datatype=draw(TYPES), shape=draw(st.lists(EXTENTS, max_size=4)))
        for name, value in draw(PARAMETERS).items():
            tensor.parameters[name].CopyFrom(value)
        if draw(st.booleans()):
            tensor.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=6)))
        if draw(st.booleans()):
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=6), max_size=3)))
    for _ in range(draw(st.integers(0, 2))):
        request.outputs.add(name=draw(NAMES))
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=40), max_size=3)))
    return request.SerializeToString()


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A request with bytes changed, cut off, put in, or said twice."""
    data = bytearray(draw(requests()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.integers(0, 3))
        if how == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif how == 1:
            del data[at:]
        elif how == 2:
            data[at:at] = draw(st.binary(max_size=8))
        else:
            data += data[at:]
    return bytes(data)


ANYTHING = st.one_of(st.binary(max_size=200), requests(), spoilt())
SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (None, 4), batch_axis=0), TensorSpec("m", "BYTES", (None,), batch_axis=0, optional=True)),
    (TensorSpec("y", "FP32", (None, 4), batch_axis=0),),
    8,
)


def typed(refusal: Refusal) -> None:
    """A refusal is one that a caller can use: never INTERNAL or UNKNOWN, and it can be told."""
    assert refusal.reason not in UNTYPED, refusal.message
    assert CODES[refusal.reason].name not in ("UNKNOWN", "INTERNAL")
    assert len(to_status(refusal).SerializeToString()) < 16_384


def variants(data: bytes) -> Iterator[bytes]:
    """The input, and others made of it, the same ones each time."""
    chance = random.Random(data)
    yield data
    for _ in range(VARIANTS - 1):
        made = bytearray(data or b"\n")
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(made) + 1)
            how = chance.randrange(5)
            if how == 0 and at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            elif how == 1 and at < len(made):
                made[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            elif how == 2:
                made[at:at] = chance.randbytes(chance.randint(1, 6))
            elif how == 3:
                del made[at : at + chance.randint(1, 8)]
            else:
                made[at:at] = made[max(0, at - chance.randint(1, 12)) : at]
        yield bytes(made)
