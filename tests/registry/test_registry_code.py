"""Versions that are Python code: refused, but for those whose digest an operator has approved."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from registry_world import digest_of, key, refusal, served

from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason
from services.registry.settings import RegistrySettings

CODE = pb.VersionConfig(format=pb.ARTEFACT_FORMAT_PYTHON)
APPROVED, OTHER = b"class Model: ...", b"class Model: pass"


async def test_by_default_no_code_is_taken_and_models_are(tmp_path: Path) -> None:
    async with served(RegistrySettings(data=tmp_path)) as world:
        await world.tenant()
        found = await refusal(
            world.push(data=APPROVED, config=CODE), Reason.ARTEFACT_REFUSED, grpc.StatusCode.FAILED_PRECONDITION
        )
        assert digest_of(APPROVED) in found.message
        assert (await world.push(config=pb.VersionConfig(format=pb.ARTEFACT_FORMAT_ONNX))).version == 1


async def test_only_the_very_bytes_that_were_approved_are_taken(tmp_path: Path) -> None:
    settings = RegistrySettings(data=tmp_path, python_artefacts=(digest_of(APPROVED),))
    async with served(settings) as world:
        await world.tenant()
        assert (await world.push(data=APPROVED, config=CODE)).version == 1
        await refusal(world.push(data=OTHER, config=CODE), Reason.ARTEFACT_REFUSED, grpc.StatusCode.FAILED_PRECONDITION)
        model = (await world.call.GetModel(pb.GetModelRequest(key=key()))).model
        assert [each.digest for each in model.versions] == [digest_of(APPROVED)]


def test_the_list_is_one_variable_for_registry_and_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.executor.settings import ExecutorSettings

    monkeypatch.setenv("APPORTION_PYTHON_ARTEFACTS", f'["{digest_of(APPROVED)}"]')
    assert RegistrySettings().python_artefacts == ExecutorSettings().python_artefacts == (digest_of(APPROVED),)
    monkeypatch.setenv("APPORTION_EXECUTOR_PYTHON_ARTEFACTS", "[]")
    assert ExecutorSettings().python_artefacts == ()
    monkeypatch.setenv("APPORTION_PYTHON_ARTEFACTS", '["model.py"]')
    with pytest.raises(ValueError, match="python_artefacts"):
        RegistrySettings()
