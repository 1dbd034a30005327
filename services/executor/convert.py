"""Between the contracts' messages and the worker's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from gpu_sharing.measurements import Profile, ProfilePoint, SegmentCost
from gpu_sharing.tensors import Signature, TensorSpec, WarmupTensor
from services._proto.apportion.v1 import common_pb2, executor_pb2, registry_pb2, scheduler_pb2
from services.executor.core.replica import Phase, Replica
from services.executor.core.replica_events import Changed, Queueing, Wanted
from services.executor.core.statistics import Counts

FORMATS = {
    registry_pb2.ARTEFACT_FORMAT_UNSPECIFIED: None,
    registry_pb2.ARTEFACT_FORMAT_ONNX: "onnx",
    registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT: "torch_export",
    registry_pb2.ARTEFACT_FORMAT_PYTHON: "python",
}

BACKENDS = {
    "cpu": scheduler_pb2.BACKEND_CPU,
    "cuda_green": scheduler_pb2.BACKEND_CUDA_GREEN,
    "cuda_mps": scheduler_pb2.BACKEND_CUDA_MPS,
    "cuda_mig": scheduler_pb2.BACKEND_CUDA_MIG,
    "cuda_streams": scheduler_pb2.BACKEND_CUDA_STREAMS,
    "simulated": scheduler_pb2.BACKEND_SIMULATED,
}

STATES = {
    Phase.FETCHING: scheduler_pb2.REPLICA_STATE_LOADING,
    Phase.WAITING: scheduler_pb2.REPLICA_STATE_LOADING,
    Phase.LOADING: scheduler_pb2.REPLICA_STATE_LOADING,
    Phase.READY: scheduler_pb2.REPLICA_STATE_READY,
    Phase.DRAINING: scheduler_pb2.REPLICA_STATE_DRAINING,
    Phase.REFUSED: scheduler_pb2.REPLICA_STATE_REFUSED,
    Phase.FAILED: scheduler_pb2.REPLICA_STATE_FAILED,
}

_NS_PER_US = 1_000
_NS_PER_MS = 1_000_000
_HIGHEST_PRIORITY = (1 << 32) - 1
"""Of Execute: what the protocol's priority 1 comes as; 2 comes as one less, and so on."""


def wanted_from(load: scheduler_pb2.LoadReplica) -> Wanted:
    """The replica that the scheduler wants. Raises ValueError where its config cannot be read."""
    try:
        config = registry_pb2.VersionConfig.FromString(load.config)
    except DecodeError as error:
        raise ValueError(f"config: is no VersionConfig: {error}") from None
    if config.format not in FORMATS:
        raise ValueError(f"config.format: {config.format} is not known here")
    return Wanted(
        replica=load.replica_id,
        tenant=load.key.tenant,
        model=load.key.name,
        version=load.version,
        digest=load.digest,
        size_bytes=load.size_bytes,
        lane=load.lane,
        bandwidth=load.bandwidth.millidevices,
        weight=load.weight or 1,
        format=FORMATS[config.format],
        max_batch_size=config.max_batch_size if config.HasField("max_batch_size") else None,
        batch_axes=dict(config.batch_axes),
        warmup=tuple(WarmupTensor(each.name, tuple(each.shape), each.data) for each in config.warmup),
        objective_ns=_objective_ns(load),
        signature=signature_from(load.signature) if load.HasField("signature") else None,
        profile=profile_from(load.profile) if load.HasField("profile") else None,
        declared=signature_from(config.declared) if config.HasField("declared") else None,
        labels={each.name: tuple(each.labels) for each in config.declared.outputs if each.labels},
        queueing=_queueing(config.queue),
        signers=tuple(load.signers),
        artefact_signature=load.artefact_signature,
    )


def _queueing(queue: registry_pb2.QueueLimits) -> Queueing:
    levels, default = queue.priority_levels, queue.default_priority
    return Queueing(
        queue.max_waiting,
        queue.deadline_us * _NS_PER_US,
        _HIGHEST_PRIORITY - levels + 1 if levels else 0,
        _HIGHEST_PRIORITY - default + 1 if default else 0,
    )


def changed_from(update: scheduler_pb2.UpdateReplica) -> Changed:
    """The share or objective that the scheduler wants."""
    return Changed(update.replica_id, update.bandwidth.millidevices, update.weight or 1, _objective_ns(update))


def report_of(replica: Replica, waiting: int) -> scheduler_pb2.ReplicaReport:
    """What the scheduler is told of a replica."""
    wanted = replica.wanted
    report = scheduler_pb2.ReplicaReport(
        replica_id=wanted.replica,
        key=common_pb2.ModelKey(tenant=wanted.tenant, name=wanted.model),
        version=wanted.version,
        digest=wanted.digest,
        lane=wanted.lane,
        state=STATES[replica.phase],
        message=replica.message,
        memory_bytes=replica.memory_bytes,
        waiting_requests=waiting,
        bandwidth=common_pb2.Share(millidevices=wanted.bandwidth),
        stage=replica.stage,
        crashes=replica.crashes,
    )
    if replica.signature is not None:
        report.signature.CopyFrom(signature_to(replica.signature))
        for output in report.signature.outputs:
            output.labels.extend(wanted.labels.get(output.name, ()))
    if replica.profile is not None:
        report.profile.CopyFrom(profile_to(replica.profile))
    return report


def signature_from(message: common_pb2.Signature) -> Signature:
    """A signature as the worker knows it."""
    return Signature(
        tuple(map(_spec_from, message.inputs)), tuple(map(_spec_from, message.outputs)), message.max_batch_size
    )


def signature_to(signature: Signature) -> common_pb2.Signature:
    """A signature as the contracts have it."""
    return common_pb2.Signature(
        inputs=map(_spec_to, signature.inputs),
        outputs=map(_spec_to, signature.outputs),
        max_batch_size=signature.max_batch_size,
    )


def profile_from(message: common_pb2.Profile) -> Profile:
    """A profile as the worker knows it."""
    points = (
        ProfilePoint(
            rows=each.rows,
            shape_bucket=each.shape_bucket,
            compute_units=each.compute_units,
            p50_ns=each.p50_ns,
            p99_ns=each.p99_ns,
            runs=each.runs,
            activation_bytes=each.activation_bytes,
            segments_ns=tuple(each.segments_ns),
        )
        for each in message.points
    )
    segments = (SegmentCost(each.name, each.p50_ns) for each in message.segments)
    return Profile(message.digest, message.device_kind, message.weight_bytes, tuple(points), tuple(segments))


def profile_to(profile: Profile) -> common_pb2.Profile:
    """A profile as the contracts have it."""
    points = (
        common_pb2.ProfilePoint(
            rows=each.rows,
            shape_bucket=each.shape_bucket,
            compute_units=each.compute_units,
            p50_ns=each.p50_ns,
            p99_ns=each.p99_ns,
            runs=each.runs,
            activation_bytes=each.activation_bytes,
            segments_ns=each.segments_ns,
        )
        for each in profile.points
    )
    return common_pb2.Profile(
        digest=profile.digest,
        device_kind=profile.device_kind,
        weight_bytes=profile.weight_bytes,
        points=points,
        segments=(common_pb2.Segment(name=each.name, p50_ns=each.p50_ns) for each in profile.segments),
    )


def statistics_to(
    tenant: str, incarnation: str, found: Sequence[tuple[str, int, Counts]], offset_ns: int
) -> executor_pb2.GetStatisticsResponse:
    """Counts as the contracts have them. offset_ns: what turns the monotonic clock into Unix time."""
    response = executor_pb2.GetStatisticsResponse(incarnation=incarnation)
    for model, version, counts in found:
        told = response.versions.add(
            key=common_pb2.ModelKey(tenant=tenant, name=model),
            version=version,
            rows=counts.rows,
            batches=counts.batches,
            answered=counts.answered,
            answered_ns=counts.answered_ns,
            failed=counts.failed,
            failed_ns=counts.failed_ns,
            decode_ns=counts.decode_ns,
            queue_ns=counts.queue_ns,
            compute_ns=counts.compute_ns,
            encode_ns=counts.encode_ns,
            last_arrival_ms=(counts.last_arrived + offset_ns) // _NS_PER_MS if counts.last_arrived else 0,
        )
        for rows, size in sorted(counts.sizes.items()):
            told.by_rows.add(
                rows=rows,
                batches=size.batches,
                compute_ns=size.compute_ns,
                decode_ns=size.decode_ns,
                encode_ns=size.encode_ns,
            )
    return response


def _objective_ns(message: Any) -> int | None:
    return message.objective_us * _NS_PER_US if message.HasField("objective_us") else None


def _spec_from(spec: common_pb2.TensorSpec) -> TensorSpec:
    return TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=tuple(each.size if each.HasField("size") else None for each in spec.shape),
        symbols=tuple(each.symbol for each in spec.shape),
        batch_axis=spec.batch_axis if spec.HasField("batch_axis") else None,
        optional=spec.optional,
    )


def _spec_to(spec: TensorSpec) -> common_pb2.TensorSpec:
    symbols = spec.symbols or ("",) * len(spec.shape)
    shape = (
        common_pb2.Dimension(size=extent, symbol=symbol) for extent, symbol in zip(spec.shape, symbols, strict=True)
    )
    return common_pb2.TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=shape,
        batch_axis=spec.batch_axis,
        optional=spec.optional,
    )
