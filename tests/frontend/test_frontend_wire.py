"""The head of a request, read from its bytes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from frontend_fakes import infer_request
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from services._proto.inference import grpc_service_pb2 as oip
from services.common.errors import Reason, Refusal
from services.frontend.core.wire import LOWEST_PRIORITY, MOST_NS, Limits, scan

LIMITS = Limits()


def head_of(**parameters: object) -> object:
    return scan(infer_request("m", **parameters).SerializeToString(), LIMITS)


names = st.text(max_size=20)
values = st.one_of(
    st.tuples(st.just("int64_param"), st.integers(0, 2**63 - 1)),
    st.tuples(st.just("uint64_param"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("string_param"), st.integers(0, 10**18).map(str)),
)


@given(names, names, names, st.binary(max_size=3000), st.dictionaries(names, values, max_size=5), values)
def test_what_is_read_is_what_protobuf_reads(
    model: str, version: str, request_id: str, content: bytes, others: dict[str, object], timeout: tuple[str, object]
) -> None:
    request = infer_request(model, content, request_id, **others, timeout=timeout)
    request.model_version = version
    for name in ("priority", "slo_ms", "sequence_id", "sequence_start", "sequence_end"):
        request.parameters.pop(name, None)
    head = scan(request.SerializeToString(), LIMITS)
    assert (head.model_name, head.model_version, head.request_id.decode()) == (model, version, request_id)
    microseconds = int(timeout[1])  # type: ignore[call-overload]
    assert head.timeout_ns == (min(microseconds * 1000, MOST_NS) or None)


@given(st.lists(st.sampled_from(range(6)), min_size=1, max_size=12), st.data())
def test_fields_may_come_in_any_order_and_more_than_once_and_the_last_wins(
    order: list[int], data: st.DataObject
) -> None:
    parts = [
        oip.ModelInferRequest(model_name="a"),
        oip.ModelInferRequest(model_name="b", model_version="2"),
        oip.ModelInferRequest(id="x", model_version="1"),
        infer_request("", b"abc"),
        infer_request("", timeout=("int64_param", 5)),
        infer_request("", timeout=("string_param", "6"), priority=("uint64_param", 1)),
    ]
    joined = b"".join(parts[index].SerializeToString() for index in order)
    told, head = oip.ModelInferRequest.FromString(joined), scan(joined, LIMITS)
    assert (head.model_name, head.model_version, head.request_id) == (
        told.model_name,
        told.model_version,
        told.id.encode(),
    )
    timeout = told.parameters["timeout"] if "timeout" in told.parameters else None  # noqa: SIM401
    expected = None if timeout is None else int(timeout.string_param or timeout.int64_param) * 1000
    assert head.timeout_ns == expected


@given(st.binary(max_size=400))
def test_hostile_bytes_are_read_or_refused_and_never_anything_else(data: bytes) -> None:
    with suppress(Refusal):
        scan(data, LIMITS)


@given(st.data())
def test_a_damaged_request_is_refused_or_read_as_protobuf_reads_it(data: st.DataObject) -> None:
    whole = bytearray(
        infer_request(
            "model", b"abc", "7", timeout=("int64_param", 5), slo_ms=("double_param", 2.5)
        ).SerializeToString()
    )
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        head = scan(bytes(whole), LIMITS)
        told = oip.ModelInferRequest.FromString(bytes(whole))
    except (Refusal, DecodeError):
        return
    assert (head.model_name, head.model_version) == (told.model_name, told.model_version)


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_request_that_breaks_off_is_refused(cut: int) -> None:
    whole = infer_request("model", b"abc" * 20, "7").SerializeToString()
    with pytest.raises(Refusal):
        scan(whole[:-cut], LIMITS)


@pytest.mark.parametrize(
    ("value", "objective_ns"),
    [
        (("double_param", 2.5), 2_500_000),
        (("int64_param", 20), 20_000_000),
        (("uint64_param", 20), 20_000_000),
        (("string_param", "0.0001"), 1_000),
        (("double_param", float("inf")), MOST_NS),
    ],
)
def test_an_objective_is_taken_in_every_form_and_kept_in_whole_microseconds(value: object, objective_ns: int) -> None:
    assert head_of(slo_ms=value).objective_ns == objective_ns


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slo_ms", ("double_param", 0.0)),
        ("slo_ms", ("double_param", float("nan"))),
        ("slo_ms", ("string_param", "soon")),
        ("slo_ms", ("bool_param", True)),
        ("timeout", ("int64_param", -1)),
        ("timeout", ("double_param", 1.0)),
        ("timeout", ("string_param", "9" * 1000)),
        ("priority", ("int64_param", -1)),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(Refusal) as caught:
        head_of(**{name: value})
    assert (caught.value.reason, caught.value.field) == (Reason.FIELD_INVALID, f'parameters["{name}"]')


def test_priority_one_is_the_highest_and_zero_the_usual_which_goes_last() -> None:
    first, second, usual = (head_of(priority=("uint64_param", level)).priority for level in (1, 2, 0))
    assert first > second > usual == 0
    assert head_of(priority=("uint64_param", 2**64 - 1)).priority == 1
    assert first == LOWEST_PRIORITY


def test_a_sequence_is_refused_with_what_to_do_instead_and_an_empty_one_is_not() -> None:
    for value in (("int64_param", 7), ("string_param", "s")):
        with pytest.raises(Refusal) as caught:
            head_of(sequence_id=value)
        assert caught.value.reason is Reason.UNSUPPORTED
    head_of(sequence_id=("int64_param", 0), sequence_start=("bool_param", False))
    head_of(triton_enable_empty_final_response=("bool_param", True))


def test_more_fields_or_parameters_than_the_limit_are_refused_before_they_cost_anything() -> None:
    with pytest.raises(Refusal, match="more than 4096 fields"):
        scan(b"\x3a\x00" * 30_000_000, LIMITS)
    with pytest.raises(Refusal, match="more than 128"):
        head_of(**{f"p{index}": ("int64_param", 1) for index in range(129)})
    with pytest.raises(Refusal, match="an entry has more than"):
        scan(b"\x22\x40" + b"\x08\x00" * 32, LIMITS)


def test_more_tensors_and_longer_names_than_the_limits_are_refused_by_name() -> None:
    limits = Limits(tensors=3, name_bytes=64)
    message = oip.ModelInferRequest(model_name="m" * 64, id="i" * 64)
    for name in ("a", "b"):
        message.inputs.add(name=name)
    message.outputs.add(name="c")
    assert scan(message.SerializeToString(), limits).model_name == "m" * 64
    message.outputs.add(name="d")
    with pytest.raises(Refusal, match="inputs: has 4 tensors with outputs, more than 3"):
        scan(message.SerializeToString(), limits)
    for field in ("model_name", "model_version", "id"):
        with pytest.raises(Refusal, match=f"{field}: has 65 bytes, more than 64") as caught:
            scan(oip.ModelInferRequest(**{field: "x" * 65}).SerializeToString(), limits)
        assert caught.value.field == field
