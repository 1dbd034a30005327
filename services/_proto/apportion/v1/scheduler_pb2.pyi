from services._proto.apportion.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Backend(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_UNSPECIFIED: _ClassVar[Backend]
    BACKEND_CPU: _ClassVar[Backend]
    BACKEND_CUDA_GREEN: _ClassVar[Backend]
    BACKEND_CUDA_MPS: _ClassVar[Backend]
    BACKEND_CUDA_MIG: _ClassVar[Backend]
    BACKEND_CUDA_STREAMS: _ClassVar[Backend]
    BACKEND_SIMULATED: _ClassVar[Backend]

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    REPLICA_STATE_LOADING: _ClassVar[ReplicaState]
    REPLICA_STATE_READY: _ClassVar[ReplicaState]
    REPLICA_STATE_DRAINING: _ClassVar[ReplicaState]
    REPLICA_STATE_REFUSED: _ClassVar[ReplicaState]
    REPLICA_STATE_FAILED: _ClassVar[ReplicaState]

class VersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATE_UNSPECIFIED: _ClassVar[VersionState]
    VERSION_STATE_LOADING: _ClassVar[VersionState]
    VERSION_STATE_READY: _ClassVar[VersionState]
    VERSION_STATE_REFUSED: _ClassVar[VersionState]
    VERSION_STATE_UNPLACED: _ClassVar[VersionState]
    VERSION_STATE_UNLOADED: _ClassVar[VersionState]

class ObjectiveVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_VERDICT_UNSPECIFIED: _ClassVar[ObjectiveVerdict]
    OBJECTIVE_VERDICT_PROMISED: _ClassVar[ObjectiveVerdict]
    OBJECTIVE_VERDICT_NOT_MEASURED: _ClassVar[ObjectiveVerdict]
    OBJECTIVE_VERDICT_NOTHING_RESERVED: _ClassVar[ObjectiveVerdict]
    OBJECTIVE_VERDICT_DOES_NOT_FIT: _ClassVar[ObjectiveVerdict]
    OBJECTIVE_VERDICT_RATE_TOO_HIGH: _ClassVar[ObjectiveVerdict]
    OBJECTIVE_VERDICT_TOO_TIGHT: _ClassVar[ObjectiveVerdict]
    OBJECTIVE_VERDICT_BELOW_COST: _ClassVar[ObjectiveVerdict]
BACKEND_UNSPECIFIED: Backend
BACKEND_CPU: Backend
BACKEND_CUDA_GREEN: Backend
BACKEND_CUDA_MPS: Backend
BACKEND_CUDA_MIG: Backend
BACKEND_CUDA_STREAMS: Backend
BACKEND_SIMULATED: Backend
REPLICA_STATE_UNSPECIFIED: ReplicaState
REPLICA_STATE_LOADING: ReplicaState
REPLICA_STATE_READY: ReplicaState
REPLICA_STATE_DRAINING: ReplicaState
REPLICA_STATE_REFUSED: ReplicaState
REPLICA_STATE_FAILED: ReplicaState
VERSION_STATE_UNSPECIFIED: VersionState
VERSION_STATE_LOADING: VersionState
VERSION_STATE_READY: VersionState
VERSION_STATE_REFUSED: VersionState
VERSION_STATE_UNPLACED: VersionState
VERSION_STATE_UNLOADED: VersionState
OBJECTIVE_VERDICT_UNSPECIFIED: ObjectiveVerdict
OBJECTIVE_VERDICT_PROMISED: ObjectiveVerdict
OBJECTIVE_VERDICT_NOT_MEASURED: ObjectiveVerdict
OBJECTIVE_VERDICT_NOTHING_RESERVED: ObjectiveVerdict
OBJECTIVE_VERDICT_DOES_NOT_FIT: ObjectiveVerdict
OBJECTIVE_VERDICT_RATE_TOO_HIGH: ObjectiveVerdict
OBJECTIVE_VERDICT_TOO_TIGHT: ObjectiveVerdict
OBJECTIVE_VERDICT_BELOW_COST: ObjectiveVerdict

class LaneInfo(_message.Message):
    __slots__ = ("lane", "worker", "compute_units", "memory_bytes")
    LANE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNITS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    lane: int
    worker: int
    compute_units: int
    memory_bytes: int
    def __init__(self, lane: _Optional[int] = ..., worker: _Optional[int] = ..., compute_units: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class LayoutInfo(_message.Message):
    __slots__ = ("name", "lanes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    name: str
    lanes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., lanes: _Optional[_Iterable[int]] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("backend", "device_kind", "compute_units", "memory_bytes", "lanes", "backend_reason", "layouts", "quantum_ns", "arrival_order")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNITS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    QUANTUM_NS_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_ORDER_FIELD_NUMBER: _ClassVar[int]
    backend: Backend
    device_kind: str
    compute_units: int
    memory_bytes: int
    lanes: _containers.RepeatedCompositeFieldContainer[LaneInfo]
    backend_reason: str
    layouts: _containers.RepeatedCompositeFieldContainer[LayoutInfo]
    quantum_ns: int
    arrival_order: bool
    def __init__(self, backend: _Optional[_Union[Backend, str]] = ..., device_kind: _Optional[str] = ..., compute_units: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., lanes: _Optional[_Iterable[_Union[LaneInfo, _Mapping]]] = ..., backend_reason: _Optional[str] = ..., layouts: _Optional[_Iterable[_Union[LayoutInfo, _Mapping]]] = ..., quantum_ns: _Optional[int] = ..., arrival_order: bool = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("hello", "report")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    hello: ExecutorHello
    report: ExecutorReport
    def __init__(self, hello: _Optional[_Union[ExecutorHello, _Mapping]] = ..., report: _Optional[_Union[ExecutorReport, _Mapping]] = ...) -> None: ...

class ExecutorHello(_message.Message):
    __slots__ = ("executor_id", "incarnation", "address", "device", "report")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    incarnation: str
    address: str
    device: DeviceInfo
    report: ExecutorReport
    def __init__(self, executor_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., address: _Optional[str] = ..., device: _Optional[_Union[DeviceInfo, _Mapping]] = ..., report: _Optional[_Union[ExecutorReport, _Mapping]] = ...) -> None: ...

class ReplicaReport(_message.Message):
    __slots__ = ("replica_id", "key", "version", "digest", "lane", "state", "message", "signature", "profile", "memory_bytes", "waiting_requests", "bandwidth", "stage", "crashes")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CRASHES_FIELD_NUMBER: _ClassVar[int]
    replica_id: int
    key: _common_pb2.ModelKey
    version: int
    digest: str
    lane: int
    state: ReplicaState
    message: str
    signature: _common_pb2.Signature
    profile: _common_pb2.Profile
    memory_bytes: int
    waiting_requests: int
    bandwidth: _common_pb2.Share
    stage: str
    crashes: int
    def __init__(self, replica_id: _Optional[int] = ..., key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., lane: _Optional[int] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., message: _Optional[str] = ..., signature: _Optional[_Union[_common_pb2.Signature, _Mapping]] = ..., profile: _Optional[_Union[_common_pb2.Profile, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., bandwidth: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., stage: _Optional[str] = ..., crashes: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("key", "device_ns", "compute_unit_ns", "requests", "batches", "incarnation", "life")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNIT_NS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    device_ns: int
    compute_unit_ns: int
    requests: int
    batches: int
    incarnation: str
    life: int
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., device_ns: _Optional[int] = ..., compute_unit_ns: _Optional[int] = ..., requests: _Optional[int] = ..., batches: _Optional[int] = ..., incarnation: _Optional[str] = ..., life: _Optional[int] = ...) -> None: ...

class TenantUsage(_message.Message):
    __slots__ = ("tenant", "device_ns", "compute_unit_ns", "requests", "batches", "incarnation", "lives")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNIT_NS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LIVES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    device_ns: int
    compute_unit_ns: int
    requests: int
    batches: int
    incarnation: str
    lives: int
    def __init__(self, tenant: _Optional[str] = ..., device_ns: _Optional[int] = ..., compute_unit_ns: _Optional[int] = ..., requests: _Optional[int] = ..., batches: _Optional[int] = ..., incarnation: _Optional[str] = ..., lives: _Optional[int] = ...) -> None: ...

class LaneReport(_message.Message):
    __slots__ = ("lane", "busy_ppm", "waiting_requests")
    LANE_FIELD_NUMBER: _ClassVar[int]
    BUSY_PPM_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    lane: int
    busy_ppm: int
    waiting_requests: int
    def __init__(self, lane: _Optional[int] = ..., busy_ppm: _Optional[int] = ..., waiting_requests: _Optional[int] = ...) -> None: ...

class ExecutorReport(_message.Message):
    __slots__ = ("replicas", "lanes", "usage", "memory_used_bytes", "draining", "layout", "layout_pinned", "measured_us", "tenants")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_PINNED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_US_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaReport]
    lanes: _containers.RepeatedCompositeFieldContainer[LaneReport]
    usage: _containers.RepeatedCompositeFieldContainer[Usage]
    memory_used_bytes: int
    draining: bool
    layout: int
    layout_pinned: bool
    measured_us: int
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    def __init__(self, replicas: _Optional[_Iterable[_Union[ReplicaReport, _Mapping]]] = ..., lanes: _Optional[_Iterable[_Union[LaneReport, _Mapping]]] = ..., usage: _Optional[_Iterable[_Union[Usage, _Mapping]]] = ..., memory_used_bytes: _Optional[int] = ..., draining: bool = ..., layout: _Optional[int] = ..., layout_pinned: bool = ..., measured_us: _Optional[int] = ..., tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping]]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("welcome", "load", "unload", "update", "layout", "fold")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    FOLD_FIELD_NUMBER: _ClassVar[int]
    welcome: AttachWelcome
    load: LoadReplica
    unload: UnloadReplica
    update: UpdateReplica
    layout: SetLayout
    fold: FoldUsage
    def __init__(self, welcome: _Optional[_Union[AttachWelcome, _Mapping]] = ..., load: _Optional[_Union[LoadReplica, _Mapping]] = ..., unload: _Optional[_Union[UnloadReplica, _Mapping]] = ..., update: _Optional[_Union[UpdateReplica, _Mapping]] = ..., layout: _Optional[_Union[SetLayout, _Mapping]] = ..., fold: _Optional[_Union[FoldUsage, _Mapping]] = ...) -> None: ...

class AttachWelcome(_message.Message):
    __slots__ = ("epoch", "report_interval_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPORT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    report_interval_ms: int
    def __init__(self, epoch: _Optional[int] = ..., report_interval_ms: _Optional[int] = ...) -> None: ...

class LoadReplica(_message.Message):
    __slots__ = ("replica_id", "key", "version", "digest", "size_bytes", "config", "lane", "bandwidth", "weight", "objective_us", "traffic_class", "signature", "profile", "signers", "artefact_signature")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    replica_id: int
    key: _common_pb2.ModelKey
    version: int
    digest: str
    size_bytes: int
    config: bytes
    lane: int
    bandwidth: _common_pb2.Share
    weight: int
    objective_us: int
    traffic_class: _common_pb2.TrafficClass
    signature: _common_pb2.Signature
    profile: _common_pb2.Profile
    signers: _containers.RepeatedScalarFieldContainer[str]
    artefact_signature: bytes
    def __init__(self, replica_id: _Optional[int] = ..., key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., config: _Optional[bytes] = ..., lane: _Optional[int] = ..., bandwidth: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., weight: _Optional[int] = ..., objective_us: _Optional[int] = ..., traffic_class: _Optional[_Union[_common_pb2.TrafficClass, str]] = ..., signature: _Optional[_Union[_common_pb2.Signature, _Mapping]] = ..., profile: _Optional[_Union[_common_pb2.Profile, _Mapping]] = ..., signers: _Optional[_Iterable[str]] = ..., artefact_signature: _Optional[bytes] = ...) -> None: ...

class UnloadReplica(_message.Message):
    __slots__ = ("replica_id", "drain_us")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    DRAIN_US_FIELD_NUMBER: _ClassVar[int]
    replica_id: int
    drain_us: int
    def __init__(self, replica_id: _Optional[int] = ..., drain_us: _Optional[int] = ...) -> None: ...

class SetLayout(_message.Message):
    __slots__ = ("layout", "pinned")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    layout: int
    pinned: bool
    def __init__(self, layout: _Optional[int] = ..., pinned: bool = ...) -> None: ...

class FoldUsage(_message.Message):
    __slots__ = ("incarnation", "key", "life")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    key: _common_pb2.ModelKey
    life: int
    def __init__(self, incarnation: _Optional[str] = ..., key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., life: _Optional[int] = ...) -> None: ...

class UpdateReplica(_message.Message):
    __slots__ = ("replica_id", "bandwidth", "weight", "objective_us", "traffic_class")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    replica_id: int
    bandwidth: _common_pb2.Share
    weight: int
    objective_us: int
    traffic_class: _common_pb2.TrafficClass
    def __init__(self, replica_id: _Optional[int] = ..., bandwidth: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., weight: _Optional[int] = ..., objective_us: _Optional[int] = ..., traffic_class: _Optional[_Union[_common_pb2.TrafficClass, str]] = ...) -> None: ...

class WatchRoutesRequest(_message.Message):
    __slots__ = ("epoch", "after_revision")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    after_revision: int
    def __init__(self, epoch: _Optional[int] = ..., after_revision: _Optional[int] = ...) -> None: ...

class WatchRoutesResponse(_message.Message):
    __slots__ = ("epoch", "revision", "snapshot", "changes", "bookmark")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    revision: int
    snapshot: RouteSnapshot
    changes: RouteChanges
    bookmark: RouteBookmark
    def __init__(self, epoch: _Optional[int] = ..., revision: _Optional[int] = ..., snapshot: _Optional[_Union[RouteSnapshot, _Mapping]] = ..., changes: _Optional[_Union[RouteChanges, _Mapping]] = ..., bookmark: _Optional[_Union[RouteBookmark, _Mapping]] = ...) -> None: ...

class RouteSnapshot(_message.Message):
    __slots__ = ("routes", "first_part", "last_part")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    FIRST_PART_FIELD_NUMBER: _ClassVar[int]
    LAST_PART_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[ModelRoute]
    first_part: bool
    last_part: bool
    def __init__(self, routes: _Optional[_Iterable[_Union[ModelRoute, _Mapping]]] = ..., first_part: bool = ..., last_part: bool = ...) -> None: ...

class RouteChanges(_message.Message):
    __slots__ = ("routes", "removed")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[ModelRoute]
    removed: _containers.RepeatedCompositeFieldContainer[_common_pb2.ModelKey]
    def __init__(self, routes: _Optional[_Iterable[_Union[ModelRoute, _Mapping]]] = ..., removed: _Optional[_Iterable[_Union[_common_pb2.ModelKey, _Mapping]]] = ...) -> None: ...

class RouteBookmark(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelRoute(_message.Message):
    __slots__ = ("key", "slo", "traffic_class", "versions", "splits", "model_revision")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    slo: _common_pb2.Slo
    traffic_class: _common_pb2.TrafficClass
    versions: _containers.RepeatedCompositeFieldContainer[VersionRoute]
    splits: _containers.RepeatedCompositeFieldContainer[RouteSplit]
    model_revision: int
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., slo: _Optional[_Union[_common_pb2.Slo, _Mapping]] = ..., traffic_class: _Optional[_Union[_common_pb2.TrafficClass, str]] = ..., versions: _Optional[_Iterable[_Union[VersionRoute, _Mapping]]] = ..., splits: _Optional[_Iterable[_Union[RouteSplit, _Mapping]]] = ..., model_revision: _Optional[int] = ...) -> None: ...

class RouteSplit(_message.Message):
    __slots__ = ("version", "ppm")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PPM_FIELD_NUMBER: _ClassVar[int]
    version: int
    ppm: int
    def __init__(self, version: _Optional[int] = ..., ppm: _Optional[int] = ...) -> None: ...

class VersionRoute(_message.Message):
    __slots__ = ("version", "state", "message", "signature", "replicas")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    version: int
    state: VersionState
    message: str
    signature: _common_pb2.Signature
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaRoute]
    def __init__(self, version: _Optional[int] = ..., state: _Optional[_Union[VersionState, str]] = ..., message: _Optional[str] = ..., signature: _Optional[_Union[_common_pb2.Signature, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaRoute, _Mapping]]] = ...) -> None: ...

class ReplicaRoute(_message.Message):
    __slots__ = ("replica_id", "executor_id", "address")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    replica_id: int
    executor_id: str
    address: str
    def __init__(self, replica_id: _Optional[int] = ..., executor_id: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class GetFleetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFleetResponse(_message.Message):
    __slots__ = ("executors", "tenants", "epoch", "unplaced", "unpromised")
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    UNPLACED_FIELD_NUMBER: _ClassVar[int]
    UNPROMISED_FIELD_NUMBER: _ClassVar[int]
    executors: _containers.RepeatedCompositeFieldContainer[ExecutorStatus]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantStatus]
    epoch: int
    unplaced: _containers.RepeatedCompositeFieldContainer[UnplacedVersion]
    unpromised: _containers.RepeatedCompositeFieldContainer[UnpromisedVersion]
    def __init__(self, executors: _Optional[_Iterable[_Union[ExecutorStatus, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantStatus, _Mapping]]] = ..., epoch: _Optional[int] = ..., unplaced: _Optional[_Iterable[_Union[UnplacedVersion, _Mapping]]] = ..., unpromised: _Optional[_Iterable[_Union[UnpromisedVersion, _Mapping]]] = ...) -> None: ...

class UnpromisedVersion(_message.Message):
    __slots__ = ("key", "version", "verdict", "message")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    version: int
    verdict: ObjectiveVerdict
    message: str
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., verdict: _Optional[_Union[ObjectiveVerdict, str]] = ..., message: _Optional[str] = ...) -> None: ...

class UnplacedVersion(_message.Message):
    __slots__ = ("key", "version", "message")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    version: int
    message: str
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ExecutorStatus(_message.Message):
    __slots__ = ("executor_id", "address", "device", "report", "attached")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    address: str
    device: DeviceInfo
    report: ExecutorReport
    attached: bool
    def __init__(self, executor_id: _Optional[str] = ..., address: _Optional[str] = ..., device: _Optional[_Union[DeviceInfo, _Mapping]] = ..., report: _Optional[_Union[ExecutorReport, _Mapping]] = ..., attached: bool = ...) -> None: ...

class TenantStatus(_message.Message):
    __slots__ = ("tenant", "reservation", "weight", "device_ns", "requests", "compute_unit_ns", "batches", "used_ppm", "recent", "models")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNIT_NS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    USED_PPM_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    reservation: _common_pb2.Share
    weight: int
    device_ns: int
    requests: int
    compute_unit_ns: int
    batches: int
    used_ppm: int
    recent: RecentRequests
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, tenant: _Optional[str] = ..., reservation: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., weight: _Optional[int] = ..., device_ns: _Optional[int] = ..., requests: _Optional[int] = ..., compute_unit_ns: _Optional[int] = ..., batches: _Optional[int] = ..., used_ppm: _Optional[int] = ..., recent: _Optional[_Union[RecentRequests, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("key", "device_ns", "requests", "compute_unit_ns", "batches", "used_ppm", "recent")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNIT_NS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    USED_PPM_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    device_ns: int
    requests: int
    compute_unit_ns: int
    batches: int
    used_ppm: int
    recent: RecentRequests
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., device_ns: _Optional[int] = ..., requests: _Optional[int] = ..., compute_unit_ns: _Optional[int] = ..., batches: _Optional[int] = ..., used_ppm: _Optional[int] = ..., recent: _Optional[_Union[RecentRequests, _Mapping]] = ...) -> None: ...

class RecentRequests(_message.Message):
    __slots__ = ("window_ms", "requests", "within", "missed", "p99_us", "requests_per_s", "in_flight")
    WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    P99_US_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    window_ms: int
    requests: int
    within: int
    missed: int
    p99_us: int
    requests_per_s: float
    in_flight: int
    def __init__(self, window_ms: _Optional[int] = ..., requests: _Optional[int] = ..., within: _Optional[int] = ..., missed: _Optional[int] = ..., p99_us: _Optional[int] = ..., requests_per_s: _Optional[float] = ..., in_flight: _Optional[int] = ...) -> None: ...

class ReportRequestsRequest(_message.Message):
    __slots__ = ("frontend_id", "counts", "whole", "demands", "leases_serial", "leaving", "leases_whole")
    FRONTEND_ID_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    DEMANDS_FIELD_NUMBER: _ClassVar[int]
    LEASES_SERIAL_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    LEASES_WHOLE_FIELD_NUMBER: _ClassVar[int]
    frontend_id: str
    counts: _containers.RepeatedCompositeFieldContainer[RequestCounts]
    whole: bool
    demands: _containers.RepeatedCompositeFieldContainer[QuotaDemand]
    leases_serial: int
    leaving: bool
    leases_whole: bool
    def __init__(self, frontend_id: _Optional[str] = ..., counts: _Optional[_Iterable[_Union[RequestCounts, _Mapping]]] = ..., whole: bool = ..., demands: _Optional[_Iterable[_Union[QuotaDemand, _Mapping]]] = ..., leases_serial: _Optional[int] = ..., leaving: bool = ..., leases_whole: bool = ...) -> None: ...

class ReportRequestsResponse(_message.Message):
    __slots__ = ("epoch", "leases", "leases_serial", "lease_ms", "again_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    LEASES_SERIAL_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    AGAIN_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    leases: _containers.RepeatedCompositeFieldContainer[QuotaLease]
    leases_serial: int
    lease_ms: int
    again_ms: int
    def __init__(self, epoch: _Optional[int] = ..., leases: _Optional[_Iterable[_Union[QuotaLease, _Mapping]]] = ..., leases_serial: _Optional[int] = ..., lease_ms: _Optional[int] = ..., again_ms: _Optional[int] = ...) -> None: ...

class QuotaDemand(_message.Message):
    __slots__ = ("tenant", "microrequests_per_s", "in_flight", "concurrent", "held", "unleased")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MICROREQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    UNLEASED_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    microrequests_per_s: int
    in_flight: int
    concurrent: int
    held: QuotaLease
    unleased: bool
    def __init__(self, tenant: _Optional[str] = ..., microrequests_per_s: _Optional[int] = ..., in_flight: _Optional[int] = ..., concurrent: _Optional[int] = ..., held: _Optional[_Union[QuotaLease, _Mapping]] = ..., unleased: bool = ...) -> None: ...

class QuotaLease(_message.Message):
    __slots__ = ("tenant", "microrequests_per_s", "microburst", "mint", "concurrent", "device_requests", "device_level_ns", "device_retry_ms", "static_microrequests_per_s", "static_microburst", "static_concurrent")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MICROREQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    MICROBURST_FIELD_NUMBER: _ClassVar[int]
    MINT_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_LEVEL_NS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    STATIC_MICROREQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    STATIC_MICROBURST_FIELD_NUMBER: _ClassVar[int]
    STATIC_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    microrequests_per_s: int
    microburst: int
    mint: int
    concurrent: int
    device_requests: int
    device_level_ns: int
    device_retry_ms: int
    static_microrequests_per_s: int
    static_microburst: int
    static_concurrent: int
    def __init__(self, tenant: _Optional[str] = ..., microrequests_per_s: _Optional[int] = ..., microburst: _Optional[int] = ..., mint: _Optional[int] = ..., concurrent: _Optional[int] = ..., device_requests: _Optional[int] = ..., device_level_ns: _Optional[int] = ..., device_retry_ms: _Optional[int] = ..., static_microrequests_per_s: _Optional[int] = ..., static_microburst: _Optional[int] = ..., static_concurrent: _Optional[int] = ...) -> None: ...

class GetQuotasRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class GetQuotasResponse(_message.Message):
    __slots__ = ("quotas",)
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    quotas: _containers.RepeatedCompositeFieldContainer[QuotaUse]
    def __init__(self, quotas: _Optional[_Iterable[_Union[QuotaUse, _Mapping]]] = ...) -> None: ...

class QuotaUse(_message.Message):
    __slots__ = ("tenant", "limit_millirequests_per_s", "asked_millirequests_per_s", "limit_concurrent", "in_flight", "limit_device_ms", "device_interval_s", "device_left_ms", "limit_memory_bytes", "memory_bytes", "frontends")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MILLIREQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    ASKED_MILLIREQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    LIMIT_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_DEVICE_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRONTENDS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    limit_millirequests_per_s: int
    asked_millirequests_per_s: int
    limit_concurrent: int
    in_flight: int
    limit_device_ms: int
    device_interval_s: int
    device_left_ms: int
    limit_memory_bytes: int
    memory_bytes: int
    frontends: int
    def __init__(self, tenant: _Optional[str] = ..., limit_millirequests_per_s: _Optional[int] = ..., asked_millirequests_per_s: _Optional[int] = ..., limit_concurrent: _Optional[int] = ..., in_flight: _Optional[int] = ..., limit_device_ms: _Optional[int] = ..., device_interval_s: _Optional[int] = ..., device_left_ms: _Optional[int] = ..., limit_memory_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., frontends: _Optional[int] = ...) -> None: ...

class RequestCounts(_message.Message):
    __slots__ = ("key", "requests", "within", "missed", "in_flight", "latencies", "bytes")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    requests: int
    within: int
    missed: int
    in_flight: int
    latencies: _containers.RepeatedCompositeFieldContainer[LatencyCount]
    bytes: _containers.RepeatedCompositeFieldContainer[ByteCounts]
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., requests: _Optional[int] = ..., within: _Optional[int] = ..., missed: _Optional[int] = ..., in_flight: _Optional[int] = ..., latencies: _Optional[_Iterable[_Union[LatencyCount, _Mapping]]] = ..., bytes: _Optional[_Iterable[_Union[ByteCounts, _Mapping]]] = ...) -> None: ...

class ByteCounts(_message.Message):
    __slots__ = ("executor_id", "bytes_in", "bytes_out")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    bytes_in: int
    bytes_out: int
    def __init__(self, executor_id: _Optional[str] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ...) -> None: ...

class LatencyCount(_message.Message):
    __slots__ = ("bucket", "count")
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    bucket: int
    count: int
    def __init__(self, bucket: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class CheckReservationRequest(_message.Message):
    __slots__ = ("tenant", "reservation")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    reservation: _common_pb2.Share
    def __init__(self, tenant: _Optional[str] = ..., reservation: _Optional[_Union[_common_pb2.Share, _Mapping]] = ...) -> None: ...

class CheckReservationResponse(_message.Message):
    __slots__ = ("free_after", "capacity")
    FREE_AFTER_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    free_after: _common_pb2.Share
    capacity: _common_pb2.Share
    def __init__(self, free_after: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., capacity: _Optional[_Union[_common_pb2.Share, _Mapping]] = ...) -> None: ...

class SetExecutorLayoutRequest(_message.Message):
    __slots__ = ("executor_id", "layout")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    layout: str
    def __init__(self, executor_id: _Optional[str] = ..., layout: _Optional[str] = ...) -> None: ...

class SetExecutorLayoutResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetObjectiveRequest(_message.Message):
    __slots__ = ("key", "version", "reservation", "rate", "burst", "rows", "shape_bucket", "objective_us", "error", "way_us")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_BUCKET_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WAY_US_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    version: int
    reservation: _common_pb2.Share
    rate: float
    burst: int
    rows: int
    shape_bucket: str
    objective_us: int
    error: float
    way_us: int
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., reservation: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., rate: _Optional[float] = ..., burst: _Optional[int] = ..., rows: _Optional[int] = ..., shape_bucket: _Optional[str] = ..., objective_us: _Optional[int] = ..., error: _Optional[float] = ..., way_us: _Optional[int] = ...) -> None: ...

class GetObjectiveResponse(_message.Message):
    __slots__ = ("answers", "version")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[ObjectiveAnswer]
    version: int
    def __init__(self, answers: _Optional[_Iterable[_Union[ObjectiveAnswer, _Mapping]]] = ..., version: _Optional[int] = ...) -> None: ...

class ObjectiveAnswer(_message.Message):
    __slots__ = ("device_kind", "compute_units", "lane", "reservation", "verdict", "message", "least_objective_us", "cost_us", "burst_us", "slices_us", "way_us", "most_rate", "reservation_needed", "least_whole_us", "serves")
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNITS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LEAST_OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    COST_US_FIELD_NUMBER: _ClassVar[int]
    BURST_US_FIELD_NUMBER: _ClassVar[int]
    SLICES_US_FIELD_NUMBER: _ClassVar[int]
    WAY_US_FIELD_NUMBER: _ClassVar[int]
    MOST_RATE_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_NEEDED_FIELD_NUMBER: _ClassVar[int]
    LEAST_WHOLE_US_FIELD_NUMBER: _ClassVar[int]
    SERVES_FIELD_NUMBER: _ClassVar[int]
    device_kind: str
    compute_units: int
    lane: _common_pb2.Share
    reservation: _common_pb2.Share
    verdict: ObjectiveVerdict
    message: str
    least_objective_us: int
    cost_us: int
    burst_us: int
    slices_us: int
    way_us: int
    most_rate: float
    reservation_needed: _common_pb2.Share
    least_whole_us: int
    serves: bool
    def __init__(self, device_kind: _Optional[str] = ..., compute_units: _Optional[int] = ..., lane: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., reservation: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., verdict: _Optional[_Union[ObjectiveVerdict, str]] = ..., message: _Optional[str] = ..., least_objective_us: _Optional[int] = ..., cost_us: _Optional[int] = ..., burst_us: _Optional[int] = ..., slices_us: _Optional[int] = ..., way_us: _Optional[int] = ..., most_rate: _Optional[float] = ..., reservation_needed: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., least_whole_us: _Optional[int] = ..., serves: bool = ...) -> None: ...
