"""Requests' bytes to checked tensors: every wrong field is named, and nothing but a Refusal ever comes of rubbish."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.memory.arena import Arena
from gpu_sharing.tensors import NUMPY_NAMES, Signature, TensorSpec
from services._proto.inference.grpc_service_pb2 import ModelInferRequest
from services.common.errors import Reason, Refusal
from services.executor.core.elements import walk_elements
from services.executor.core.heads import Invalid, Limits, Plan, PlannedInput
from services.executor.core.wire import MAX_FIELDS, Malformed, first_raw_start, scan, varint
from services.executor.decode import Decoder, check_elements, in_place, place, shape_key

SIGNATURE = Signature(
    inputs=(
        TensorSpec("x", "FP32", (None, 4, None), ("", "", "t"), 0),
        TensorSpec("state", "INT64", (2, None, None), ("", "", "t"), 1),
        TensorSpec("sr", "INT64", ()),
        TensorSpec("text", "BYTES", (None,), (), 0, optional=True),
    ),
    outputs=(TensorSpec("y", "FP32", (None,), (), 0), TensorSpec("z", "FP32", (None,), (), 0)),
    max_batch_size=8,
)


def good(rows: int = 2, t: int = 3, *, sr: int = 16000, text: bool = False) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", id="7")
    message.inputs.add(name="x", datatype="FP32", shape=(rows, 4, t))
    message.inputs.add(name="state", datatype="INT64", shape=(2, rows, t))
    message.inputs.add(name="sr", datatype="INT64", shape=())
    message.raw_input_contents.append(np.arange(rows * 4 * t, dtype="<f4").tobytes())
    message.raw_input_contents.append(np.arange(2 * rows * t, dtype="<i8").tobytes())
    message.raw_input_contents.append(np.int64(sr).tobytes())
    if text:
        message.inputs.add(name="text", datatype="BYTES", shape=(rows,))
        message.raw_input_contents.append(b"".join(struct.pack("<I", 2) + b"ab" for _ in range(rows)))
    return message


def decode(payload: bytes, signature: Signature = SIGNATURE) -> tuple[Any, Any, bytes]:
    """What was decoded, its tensors' bytes as they lie in the arena, and its key."""
    arena = Arena.create(1 << 20)
    decoded = Decoder(signature).decode(payload)
    placed = place(arena, decoded, payload)
    assert check_elements(decoded.plan, placed.contents)
    tensors = {
        signature.inputs[ref.index].name: bytes(arena.view[ref.offset : ref.offset + ref.length_bytes])
        for ref in placed.refs
    }
    assert all(ref.offset % 64 == 0 for ref in placed.refs)
    return decoded, tensors, shape_key(decoded.plan, placed.contents, 1)


def reason_of(payload: bytes) -> Reason | None:
    """Why a payload is refused; None: it is not."""
    try:
        decode(payload)
    except Refusal as refusal:
        return refusal.reason
    return None


def test_a_good_request_is_taken_apart() -> None:
    message = good(text=True)
    decoded, tensors, _ = decode(message.SerializeToString())
    assert (decoded.plan.rows, decoded.plan.outputs, decoded.request_id, decoded.model_name) == (2, (0, 1), "7", "m")
    assert tensors["x"] == message.raw_input_contents[0]
    assert tensors["state"] == message.raw_input_contents[1]
    assert tensors["text"] == message.raw_input_contents[3]


def test_the_same_head_with_another_id_is_planned_once() -> None:
    decoder = Decoder(SIGNATURE)
    first, second = good(), good()
    second.id = "other"
    plans = [decoder.decode(message.SerializeToString()) for message in (first, second)]
    assert plans[0].plan is plans[1].plan
    assert [each.request_id for each in plans] == ["7", "other"]


def test_outputs_come_in_the_order_they_are_asked_for() -> None:
    message = good()
    message.outputs.add(name="z")
    message.outputs.add(name="y")
    assert decode(message.SerializeToString())[0].plan.outputs == (1, 0)


def test_requests_share_a_key_only_if_shapes_and_unbatched_bytes_agree() -> None:
    key = decode(good(2, 3).SerializeToString())[2]
    assert decode(good(5, 3).SerializeToString())[2] == key
    assert decode(good(2, 4).SerializeToString())[2] != key
    assert decode(good(2, 3, sr=8000).SerializeToString())[2] != key
    assert decode(good(2, 3, text=True).SerializeToString())[2] != key


def test_long_unbatched_inputs_are_never_shared() -> None:
    signature = Signature((TensorSpec("x", "FP32", (None,), (), 0), TensorSpec("w", "UINT8", (None,))), (), 4)
    message = ModelInferRequest()
    message.inputs.add(name="x", datatype="FP32", shape=(1,))
    message.inputs.add(name="w", datatype="UINT8", shape=(70_000,))
    message.raw_input_contents.extend([bytes(4), bytes(70_000)])
    decoded = Decoder(signature).decode(payload := message.SerializeToString())
    contents = place(Arena.create(1 << 20), decoded, payload).contents
    assert shape_key(decoded.plan, contents, 1) != shape_key(decoded.plan, contents, 2)


Change = Callable[[ModelInferRequest], object]


def _set(at: int, **fields: Any) -> Change:
    def change(message: ModelInferRequest) -> None:
        for name, value in fields.items():
            if name == "shape":
                message.inputs[at].shape[:] = value
            else:
                setattr(message.inputs[at], name, value)

    return change


def _raw(at: int, value: bytes) -> Change:
    return lambda message: message.raw_input_contents.__setitem__(at, value)


WRONG: dict[str, tuple[Change, str, str]] = {
    "an unknown input": (_set(0, name="w"), "inputs[0] 'w'.name", "no such input; its inputs are 'x', 'state'"),
    "an input twice": (_set(1, name="x"), "inputs[1] 'x'.name", "twice"),
    "a missing input": (
        lambda m: (m.inputs.pop(), m.raw_input_contents.pop()),
        "inputs",
        "'sr' missing",
    ),
    "a wrong type": (_set(0, datatype="FP64"), "inputs[0] 'x'.datatype", "'FP64' given where the model takes FP32"),
    "a wrong rank": (_set(0, shape=(2, 4)), "inputs[0] 'x'.shape", "[2, 4] has 2 axes where the model takes 3"),
    "a wrong extent": (_set(0, shape=(2, 5, 3)), "inputs[0] 'x'.shape", "axis 1 has extent 5 where the model takes 4"),
    "a negative extent": (_set(0, shape=(2, 4, -3)), "inputs[0] 'x'.shape", "axis 2 has extent -3"),
    "a huge extent": (_set(0, shape=(2, 4, 1 << 62)), "inputs[0] 'x'.shape", "axis 2 has extent"),
    "a symbol that differs": (_set(1, shape=(2, 2, 4)), "inputs[1] 'state'.shape", "axis 2 (t) has extent 4 where"),
    "rows that differ": (_set(1, shape=(2, 1, 3)), "inputs[1] 'state'.shape", "axis 1 holds 1 rows where"),
    "too many rows": (
        _set(0, shape=(9, 4, 3)),
        "inputs[0] 'x'.shape",
        "axis 0 holds 9 rows; one request may hold 1 to 8",
    ),
    "no rows": (_set(0, shape=(0, 4, 3)), "inputs[0] 'x'.shape", "axis 0 holds 0 rows"),
    "too few bytes": (
        _raw(0, b"123"),
        "raw_input_contents of inputs[0] 'x'",
        "3 bytes given where shape [2, 4, 3] needs 96",
    ),
    "too few raw contents": (lambda m: m.raw_input_contents.pop(), "raw_input_contents", "2 given for 3 inputs"),
    "both ways": (
        lambda m: m.inputs[1].contents.int64_contents.append(1),
        "inputs[1] 'state'.contents",
        "beside raw_input_contents",
    ),
    "an unknown output": (lambda m: m.outputs.add(name="q"), "outputs[0] 'q'.name", "its outputs are 'y', 'z'"),
    "an output twice": (lambda m: [m.outputs.add(name="y") for _ in "ab"], "outputs[1] 'y'.name", "twice"),
    "shared memory in": (
        lambda m: m.inputs[0].parameters["shared_memory_region"].__setattr__("string_param", "r"),
        "inputs[0] 'x'.parameters['shared_memory_region']",
        "send the tensor in raw_input_contents",
    ),
    "shared memory out": (
        lambda m: m.outputs.add(name="y").parameters["shared_memory_region"].__setattr__("string_param", "r"),
        "outputs[0] 'y'.parameters['shared_memory_region']",
        "not supported",
    ),
    "no classes": (
        lambda m: m.outputs.add(name="y").parameters["classification"].__setattr__("int64_param", 0),
        "outputs[0] 'y'.parameters['classification']",
        "1 to 65536",
    ),
    "classes that are no number": (
        lambda m: m.outputs.add(name="y").parameters["classification"].__setattr__("string_param", "3"),
        "outputs[0] 'y'.parameters['classification']",
        "whole number",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_with_its_limit(what: str) -> None:
    change, field, problem = WRONG[what]
    message = good()
    change(message)
    with pytest.raises(Refusal) as caught:
        decode(message.SerializeToString())
    assert caught.value.field == field
    assert problem in caught.value.message
    unsupported = "memory" in what
    assert caught.value.reason is (Reason.UNSUPPORTED if unsupported else Reason.FIELD_INVALID)


ELEMENTS = {
    "an element that overruns": (struct.pack("<I", 9) + b"ab" + bytes(4), "element 0 claims 9 bytes where 6 are left"),
    "too few bytes": (b"\0" * 7, "cannot hold 2 elements"),
    "a length that is cut off": (struct.pack("<I", 2) + b"ab" + b"\0\0", "ends inside the length of element 1 of 2"),
    "bytes left over": (bytes(8) + b"xyz", "3 bytes are left over behind 2 elements"),
}


@pytest.mark.parametrize("what", ELEMENTS)
def test_elements_of_bytes_must_add_up(what: str) -> None:
    content, problem = ELEMENTS[what]
    message = good(text=True)
    message.raw_input_contents[3] = content
    with pytest.raises(Refusal) as caught:
        decode(message.SerializeToString())
    assert caught.value.field == "raw_input_contents of inputs[3] 'text'"
    assert problem in caught.value.message


def test_many_elements_are_walked_in_turns() -> None:
    planned = PlannedInput(0, (10_000,), 10_000, None, "inputs[0] 't'", None)
    assert sum(1 for _ in walk_elements(planned, bytes(40_000), 1000)) == 10
    with pytest.raises(Invalid):
        list(walk_elements(planned, bytes(40_001), 1000))


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
@pytest.mark.parametrize("utf8", [False, True])
def test_bytes_that_are_not_text_are_refused_by_element_where_the_model_takes_text(typed: bool, utf8: bool) -> None:
    signature = Signature((TensorSpec("text", "BYTES", (None,), (), 0),), (), max_batch_size=8)
    elements = ["Grüße".encode(), b"a\0b", b"ab\xff"]
    message = ModelInferRequest(model_name="m")
    message.inputs.add(name="text", datatype="BYTES", shape=(3,))
    if typed:
        message.inputs[0].contents.bytes_contents.extend(elements)
    else:
        message.raw_input_contents.append(b"".join(struct.pack("<I", len(each)) + each for each in elements))
    payload, arena = message.SerializeToString(), Arena.create(1 << 16)

    def check() -> None:
        decoded = Decoder(signature, Limits(utf8=utf8)).decode(payload)
        assert check_elements(decoded.plan, place(arena, decoded, payload).contents)

    if not utf8:
        check()
        return
    with pytest.raises(Refusal, match="element 2 is not UTF-8") as caught:
        check()
    assert caught.value.reason is Reason.FIELD_INVALID
    where = "inputs[0] 'text'"
    assert caught.value.field == (f"{where}.contents.bytes_contents" if typed else f"raw_input_contents of {where}")
    assert caught.value.facts == {"element": "2", "byte": "2"}


def test_much_text_is_checked_in_turns() -> None:
    length = 1 << 18
    content = (struct.pack("<I", length) + b"a" * length) * 16
    planned = PlannedInput(0, (16,), 16, None, "inputs[0] 't'", None, utf8=True)
    assert sum(1 for _ in walk_elements(planned, content, 1000)) == 4
    plan = Plan((planned,), (), 1, b"", (), raw=True)
    assert not check_elements(plan, [content])
    assert check_elements(plan._replace(inputs=(planned._replace(utf8=False),)), [content])


TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False]),
    "INT8": ("int_contents", [-128, 127]),
    "INT16": ("int_contents", [-32768, 32767]),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 255]),
    "UINT16": ("uint_contents", [0, 65535]),
    "UINT32": ("uint_contents", [0, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 2**64 - 1]),
    "FP32": ("fp32_contents", [1.5, -0.25]),
    "FP64": ("fp64_contents", [1.5, 1e300]),
    "BYTES": ("bytes_contents", [b"", b"abc"]),
}


def _typed(datatype: str, kind: str, values: list[Any], shape: tuple[int, ...]) -> tuple[bytes, Signature]:
    message = ModelInferRequest()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    getattr(tensor.contents, kind).extend(values)
    return message.SerializeToString(), Signature((TensorSpec("x", datatype, (None,)),), ())


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_become_the_bytes_of_raw_ones(datatype: str) -> None:
    kind, values = TYPED[datatype]
    tensors = decode(*_typed(datatype, kind, values, (2,)))[1]
    if datatype == "BYTES":
        assert tensors["x"] == bytes(4) + struct.pack("<I", 3) + b"abc"
    else:
        assert tensors["x"] == np.array(values, NUMPY_NAMES[datatype]).tobytes()


@pytest.mark.parametrize(
    ("datatype", "kind", "values", "field", "problem"),
    [
        ("INT8", "int_contents", [1, 128], "int_contents", "element 1 does not fit INT8"),
        ("UINT16", "uint_contents", [1, 65536], "uint_contents", "element 1 does not fit UINT16"),
        ("FP32", "fp64_contents", [1.0, 2.0], "fp64_contents", "FP32 is sent in contents.fp32_contents"),
        ("FP32", "fp32_contents", [1.0], "fp32_contents", "1 elements given where shape [2] needs 2"),
        ("FP16", "fp32_contents", [1.0, 2.0], "", "FP16 has no typed contents; send raw_input_contents"),
        ("BF16", "fp32_contents", [1.0, 2.0], "", "BF16 has no typed contents"),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(
    datatype: str, kind: str, values: list[Any], field: str, problem: str
) -> None:
    with pytest.raises(Refusal) as caught:
        decode(*_typed(datatype, kind, values, (2,)))
    assert caught.value.field == "inputs[0] 'x'.contents" + (f".{field}" if field else "")
    assert problem in caught.value.message


@pytest.mark.parametrize("datatype", [*NUMPY_NAMES])
def test_every_data_type_comes_raw(datatype: str) -> None:
    message = ModelInferRequest()
    message.inputs.add(name="x", datatype=datatype, shape=(3,))
    item = 4 if datatype == "BYTES" else np.dtype(NUMPY_NAMES[datatype]).itemsize
    message.raw_input_contents.append(bytes(3 * item))
    signature = Signature((TensorSpec("x", datatype, (None,)),), ())
    assert decode(message.SerializeToString(), signature)[1]["x"] == bytes(3 * item)


def test_a_payload_that_lies_in_the_arena_is_not_copied() -> None:
    arena, payload = Arena.create(1 << 16), good().SerializeToString()
    arena.view[100 : 100 + len(payload)] = payload
    memory = arena.view[100 : 100 + len(payload)]
    placed = in_place(Decoder(SIGNATURE).decode(memory), memory, 100)
    ref = placed.refs[0]
    assert bytes(arena.view[ref.offset : ref.offset + ref.length_bytes]) == good().raw_input_contents[0]


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_give_a_refusal_or_a_request(payload: bytes) -> None:
    assert reason_of(payload) in (None, Reason.FIELD_INVALID, Reason.UNSUPPORTED)


@settings(max_examples=600, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_a_request_with_some_bytes_changed_gives_a_refusal_or_a_request(chance: random.Random, changes: int) -> None:
    payload = bytearray(good(text=True).SerializeToString())
    for _ in range(changes):
        at = chance.randrange(len(payload))
        match chance.randrange(3):
            case 0:
                payload[at] = chance.randrange(256)
            case 1:
                del payload[at]
            case _:
                payload.insert(at, chance.randrange(256))
    assert reason_of(bytes(payload)) in (None, Reason.FIELD_INVALID, Reason.UNSUPPORTED)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.lists(st.binary(max_size=40), max_size=6), st.text(max_size=9))
def test_the_scan_agrees_with_protobuf(name: str, contents: list[bytes], request_id: str) -> None:
    message = ModelInferRequest(model_name=name, id=request_id, raw_input_contents=contents)
    payload = message.SerializeToString()
    scanned = scan(memoryview(payload))
    assert [payload[start : start + length] for start, length in scanned.spans] == contents
    assert scanned.request_id.decode() == request_id
    rest = ModelInferRequest.FromString(scanned.head)
    assert (rest.model_name, rest.id, len(rest.raw_input_contents)) == (name, "", 0)
    if contents:
        assert first_raw_start(payload) == scanned.spans[0][0]


@pytest.mark.parametrize(
    "payload",
    [
        b"\x3a",
        b"\x3a\x05abc",
        b"\xff" * 20,
        b"\x00\x01",
        b"\x0b",
        b"\x39\0\0",
        b"\x07",
        b"\x3a" + b"\xff" * 9 + b"\x01",
    ],
)
def test_bytes_that_are_no_message_are_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        scan(payload)
    first_raw_start(payload)


def test_a_request_of_very_many_fields_is_not_read() -> None:
    with pytest.raises(Malformed, match="more than"):
        scan(b"\x08\x01" * (MAX_FIELDS + 1))


@given(st.integers(0, 2**63))
def test_varints_are_read_as_they_are_written(value: int) -> None:
    content = bytes((3 << 3,)) + varint(value)
    assert scan(content).head == content


def test_an_operator_may_allow_fewer_rows_than_a_model() -> None:
    decoder = Decoder(SIGNATURE, Limits(rows=3))
    assert decoder.decode(good(rows=3).SerializeToString()).plan.rows == 3
    with pytest.raises(Refusal, match="axis 0 holds 4 rows; one request may hold 1 to 3"):
        decoder.decode(good(rows=4).SerializeToString())


@pytest.mark.parametrize("typed", [False, True], ids=["raw", "typed"])
def test_a_string_longer_than_the_operator_allows_is_refused(typed: bool) -> None:
    signature = Signature((TensorSpec("text", "BYTES", (None,), (), 0),), (), max_batch_size=8)

    def refused(most: int) -> str:
        message = ModelInferRequest(model_name="m")
        message.inputs.add(name="text", datatype="BYTES", shape=(2,))
        if typed:
            message.inputs[0].contents.bytes_contents.extend([b"ab", b"abcd"])
        else:
            message.raw_input_contents.append(struct.pack("<I", 2) + b"ab" + struct.pack("<I", 4) + b"abcd")
        payload, arena = message.SerializeToString(), Arena.create(1 << 16)
        try:
            decoded = Decoder(signature, Limits(element_bytes=most)).decode(payload)
            check_elements(decoded.plan, place(arena, decoded, payload).contents)
        except Refusal as refusal:
            return refusal.message
        return ""

    assert refused(4) == ""
    assert "element 1 has 4 bytes, more than 3" in refused(3)
