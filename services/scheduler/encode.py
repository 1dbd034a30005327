"""From the core's words to the scheduler's own messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.common.objective_messages import VERDICTS, answer_to
from services.scheduler.convert import SEEN
from services.scheduler.core import catalogue as cat
from services.scheduler.core import reports as rep
from services.scheduler.core.events import Command, SendFold, SendLayout, SendLoad, SendUnload, Terms
from services.scheduler.core.objectives import Found
from services.scheduler.core.requests import Recent
from services.scheduler.core.routes import Route, RoutesChanged, VersionRoute, VersionState
from services.scheduler.core.scheduler import ExecutorView, FleetView, ModelView, TenantView

STATES: Mapping[rep.Seen, pb.ReplicaState] = {seen: number for number, seen in SEEN.items()}
VERSION_STATES: Mapping[VersionState, pb.VersionState] = {
    VersionState.LOADING: pb.VERSION_STATE_LOADING,
    VersionState.READY: pb.VERSION_STATE_READY,
    VersionState.REFUSED: pb.VERSION_STATE_REFUSED,
    VersionState.UNPLACED: pb.VERSION_STATE_UNPLACED,
    VersionState.UNLOADED: pb.VERSION_STATE_UNLOADED,
}
CLASSES: Mapping[cat.TrafficClass, common_pb2.TrafficClass] = {
    cat.TrafficClass.INTERACTIVE: common_pb2.TRAFFIC_CLASS_INTERACTIVE,
    cat.TrafficClass.BATCH: common_pb2.TRAFFIC_CLASS_BATCH,
}


def key(value: cat.Key) -> common_pb2.ModelKey:
    """A model's key."""
    return common_pb2.ModelKey(tenant=value.tenant, name=value.name)


def share(millidevices: int) -> common_pb2.Share:
    """Thousandths of a device."""
    return common_pb2.Share(millidevices=millidevices)


# To executors.


def command(value: Command) -> pb.AttachResponse:
    """A command."""
    if isinstance(value, SendLoad):
        return pb.AttachResponse(load=_load(value))
    if isinstance(value, SendUnload):
        drain_us = int(value.drain_s * 1e6)
        return pb.AttachResponse(unload=pb.UnloadReplica(replica_id=value.replica_id, drain_us=drain_us))
    if isinstance(value, SendFold):
        return pb.AttachResponse(fold=pb.FoldUsage(incarnation=value.incarnation, key=key(value.key), life=value.life))
    if isinstance(value, SendLayout):
        return pb.AttachResponse(layout=pb.SetLayout(layout=value.layout, pinned=value.pinned))
    update = pb.UpdateReplica(replica_id=value.replica_id)
    _put_terms(update, value.terms)
    return pb.AttachResponse(update=update)


def _load(value: SendLoad) -> pb.LoadReplica:
    load = pb.LoadReplica(
        replica_id=value.replica_id,
        key=key(value.ref.key),
        version=value.ref.version,
        digest=value.ref.digest,
        size_bytes=value.size_bytes,
        config=value.config,
        lane=value.lane,
        signers=value.signers,
        artefact_signature=value.artefact_signature,
    )
    _put_terms(load, value.terms)
    if value.signature is not None:
        load.signature.ParseFromString(value.signature)
    if value.profile is not None:
        load.profile.ParseFromString(value.profile.blob)
    return load


def _put_terms(message: pb.LoadReplica | pb.UpdateReplica, terms: Terms) -> None:
    message.bandwidth.CopyFrom(share(terms.bandwidth))
    message.weight = terms.weight
    message.traffic_class = CLASSES[terms.traffic_class]
    if terms.objective_us is not None:
        message.objective_us = terms.objective_us


# To frontends.


def snapshot(
    epoch: int, revision: int, routes: tuple[Route, ...], part_routes: int = 100
) -> list[pb.WatchRoutesResponse]:
    """A snapshot in parts of at most `part_routes`; at least one part."""
    starts = range(0, max(1, len(routes)), part_routes)
    parts = [
        pb.RouteSnapshot(
            routes=[_route(each) for each in routes[start : start + part_routes]],
            first_part=start == 0,
            last_part=start + part_routes >= len(routes),
        )
        for start in starts
    ]
    return [pb.WatchRoutesResponse(epoch=epoch, revision=revision, snapshot=part) for part in parts]


def change(epoch: int, value: RoutesChanged) -> pb.WatchRoutesResponse:
    """One decision's changes."""
    changed = pb.RouteChanges(
        routes=[_route(each) for each in value.upserts], removed=[key(each) for each in value.removals]
    )
    return pb.WatchRoutesResponse(epoch=epoch, revision=value.revision, changes=changed)


def bookmark(epoch: int, revision: int) -> pb.WatchRoutesResponse:
    """A sign of life."""
    return pb.WatchRoutesResponse(epoch=epoch, revision=revision, bookmark=pb.RouteBookmark())


def _route(value: Route) -> pb.ModelRoute:
    slo = common_pb2.Slo(ratio_ppm=value.slo.ratio_ppm, window_s=value.slo.window_s)
    if value.slo.objective_us is not None:
        slo.objective_us = value.slo.objective_us
    return pb.ModelRoute(
        key=key(value.key),
        slo=slo,
        traffic_class=CLASSES[value.traffic_class],
        versions=[_version(each) for each in value.versions],
        splits=[pb.RouteSplit(version=each.version, ppm=each.ppm) for each in value.splits],
        model_revision=value.revision,
    )


def _version(value: VersionRoute) -> pb.VersionRoute:
    message = pb.VersionRoute(
        version=value.version,
        state=VERSION_STATES[value.state],
        message=value.message,
        replicas=[
            pb.ReplicaRoute(replica_id=each.replica_id, executor_id=each.executor_id, address=each.address)
            for each in value.replicas
        ],
    )
    if value.signature is not None:
        message.signature.ParseFromString(value.signature)
    return message


# To operators.


def fleet(epoch: int, view: FleetView) -> pb.GetFleetResponse:
    """The fleet."""
    unplaced = [
        pb.UnplacedVersion(key=key(each.key), version=each.version, message=each.message) for each in view.unplaced
    ]
    return pb.GetFleetResponse(
        executors=[_executor(each) for each in view.executors],
        tenants=[_tenant(each) for each in view.tenants],
        epoch=epoch,
        unplaced=unplaced,
        unpromised=[
            pb.UnpromisedVersion(
                key=key(each.key), version=each.version, verdict=VERDICTS[each.verdict], message=each.message
            )
            for each in view.unpromised
        ],
    )


def objective(found: Found) -> pb.ObjectiveAnswer:
    """What can be promised on one kind of lane."""
    return answer_to(found.answer, serves=found.serves)


def _tenant(view: TenantView) -> pb.TenantStatus:
    return pb.TenantStatus(
        tenant=view.name,
        reservation=share(view.reservation),
        weight=view.weight,
        device_ns=view.used.device_ns,
        requests=view.used.requests,
        compute_unit_ns=view.used.compute_unit_ns,
        batches=view.used.batches,
        used_ppm=view.used_ppm,
        recent=_recent(view.recent),
        models=[_model(each) for each in view.models],
    )


def _model(view: ModelView) -> pb.ModelStatus:
    return pb.ModelStatus(
        key=key(view.key),
        device_ns=view.used.device_ns,
        requests=view.used.requests,
        compute_unit_ns=view.used.compute_unit_ns,
        batches=view.used.batches,
        used_ppm=view.used_ppm,
        recent=_recent(view.recent),
    )


def _recent(value: Recent) -> pb.RecentRequests:
    return pb.RecentRequests(
        window_ms=int(value.window_s * 1000),
        requests=value.requests,
        within=value.within,
        missed=value.missed,
        p99_us=value.p99_us,
        requests_per_s=value.requests_per_s,
        in_flight=value.in_flight,
    )


def _executor(view: ExecutorView) -> pb.ExecutorStatus:
    device = view.hello.device
    lanes = [
        pb.LaneInfo(
            lane=each.number, worker=each.worker, compute_units=each.compute_units, memory_bytes=each.memory_bytes
        )
        for each in device.lanes
    ]
    info = pb.DeviceInfo(
        backend=cast("pb.Backend", device.backend),
        device_kind=device.kind,
        compute_units=device.compute_units,
        memory_bytes=device.memory_bytes,
        lanes=lanes,
        backend_reason=device.backend_reason,
        layouts=[pb.LayoutInfo(name=each.name, lanes=each.lanes) for each in device.layouts],
        quantum_ns=device.quantum_ns,
        arrival_order=device.arrival_order,
    )
    return pb.ExecutorStatus(
        executor_id=view.hello.executor_id,
        address=view.hello.address,
        device=info,
        report=_report(view.report),
        attached=view.attached,
    )


def _report(value: rep.Report) -> pb.ExecutorReport:
    lanes = [
        pb.LaneReport(lane=each.lane, busy_ppm=each.busy_ppm, waiting_requests=each.waiting_requests)
        for each in value.lanes
    ]
    return pb.ExecutorReport(
        replicas=[_replica(each) for each in value.replicas],
        lanes=lanes,
        usage=[_usage(each) for each in value.usage],
        memory_used_bytes=value.memory_used_bytes,
        draining=value.draining,
        layout=value.layout,
        layout_pinned=value.layout_pinned,
        measured_us=value.measured_us,
        tenants=[_tenant_usage(each) for each in value.tenants],
    )


def _replica(value: rep.ReplicaReport) -> pb.ReplicaReport:
    message = pb.ReplicaReport(
        replica_id=value.replica_id,
        key=key(value.ref.key),
        version=value.ref.version,
        digest=value.ref.digest,
        lane=value.lane,
        state=STATES[value.state],
        message=value.message,
        memory_bytes=value.memory_bytes,
        waiting_requests=value.waiting_requests,
        bandwidth=share(value.bandwidth),
        stage=value.stage,
        crashes=value.crashes,
    )
    if value.signature is not None:
        message.signature.ParseFromString(value.signature)
    if value.profile is not None:
        message.profile.ParseFromString(value.profile.blob)
    return message


def _usage(value: rep.UsageReport) -> pb.Usage:
    return pb.Usage(
        key=key(value.key),
        device_ns=value.device_ns,
        compute_unit_ns=value.compute_unit_ns,
        requests=value.requests,
        batches=value.batches,
        incarnation=value.incarnation,
        life=value.life,
    )


def _tenant_usage(value: rep.TenantUsage) -> pb.TenantUsage:
    return pb.TenantUsage(
        tenant=value.tenant,
        device_ns=value.device_ns,
        compute_unit_ns=value.compute_unit_ns,
        requests=value.requests,
        batches=value.batches,
        incarnation=value.incarnation,
        lives=value.lives,
    )
