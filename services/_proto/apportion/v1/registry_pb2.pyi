import datetime

from services._proto.apportion.v1 import common_pb2 as _common_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeyRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEY_ROLE_UNSPECIFIED: _ClassVar[KeyRole]
    KEY_ROLE_TENANT: _ClassVar[KeyRole]
    KEY_ROLE_TENANT_ADMIN: _ClassVar[KeyRole]

class ArtefactFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTEFACT_FORMAT_UNSPECIFIED: _ClassVar[ArtefactFormat]
    ARTEFACT_FORMAT_ONNX: _ClassVar[ArtefactFormat]
    ARTEFACT_FORMAT_TORCH_EXPORT: _ClassVar[ArtefactFormat]
    ARTEFACT_FORMAT_PYTHON: _ClassVar[ArtefactFormat]

class Inspection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INSPECTION_UNSPECIFIED: _ClassVar[Inspection]
    INSPECTION_PENDING: _ClassVar[Inspection]
    INSPECTION_PASSED: _ClassVar[Inspection]
    INSPECTION_REFUSED: _ClassVar[Inspection]

class Isolation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ISOLATION_UNSPECIFIED: _ClassVar[Isolation]
    ISOLATION_SHARED: _ClassVar[Isolation]
    ISOLATION_PROCESS: _ClassVar[Isolation]
KEY_ROLE_UNSPECIFIED: KeyRole
KEY_ROLE_TENANT: KeyRole
KEY_ROLE_TENANT_ADMIN: KeyRole
ARTEFACT_FORMAT_UNSPECIFIED: ArtefactFormat
ARTEFACT_FORMAT_ONNX: ArtefactFormat
ARTEFACT_FORMAT_TORCH_EXPORT: ArtefactFormat
ARTEFACT_FORMAT_PYTHON: ArtefactFormat
INSPECTION_UNSPECIFIED: Inspection
INSPECTION_PENDING: Inspection
INSPECTION_PASSED: Inspection
INSPECTION_REFUSED: Inspection
ISOLATION_UNSPECIFIED: Isolation
ISOLATION_SHARED: Isolation
ISOLATION_PROCESS: Isolation

class Tenant(_message.Message):
    __slots__ = ("name", "reservation", "weight", "keys", "created_at", "revision", "quota", "signers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    reservation: _common_pb2.Share
    weight: int
    keys: _containers.RepeatedCompositeFieldContainer[ApiKey]
    created_at: _timestamp_pb2.Timestamp
    revision: int
    quota: Quota
    signers: _containers.RepeatedCompositeFieldContainer[Signer]
    def __init__(self, name: _Optional[str] = ..., reservation: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., weight: _Optional[int] = ..., keys: _Optional[_Iterable[_Union[ApiKey, _Mapping]]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., quota: _Optional[_Union[Quota, _Mapping]] = ..., signers: _Optional[_Iterable[_Union[Signer, _Mapping]]] = ...) -> None: ...

class Signer(_message.Message):
    __slots__ = ("id", "pem")
    ID_FIELD_NUMBER: _ClassVar[int]
    PEM_FIELD_NUMBER: _ClassVar[int]
    id: str
    pem: str
    def __init__(self, id: _Optional[str] = ..., pem: _Optional[str] = ...) -> None: ...

class Signers(_message.Message):
    __slots__ = ("signers",)
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    signers: _containers.RepeatedCompositeFieldContainer[Signer]
    def __init__(self, signers: _Optional[_Iterable[_Union[Signer, _Mapping]]] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("millirequests_per_s", "burst", "concurrent_requests", "device_ms", "device_interval_s", "memory_bytes", "stored_bytes")
    MILLIREQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    CONCURRENT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    millirequests_per_s: int
    burst: int
    concurrent_requests: int
    device_ms: int
    device_interval_s: int
    memory_bytes: int
    stored_bytes: int
    def __init__(self, millirequests_per_s: _Optional[int] = ..., burst: _Optional[int] = ..., concurrent_requests: _Optional[int] = ..., device_ms: _Optional[int] = ..., device_interval_s: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class ApiKey(_message.Message):
    __slots__ = ("id", "sha256", "created_at", "role", "expires_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    sha256: bytes
    created_at: _timestamp_pb2.Timestamp
    role: KeyRole
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., sha256: _Optional[bytes] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., role: _Optional[_Union[KeyRole, str]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class VersionConfig(_message.Message):
    __slots__ = ("format", "max_batch_size", "batch_axes", "warmup", "declared", "queue")
    class BatchAxesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_AXES_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    format: ArtefactFormat
    max_batch_size: int
    batch_axes: _containers.ScalarMap[str, int]
    warmup: _containers.RepeatedCompositeFieldContainer[WarmupTensor]
    declared: _common_pb2.Signature
    queue: QueueLimits
    def __init__(self, format: _Optional[_Union[ArtefactFormat, str]] = ..., max_batch_size: _Optional[int] = ..., batch_axes: _Optional[_Mapping[str, int]] = ..., warmup: _Optional[_Iterable[_Union[WarmupTensor, _Mapping]]] = ..., declared: _Optional[_Union[_common_pb2.Signature, _Mapping]] = ..., queue: _Optional[_Union[QueueLimits, _Mapping]] = ...) -> None: ...

class QueueLimits(_message.Message):
    __slots__ = ("max_waiting", "deadline_us", "priority_levels", "default_priority")
    MAX_WAITING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_LEVELS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    max_waiting: int
    deadline_us: int
    priority_levels: int
    default_priority: int
    def __init__(self, max_waiting: _Optional[int] = ..., deadline_us: _Optional[int] = ..., priority_levels: _Optional[int] = ..., default_priority: _Optional[int] = ...) -> None: ...

class WarmupTensor(_message.Message):
    __slots__ = ("name", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("version", "digest", "size_bytes", "config", "created_at", "inspection", "inspection_message", "signature", "profiles", "artefact_signature")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    INSPECTION_FIELD_NUMBER: _ClassVar[int]
    INSPECTION_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PROFILES_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    size_bytes: int
    config: VersionConfig
    created_at: _timestamp_pb2.Timestamp
    inspection: Inspection
    inspection_message: str
    signature: _common_pb2.Signature
    profiles: _containers.RepeatedCompositeFieldContainer[_common_pb2.Profile]
    artefact_signature: bytes
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., config: _Optional[_Union[VersionConfig, _Mapping]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., inspection: _Optional[_Union[Inspection, str]] = ..., inspection_message: _Optional[str] = ..., signature: _Optional[_Union[_common_pb2.Signature, _Mapping]] = ..., profiles: _Optional[_Iterable[_Union[_common_pb2.Profile, _Mapping]]] = ..., artefact_signature: _Optional[bytes] = ...) -> None: ...

class TrafficSplit(_message.Message):
    __slots__ = ("version", "ppm")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PPM_FIELD_NUMBER: _ClassVar[int]
    version: int
    ppm: int
    def __init__(self, version: _Optional[int] = ..., ppm: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("key", "slo", "traffic_class", "isolation", "replicas", "versions", "traffic", "revision", "unloaded", "slos", "shared_with")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UNLOADED_FIELD_NUMBER: _ClassVar[int]
    SLOS_FIELD_NUMBER: _ClassVar[int]
    SHARED_WITH_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    slo: _common_pb2.Slo
    traffic_class: _common_pb2.TrafficClass
    isolation: Isolation
    replicas: int
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    traffic: _containers.RepeatedCompositeFieldContainer[TrafficSplit]
    revision: int
    unloaded: bool
    slos: _containers.RepeatedCompositeFieldContainer[ModelSlo]
    shared_with: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., slo: _Optional[_Union[_common_pb2.Slo, _Mapping]] = ..., traffic_class: _Optional[_Union[_common_pb2.TrafficClass, str]] = ..., isolation: _Optional[_Union[Isolation, str]] = ..., replicas: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., traffic: _Optional[_Iterable[_Union[TrafficSplit, _Mapping]]] = ..., revision: _Optional[int] = ..., unloaded: bool = ..., slos: _Optional[_Iterable[_Union[ModelSlo, _Mapping]]] = ..., shared_with: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelSlo(_message.Message):
    __slots__ = ("name", "slo")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    name: str
    slo: _common_pb2.Slo
    def __init__(self, name: _Optional[str] = ..., slo: _Optional[_Union[_common_pb2.Slo, _Mapping]] = ...) -> None: ...

class CreateTenantRequest(_message.Message):
    __slots__ = ("name", "reservation", "weight", "quota")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    name: str
    reservation: _common_pb2.Share
    weight: int
    quota: Quota
    def __init__(self, name: _Optional[str] = ..., reservation: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., weight: _Optional[int] = ..., quota: _Optional[_Union[Quota, _Mapping]] = ...) -> None: ...

class CreateTenantResponse(_message.Message):
    __slots__ = ("tenant", "api_key")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    tenant: Tenant
    api_key: str
    def __init__(self, tenant: _Optional[_Union[Tenant, _Mapping]] = ..., api_key: _Optional[str] = ...) -> None: ...

class GetTenantRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetTenantResponse(_message.Message):
    __slots__ = ("tenant", "stored_bytes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tenant: Tenant
    stored_bytes: int
    def __init__(self, tenant: _Optional[_Union[Tenant, _Mapping]] = ..., stored_bytes: _Optional[int] = ...) -> None: ...

class ListTenantsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTenantsResponse(_message.Message):
    __slots__ = ("tenants", "next_page_token")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    next_page_token: str
    def __init__(self, tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateTenantRequest(_message.Message):
    __slots__ = ("name", "reservation", "weight", "quota", "signers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESERVATION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    reservation: _common_pb2.Share
    weight: int
    quota: Quota
    signers: Signers
    def __init__(self, name: _Optional[str] = ..., reservation: _Optional[_Union[_common_pb2.Share, _Mapping]] = ..., weight: _Optional[int] = ..., quota: _Optional[_Union[Quota, _Mapping]] = ..., signers: _Optional[_Union[Signers, _Mapping]] = ...) -> None: ...

class UpdateTenantResponse(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: Tenant
    def __init__(self, tenant: _Optional[_Union[Tenant, _Mapping]] = ...) -> None: ...

class DeleteTenantRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteTenantResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateApiKeyRequest(_message.Message):
    __slots__ = ("tenant", "role", "lifetime_s")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    role: KeyRole
    lifetime_s: int
    def __init__(self, tenant: _Optional[str] = ..., role: _Optional[_Union[KeyRole, str]] = ..., lifetime_s: _Optional[int] = ...) -> None: ...

class CreateApiKeyResponse(_message.Message):
    __slots__ = ("key", "api_key")
    KEY_FIELD_NUMBER: _ClassVar[int]
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    key: ApiKey
    api_key: str
    def __init__(self, key: _Optional[_Union[ApiKey, _Mapping]] = ..., api_key: _Optional[str] = ...) -> None: ...

class RotateApiKeyRequest(_message.Message):
    __slots__ = ("tenant", "key_id", "overlap_s")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_S_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key_id: str
    overlap_s: int
    def __init__(self, tenant: _Optional[str] = ..., key_id: _Optional[str] = ..., overlap_s: _Optional[int] = ...) -> None: ...

class RotateApiKeyResponse(_message.Message):
    __slots__ = ("key", "api_key")
    KEY_FIELD_NUMBER: _ClassVar[int]
    API_KEY_FIELD_NUMBER: _ClassVar[int]
    key: ApiKey
    api_key: str
    def __init__(self, key: _Optional[_Union[ApiKey, _Mapping]] = ..., api_key: _Optional[str] = ...) -> None: ...

class RevokeApiKeyRequest(_message.Message):
    __slots__ = ("tenant", "key_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key_id: str
    def __init__(self, tenant: _Optional[str] = ..., key_id: _Optional[str] = ...) -> None: ...

class RevokeApiKeyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UploadArtefactRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: ArtefactHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[ArtefactHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ArtefactHeader(_message.Message):
    __slots__ = ("tenant", "digest", "size_bytes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    digest: str
    size_bytes: int
    def __init__(self, tenant: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class UploadArtefactResponse(_message.Message):
    __slots__ = ("digest", "existed")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    digest: str
    existed: bool
    def __init__(self, digest: _Optional[str] = ..., existed: bool = ...) -> None: ...

class DownloadArtefactRequest(_message.Message):
    __slots__ = ("tenant", "digest")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    digest: str
    def __init__(self, tenant: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class DownloadArtefactResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class CreateVersionRequest(_message.Message):
    __slots__ = ("key", "version", "digest", "config", "slo", "traffic_class", "isolation", "replicas", "artefact_signature")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    version: int
    digest: str
    config: VersionConfig
    slo: _common_pb2.Slo
    traffic_class: _common_pb2.TrafficClass
    isolation: Isolation
    replicas: int
    artefact_signature: bytes
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., config: _Optional[_Union[VersionConfig, _Mapping]] = ..., slo: _Optional[_Union[_common_pb2.Slo, _Mapping]] = ..., traffic_class: _Optional[_Union[_common_pb2.TrafficClass, str]] = ..., isolation: _Optional[_Union[Isolation, str]] = ..., replicas: _Optional[int] = ..., artefact_signature: _Optional[bytes] = ...) -> None: ...

class CreateVersionResponse(_message.Message):
    __slots__ = ("model", "version", "existed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    model: Model
    version: int
    existed: bool
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., version: _Optional[int] = ..., existed: bool = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("tenant", "page_size", "page_token")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    page_size: int
    page_token: str
    def __init__(self, tenant: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateModelRequest(_message.Message):
    __slots__ = ("key", "slo", "traffic_class", "isolation", "replicas", "traffic", "expected_revision", "unloaded")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    UNLOADED_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    slo: _common_pb2.Slo
    traffic_class: _common_pb2.TrafficClass
    isolation: Isolation
    replicas: int
    traffic: _containers.RepeatedCompositeFieldContainer[TrafficSplit]
    expected_revision: int
    unloaded: bool
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., slo: _Optional[_Union[_common_pb2.Slo, _Mapping]] = ..., traffic_class: _Optional[_Union[_common_pb2.TrafficClass, str]] = ..., isolation: _Optional[_Union[Isolation, str]] = ..., replicas: _Optional[int] = ..., traffic: _Optional[_Iterable[_Union[TrafficSplit, _Mapping]]] = ..., expected_revision: _Optional[int] = ..., unloaded: bool = ...) -> None: ...

class UpdateModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class DeleteModelRequest(_message.Message):
    __slots__ = ("key", "version")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    version: int
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class DeleteModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShareModelRequest(_message.Message):
    __slots__ = ("key", "with_tenant", "revoked")
    KEY_FIELD_NUMBER: _ClassVar[int]
    WITH_TENANT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    with_tenant: str
    revoked: bool
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., with_tenant: _Optional[str] = ..., revoked: bool = ...) -> None: ...

class ShareModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("tenant", "page_size", "page_token")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    page_size: int
    page_token: str
    def __init__(self, tenant: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("at", "actor", "actor_tenant", "action", "tenant", "object", "revision")
    AT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTOR_TENANT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    actor: str
    actor_tenant: str
    action: str
    tenant: str
    object: str
    revision: int
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[str] = ..., actor_tenant: _Optional[str] = ..., action: _Optional[str] = ..., tenant: _Optional[str] = ..., object: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SetModelSloRequest(_message.Message):
    __slots__ = ("key", "slo")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SLO_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    slo: ModelSlo
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., slo: _Optional[_Union[ModelSlo, _Mapping]] = ...) -> None: ...

class SetModelSloResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class RemoveModelSloRequest(_message.Message):
    __slots__ = ("key", "name")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    name: str
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class RemoveModelSloResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class RecordInspectionRequest(_message.Message):
    __slots__ = ("key", "version", "passed", "refused")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    version: int
    passed: InspectionPassed
    refused: InspectionRefused
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., passed: _Optional[_Union[InspectionPassed, _Mapping]] = ..., refused: _Optional[_Union[InspectionRefused, _Mapping]] = ...) -> None: ...

class InspectionPassed(_message.Message):
    __slots__ = ("signature", "profile")
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    signature: _common_pb2.Signature
    profile: _common_pb2.Profile
    def __init__(self, signature: _Optional[_Union[_common_pb2.Signature, _Mapping]] = ..., profile: _Optional[_Union[_common_pb2.Profile, _Mapping]] = ...) -> None: ...

class InspectionRefused(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class RecordInspectionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchCatalogueRequest(_message.Message):
    __slots__ = ("after_revision",)
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    after_revision: int
    def __init__(self, after_revision: _Optional[int] = ...) -> None: ...

class WatchCatalogueResponse(_message.Message):
    __slots__ = ("revision", "snapshot", "changes", "bookmark")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    BOOKMARK_FIELD_NUMBER: _ClassVar[int]
    revision: int
    snapshot: CatalogueSnapshot
    changes: CatalogueChanges
    bookmark: Bookmark
    def __init__(self, revision: _Optional[int] = ..., snapshot: _Optional[_Union[CatalogueSnapshot, _Mapping]] = ..., changes: _Optional[_Union[CatalogueChanges, _Mapping]] = ..., bookmark: _Optional[_Union[Bookmark, _Mapping]] = ...) -> None: ...

class CatalogueSnapshot(_message.Message):
    __slots__ = ("tenants", "models", "first_part", "last_part")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    FIRST_PART_FIELD_NUMBER: _ClassVar[int]
    LAST_PART_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    first_part: bool
    last_part: bool
    def __init__(self, tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., first_part: bool = ..., last_part: bool = ...) -> None: ...

class CatalogueChanges(_message.Message):
    __slots__ = ("tenants", "models", "removed_tenants", "removed_models")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TENANTS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_MODELS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    removed_tenants: _containers.RepeatedScalarFieldContainer[str]
    removed_models: _containers.RepeatedCompositeFieldContainer[_common_pb2.ModelKey]
    def __init__(self, tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., removed_tenants: _Optional[_Iterable[str]] = ..., removed_models: _Optional[_Iterable[_Union[_common_pb2.ModelKey, _Mapping]]] = ...) -> None: ...

class Bookmark(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RecordUsageRequest(_message.Message):
    __slots__ = ("books",)
    BOOKS_FIELD_NUMBER: _ClassVar[int]
    books: _containers.RepeatedCompositeFieldContainer[UsageBook]
    def __init__(self, books: _Optional[_Iterable[_Union[UsageBook, _Mapping]]] = ...) -> None: ...

class UsageBook(_message.Message):
    __slots__ = ("tenant", "executor_id", "book", "device_kind", "device_compute_units", "total", "models")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    BOOK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_COMPUTE_UNITS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    executor_id: str
    book: str
    device_kind: str
    device_compute_units: int
    total: UsageCounts
    models: _containers.RepeatedCompositeFieldContainer[ModelUsage]
    def __init__(self, tenant: _Optional[str] = ..., executor_id: _Optional[str] = ..., book: _Optional[str] = ..., device_kind: _Optional[str] = ..., device_compute_units: _Optional[int] = ..., total: _Optional[_Union[UsageCounts, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelUsage, _Mapping]]] = ...) -> None: ...

class ModelUsage(_message.Message):
    __slots__ = ("name", "life", "counts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    life: int
    counts: UsageCounts
    def __init__(self, name: _Optional[str] = ..., life: _Optional[int] = ..., counts: _Optional[_Union[UsageCounts, _Mapping]] = ...) -> None: ...

class UsageCounts(_message.Message):
    __slots__ = ("device_ns", "compute_unit_ns", "requests", "batches", "bytes_in", "bytes_out")
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNIT_NS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    device_ns: int
    compute_unit_ns: int
    requests: int
    batches: int
    bytes_in: int
    bytes_out: int
    def __init__(self, device_ns: _Optional[int] = ..., compute_unit_ns: _Optional[int] = ..., requests: _Optional[int] = ..., batches: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ...) -> None: ...

class RecordUsageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("tenant", "model", "since", "until", "page_size", "page_token")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    model: str
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, tenant: _Optional[str] = ..., model: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("rows", "next_page_token")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    next_page_token: str
    def __init__(self, rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("key", "hour", "device_kind", "device_compute_units", "counts", "whole_device_ns", "price_nanos", "cost_nanos")
    KEY_FIELD_NUMBER: _ClassVar[int]
    HOUR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_COMPUTE_UNITS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    PRICE_NANOS_FIELD_NUMBER: _ClassVar[int]
    COST_NANOS_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    hour: _timestamp_pb2.Timestamp
    device_kind: str
    device_compute_units: int
    counts: UsageCounts
    whole_device_ns: int
    price_nanos: int
    cost_nanos: int
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., hour: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., device_kind: _Optional[str] = ..., device_compute_units: _Optional[int] = ..., counts: _Optional[_Union[UsageCounts, _Mapping]] = ..., whole_device_ns: _Optional[int] = ..., price_nanos: _Optional[int] = ..., cost_nanos: _Optional[int] = ...) -> None: ...

class SetPriceRequest(_message.Message):
    __slots__ = ("device_kind", "price_nanos")
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    PRICE_NANOS_FIELD_NUMBER: _ClassVar[int]
    device_kind: str
    price_nanos: int
    def __init__(self, device_kind: _Optional[str] = ..., price_nanos: _Optional[int] = ...) -> None: ...

class SetPriceResponse(_message.Message):
    __slots__ = ("price",)
    PRICE_FIELD_NUMBER: _ClassVar[int]
    price: Price
    def __init__(self, price: _Optional[_Union[Price, _Mapping]] = ...) -> None: ...

class ListPricesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPricesResponse(_message.Message):
    __slots__ = ("prices",)
    PRICES_FIELD_NUMBER: _ClassVar[int]
    prices: _containers.RepeatedCompositeFieldContainer[Price]
    def __init__(self, prices: _Optional[_Iterable[_Union[Price, _Mapping]]] = ...) -> None: ...

class Price(_message.Message):
    __slots__ = ("device_kind", "since", "price_nanos")
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    PRICE_NANOS_FIELD_NUMBER: _ClassVar[int]
    device_kind: str
    since: _timestamp_pb2.Timestamp
    price_nanos: int
    def __init__(self, device_kind: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., price_nanos: _Optional[int] = ...) -> None: ...
