from services._proto.apportion.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STREAM_KIND_UNSPECIFIED: _ClassVar[StreamKind]
    STREAM_KIND_PRIMARY: _ClassVar[StreamKind]
    STREAM_KIND_BULK: _ClassVar[StreamKind]
STREAM_KIND_UNSPECIFIED: StreamKind
STREAM_KIND_PRIMARY: StreamKind
STREAM_KIND_BULK: StreamKind

class ExecuteRequest(_message.Message):
    __slots__ = ("hello", "infers", "chunks", "cancels", "verdicts", "credits")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    INFERS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    hello: ExecuteHello
    infers: _containers.RepeatedCompositeFieldContainer[Infer]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    cancels: _containers.RepeatedCompositeFieldContainer[Cancel]
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    credits: _containers.RepeatedCompositeFieldContainer[Credit]
    def __init__(self, hello: _Optional[_Union[ExecuteHello, _Mapping]] = ..., infers: _Optional[_Iterable[_Union[Infer, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., credits: _Optional[_Iterable[_Union[Credit, _Mapping]]] = ...) -> None: ...

class ExecuteResponse(_message.Message):
    __slots__ = ("welcome", "results", "chunks", "loads", "credits")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    welcome: ExecuteWelcome
    results: _containers.RepeatedCompositeFieldContainer[Result]
    chunks: _containers.RepeatedCompositeFieldContainer[Chunk]
    loads: _containers.RepeatedCompositeFieldContainer[Load]
    credits: _containers.RepeatedCompositeFieldContainer[Credit]
    def __init__(self, welcome: _Optional[_Union[ExecuteWelcome, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., chunks: _Optional[_Iterable[_Union[Chunk, _Mapping]]] = ..., loads: _Optional[_Iterable[_Union[Load, _Mapping]]] = ..., credits: _Optional[_Iterable[_Union[Credit, _Mapping]]] = ...) -> None: ...

class ExecuteHello(_message.Message):
    __slots__ = ("frontend_id", "session", "kind", "tenant_credit_bytes")
    FRONTEND_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TENANT_CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    frontend_id: str
    session: bytes
    kind: StreamKind
    tenant_credit_bytes: int
    def __init__(self, frontend_id: _Optional[str] = ..., session: _Optional[bytes] = ..., kind: _Optional[_Union[StreamKind, str]] = ..., tenant_credit_bytes: _Optional[int] = ...) -> None: ...

class ExecuteWelcome(_message.Message):
    __slots__ = ("executor_id", "incarnation", "inline_bytes", "tenant_credit_bytes", "opens_regions")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    INLINE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TENANT_CREDIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPENS_REGIONS_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    incarnation: str
    inline_bytes: int
    tenant_credit_bytes: int
    opens_regions: bool
    def __init__(self, executor_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., inline_bytes: _Optional[int] = ..., tenant_credit_bytes: _Optional[int] = ..., opens_regions: bool = ...) -> None: ...

class Infer(_message.Message):
    __slots__ = ("call", "replica_id", "payload", "bulk_bytes", "deadline_us", "objective_us", "priority", "span", "tenant")
    CALL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    BULK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    call: int
    replica_id: int
    payload: bytes
    bulk_bytes: int
    deadline_us: int
    objective_us: int
    priority: int
    span: SpanContext
    tenant: str
    def __init__(self, call: _Optional[int] = ..., replica_id: _Optional[int] = ..., payload: _Optional[bytes] = ..., bulk_bytes: _Optional[int] = ..., deadline_us: _Optional[int] = ..., objective_us: _Optional[int] = ..., priority: _Optional[int] = ..., span: _Optional[_Union[SpanContext, _Mapping]] = ..., tenant: _Optional[str] = ...) -> None: ...

class SpanContext(_message.Message):
    __slots__ = ("trace_id", "span_id")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    trace_id: bytes
    span_id: bytes
    def __init__(self, trace_id: _Optional[bytes] = ..., span_id: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("call", "offset", "data")
    CALL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    call: int
    offset: int
    data: bytes
    def __init__(self, call: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: int
    def __init__(self, call: _Optional[int] = ...) -> None: ...

class Stages(_message.Message):
    __slots__ = ("decode_ns", "queue_ns", "batch_ns", "compute_ns", "preempted_ns", "encode_ns", "batch_rows", "lane", "rows", "batch_requests")
    DECODE_NS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    BATCH_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_NS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BATCH_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    decode_ns: int
    queue_ns: int
    batch_ns: int
    compute_ns: int
    preempted_ns: int
    encode_ns: int
    batch_rows: int
    lane: int
    rows: int
    batch_requests: int
    def __init__(self, decode_ns: _Optional[int] = ..., queue_ns: _Optional[int] = ..., batch_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., preempted_ns: _Optional[int] = ..., encode_ns: _Optional[int] = ..., batch_rows: _Optional[int] = ..., lane: _Optional[int] = ..., rows: _Optional[int] = ..., batch_requests: _Optional[int] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("call", "payload", "bulk_bytes", "status", "stages")
    CALL_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    BULK_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    call: int
    payload: bytes
    bulk_bytes: int
    status: bytes
    stages: Stages
    def __init__(self, call: _Optional[int] = ..., payload: _Optional[bytes] = ..., bulk_bytes: _Optional[int] = ..., status: _Optional[bytes] = ..., stages: _Optional[_Union[Stages, _Mapping]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("call", "violated", "keep")
    CALL_FIELD_NUMBER: _ClassVar[int]
    VIOLATED_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    call: int
    violated: bool
    keep: bool
    def __init__(self, call: _Optional[int] = ..., violated: bool = ..., keep: bool = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("replica_id", "waiting_requests", "expected_wait_us")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    replica_id: int
    waiting_requests: int
    expected_wait_us: int
    def __init__(self, replica_id: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., expected_wait_us: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("tenant", "bytes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    bytes: int
    def __init__(self, tenant: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class OpenRegionRequest(_message.Message):
    __slots__ = ("session", "region", "tenant", "handle", "byte_size", "machine")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    BYTE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    region: str
    tenant: str
    handle: bytes
    byte_size: int
    machine: str
    def __init__(self, session: _Optional[bytes] = ..., region: _Optional[str] = ..., tenant: _Optional[str] = ..., handle: _Optional[bytes] = ..., byte_size: _Optional[int] = ..., machine: _Optional[str] = ...) -> None: ...

class OpenRegionResponse(_message.Message):
    __slots__ = ("memory_bytes",)
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    def __init__(self, memory_bytes: _Optional[int] = ...) -> None: ...

class CloseRegionRequest(_message.Message):
    __slots__ = ("region",)
    REGION_FIELD_NUMBER: _ClassVar[int]
    region: str
    def __init__(self, region: _Optional[str] = ...) -> None: ...

class CloseRegionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatisticsRequest(_message.Message):
    __slots__ = ("tenant", "model")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    model: str
    def __init__(self, tenant: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class GetStatisticsResponse(_message.Message):
    __slots__ = ("incarnation", "versions")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    versions: _containers.RepeatedCompositeFieldContainer[VersionStatistics]
    def __init__(self, incarnation: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[VersionStatistics, _Mapping]]] = ...) -> None: ...

class VersionStatistics(_message.Message):
    __slots__ = ("key", "version", "rows", "batches", "answered", "answered_ns", "failed", "failed_ns", "decode_ns", "queue_ns", "compute_ns", "encode_ns", "by_rows", "last_arrival_ms")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_NS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILED_NS_FIELD_NUMBER: _ClassVar[int]
    DECODE_NS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_NS_FIELD_NUMBER: _ClassVar[int]
    BY_ROWS_FIELD_NUMBER: _ClassVar[int]
    LAST_ARRIVAL_MS_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    version: int
    rows: int
    batches: int
    answered: int
    answered_ns: int
    failed: int
    failed_ns: int
    decode_ns: int
    queue_ns: int
    compute_ns: int
    encode_ns: int
    by_rows: _containers.RepeatedCompositeFieldContainer[BatchStatistics]
    last_arrival_ms: int
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., version: _Optional[int] = ..., rows: _Optional[int] = ..., batches: _Optional[int] = ..., answered: _Optional[int] = ..., answered_ns: _Optional[int] = ..., failed: _Optional[int] = ..., failed_ns: _Optional[int] = ..., decode_ns: _Optional[int] = ..., queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., encode_ns: _Optional[int] = ..., by_rows: _Optional[_Iterable[_Union[BatchStatistics, _Mapping]]] = ..., last_arrival_ms: _Optional[int] = ...) -> None: ...

class BatchStatistics(_message.Message):
    __slots__ = ("rows", "batches", "compute_ns", "decode_ns", "encode_ns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    DECODE_NS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_NS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    batches: int
    compute_ns: int
    decode_ns: int
    encode_ns: int
    def __init__(self, rows: _Optional[int] = ..., batches: _Optional[int] = ..., compute_ns: _Optional[int] = ..., decode_ns: _Optional[int] = ..., encode_ns: _Optional[int] = ...) -> None: ...
