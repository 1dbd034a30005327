"""What the verifier needs, from where it is: objectives from the registry, counts from the trace store or a Prometheus, traces from
whatever speaks Jaeger's query API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

import services.common.attributes as names
from services._proto.apportion.v1 import common_pb2, registry_pb2
from services.cli import remote
from services.cli.errors import CommandError
from services.cli.options import Mesh
from services.cli.slo.prometheus import read_prometheus
from services.tracestore import client
from services.tracestore.core.budgets import PROMISE, Objective
from services.tracestore.core.rollups import Slot
from services.tracestore.core.spans import SpanView

SECOND_NS = 1_000_000_000
LONGEST_REQUEST_S = 120
"""Searches go by the start of spans, and requests count when they end."""
OTHERS = 200
"""Of requests that did not violate, so many are looked at for verdicts that are wrong."""
MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Asked:
    """Which models, and when: [start_s, end_s), Unix time, whole minutes. tenant, model: empty for all."""

    start_s: int
    end_s: int
    tenant: str = ""
    model: str = ""


async def models(mesh: Mesh, tenant: str = "", model: str = "") -> list[Any]:
    """Models as the registry has them."""
    found: list[Any] = []
    async with remote.registry(mesh) as stub:
        token = ""
        while True:
            request = registry_pb2.ListModelsRequest(tenant=tenant, page_token=token)
            page = await stub.ListModels(request, timeout=remote.CALL_S)
            found += [each for each in page.models if model in ("", each.key.name)]
            token = page.next_page_token
            if not token:
                return found


def objectives_of(told: Any) -> list[Objective]:
    """What a model is judged by: its SLO objects, or where it has none what it promises."""
    key = (told.key.tenant, told.key.name)
    named = [
        Objective(
            *key,
            each.name,
            each.slo.ratio_ppm,
            each.slo.objective_us if each.slo.HasField("objective_us") else None,
            each.slo.window_s,
        )
        for each in told.slos
    ]
    promises = told.slo.HasField("objective_us") and told.traffic_class != common_pb2.TRAFFIC_CLASS_BATCH
    if named or not promises:
        return named
    return [Objective(*key, PROMISE, told.slo.ratio_ppm, None, told.slo.window_s)]


async def counted(mesh: Mesh, asked: Asked, objectives: Sequence[Objective], prometheus: str | None) -> list[Slot]:
    """Slots from the beginning of the range, or of the longest window."""
    longest_s = max((each.window_s for each in objectives), default=0)
    start_s = min(asked.start_s, asked.end_s - longest_s)
    if prometheus is not None:
        return await read_prometheus(prometheus, start_s, asked.end_s, tenant=asked.tenant, model=asked.model)
    address = mesh.address("query")
    try:
        return await client.read_rollups(
            address,
            start_ns=start_s * SECOND_NS,
            end_ns=asked.end_s * SECOND_NS,
            tenant=asked.tenant,
            model=asked.model,
            credentials=mesh.credentials,
        )
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise CommandError(
                f"{address} keeps traces and no counts: name the Prometheus that has them with --prometheus URL"
            ) from error
        raise remote.explained(error, "trace store", address) from error


async def traced(mesh: Mesh, asked: Asked, frontend: str) -> list[SpanView]:
    """Spans of all violators of the range, and of some other requests."""
    address = mesh.address("query")
    wanted = {} if not asked.tenant else {names.TENANT_NAME: asked.tenant}
    if asked.model:
        wanted[names.MODEL_NAME] = asked.model
    start_ns, end_ns = (asked.start_s - LONGEST_REQUEST_S) * SECOND_NS, asked.end_s * SECOND_NS
    try:
        violators = await client.find_every(
            address,
            start_ns=start_ns,
            end_ns=end_ns,
            service=frontend,
            wanted={**wanted, names.SLO_VIOLATED: "true"},
            credentials=mesh.credentials,
        )
        others = await client.find_traces(
            address,
            start_ns=start_ns,
            end_ns=end_ns,
            service=frontend,
            wanted={**wanted, names.SLO_VIOLATED: "false"},
            limit=OTHERS,
            credentials=mesh.credentials,
        )
    except grpc.RpcError as error:
        raise remote.explained(error, "trace store", address) from error
    return [*violators, *(span for trace in others for span in trace)]
