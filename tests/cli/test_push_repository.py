"""Folders in Triton's layout: what is honoured, what is ignored and why, and what is refused before a byte is sent."""

from __future__ import annotations

import shutil
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services._proto.apportion.v1 import common_pb2, registry_pb2
from services._proto.inference import model_config_pb2 as triton
from services.cli.errors import CommandError
from services.cli.push.repository import fields as reporting
from services.cli.push.repository.config import MOST_BYTES, parse_config, read_config
from services.cli.push.repository.fields import REASONS, Fields, leaves
from services.cli.push.repository.plan import Plan, read
from services.cli.push.repository.report import after_inspection, as_json, print_report
from services.cli.push.repository.run import traffic

REPOSITORIES = Path(__file__).parent / "repositories"
ONNX = b"\x08\x07 pretends to be a model"


@pytest.fixture
def repository(tmp_path):
    """Copies a model's folder and puts artefacts into it: `repository("embedder", "1/model.onnx")`."""

    def make(name: str, *artefacts: str) -> Path:
        root = tmp_path / name
        if (REPOSITORIES / name).exists():
            shutil.copytree(REPOSITORIES / name, root)
        for path in artefacts:
            put(root / path)
        return root

    return make


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/models/model.json", "{}")
    else:
        path.write_bytes(ONNX + path.parent.name.encode())


def embedder(repository) -> Path:
    root = repository("embedder", "1/model.onnx", "2/model.onnx")
    (root / "warmup").mkdir()
    (root / "warmup" / "mask").write_bytes(struct.pack("<8q", *[1] * 8))
    return root


def told(entries) -> dict[str, str]:
    return {each.path: each.told for each in entries}


def shape(spec) -> list[int | None]:
    return [one.size if one.HasField("size") else None for one in spec.shape]


def test_the_embedder_is_batched_warmed_up_and_served_in_all_its_versions(repository):
    plan = read(embedder(repository), "embedder")
    assert list(plan.artefacts) == [1, 2]
    assert plan.artefacts[1].digest != plan.artefacts[2].digest
    assert plan.config.max_batch_size == 16
    assert dict(plan.config.batch_axes) == {"input_ids": 0, "attention_mask": 0, "embedding": 0}
    declared = plan.config.declared
    assert [(each.name, each.datatype, shape(each)) for each in (*declared.inputs, *declared.outputs)] == [
        ("input_ids", "INT64", [None, None]),
        ("attention_mask", "INT64", [None, None]),
        ("embedding", "FP32", [None, 384]),
    ]
    ones = struct.pack("<8q", *[1] * 8)
    assert [(each.name, list(each.shape), each.data) for each in plan.config.warmup] == [
        ("attention_mask", [1, 8], ones),
        ("input_ids", [1, 8], ones),
    ]
    assert plan.replicas == 2


def test_everything_else_of_the_embedder_is_listed_with_a_reason_of_its_own(repository):
    plan = read(embedder(repository), "embedder")
    ignored = told(plan.ignored)
    assert set(ignored) == {
        "input[1].allow_ragged_batch",
        "instance_group[0].count",
        "instance_group[0].kind",
        "instance_group[0].rate_limiter.resources[0].name",
        "instance_group[0].rate_limiter.resources[0].count",
        "instance_group[0].rate_limiter.priority",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.max_queue_delay_microseconds",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.default_queue_policy.timeout_action",
        "dynamic_batching.default_queue_policy.default_timeout_microseconds",
        "dynamic_batching.default_queue_policy.allow_timeout_override",
        'dynamic_batching.priority_queue_policy["1"].max_queue_size',
        "optimization.graph.level",
        "optimization.execution_accelerators.gpu_execution_accelerator[0].name",
        'optimization.execution_accelerators.gpu_execution_accelerator[0].parameters["precision_mode"]',
        "optimization.input_pinned_memory.enable",
        "model_warmup[1].name",
        "model_warmup[1].batch_size",
        "model_warmup[1].count",
        'model_warmup[1].inputs["input_ids"].data_type',
        'model_warmup[1].inputs["input_ids"].dims',
        'model_warmup[1].inputs["input_ids"].zero_data',
        'parameters["intra_op_thread_count"].string_value',
        'parameters["execution_mode"].string_value',
        "response_cache.enable",
        'metric_tags["team"]',
    }
    assert reporting.NO_REASON not in ignored.values()
    assert "an idle lane starts at once" in ignored["dynamic_batching.max_queue_delay_microseconds"]
    values = {each.path: each.value for each in plan.ignored}
    assert values["dynamic_batching.preferred_batch_size"] == "[4, 8]"
    assert values["instance_group[0].kind"] == "KIND_GPU"


@pytest.mark.parametrize(
    ("name", "artefacts"),
    [
        ("densenet_onnx", ["1/model.onnx"]),
        ("embedder", ["1/model.onnx", "2/model.onnx"]),
        ("tabular", ["1/model.onnx", "2/model.onnx", "3/model.onnx"]),
        ("vision_pt2", ["5/exported.pt2", "9/exported.pt2", "10/exported.pt2"]),
        ("stateful", ["1/model.onnx"]),
    ],
)
def test_no_field_is_dropped_in_silence(repository, name, artefacts):
    root = embedder(repository) if name == "embedder" else repository(name, *artefacts)
    plan = read(root, name)
    taken, ignored = [each.path for each in plan.honoured], [each.path for each in plan.ignored]
    assert sorted([*taken, *ignored]) == sorted(path for path, _ in leaves(read_config(root / "config.pbtxt")))
    assert all(each.told for each in (*plan.honoured, *plan.ignored))


def test_a_model_without_batches_has_whole_shapes_reshaped_ones_where_there_are_and_labels(repository):
    plan = read(repository("densenet_onnx", "1/model.onnx"), "densenet_onnx")
    assert plan.config.HasField("max_batch_size")
    assert plan.config.max_batch_size == 0
    assert not plan.config.batch_axes
    assert shape(plan.config.declared.inputs[0]) == [1, 3, 224, 224]
    assert list(plan.config.declared.outputs[0].labels) == ["TENCH", "GOLDFISH", "GREAT WHITE SHARK"]
    assert "callers send the shape" in told(plan.ignored)["input[0].reshape.shape"]
    assert told(plan.honoured)["output[0].label_filename"] == "3 class names"


def test_a_specific_policy_chooses_its_versions_and_optional_inputs_are_declared(repository):
    plan = read(repository("tabular", "1/model.onnx", "2/model.onnx", "3/model.onnx"), "fraud")
    assert list(plan.artefacts) == [1, 3]
    assert [(each.name, each.optional, shape(each)) for each in plan.config.declared.inputs] == [
        ("amount", False, [None]),
        ("country", False, [None, 1]),
        ("history", True, [None, 12]),
    ]
    assert [(each.name, list(each.shape)) for each in plan.config.warmup] == [("amount", [1]), ("country", [1, 1])]
    assert any("2/: not pushed" in note for note in plan.notes)
    assert "of empty strings" in told(plan.honoured)['model_warmup[0].inputs["country"].random_data']


def test_the_latest_versions_are_the_highest_numbers_and_a_file_name_may_be_given(repository):
    plan = read(repository("vision_pt2", "5/exported.pt2", "9/exported.pt2", "10/exported.pt2"), "vision")
    assert list(plan.artefacts) == [9, 10]
    assert plan.artefacts[9].format == registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT
    assert told(plan.honoured)["dynamic_batching"] == "requests share batches"


def test_a_folder_without_a_configuration_leaves_everything_to_the_artefact(repository):
    root = repository("bare", "1/model.onnx", "3/model.onnx", "3/weights.bin", "01/model.onnx", "notes/a.txt")
    plan = read(root, "bare")
    assert list(plan.artefacts) == [3]
    assert plan.config == registry_pb2.VersionConfig()
    assert "3/weights.bin: not pushed" in plan.notes
    assert any("there is no config.pbtxt" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("name", "artefacts", "says"),
    [
        ("ensemble", ["1/model.onnx"], "ensembles are not served: push each step"),
        (
            "libtorch",
            ["1/model.pt"],
            r"1/model.pt: is TorchScript, which may run code: export the model with torch.export",
        ),
        ("engine", ["1/model.plan"], "'tensorrt_plan' is not served: push the model as model.onnx"),
        ("scripted", ["1/model.py"], "backend: 'python' is not served"),
        ("libtorch", ["1/model.onnx"], "'pytorch_libtorch' goes with a .pt2 file"),
        ("nothing", ["readme.txt"], "has no version"),
        ("empty", ["1/readme.txt"], "holds no model.onnx or model.pt2, but readme.txt"),
        ("both", ["1/model.onnx", "1/model.pt2"], "name the one that counts in config.pbtxt"),
    ],
)
def test_what_cannot_be_served_is_refused_with_what_to_do(repository, name, artefacts, says):
    with pytest.raises(CommandError, match=says):
        read(repository(name, *artefacts), name)


def test_a_whole_repository_is_told_from_a_model(repository, tmp_path):
    repository("densenet_onnx", "1/model.onnx")
    with pytest.raises(CommandError, match=r"is a whole repository: push its models one by one, like .*densenet_onnx"):
        read(tmp_path, "all")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name: "x"\nmax_batch: 3', r'config.pbtxt, line 2: .*no field named "max_batch"'),
        ("name: 3", "line 1"),
        ('name: "x"\n\ninput [ { data_type: TYPE_FP31 } ]', "line 3"),
        ("input {", "line 1|Expected"),
        ("max_batch_size: 99999999999999999999", "line 1"),
        ("dynamic_batching { } sequence_batching { }", "line 1"),
        ("parameters " + "{ " * 5000, "more than 100 blocks"),
        ("nothing_known " + "{ a " * 300, "more than 100 blocks"),
    ],
)
def test_a_broken_configuration_is_one_line_that_names_the_line(text, says):
    with pytest.raises(CommandError, match=says) as caught:
        parse_config(text, "config.pbtxt")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_batch_size: -1", "max_batch_size: -1 is not within 0 to 4096"),
        ("max_batch_size: 5000", "5000 is not within"),
        ('input { name: "x" dims: [ 1 ] }', r"input\[0\].data_type: must be set for 'x'"),
        ('input { name: "x" data_type: TYPE_FP32 }', "dims: must be set"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [ 0 ] }', "an extent is 1 or more"),
        ("input { data_type: TYPE_FP32 dims: [ 1 ] }", "is empty"),
        (
            'output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }',
            "another output",
        ),
        ("version_policy { specific { versions: [ 7 ] } }", "the folder has 1"),
        ("version_policy { specific { } }", "none"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] label_filename: "../secret" }', "not the plain name"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] label_filename: "link" }', "leads out of"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] label_filename: "none.txt" }', "cannot read"),
        ('default_model_filename: "/etc/passwd"', "not the plain name"),
        (
            'model_warmup { batch_size: 1 inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ -1 ] } } }',
            "dims of 1 or more",
        ),
        (
            'model_warmup { inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "half" } } }',
            "has 4 bytes; one row has 8",
        ),
        (
            'model_warmup { inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 999999 ] random_data: true } } }',
            "more than 1048576",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_field(repository, tmp_path, text, says):
    root = repository("model", "1/model.onnx")
    (root / "config.pbtxt").write_text(text)
    (tmp_path / "secret").write_text("a secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "warmup").mkdir()
    (root / "warmup" / "half").write_bytes(b"1234")
    with pytest.raises(CommandError, match=says):
        read(root, "model")


def test_a_configuration_is_not_read_where_it_is_too_large_or_no_text(repository):
    root = repository("model", "1/model.onnx")
    (root / "config.pbtxt").write_bytes(b" " * (MOST_BYTES + 1))
    with pytest.raises(CommandError, match="more than the 1048576 that are read"):
        read(root, "model")
    (root / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match="is not UTF-8"):
        read(root, "model")


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet="{}[]<>:\"'#\\ \n,;-.0129abcdims_input", max_size=200))
def test_whatever_stands_in_a_configuration_it_is_parsed_or_refused_in_one_line(text):
    try:
        parse_config(text, "config.pbtxt")
    except CommandError as refusal:
        message = refusal.message
    else:
        message = ""
    assert "\n" not in message


def test_every_reason_belongs_to_a_field_that_exists():
    for path in REASONS:
        descriptor = triton.ModelConfig.DESCRIPTOR
        for part in path.split("."):
            assert part in descriptor.fields_by_name, path
            descriptor = descriptor.fields_by_name[part].message_type


def test_how_requests_wait_is_taken_from_the_queue_policy_and_the_priority_levels(repository):
    plan = read(embedder(repository), "embedder")
    assert plan.config.queue == registry_pb2.QueueLimits(max_waiting=64, priority_levels=3, default_priority=2)
    root = repository("model", "1/model.onnx")
    config = root / "config.pbtxt"
    config.write_text(
        "dynamic_batching { default_queue_policy { default_timeout_microseconds: 20000 max_queue_size: 3 } }"
    )
    plan = read(root, "model")
    assert plan.config.queue == registry_pb2.QueueLimits(max_waiting=3, deadline_us=20_000)
    assert told(plan.honoured)["dynamic_batching.default_queue_policy.default_timeout_microseconds"] == (
        "the deadline of requests whose callers allow more"
    )
    assert plan.ignored == []
    config.write_text("dynamic_batching { priority_levels: 2 default_priority_level: 3 }")
    with pytest.raises(CommandError, match="default_priority_level: 3 is beyond priority_levels, 2"):
        read(root, "model")
    config.write_text("dynamic_batching { }")
    assert not read(root, "model").config.HasField("queue")


def test_a_field_that_the_table_does_not_know_is_listed_all_the_same():
    config = parse_config("dynamic_batching { default_queue_policy { max_queue_size: 3 } }", "x")
    found = Fields(config)
    assert [each.path for each in found.ignored] == ["dynamic_batching.default_queue_policy.max_queue_size"]
    found.honour("dynamic_batching", "as a whole")
    assert found.ignored == []


def test_what_a_file_says_cannot_talk_to_the_terminal(repository, capsys):
    root = repository("model", "1/model.onnx")
    (root / "config.pbtxt").write_text(
        'parameters { key: "a[red]\\033[2J" value: { string_value: "\\033]0;owned\\007" } }'
    )
    plan = read(root, "model")
    print_report(plan)
    shown = capsys.readouterr().out
    assert "\033" not in shown
    assert "[red]" in shown
    assert as_json(plan)["ignored"][0]["why"] == "an option of Triton's backend"


def model(*numbers: int, split: tuple[tuple[int, int], ...] = ()) -> registry_pb2.Model:
    return registry_pb2.Model(
        versions=[registry_pb2.ModelVersion(version=number) for number in numbers],
        traffic=[registry_pb2.TrafficSplit(version=number, ppm=ppm) for number, ppm in split],
    )


@pytest.mark.parametrize(
    ("held", "served", "expected"),
    [
        (model(1), [1], []),
        (model(1, 2), [1, 2], [(1, 0), (2, 1_000_000)]),
        (model(1, 2, 3), [2], [(2, 1_000_000)]),
        (model(1, 2, split=((1, 1_000_000),)), [2], [(2, 1_000_000)]),
    ],
)
def test_the_highest_version_that_is_served_gets_whoever_asks_for_none(held, served, expected):
    assert [(each.version, each.ppm) for each in traffic(held, served)] == expected


def test_what_only_the_loaded_artefact_tells_is_told_afterwards(repository):
    plan: Plan = read(repository("tabular", "1/model.onnx", "3/model.onnx"), "fraud")
    signature = common_pb2.Signature(
        inputs=[common_pb2.TensorSpec(name="history"), common_pb2.TensorSpec(name="amount")],
        outputs=[common_pb2.TensorSpec(name="probability"), common_pb2.TensorSpec(name="reason")],
    )
    told_afterwards = after_inspection(plan, signature)
    assert any("'history': optional" in each for each in told_afterwards)
    assert any("'reason': not in config.pbtxt" in each for each in told_afterwards)
    assert any("requests run one at a time" in each for each in told_afterwards)
