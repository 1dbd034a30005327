"""A folder in Triton's layout, pushed to the whole mesh and called."""

from __future__ import annotations

import json
import time

import numpy as np

from tests.mesh.calling import Caller, outputs, refused, request
from tests.mesh.tiny import echo, slow

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


def test_no_more_wait_and_none_for_longer_than_the_queue_policy_allows(mesh, tmp_path):
    """One request has the lane for about a second; of five behind it two may wait, for 300 ms."""
    mesh.create_tenant("queue")
    root = tmp_path / "slow"
    (root / "1").mkdir(parents=True)
    slow(root / "1" / "model.onnx")
    policy = "max_queue_size: 2 default_timeout_microseconds: 300000"
    (root / "config.pbtxt").write_text(f"dynamic_batching {{ default_queue_policy {{ {policy} }} }}")
    mesh.command("model", "push", "slow", str(root), "--tenant", "queue")
    asked = lambda turns: request("slow", {"turns": np.array([turns], np.int64)})
    with Caller(mesh, "queue") as caller:
        call = lambda turns: caller.stub.ModelInfer.future(asked(turns), metadata=caller.metadata, timeout=20)
        running = call(10_000)
        time.sleep(0.1)
        behind = [call(1) for _ in range(5)]
        told = [refused(each.exception())[1] for each in behind]
        assert running.exception() is None
    assert sorted(each.reason for each in told) == ["DEADLINE_EXCEEDED"] * 2 + ["OVERLOADED"] * 3
    assert {each.facts.get("queue_limit") for each in told if each.reason == "OVERLOADED"} == {"2"}
