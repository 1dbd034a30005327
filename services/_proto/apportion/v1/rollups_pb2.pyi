import datetime

from services._proto.apportion.v1 import common_pb2 as _common_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReadRollupsRequest(_message.Message):
    __slots__ = ("start", "end", "tenant", "model")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    start: _timestamp_pb2.Timestamp
    end: _timestamp_pb2.Timestamp
    tenant: str
    model: str
    def __init__(self, start: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class ReadRollupsResponse(_message.Message):
    __slots__ = ("rollups",)
    ROLLUPS_FIELD_NUMBER: _ClassVar[int]
    rollups: _containers.RepeatedCompositeFieldContainer[Rollup]
    def __init__(self, rollups: _Optional[_Iterable[_Union[Rollup, _Mapping]]] = ...) -> None: ...

class Rollup(_message.Message):
    __slots__ = ("key", "start", "width_s", "outcomes", "met", "missed", "violated", "within", "scale", "latencies", "sum_us", "kept", "kept_violated", "causes", "worst")
    class OutcomesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CausesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    WIDTH_S_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    VIOLATED_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    LATENCIES_FIELD_NUMBER: _ClassVar[int]
    SUM_US_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    KEPT_VIOLATED_FIELD_NUMBER: _ClassVar[int]
    CAUSES_FIELD_NUMBER: _ClassVar[int]
    WORST_FIELD_NUMBER: _ClassVar[int]
    key: _common_pb2.ModelKey
    start: _timestamp_pb2.Timestamp
    width_s: int
    outcomes: _containers.ScalarMap[str, int]
    met: int
    missed: int
    violated: int
    within: _containers.RepeatedCompositeFieldContainer[WithinCount]
    scale: int
    latencies: _containers.RepeatedCompositeFieldContainer[LatencyBucket]
    sum_us: int
    kept: int
    kept_violated: int
    causes: _containers.ScalarMap[str, int]
    worst: _containers.RepeatedCompositeFieldContainer[WorstRequest]
    def __init__(self, key: _Optional[_Union[_common_pb2.ModelKey, _Mapping]] = ..., start: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., width_s: _Optional[int] = ..., outcomes: _Optional[_Mapping[str, int]] = ..., met: _Optional[int] = ..., missed: _Optional[int] = ..., violated: _Optional[int] = ..., within: _Optional[_Iterable[_Union[WithinCount, _Mapping]]] = ..., scale: _Optional[int] = ..., latencies: _Optional[_Iterable[_Union[LatencyBucket, _Mapping]]] = ..., sum_us: _Optional[int] = ..., kept: _Optional[int] = ..., kept_violated: _Optional[int] = ..., causes: _Optional[_Mapping[str, int]] = ..., worst: _Optional[_Iterable[_Union[WorstRequest, _Mapping]]] = ...) -> None: ...

class WithinCount(_message.Message):
    __slots__ = ("objective_us", "met", "missed")
    OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    MET_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    objective_us: int
    met: int
    missed: int
    def __init__(self, objective_us: _Optional[int] = ..., met: _Optional[int] = ..., missed: _Optional[int] = ...) -> None: ...

class LatencyBucket(_message.Message):
    __slots__ = ("index", "count")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    index: int
    count: int
    def __init__(self, index: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class WorstRequest(_message.Message):
    __slots__ = ("duration_us", "trace_id", "cause")
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    duration_us: int
    trace_id: str
    cause: str
    def __init__(self, duration_us: _Optional[int] = ..., trace_id: _Optional[str] = ..., cause: _Optional[str] = ...) -> None: ...
