"""A caller that knows Jaeger's contract alone: `python jaeger_client.py STUBS ADDRESS TRACE_ID`, in a process without ours.

Prints one JSON object: what each call answered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, sys.argv[1])

import grpc
import jaeger_query_pb2 as pb
import jaeger_query_pb2_grpc as stubs


def spans(parts: Any) -> list[dict[str, Any]]:
    """Every span, as any reader of OTLP sees it."""
    return [
        {
            "trace": span.trace_id.hex(),
            "parent": span.parent_span_id.hex(),
            "name": span.name,
            "kind": span.kind,
            "took_ns": span.end_time_unix_nano - span.start_time_unix_nano,
            "tenant": [each.value.string_value for each in span.attributes if each.key == "tenant.name"],
            "service": [each.value.string_value for each in group.resource.attributes if each.key == "service.name"],
            "links": len(span.links),
        }
        for data in parts
        for group in data.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def code(call: Callable[[], Any]) -> str:
    """How a call ends."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def query(**more: Any) -> pb.FindTracesRequest:
    made = pb.TraceQueryParameters(**more)
    made.start_time_min.FromSeconds(0)
    made.start_time_max.FromSeconds(4_000_000_000)
    return pb.FindTracesRequest(query=made)


def main(address: str, trace_id: str) -> dict[str, Any]:
    with grpc.insecure_channel(address) as channel:
        stub = stubs.QueryServiceStub(channel)
        find = lambda **more: sorted({span["trace"] for span in spans(stub.FindTraces(query(**more)))})
        long = pb.TraceQueryParameters()
        long.duration_min.FromMilliseconds(50)
        operations = stub.GetOperations(pb.GetOperationsRequest(service="apportion-frontend", span_kind="server"))
        return {
            "trace": spans(stub.GetTrace(pb.GetTraceRequest(trace_id=trace_id))),
            "short_id": code(lambda: list(stub.GetTrace(pb.GetTraceRequest(trace_id=trace_id[:7])))),
            "absent": code(lambda: list(stub.GetTrace(pb.GetTraceRequest(trace_id="f" * 32)))),
            "services": list(stub.GetServices(pb.GetServicesRequest()).services),
            "operations": [(each.name, each.span_kind) for each in operations.operations],
            "all": find(),
            "violated": find(attributes={"slo.violated": "true"}),
            "of_acme": find(service_name="apportion-frontend", attributes={"tenant.name": "acme"}),
            "long": find(duration_min=long.duration_min),
            "stage": find(operation_name="queue"),
            "one": find(search_depth=1),
            "without_range": code(lambda: list(stub.FindTraces(pb.FindTracesRequest()))),
            "filter": code(lambda: list(stub.FindTraces(query(filter=pb.Filter(op="eq"))))),
            "dependencies": code(lambda: stub.GetDependencies(pb.GetDependenciesRequest())),
        }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[2], sys.argv[3])))
