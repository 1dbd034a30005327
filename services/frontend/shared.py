"""Requests whose tensors lie in shared memory, as requests that carry them; and answers, whose outputs go there.

Of a GPU's memory nothing is read here: requests go on with the id that executors know a region by, and executors write there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from services._proto.inference import grpc_service_pb2 as pb
from services.common.errors import Reason, Refusal, invalid
from services.frontend.core.regions import OFFSET, REGION, SIZE, Part, part_of
from services.frontend.device_regions import DeviceRegions, Record
from services.frontend.regions import Regions

AT_ONCE_BYTES = 1 << 20
"""More than that is copied by a thread, while others are served."""
_NAMES = (REGION, SIZE, OFFSET)


class Gathered(NamedTuple):
    """A request as it goes on. outputs: where they are to go, by name. on_devices: those of them that executors put there. at: the
    addresses of the executors that have all its regions of GPU memory; None: it names none."""

    payload: bytes
    outputs: Mapping[str, Part]
    on_devices: frozenset[str] = frozenset()
    at: frozenset[str] | None = None


class SharedMemory:
    """Stands between callers and executors, for requests that name regions alone. most_bytes: of a request, filled in."""

    def __init__(self, regions: Regions, devices: DeviceRegions, most_bytes: int) -> None:
        self.regions, self._devices, self._most_bytes = regions, devices, most_bytes

    async def gather(self, tenant: str, payload: bytes) -> Gathered:
        """The request with its inputs' bytes filled in, and where its outputs are to go. Raises Refusal."""
        try:
            request = pb.ModelInferRequest.FromString(payload)
        except DecodeError:
            raise invalid("request", "is no ModelInferRequest: a message inside it cannot be read") from None
        inputs = [part_of(f"inputs[{at}] {each.name!r}", _parameters(each)) for at, each in enumerate(request.inputs)]
        outputs: dict[str, Part] = {}
        for at, asked in enumerate(request.outputs):
            part = part_of(f"outputs[{at}] {asked.name!r}", _parameters(asked))
            if part is not None:
                outputs[asked.name] = part
        records = {
            part.region: record
            for part in (*inputs, *outputs.values())
            if part is not None and (record := self._devices.find(tenant, part)) is not None
        }
        if any(part is not None for part in inputs):
            await self._fill(tenant, request, inputs, records)
        tensors: tuple[Any, ...] = (*request.inputs, *request.outputs)
        for tensor in tensors:
            _rename(tensor.parameters, records)
        devices = frozenset(name for name, part in outputs.items() if part.region in records)
        return Gathered(request.SerializeToString(), outputs, devices, _together(records))

    async def scatter(self, tenant: str, answer: bytes, gathered: Gathered) -> bytes:
        """The answer, its outputs written to where they are to go. Raises Refusal."""
        response, outputs = pb.ModelInferResponse.FromString(answer), gathered.outputs
        for at, told in enumerate(response.outputs):
            part = outputs.get(told.name)
            if part is None:
                continue
            if told.name in gathered.on_devices:
                _place(told.parameters, part)
                continue
            content = response.raw_output_contents[at]
            memory, begins = self.regions.find(tenant, part)
            if len(content) > AT_ONCE_BYTES:
                await asyncio.to_thread(memory.write, part, begins, content)
            else:
                memory.write(part, begins, content)
            # One entry for each output stays, if an empty one: clients count them.
            response.raw_output_contents[at] = b""
            told.parameters[SIZE].int64_param = len(content)
            _place(told.parameters, part)
        return response.SerializeToString()

    async def _fill(
        self,
        tenant: str,
        request: pb.ModelInferRequest,
        parts: list[Part | None],
        records: Mapping[str, Record],
    ) -> None:
        given = iter(list(request.raw_input_contents))
        contents: list[bytes] = []
        total = sum(part.byte_size for part in parts if part is not None)
        if total > self._most_bytes:
            raise Refusal(
                Reason.MESSAGE_TOO_LARGE,
                f"the request has {total} bytes in shared memory, more than the {self._most_bytes} passed on",
                facts={"size_bytes": total, "limit_bytes": self._most_bytes},
            )
        for at, part in enumerate(parts):
            if part is None:
                content = next(given, None)
                if content is None:
                    raise invalid(f"inputs[{at}]", "beside inputs in shared memory, others go in raw_input_contents")
            elif request.inputs[at].HasField("contents"):
                raise invalid(f"{part.field}.contents", "given beside shared memory; send a tensor one way only")
            elif part.region in records:
                # One entry for each input all the same: executors count them.
                content = b""
            else:
                content = await self._read(tenant, part)
            contents.append(content)
        if next(given, None) is not None:
            raise invalid("raw_input_contents", "more are given than there are inputs outside shared memory")
        del request.raw_input_contents[:]
        request.raw_input_contents.extend(contents)

    async def _read(self, tenant: str, part: Part) -> bytes:
        memory, begins = self.regions.find(tenant, part)
        if part.byte_size > AT_ONCE_BYTES:
            return await asyncio.to_thread(memory.read, part, begins)
        return memory.read(part, begins)


def _rename(parameters: Any, records: Mapping[str, Record]) -> None:
    """Takes out what executors are not to see: of system memory everything, of a GPU's the name."""
    record = records.get(parameters[REGION].string_param) if REGION in parameters else None
    if record is not None:
        parameters[REGION].string_param = record.id
        return
    for name in _NAMES:
        parameters.pop(name, None)


def _place(parameters: Any, part: Part) -> None:
    """Tells the caller where an output lies, as he has asked for it."""
    parameters[REGION].string_param = part.region
    if part.offset:
        parameters[OFFSET].int64_param = part.offset


def _together(records: Mapping[str, Record]) -> frozenset[str] | None:
    if not records:
        return None
    return frozenset.intersection(*(frozenset(record.at) for record in records.values()))


def _parameters(tensor: Any) -> dict[str, tuple[str, object]]:
    told = {}
    for name, value in tensor.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is not None:
            told[name] = (kind, getattr(value, kind))
    return told
