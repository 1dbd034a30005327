"""Operators' code through a whole mesh: refused everywhere until its digest is approved, then served like any model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.gpu_sharing.artefact_samples import linear_python
from tests.mesh.calling import Caller
from tests.mesh.running import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
DIGEST = f"sha256:{hashlib.sha256(linear_python(yields=True)).hexdigest()}"


def test_code_is_refused_until_an_operator_approves_it_and_then_it_serves(tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_bytes(linear_python(yields=True))
    data = tmp_path / "data"
    with running(data) as mesh:
        mesh.create_tenant("acme", reserve=0.2)
        told = mesh.apportion("model", "push", "own", str(code), "--tenant", "acme")
        assert told.returncode != 0
        assert f"{DIGEST} is Python code that no operator of this registry has approved" in " ".join(
            told.stderr.split()
        )
    # The executor has a list of its own.
    approved = json.dumps([DIGEST])
    only_there = {"APPORTION_REGISTRY_PYTHON_ARTEFACTS": approved}
    with running(data, environment=only_there) as mesh:
        told = mesh.apportion("model", "push", "own", str(code), "--tenant", "acme")
        assert told.returncode != 0
        assert "no Python code is, here" in " ".join((told.stdout + told.stderr).split())
    everywhere = {"APPORTION_PYTHON_ARTEFACTS": approved}
    with running(data, environment=everywhere) as mesh:
        mesh.create_tenant("other", reserve=0.2)
        mesh.push("own", code, tenant="other")
        x = np.ones((2, 4), np.float32)
        with Caller(mesh, "other") as caller:
            given = caller.infer("own", x=x)["y"]
        weights = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)
        np.testing.assert_allclose(given, np.maximum(x @ weights, 0), rtol=1e-5)
