"""Many callers, many models, payloads from a few bytes to 32 MiB at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.callers import OPERATORS, Tally, ask, mixed
from bench.mixed import SIZES, WEIGHTS
from bench.models import elementwise
from tests.mesh.running import RunningMesh


@pytest.mark.slow
def test_every_answer_belongs_to_its_question_whatever_its_size(mesh: RunningMesh, tmp_path: Path) -> None:
    key, tally = mesh.create_tenant("sizes"), Tally()
    for operator in OPERATORS:
        mesh.push(operator, elementwise(tmp_path / f"{operator}.onnx", operator.title()), tenant="sizes")
    asyncio.run(ask(mesh.addresses["frontend"], key, mixed(1500, SIZES, WEIGHTS, seed=3), 32, tally))
    assert (tally.answered, tally.wrong, tally.failed) == (1500, [], [])
