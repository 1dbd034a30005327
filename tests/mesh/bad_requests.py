"""Every way to be wrong in a request, and what its caller must be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from services._proto.inference import grpc_service_pb2 as pb
from services.common.errors import Reason
from tests.mesh.calling import request

TENANT = "hasty"
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
LIMIT_BYTES = 64 << 20
INVALID = ("INVALID_ARGUMENT", Reason.FIELD_INVALID)
UNSUPPORTED = ("UNIMPLEMENTED", Reason.UNSUPPORTED)
Change = Callable[[Any], object]


@dataclass(frozen=True)
class Bad:
    """One way to be wrong. asked: the request. told: code and reason. field: which one; None: no field is. says: the limit."""

    what: str
    asked: Callable[[], Any]
    told: tuple[str, Reason]
    field: str | None
    says: str


def good(**more: Any) -> Any:
    """A request that would be served."""
    return request("linear", {"x": ROWS}, **more)


def changed(change: Change, **more: Any) -> Callable[[], Any]:
    """A good request with something wrong about it."""

    def make() -> Any:
        made = good(**more)
        change(made)
        return made

    return make


def tensor(value: np.ndarray, model: str = "linear", name: str = "x") -> Callable[[], Any]:
    """A request with this tensor."""
    return lambda: request(model, {name: value})


def set_raw(content: bytes) -> Change:
    """Gives the first input other bytes."""
    return lambda made: made.raw_input_contents.__setitem__(0, content)


def duplicate(made: Any) -> None:
    """Gives the first input twice."""
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(made.raw_input_contents[0])


def in_ints(made: Any) -> None:
    """Sends the first input in the contents of another type."""
    made.inputs[0].contents.ClearField("fp32_contents")
    made.inputs[0].contents.int_contents.extend(range(8))


def ask_for(*names: str) -> Change:
    """Asks for these outputs."""
    return lambda made: [made.outputs.add(name=name) for name in names]


X = "inputs[0] 'x'"
BAD = [
    Bad(
        "an unknown model",
        lambda: request("nobody", {"x": ROWS}),
        ("NOT_FOUND", Reason.MODEL_NOT_FOUND),
        "model_name",
        f'tenant "{TENANT}" has no model "nobody"',
    ),
    Bad(
        "an unknown version",
        lambda: good(version="7"),
        ("NOT_FOUND", Reason.VERSION_NOT_FOUND),
        "model_version",
        "it has 1",
    ),
    Bad(
        "a version that is no number",
        lambda: good(version="one"),
        ("NOT_FOUND", Reason.VERSION_NOT_FOUND),
        "model_version",
        "it has 1",
    ),
    Bad("a name beyond all names", lambda: request("m" * 5000, {"x": ROWS}), INVALID, "model_name", "5000 bytes, more"),
    Bad("another data type", tensor(ROWS.astype(np.int32)), INVALID, f"{X}.datatype", "where the model takes FP32"),
    Bad("another rank", tensor(ROWS[0]), INVALID, f"{X}.shape", "1 axes where the model takes 2: [any, 4]"),
    Bad("another extent", tensor(np.ones((2, 5), np.float32)), INVALID, f"{X}.shape", "5 where the model takes 4"),
    Bad(
        "a negative extent", changed(lambda r: r.inputs[0].shape.__setitem__(1, -4)), INVALID, f"{X}.shape", "within 0"
    ),
    Bad(
        "extents whose product is beyond all memory",
        changed(lambda r: r.inputs[0].shape.__setitem__(1, 1 << 62)),
        INVALID,
        f"{X}.shape",
        "it must lie within 0 to",
    ),
    Bad(
        "too many rows",
        tensor(np.ones((9, 4), np.float32)),
        INVALID,
        f"{X}.shape",
        "9 rows; one request may hold 1 to 8",
    ),
    Bad("no rows", tensor(np.ones((0, 4), np.float32)), INVALID, f"{X}.shape", "0 rows; one request may hold 1 to 8"),
    Bad(
        "too few bytes",
        changed(set_raw(b"abc")),
        INVALID,
        f"raw_input_contents of {X}",
        "3 bytes given where shape [2, 4] needs 32",
    ),
    Bad(
        "too many bytes",
        changed(set_raw(bytes(33))),
        INVALID,
        f"raw_input_contents of {X}",
        "33 bytes given where shape [2, 4] needs 32",
    ),
    Bad("an unknown input", tensor(ROWS, name="z"), INVALID, "inputs[0] 'z'.name", "its inputs are 'x'"),
    Bad("no input at all", lambda: request("linear", {}), INVALID, "inputs", "'x' missing; the model needs 'x'"),
    Bad("an input given twice", changed(duplicate), INVALID, "inputs[1] 'x'.name", "given twice"),
    Bad("an unknown output", changed(ask_for("z")), INVALID, "outputs[0] 'z'.name", "its outputs are 'y'"),
    Bad(
        "raw and typed contents together",
        changed(lambda r: r.inputs[0].contents.fp32_contents.extend(range(8))),
        INVALID,
        f"{X}.contents",
        "one way only",
    ),
    Bad(
        "more raw contents than inputs",
        changed(lambda r: r.raw_input_contents.append(bytes(32))),
        INVALID,
        "raw_input_contents",
        "2 given for 1 inputs",
    ),
    Bad(
        "too many typed elements",
        changed(lambda r: r.inputs[0].contents.fp32_contents.append(1.0), typed=True),
        INVALID,
        f"{X}.contents.fp32_contents",
        "9 elements given where shape [2, 4] needs 8",
    ),
    Bad(
        "typed contents of another type",
        changed(in_ints, typed=True),
        INVALID,
        f"{X}.contents.int_contents",
        "FP32 is sent in contents.fp32_contents",
    ),
    Bad(
        "a string longer than what is left",
        lambda: _words(b"\xff\x00\x00\x00abc"),
        INVALID,
        "raw_input_contents of inputs[0] 'in_object'",
        "claims 255 bytes where 3 are left",
    ),
    Bad(
        "a string longer than any may be",
        lambda: _words(b"\xff\xff\xff\x7fabc"),
        INVALID,
        "raw_input_contents of inputs[0] 'in_object'",
        "element 0 has 2147483647 bytes, more than 16777216",
    ),
    Bad(
        "a string that is no text",
        lambda: _words(b"\x03\x00\x00\x00ab\xff"),
        INVALID,
        "raw_input_contents of inputs[0] 'in_object'",
        "element 0 is not UTF-8 (byte 2",
    ),
    Bad(
        "a message beyond the limit",
        tensor(np.ones((2, LIMIT_BYTES // 8 + 1), np.float32)),
        ("RESOURCE_EXHAUSTED", Reason.MESSAGE_TOO_LARGE),
        None,
        f"more than the {LIMIT_BYTES}",
    ),
    Bad(
        "an answer beyond the limit",
        lambda: request("inflate", {"size": np.array([LIMIT_BYTES // 4 + 1])}),
        ("RESOURCE_EXHAUSTED", Reason.MESSAGE_TOO_LARGE),
        None,
        f"more than the {LIMIT_BYTES}",
    ),
    Bad(
        "contents that the model itself cannot take",
        lambda: request("inflate", {"size": np.array([-5])}),
        ("INTERNAL", Reason.MODEL_FAILED),
        None,
        "model 'inflate' version 1: ",
    ),
    Bad(
        "a deadline that has passed on arrival",
        lambda: good(timeout=1),
        ("DEADLINE_EXCEEDED", Reason.DEADLINE_EXCEEDED),
        None,
        "in stage `admit`",
    ),
    Bad(
        "a negative timeout",
        lambda: good(timeout=-1),
        INVALID,
        'parameters["timeout"]',
        "0 (none) or more microseconds",
    ),
    Bad(
        "no time at all as objective",
        lambda: good(slo_ms=0.0),
        INVALID,
        'parameters["slo_ms"]',
        "more than 0 milliseconds",
    ),
    Bad(
        "a priority that is no number", lambda: good(priority="high"), INVALID, 'parameters["priority"]', "whole number"
    ),
    Bad(
        "a sequence",
        lambda: good(sequence_id=3),
        UNSUPPORTED,
        'parameters["sequence_id"]',
        "send the state as an input",
    ),
    Bad(
        "a region of shared memory without its size",
        changed(lambda r: r.inputs[0].parameters["shared_memory_region"].CopyFrom(pb.InferParameter(string_param="r"))),
        INVALID,
        f'{X}.parameters["shared_memory_byte_size"]',
        "1 or more",
    ),
]


def _words(content: bytes) -> Any:
    made = request("words", {"in_object": np.array([[b"abc"]], object)})
    made.raw_input_contents[0] = content
    return made
