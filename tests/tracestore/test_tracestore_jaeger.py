"""The store, asked by stubs made from Jaeger's contract, in a process that knows nothing of ours."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from services._proto.jaeger.api_v3 import query_service_pb2
from services.common import attributes as names
from services.common.channel import NOTHING
from services.common.otlp import Exporter
from services.common.span_bytes import encoded, request_for
from services.common.spans import Kind, SpanRecord

HERE = Path(__file__).parent
PROTOS = HERE.parents[1] / "protos"
MS = 1_000_000


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python made from the contract."""
    folder = tmp_path_factory.mktemp("stubs")
    flags = [f"-I{HERE}", f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    made = [f"--python_out={folder}", f"--grpc_python_out={folder}", f"--descriptor_set_out={folder / 'set'}"]
    assert protoc.main(["protoc", *flags, *made, str(HERE / "jaeger_query.proto")]) == 0
    return folder


def request(number: int, tenant: str, took_ms: int, *, violated: bool) -> list[SpanRecord]:
    trace_id, own = number.to_bytes(16, "big"), number.to_bytes(8, "big")
    now = time.monotonic_ns()
    facts = {names.TENANT_NAME: tenant, names.MODEL_NAME: "m", names.SLO_VIOLATED: violated}
    server = SpanRecord("ModelInfer", trace_id, own, None, now - took_ms * MS, now, kind=Kind.SERVER, attributes=facts)
    below = SpanRecord(
        "queue", trace_id, b"q" + own[1:], own, now - took_ms * MS, now, attributes={names.SLO_STAGE: "queue"}
    )
    below.links.append((b"b" * 16, b"b" * 8, {names.LINK_KIND: names.LINK_BATCH}))
    return [server, below]


async def answers(store: Any, stubs: Path) -> Any:
    exporter, offset = Exporter(store.listen, NOTHING, 5.0), time.time_ns() - time.monotonic_ns()
    for number, tenant, took_ms, violated in ((1, "acme", 80, True), (2, "acme", 9, False), (3, "bolt", 9, True)):
        records = [encoded(each, offset) for each in request(number, tenant, took_ms, violated=violated)]
        told = request_for({names.SERVICE_NAME: "apportion-frontend"}, records)
        assert await asyncio.to_thread(exporter.export, told)
    exporter.close()
    command = [sys.executable, str(HERE / "jaeger_client.py"), str(stubs), store.query_listen, f"{1:032x}"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd="/"
    )
    out, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()
    return json.loads(out)


async def test_a_caller_with_jaegers_own_stubs_gets_what_a_jaeger_would_answer(store: Any, stubs: Path) -> None:
    told = await answers(store, stubs)
    first, second, third = (f"{number:032x}" for number in (1, 2, 3))
    server, queue = sorted(told["trace"], key=lambda span: span["parent"])
    assert (server["name"], server["kind"], server["took_ns"], server["tenant"]) == (
        "ModelInfer",
        2,
        80 * MS,
        ["acme"],
    )
    assert (queue["name"], queue["parent"], queue["links"]) == ("queue", f"{1:016x}", 1)
    assert server["service"] == ["apportion-frontend"]
    assert told["services"] == ["apportion-frontend"]
    assert told["operations"] == [["ModelInfer", "server"]]
    assert told["all"] == [first, second, third]
    assert told["violated"] == [first, third]
    assert told["of_acme"] == [first, second]
    assert told["long"] == [first]
    assert told["stage"] == [first, second, third]
    assert len(told["one"]) == 1
    ends = {key: told[key] for key in ("short_id", "absent", "without_range", "filter", "dependencies")}
    assert ends == {
        "short_id": "INVALID_ARGUMENT",
        "absent": "NOT_FOUND",
        "without_range": "INVALID_ARGUMENT",
        "filter": "UNIMPLEMENTED",
        "dependencies": "UNIMPLEMENTED",
    }


def test_our_contract_is_a_part_of_jaegers_with_its_names_and_numbers(stubs: Path) -> None:
    theirs = FileDescriptorSet.FromString((stubs / "set").read_bytes()).file[0]
    fields = {
        (message.name, field.name): (field.number, field.type, field.label)
        for message in theirs.message_type
        for field in message.field
    }
    ours = type(theirs)()
    query_service_pb2.DESCRIPTOR.CopyToProto(ours)
    assert (ours.package, ours.service[0].name) == (theirs.package, theirs.service[0].name)
    methods = {method.name: (method.input_type, method.output_type) for method in theirs.service[0].method}
    for method in ours.service[0].method:
        assert methods[method.name] == (method.input_type, method.output_type)
    for message in ours.message_type:
        for field in message.field:
            if (message.name, field.name) != ("TraceQueryParameters", "filter"):
                assert fields[message.name, field.name] == (field.number, field.type, field.label)
