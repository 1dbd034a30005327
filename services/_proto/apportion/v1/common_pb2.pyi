from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Permission(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERMISSION_UNSPECIFIED: _ClassVar[Permission]
    PERMISSION_PUBLIC: _ClassVar[Permission]
    PERMISSION_TENANT_READ: _ClassVar[Permission]
    PERMISSION_TENANT_WRITE: _ClassVar[Permission]
    PERMISSION_TENANT_INFER: _ClassVar[Permission]
    PERMISSION_OPERATOR: _ClassVar[Permission]
    PERMISSION_MESH: _ClassVar[Permission]

class TrafficClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAFFIC_CLASS_UNSPECIFIED: _ClassVar[TrafficClass]
    TRAFFIC_CLASS_INTERACTIVE: _ClassVar[TrafficClass]
    TRAFFIC_CLASS_BATCH: _ClassVar[TrafficClass]
PERMISSION_UNSPECIFIED: Permission
PERMISSION_PUBLIC: Permission
PERMISSION_TENANT_READ: Permission
PERMISSION_TENANT_WRITE: Permission
PERMISSION_TENANT_INFER: Permission
PERMISSION_OPERATOR: Permission
PERMISSION_MESH: Permission
TRAFFIC_CLASS_UNSPECIFIED: TrafficClass
TRAFFIC_CLASS_INTERACTIVE: TrafficClass
TRAFFIC_CLASS_BATCH: TrafficClass
PERMISSION_FIELD_NUMBER: _ClassVar[int]
permission: _descriptor.FieldDescriptor

class ModelKey(_message.Message):
    __slots__ = ("tenant", "name")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    name: str
    def __init__(self, tenant: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class Dimension(_message.Message):
    __slots__ = ("size", "symbol")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    size: int
    symbol: str
    def __init__(self, size: _Optional[int] = ..., symbol: _Optional[str] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape", "batch_axis", "optional", "labels")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BATCH_AXIS_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedCompositeFieldContainer[Dimension]
    batch_axis: int
    optional: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[_Union[Dimension, _Mapping]]] = ..., batch_axis: _Optional[int] = ..., optional: bool = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("inputs", "outputs", "max_batch_size")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    max_batch_size: int
    def __init__(self, inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., max_batch_size: _Optional[int] = ...) -> None: ...

class Slo(_message.Message):
    __slots__ = ("objective_us", "ratio_ppm", "window_s")
    OBJECTIVE_US_FIELD_NUMBER: _ClassVar[int]
    RATIO_PPM_FIELD_NUMBER: _ClassVar[int]
    WINDOW_S_FIELD_NUMBER: _ClassVar[int]
    objective_us: int
    ratio_ppm: int
    window_s: int
    def __init__(self, objective_us: _Optional[int] = ..., ratio_ppm: _Optional[int] = ..., window_s: _Optional[int] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("millidevices",)
    MILLIDEVICES_FIELD_NUMBER: _ClassVar[int]
    millidevices: int
    def __init__(self, millidevices: _Optional[int] = ...) -> None: ...

class ProfilePoint(_message.Message):
    __slots__ = ("rows", "shape_bucket", "compute_units", "p50_ns", "p99_ns", "runs", "activation_bytes", "segments_ns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_BUCKET_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNITS_FIELD_NUMBER: _ClassVar[int]
    P50_NS_FIELD_NUMBER: _ClassVar[int]
    P99_NS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_NS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    shape_bucket: str
    compute_units: int
    p50_ns: int
    p99_ns: int
    runs: int
    activation_bytes: int
    segments_ns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rows: _Optional[int] = ..., shape_bucket: _Optional[str] = ..., compute_units: _Optional[int] = ..., p50_ns: _Optional[int] = ..., p99_ns: _Optional[int] = ..., runs: _Optional[int] = ..., activation_bytes: _Optional[int] = ..., segments_ns: _Optional[_Iterable[int]] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("digest", "device_kind", "weight_bytes", "points", "segments")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    device_kind: str
    weight_bytes: int
    points: _containers.RepeatedCompositeFieldContainer[ProfilePoint]
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, digest: _Optional[str] = ..., device_kind: _Optional[str] = ..., weight_bytes: _Optional[int] = ..., points: _Optional[_Iterable[_Union[ProfilePoint, _Mapping]]] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("name", "p50_ns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    P50_NS_FIELD_NUMBER: _ClassVar[int]
    name: str
    p50_ns: int
    def __init__(self, name: _Optional[str] = ..., p50_ns: _Optional[int] = ...) -> None: ...
