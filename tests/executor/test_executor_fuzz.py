"""An executor's end of a stream under requests of any bytes: every call is answered once, with a status that means something,
what breaks the contract ends the stream and nothing else, and no memory is left behind.

A few thousand always; `APPORTION_FUZZ_EXAMPLES=1000000 python -m pytest tests/executor/test_executor_fuzz.py -m slow` for the
whole million, 20,000 unless set.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from harness import House, house
from hypothesis import given, settings
from hypothesis import strategies as st

from services._proto.apportion.v1 import executor_pb2 as pb
from services._proto.inference import grpc_service_pb2 as oip
from services.common.errors import Reason, Refusal
from services.common.status import from_status
from services.executor.session import Session
from tests.access.fuzzed import ANYTHING, EXAMPLES, QUICK, SIGNATURE, VARIANTS, typed, variants

CREDIT = 1 << 40
AT_ONCE = 64
"""Requests between two turns of the loop."""
LARGEST_CHUNKED = 1 << 16
"""What a call of the fuzz announces at most: more would only fill the arena, which has tests of its own."""
NUMBERS = st.one_of(st.integers(0, 6), st.sampled_from([1 << 32, (1 << 64) - 1]))
SIGNED = st.one_of(st.integers(-3, 10**7), st.sampled_from([-(1 << 63), (1 << 63) - 1]))


@st.composite
def fitting(draw: st.DrawFn) -> bytes:
    """A request that fits the model, or nearly: what becomes of it when it is spoilt is refused late, if at all."""
    request = oip.ModelInferRequest(model_name="echo", id=draw(st.text(max_size=5)))
    rows = draw(st.integers(1, 8))
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.inputs.add(name="m", datatype="BYTES", shape=[rows])
    text = st.one_of(st.text(max_size=3).map(str.encode), st.text(max_size=3).map(str.encode), st.binary(max_size=6))
    texts = draw(st.lists(text, min_size=rows, max_size=rows))
    if draw(st.integers(0, 3)):
        request.raw_input_contents.append(draw(st.binary(min_size=rows * 16, max_size=rows * 16)))
        request.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in texts))
    else:
        request.inputs[0].contents.fp32_contents.extend([0.5] * rows * 4)
        request.inputs[1].contents.bytes_contents.extend(texts)
    return request.SerializeToString()


REQUESTS = st.booleans().flatmap(lambda fits: fitting() if fits else ANYTHING)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message of a stream, with anything in it that its types allow."""
    request = pb.ExecuteRequest()
    for _ in range(draw(st.integers(0, 3))):
        infer = request.infers.add(call=draw(NUMBERS), replica_id=draw(NUMBERS), payload=draw(REQUESTS))
        infer.bulk_bytes = draw(st.sampled_from([0, 0, 1, 40, LARGEST_CHUNKED]))
        infer.tenant, infer.priority = draw(st.sampled_from(["", "acme", "bob"])), draw(st.integers(0, (1 << 32) - 1))
        if draw(st.booleans()):
            infer.deadline_us, infer.objective_us = draw(SIGNED), draw(SIGNED)
        if draw(st.booleans()):
            infer.span.trace_id, infer.span.span_id = draw(st.binary(max_size=20)), draw(st.binary(max_size=9))
    for _ in range(draw(st.integers(0, 2))):
        request.chunks.add(call=draw(NUMBERS), offset=draw(NUMBERS), data=draw(st.binary(max_size=60)))
    for number in draw(st.lists(NUMBERS, max_size=2)):
        request.cancels.add(call=number)
    for number in draw(st.lists(NUMBERS, max_size=2)):
        request.verdicts.add(call=number, keep=draw(st.booleans()), violated=draw(st.booleans()))
    for amount in draw(st.lists(NUMBERS, max_size=2)):
        request.credits.add(tenant=draw(st.sampled_from(["", "acme", "bob"])), bytes=amount)
    return request.SerializeToString()


def made(strategy: st.SearchStrategy[bytes], examples: int) -> list[bytes]:
    """So many inputs, the same ones in every run."""
    found: list[bytes] = []

    @given(data=strategy)
    @settings(QUICK, max_examples=examples, derandomize=True)
    def collect(data: bytes) -> None:
        found.append(data)

    collect()
    return found


def breach(refusal: Refusal) -> None:
    """What ends a stream says that the contract was broken, and nothing else."""
    typed(refusal)
    assert refusal.reason is Reason.PROTOCOL, refusal.message


class Frontend:
    """A session that nobody's network carries. Where one breaks the contract, the next begins.

    answered: by reason, "OK" for answers, of all sessions. broken: sessions that ended so.
    """

    def __init__(self, built: House) -> None:
        self._built = built
        self.answered: Counter[str] = Counter()
        self.broken = self.sent = 0
        self.begin()

    def begin(self) -> None:
        calls, spans, tenants = self._built.executor.calls, self._built.spans, self._built.executor.tenants
        self._session = Session(
            calls,
            spans,
            tenants,
            inline_bytes=1 << 18,
            chunk_bytes=1 << 18,
            tenant_credit_bytes=CREDIT,
            result_credit_bytes=CREDIT,
        )
        self._last, self._waits = 0, set[int]()

    def infer(self, payload: bytes) -> None:
        """One request, whose session must live."""
        self._last += 1
        self._waits.add(self._last)
        self.sent += 1
        request = pb.ExecuteRequest(infers=[pb.Infer(call=self._last, replica_id=1, payload=payload)])
        self._session.take(pb.ExecuteRequest.FromString(request.SerializeToString()), 0)

    async def chunked(self, payload: bytes, chance: random.Random) -> None:
        """The same in chunks of any sizes."""
        self._last += 1
        self._waits.add(self._last)
        self.sent += 1
        infer = pb.Infer(call=self._last, replica_id=1, bulk_bytes=len(payload), tenant="acme")
        self._session.take(pb.ExecuteRequest(infers=[infer]), 0)
        at = 0
        while at < len(payload):
            size = chance.randint(1, len(payload))
            chunk = pb.Chunk(call=self._last, offset=at, data=payload[at : at + size])
            await self._session.take_chunks(pb.ExecuteRequest(chunks=[chunk]))
            at += size

    def message(self, data: bytes) -> None:
        """Bytes as a message of the primary stream, or what its frame would be refused for."""
        self.sent += 1
        try:
            request = pb.ExecuteRequest.FromString(data)
        except DecodeError:
            return
        for infer in request.infers:
            infer.bulk_bytes = min(infer.bulk_bytes, LARGEST_CHUNKED)
        if self.sent % 4:
            self._mended(request)
        try:
            self._session.take(request, 0)
        except Refusal as refusal:
            breach(refusal)
            self.collect(all_known=False)
            self.end()
            self.broken += 1
            self.begin()

    def _mended(self, request: pb.ExecuteRequest) -> None:
        """Most messages would end their stream by the number of their first call: these get as far as their payloads."""
        request.ClearField("hello")
        request.ClearField("chunks")
        for infer in request.infers:
            self._last += 1
            infer.call, infer.replica_id = self._last, infer.replica_id % 3
            if infer.payload:
                infer.bulk_bytes = 0

    async def chunks(self, data: bytes) -> None:
        """Bytes as a message of the bulk stream, after a call that expects some. No call is waited for that never comes."""
        try:
            request = pb.ExecuteRequest.FromString(data)
        except DecodeError:
            return
        self.collect(all_known=False)
        self.end()
        self.begin()
        self._last += 1
        self._session.take(pb.ExecuteRequest(infers=[pb.Infer(call=self._last, replica_id=1, bulk_bytes=40)]), 0)
        for chunk in request.chunks:
            chunk.call = min(chunk.call, self._last)
        try:
            await self._session.take_chunks(request)
        except Refusal as refusal:
            breach(refusal)
        self.end()
        self.begin()

    def collect(self, *, all_known: bool = True) -> None:
        """Takes what the session has for its frontend, as the stream's writers do."""
        while (response := self._session._fill_primary()) is not None:
            for result in response.results:
                self._counted(result, all_known)
        while self._session._fill_bulk() is not None:
            pass

    def end(self) -> None:
        self._session.end()

    def done(self) -> bool:
        self.collect()
        return not self._waits

    def _counted(self, result: pb.Result, all_known: bool) -> None:
        if all_known:
            self._waits.remove(result.call)
        if not result.status:
            self.answered["OK"] += 1
            return
        refusal = from_status(status_pb2.Status.FromString(result.status))
        typed(refusal)
        self.answered[refusal.reason] += 1


async def fuzzed_requests(inputs: Iterator[bytes]) -> Frontend:
    """Every input as a request, each fifth of them in chunks."""
    chance = random.Random(0)
    async with house(signatures={"echo": SIGNATURE}, queue_limit=1 << 20) as built:
        built.load(1)
        await built.serving(1)
        frontend = Frontend(built)
        for number, data in enumerate(inputs):
            if data and number % 5 == 0:
                await frontend.chunked(data, chance)
            else:
                frontend.infer(data)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
                frontend.collect()
        await built.until(frontend.done)
        frontend.end()
        await built.until(lambda: built.worker.inputs.used_bytes == built.worker.output_bytes == 0)
        serving = built.executor.calls.serving[1]
        assert serving.outstanding == 0
        assert not serving.lane.calls
    assert sum(frontend.answered.values()) == frontend.sent
    return frontend


async def fuzzed_messages(inputs: Iterator[bytes]) -> Frontend:
    """Every input as a message of the primary stream, each third also as one of the bulk stream."""
    async with house(signatures={"echo": SIGNATURE}, queue_limit=1 << 20) as built:
        built.load(1)
        await built.serving(1)
        frontend = Frontend(built)
        for number, data in enumerate(inputs):
            if number % 3 == 0:
                await frontend.chunks(data)
            frontend.message(data)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
                frontend.collect(all_known=False)
        frontend.end()
        await built.until(lambda: built.worker.inputs.used_bytes == built.worker.output_bytes == 0)
        assert not built.executor.calls.serving[1].lane.calls
    return frontend


def often(bases: list[bytes]) -> Iterator[bytes]:
    for data in bases:
        yield from variants(data)


async def test_any_bytes_as_a_request_are_answered_once_and_leave_nothing_behind() -> None:
    frontend = await fuzzed_requests(often(made(REQUESTS, 40)))
    assert frontend.sent == 40 * VARIANTS
    assert frontend.answered["OK"] > 10
    assert frontend.answered[Reason.FIELD_INVALID] > 100
    assert frontend.answered[Reason.INTERNAL] == 0


async def test_any_message_is_taken_or_ends_its_stream_alone() -> None:
    frontend = await fuzzed_messages(often(made(messages(), 40)))
    assert frontend.broken > 10
    assert sum(frontend.answered.values()) > 100
    assert {Reason.FIELD_INVALID, Reason.MODEL_NOT_READY} <= set(frontend.answered)


@pytest.mark.slow
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("fuzzed", [fuzzed_requests, fuzzed_messages], ids=["requests", "messages"])
async def test_any_bytes_are_taken_or_refused_with_a_reason_very_often(fuzzed: object) -> None:
    bases = max(1, EXAMPLES // VARIANTS)
    if fuzzed is fuzzed_requests:
        frontend = await fuzzed_requests(often(made(REQUESTS, bases)))
        assert frontend.answered["OK"] > 0
    else:
        frontend = await fuzzed_messages(often(made(messages(), bases)))
        assert frontend.broken > 0
    assert frontend.sent >= bases
    print(f"{frontend.sent} inputs, {frontend.broken} broken sessions, {dict(frontend.answered)}")
