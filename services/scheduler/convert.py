"""Between the contracts' messages and the core's words. Decoding raises Refusal where a message breaks its contract."""

from __future__ import annotations

from collections.abc import Mapping

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services._proto.apportion.v1 import scheduler_pb2 as pb
from services.common.errors import Reason, Refusal, invalid
from services.common.objective_messages import points_from
from services.common.objectives import WAY_NS, Ask
from services.scheduler.core import catalogue as cat
from services.scheduler.core import reports as rep
from services.scheduler.core import requests as req
from services.scheduler.core.events import CatalogueChanged, FrontendReported, Passed, RecordInspection
from services.scheduler.core.objectives import Question

SEEN: Mapping[pb.ReplicaState, rep.Seen] = {
    pb.REPLICA_STATE_LOADING: rep.Seen.LOADING,
    pb.REPLICA_STATE_READY: rep.Seen.READY,
    pb.REPLICA_STATE_DRAINING: rep.Seen.DRAINING,
    pb.REPLICA_STATE_REFUSED: rep.Seen.REFUSED,
    pb.REPLICA_STATE_FAILED: rep.Seen.FAILED,
}
INSPECTIONS: Mapping[registry_pb2.Inspection, cat.Inspection] = {
    registry_pb2.INSPECTION_PASSED: cat.Inspection.PASSED,
    registry_pb2.INSPECTION_REFUSED: cat.Inspection.REFUSED,
}


def key(message: common_pb2.ModelKey) -> cat.Key:
    """A model's key."""
    return cat.Key(message.tenant, message.name)


def slo(message: common_pb2.Slo) -> cat.Slo:
    """A model's objective."""
    objective = message.objective_us if message.HasField("objective_us") else None
    return cat.Slo(objective, message.ratio_ppm, message.window_s)


def traffic_class(value: int) -> cat.TrafficClass:
    """The class; what is not said is interactive."""
    return cat.TrafficClass.BATCH if value == common_pb2.TRAFFIC_CLASS_BATCH else cat.TrafficClass.INTERACTIVE


def profile(message: common_pb2.Profile) -> cat.Profile:
    """A profile. Its memory: the weights and the largest activations of any point."""
    activations = max((point.activation_bytes for point in message.points), default=0)
    return cat.Profile(message.device_kind, message.weight_bytes + activations, _blob(message), points_from(message))


def signature(message: common_pb2.Signature) -> bytes:
    """A signature, which the core only passes on."""
    return _blob(message)


# From the registry.


def changes(message: registry_pb2.CatalogueChanges) -> CatalogueChanged:
    """One commit's changes."""
    return CatalogueChanged(
        tuple(tenant(each) for each in message.tenants),
        tuple(model(each) for each in message.models),
        tuple(message.removed_tenants),
        tuple(key(each) for each in message.removed_models),
    )


def tenant(message: registry_pb2.Tenant) -> cat.Tenant:
    """A tenant's promise, weight and quota."""
    signers = tuple(each.pem for each in message.signers)
    return cat.Tenant(
        message.name, message.reservation.millidevices, message.weight or 1, quota(message.quota), signers
    )


def quota(message: registry_pb2.Quota) -> cat.Quota:
    """What of a tenant's quota frontends and replicas hold."""
    return cat.Quota(
        message.millirequests_per_s * 1_000 if message.HasField("millirequests_per_s") else None,
        max(1, message.burst),
        message.concurrent_requests if message.HasField("concurrent_requests") else None,
        message.device_ms * 1_000_000 if message.HasField("device_ms") else None,
        message.device_interval_s or 3600,
        message.memory_bytes if message.HasField("memory_bytes") else None,
    )


def model(message: registry_pb2.Model) -> cat.Model:
    """A model and how it is to be served."""
    return cat.Model(
        key(message.key),
        slo(message.slo),
        traffic_class(message.traffic_class),
        message.isolation == registry_pb2.ISOLATION_PROCESS,
        message.replicas or 1,
        tuple(_version(each) for each in message.versions),
        tuple(cat.Split(each.version, each.ppm) for each in message.traffic),
        message.unloaded,
        message.revision,
    )


def _version(message: registry_pb2.ModelVersion) -> cat.Version:
    return cat.Version(
        message.version,
        message.digest,
        message.size_bytes,
        _blob(message.config),
        INSPECTIONS.get(message.inspection, cat.Inspection.PENDING),
        message.inspection_message,
        signature(message.signature) if message.HasField("signature") else None,
        tuple(profile(each) for each in message.profiles),
        message.artefact_signature,
    )


def inspection(action: RecordInspection) -> registry_pb2.RecordInspectionRequest:
    """What a worker found, for the registry."""
    request = registry_pb2.RecordInspectionRequest(key=_key(action.ref.key), version=action.ref.version)
    if isinstance(action.outcome, Passed):
        request.passed.signature.ParseFromString(action.outcome.signature)
        if action.outcome.profile is not None:
            request.passed.profile.ParseFromString(action.outcome.profile.blob)
    else:
        request.refused.message = action.outcome.message
    return request


# From those who ask.


def question(message: pb.GetObjectiveRequest) -> Question:
    """What somebody wants to know of an objective. Refuses 0, where it does not stand for something else."""
    if message.HasField("objective_us") and not message.objective_us:
        raise invalid("objective_us", "must be above 0, and is 0")
    ask = Ask(
        reservation=0,
        rate=message.rate if message.HasField("rate") else None,
        burst=message.burst or 1,
        rows=message.rows or 1,
        error=message.error or 1.0,
        way_ns=message.way_us * 1_000 if message.HasField("way_us") else WAY_NS,
        shape_bucket=message.shape_bucket,
    )
    return Question(
        key(message.key),
        message.version,
        message.reservation.millidevices if message.HasField("reservation") else None,
        message.objective_us if message.HasField("objective_us") else None,
        ask,
    )


# From executors.


def hello(message: pb.ExecutorHello) -> rep.Hello:
    """An executor's first words. Refuses one without a name, an incarnation, an address or a lane."""
    for name in ("executor_id", "incarnation", "address"):
        if not getattr(message, name):
            raise invalid(f"hello.{name}", "must not be empty")
    if not message.device.lanes:
        raise invalid("hello.device.lanes", "must name at least one lane")
    numbers = [each.lane for each in message.device.lanes]
    if len(set(numbers)) != len(numbers):
        raise invalid("hello.device.lanes", f"must differ, and are {numbers}")
    for layout in message.device.layouts:
        missing = sorted(set(layout.lanes) - set(numbers))
        if missing or not layout.lanes:
            raise invalid("hello.device.layouts", f"{layout.name!r} names lanes {missing or 'none'} of {numbers}")
    held = report(message.report, message.incarnation)
    return rep.Hello(message.executor_id, message.incarnation, message.address, _device(message.device), held)


def _device(message: pb.DeviceInfo) -> rep.Device:
    lanes = tuple(rep.Lane(each.lane, each.worker, each.compute_units, each.memory_bytes) for each in message.lanes)
    return rep.Device(
        message.device_kind,
        message.compute_units,
        message.memory_bytes,
        lanes,
        message.backend,
        message.backend_reason,
        message.quantum_ns,
        message.arrival_order,
        tuple(rep.Layout(each.name, tuple(each.lanes)) for each in message.layouts),
    )


def report(message: pb.ExecutorReport, incarnation: str) -> rep.Report:
    """A whole report. incarnation: of the executor's hello, for counts that name none."""
    return rep.Report(
        tuple(_replica(each) for each in message.replicas),
        tuple(rep.LaneReport(each.lane, each.busy_ppm, each.waiting_requests) for each in message.lanes),
        tuple(_usage(each, incarnation) for each in message.usage),
        message.memory_used_bytes,
        message.draining,
        message.layout,
        message.layout_pinned,
        message.measured_us,
        tuple(_tenant_usage(each, incarnation) for each in message.tenants),
    )


def _replica(message: pb.ReplicaReport) -> rep.ReplicaReport:
    seen = SEEN.get(message.state)
    if seen is None:
        raise Refusal(
            Reason.PROTOCOL, f"replica {message.replica_id}: a state is needed", field="report.replicas.state"
        )
    return rep.ReplicaReport(
        message.replica_id,
        cat.Ref(key(message.key), message.version, message.digest),
        message.lane,
        seen,
        message.message,
        signature(message.signature) if message.HasField("signature") else None,
        profile(message.profile) if message.HasField("profile") else None,
        message.memory_bytes,
        message.waiting_requests,
        message.bandwidth.millidevices,
        message.stage,
        message.crashes,
    )


def _usage(message: pb.Usage, incarnation: str) -> rep.UsageReport:
    return rep.UsageReport(
        key(message.key),
        message.incarnation or incarnation,
        message.device_ns,
        message.compute_unit_ns,
        message.requests,
        message.batches,
        message.life,
    )


def _tenant_usage(message: pb.TenantUsage, incarnation: str) -> rep.TenantUsage:
    return rep.TenantUsage(
        message.tenant,
        message.incarnation or incarnation,
        message.device_ns,
        message.compute_unit_ns,
        message.requests,
        message.batches,
        message.lives,
    )


# From frontends.


def frontend_report(message: pb.ReportRequestsRequest) -> FrontendReported:
    """A frontend's counts. Refuses one without a name."""
    if not message.frontend_id:
        raise invalid("frontend_id", "must not be empty")
    counts = tuple((key(each.key), _counts(each)) for each in message.counts)
    return FrontendReported(message.frontend_id, counts, message.whole)


def _counts(message: pb.RequestCounts) -> req.Counts:
    latencies = tuple((each.bucket, each.count) for each in message.latencies)
    moved = tuple(req.Moved(each.executor_id, each.bytes_in, each.bytes_out) for each in message.bytes)
    return req.Counts(message.requests, message.within, message.missed, message.in_flight, latencies, moved)


def _key(value: cat.Key) -> common_pb2.ModelKey:
    return common_pb2.ModelKey(tenant=value.tenant, name=value.name)


def _blob(
    message: common_pb2.Signature | common_pb2.Profile | registry_pb2.VersionConfig,
) -> bytes:
    # Deterministic, so that equal messages are equal to the core.
    return message.SerializeToString(deterministic=True)
