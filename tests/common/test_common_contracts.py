"""OpenTelemetry's contracts, kept for imports, say what the installed code says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

PROTOS = Path(__file__).parents[2] / "protos"


def fields(messages: list[DescriptorProto], prefix: str = "") -> dict[str, tuple[int, int, int, str]]:
    """(number, type, label, type's name) by message and field."""
    found = {}
    for message in messages:
        name = f"{prefix}.{message.name}"
        for field in message.field:
            found[f"{name}.{field.name}"] = (field.number, field.type, field.label, field.type_name)
        found |= fields(list(message.nested_type), name)
    return found


@pytest.mark.parametrize("module", [common_pb2, resource_pb2, trace_pb2])
def test_every_field_has_the_number_and_type_of_the_installed_package(module: object) -> None:
    installed = module.DESCRIPTOR  # type: ignore[attr-defined]
    with tempfile.NamedTemporaryFile() as out:
        arguments = ["protoc", f"-I{PROTOS}", f"--descriptor_set_out={out.name}", str(PROTOS / installed.name)]
        assert protoc.main(arguments) == 0
        ours = FileDescriptorSet.FromString(Path(out.name).read_bytes()).file[0]
    theirs = type(ours)()
    installed.CopyToProto(theirs)
    ours_fields, their_fields = fields(list(ours.message_type)), fields(list(theirs.message_type))
    assert ours.package == theirs.package
    assert ours_fields
    assert not {name: value for name, value in ours_fields.items() if their_fields.get(name) != value}
