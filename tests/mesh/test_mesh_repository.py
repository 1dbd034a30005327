"""A folder in Triton's layout, pushed to the whole mesh and called."""

from __future__ import annotations

import json

import numpy as np

from tests.mesh.calling import Caller, outputs, request
from tests.mesh.tiny import echo

CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "in_float32" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "out_float32" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
version_policy { latest { num_versions: 2 } }
dynamic_batching { max_queue_delay_microseconds: 100 }
"""


def folder(root, config):
    for version in (1, 2, 3):
        (root / str(version)).mkdir(parents=True)
        echo(root / str(version) / "model.onnx", "float32")
    (root / "labels.txt").write_text("cat\ndog\nbird\n")
    (root / "config.pbtxt").write_text(config)
    return root


def test_a_folder_is_pushed_served_in_its_versions_and_classifies_with_its_labels(mesh, tmp_path):
    mesh.create_tenant("shop")
    told = json.loads(
        mesh.command("model", "push", "pets", str(folder(tmp_path / "pets", CONFIG)), "--tenant", "shop", "--json")
    )
    assert [each["field"] for each in told["ignored"]] == ["dynamic_batching.max_queue_delay_microseconds"]
    x = np.array([[1, 3, 2]], np.float32)
    with Caller(mesh, "shop") as caller:
        for version in ("", "2", "3"):
            answer = caller.send(request("pets", {"in_float32": x}, version=version))
            assert outputs(answer)["out_float32"].tolist() == x.tolist()
            assert answer.model_version == (version or "3")
        asked = request("pets", {"in_float32": x})
        asked.outputs.add(name="out_float32").parameters["classification"].int64_param = 2
        classes = outputs(caller.send(asked))["out_float32"]
        assert [each.decode().split(":")[2] for each in classes.ravel()] == ["dog", "bird"]
        _, refusal = caller.refusal(request("pets", {"in_float32": np.ones((1, 4), np.float32)}))
        assert "axis 1 has extent 4 where the model takes 3" in refusal.message


def test_an_artefact_that_is_not_what_its_configuration_says_is_refused(mesh, tmp_path):
    mesh.create_tenant("fraud")
    root = folder(tmp_path / "pets", CONFIG.replace("TYPE_FP32", "TYPE_INT64", 1))
    done = mesh.apportion("model", "push", "pets", str(root), "--tenant", "fraud")
    assert done.returncode == 1
    assert "input 'in_float32' is declared INT64, and the artefact has FP32" in done.stderr
