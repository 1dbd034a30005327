"""Artefacts that must be signed, in a real mesh: pushed by the command, asked at the push and at every load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.access.signing_samples import Authority, keys
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh.calling import Caller
from tests.mesh.running import RunningMesh, wait_until

pytestmark = pytest.mark.slow
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
TENANT = "signed"


def test_only_what_a_signer_has_signed_is_pushed_and_loaded_again(own_mesh: RunningMesh, tmp_path: Path) -> None:
    mesh = own_mesh
    good, authority = keys(tmp_path, "good"), Authority()
    (tmp_path / "ca.pem").write_text(authority.pem)
    model = tmp_path / "linear.onnx"
    model.write_bytes(linear_onnx())
    mesh.create_tenant(TENANT, reserve=0.1)
    said = mesh.command("tenant", "signers", TENANT, "--add", str(good.public), "--add", str(tmp_path / "ca.pem"))
    assert said.split() == sorted([good.signer.id, authority.signer.id])

    refused = mesh.apportion("model", "push", "linear", str(model), "--tenant", TENANT)
    assert refused.returncode != 0
    assert "has no signature" in refused.stderr
    assert good.signer.id in refused.stderr.replace("\n", "")
    stranger = mesh.apportion(
        "model", "push", "linear", str(model), "--tenant", TENANT, "--sign-key", str(keys(tmp_path, "x").private)
    )
    assert "does not sign for this tenant" in stranger.stderr.replace("\n", " ")

    mesh.push("linear", model, tenant=TENANT, options=("--sign-key", str(good.private)))
    key, certificate = authority.issue(tmp_path, "alice")
    signed = ("--sign-key", str(key), "--sign-certificate", str(certificate), "--version", "2")
    mesh.push("linear", model, tenant=TENANT, options=signed)
    with Caller(mesh, TENANT) as caller:
        assert caller.infer("linear", x=ROWS)["y"].shape == (2, 3)

    # Who is taken out signs no further load; what serves goes on serving.
    mesh.command("tenant", "signers", TENANT, "--remove", good.signer.id, "--remove", authority.signer.id)
    mesh.command("tenant", "signers", TENANT, "--add", str(keys(tmp_path, "next").public))
    with Caller(mesh, TENANT) as caller:
        assert caller.infer("linear", x=ROWS)["y"].shape == (2, 3)
        mesh.command("model", "unload", "linear", "--tenant", TENANT)
        mesh.apportion("model", "load", "linear", "--tenant", TENANT, "--no-wait")
        told = lambda: json.dumps(mesh.fleet())
        wait_until(lambda: "does not sign for this tenant" in told(), what="the refusal of the load")

    # Signed anew by whom it takes now, it serves again.
    again = ("--sign-key", str(tmp_path / "next.key.pem"), "--version", "2")
    mesh.push("linear", model, tenant=TENANT, options=again)
    with Caller(mesh, TENANT) as caller:
        assert caller.infer("linear", x=ROWS)["y"].shape == (2, 3)
