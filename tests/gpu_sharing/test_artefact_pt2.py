"""Hostile and broken .pt2 files: each is refused by name, and none of them runs anything."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from artefact_samples import exported, linear_pt2, rezipped, with_model_json, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig
from gpu_sharing.runtimes.torch_export import TorchExportRuntime

SAMPLE_INPUTS = "data/sample_inputs/model.pt"


class RunsOnUnpickling:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile code would create; every test ends with a look for it."""
    path = tmp_path / "code-ran"
    yield path
    assert not path.exists(), "the artefact ran code"


def refused(path: Path, message: str) -> None:
    runtime = TorchExportRuntime()
    with pytest.raises(ArtefactRefused, match=message):
        runtime.check(path)
    with pytest.raises(ArtefactRefused, match=message):
        runtime.load(path, LoadConfig(threads=1, compute_units=1))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def hostile_expression(marker: Path) -> str:
    return f"__import__('os').system('touch {marker}')"


def first_symbol(document: dict[str, Any]) -> dict[str, Any]:
    """The first symbolic size in the graph's tensor values."""
    for meta in document["graph_module"]["graph"]["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                return size["as_expr"]
    raise AssertionError("the sample has no symbolic size")


# That the samples are hostile at all: torch itself runs them.


def test_torch_itself_runs_an_expression_of_the_file(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    path = with_model_json(
        linear_pt2(), tmp_path / "m.pt2", lambda d: first_symbol(d).update(expr_str=hostile_expression(ran))
    )
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever torch makes of the number that comes back
        torch.export.load(path)
    assert ran.exists(), "torch no longer evaluates expressions: the check has become stricter than needed"


def test_torch_itself_unpickles_the_sample_inputs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hostile = saved(((RunsOnUnpickling(ran),), {}))
    path = rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, data: hostile if m == SAMPLE_INPUTS else data)
    logging.disable(logging.WARNING)  # torch's warning about it has a broken format
    try:
        torch.export.load(path)
    finally:
        logging.disable(logging.NOTSET)
    assert ran.exists(), "torch no longer unpickles sample inputs: the check has become stricter than needed"


# Pickles.


def test_a_raw_pickle_posing_as_a_program_is_refused(tmp_path: Path, marker: Path) -> None:
    refused(written(tmp_path, "m.pt2", pickle.dumps(RunsOnUnpickling(marker))), "this is a Python pickle")


def test_a_checkpoint_posing_as_a_program_is_refused(tmp_path: Path, marker: Path) -> None:
    refused(written(tmp_path, "m.pt2", saved(RunsOnUnpickling(marker))), r"data\.pkl.*a Python pickle")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_sample_inputs_that_run_code_are_refused(tmp_path: Path, marker: Path, protocol: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        inner.writestr("archive/data.pkl", pickle.dumps(((RunsOnUnpickling(marker),), {}), protocol=protocol))
    path = rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, data: buffer.getvalue() if m == SAMPLE_INPUTS else data)
    refused(path, r"data/sample_inputs/model\.pt.*may run code")


def test_sample_inputs_that_are_a_legacy_pickle_are_refused(tmp_path: Path, marker: Path) -> None:
    hostile = pickle.dumps(RunsOnUnpickling(marker))
    path = rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, data: hostile if m == SAMPLE_INPUTS else data)
    refused(path, r"data/sample_inputs/model\.pt: not a tensor archive")


def test_weights_that_are_pickled_are_refused(tmp_path: Path, marker: Path) -> None:
    def edit(member: str, data: bytes) -> bytes:
        if member == "data/weights/weight_0":
            return saved(RunsOnUnpickling(marker))
        if member == "data/weights/model_weights_config.json":
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return data

    refused(rezipped(linear_pt2(), tmp_path / "m.pt2", edit), "model_weights_config.json.*pickled weights")


@pytest.mark.parametrize(
    "member", ["data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/weights/model.pt"]
)
def test_members_that_torch_unpickles_are_refused(tmp_path: Path, marker: Path, member: str) -> None:
    hostile = pickle.dumps(RunsOnUnpickling(marker))
    path = rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, data: data, **{member: hostile})
    refused(path, f"{member}.*unpickled when it is loaded")


def test_a_constant_that_points_at_a_pickled_object_is_refused(tmp_path: Path, marker: Path) -> None:
    config = (
        b'{"config": {"c": {"path_name": "custom_obj_0", "is_param": false, "use_pickle": true, "tensor_meta": null}}}'
    )
    path = rezipped(
        linear_pt2(), tmp_path / "m.pt2", lambda m, data: config if m.endswith("constants_config.json") else data
    )
    refused(path, "model_constants_config.json.*pickled")


def test_compiled_code_is_refused(tmp_path: Path, marker: Path) -> None:
    path = rezipped(
        linear_pt2(), tmp_path / "m.pt2", lambda m, data: data, **{"data/aotinductor/model/code.so": b"\x7fELF"}
    )
    refused(path, "compiled code cannot be checked")


# Text that would be evaluated, or written into source code.


def change_size(document: dict[str, Any], text: str) -> None:
    first_symbol(document)["expr_str"] = text


def change_range(document: dict[str, Any], text: str) -> None:
    document["range_constraints"] = {text: {"min_val": 0, "max_val": 9}}


def change_bound(document: dict[str, Any], text: str) -> None:
    next(iter(document["range_constraints"].values()))["max_val"] = text


def change_symint(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["sym_int_values"]["n"] = {"as_expr": {"expr_str": text, "hint": None}}


def change_symbool(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["sym_bool_values"]["n"] = {"as_expr": {"expr_str": text}}


def change_stride(document: dict[str, Any], text: str) -> None:
    values = document["graph_module"]["graph"]["tensor_values"]
    next(iter(values.values()))["strides"][0] = {"as_expr": {"expr_str": text}}


def change_symbol_argument(document: dict[str, Any], text: str) -> None:
    first_symbol(document)["expr_str"] = f"Symbol({text!r}, integer=True)"


def change_node_name(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["nodes"][0]["name"] = text


def change_output_name(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["nodes"][0]["outputs"] = [{"as_tensor": {"name": text}}]


def change_placeholder(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["inputs"][0] = {"as_tensor": {"name": text}}


def change_parameter(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = text


def change_target(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["nodes"][0]["target"] = text


def change_argument_name(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["name"] = text


def change_operator_argument(document: dict[str, Any], text: str) -> None:
    document["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_operator": text}


CHANGES = [
    change_size,
    change_range,
    change_bound,
    change_symint,
    change_symbool,
    change_stride,
    change_symbol_argument,
    change_node_name,
    change_output_name,
    change_placeholder,
    change_parameter,
    change_target,
    change_argument_name,
    change_operator_argument,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_code_in_a_place_that_torch_evaluates_is_refused(
    tmp_path: Path, marker: Path, change: Callable[[dict[str, Any], str], None]
) -> None:
    path = with_model_json(linear_pt2(), tmp_path / "m.pt2", lambda d: change(d, hostile_expression(marker)))
    refused(path, r"models/model\.json")


def test_guards_are_left_out_of_what_torch_sees(tmp_path: Path, marker: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["guards_code"] = [hostile_expression(marker)]

    path = with_model_json(linear_pt2(), tmp_path / "m.pt2", change)
    TorchExportRuntime().check(path)
    model = TorchExportRuntime().load(path, LoadConfig(threads=1, compute_units=1))
    assert model.signature.max_batch_size == 16


def test_a_pytree_that_imports_a_module_is_never_loaded(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "hostile_module.py").write_text(f"open({str(marker)!r}, 'w')")
    context = '{"__enum__": true, "fqn": "hostile_module:X", "name": "Y"}'

    def change(document: dict[str, Any]) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        leaf = {"type": None, "context": None, "children_spec": []}
        tree = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, tree])

    path = with_model_json(linear_pt2(), tmp_path / "m.pt2", change)
    sys.path.insert(0, str(tmp_path))
    try:
        model = TorchExportRuntime().load(path, LoadConfig(threads=1, compute_units=1))
    finally:
        sys.path.remove(str(tmp_path))
    assert [spec.name for spec in model.signature.outputs] == ["output_0"]


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.hub.load",
        "torch._C._pickle_load_obj",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__init__.__globals__",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.add._op",
        "torch.ops.aten.add.overloads",
        "torch.ops.aten.no_such_operator.default",
        "torch.ops.mylib.custom.default",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "_operator.setitem",
        "math.__loader__.load_module",
        "#namespace:op",
        "os.system",
    ],
)
def test_a_node_that_calls_anything_but_arithmetic_is_refused(tmp_path: Path, marker: Path, target: str) -> None:
    path = with_model_json(linear_pt2(), tmp_path / "m.pt2", lambda d: change_target(d, target))
    refused(path, r"models/model\.json")


# The container.


def test_a_zip_that_is_cut_short_is_refused(tmp_path: Path, marker: Path) -> None:
    refused(written(tmp_path, "m.pt2", linear_pt2()[:-100]), r"m\.pt2: not a whole zip archive")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, marker: Path) -> None:
    path = written(tmp_path, "m.pt2", linear_pt2())
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as bomb:
        root = bomb.namelist()[0].split("/")[0]
        bomb.writestr(f"{root}/data/weights/weight_99", b"\0" * (8 << 20))
    refused(path, "weight_99.*unpacks to more than 200 times")


@pytest.mark.parametrize("name", ["../../outside", "/etc/cron.d/x", "model/../../outside", "a\\..\\b", "c:/windows"])
def test_a_member_that_leaves_the_archive_is_refused(tmp_path: Path, marker: Path, name: str) -> None:
    path = written(tmp_path, "m.pt2", linear_pt2())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    refused(path, "member .*a path must stay inside the archive")


def test_a_symbolic_link_is_refused(tmp_path: Path, marker: Path) -> None:
    path = written(tmp_path, "m.pt2", linear_pt2())
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo(f"{archive.namelist()[0].split('/')[0]}/data/weights/weight_99")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    refused(path, "weight_99.*not a regular file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("spelling", ["models/model.json", "extra/README", "extra/readme"])
def test_two_members_that_torch_would_confuse_are_refused(tmp_path: Path, marker: Path, spelling: str) -> None:
    path = rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, data: data, **{"extra/ReadMe": b"x"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{spelling}", b"{}")
    refused(path, "two members have the same name")


def test_an_unknown_member_is_refused(tmp_path: Path, marker: Path) -> None:
    refused(rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, d: d, **{"data/evil": b"x"}), "data/evil")


@pytest.mark.parametrize("member", ["data/weights/weight_0", "models/model.json"])
def test_a_flipped_bit_is_found_and_its_member_named(tmp_path: Path, marker: Path, member: str) -> None:
    path = written(tmp_path, "m.pt2", linear_pt2())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(member))
        extra = int.from_bytes(path.read_bytes()[info.header_offset + 28 : info.header_offset + 30], "little")
        at = info.header_offset + 30 + len(info.filename) + extra + 3
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    refused(path, f"{member}: damaged: Bad CRC-32")


@pytest.mark.parametrize(
    "member", ["models/model.json", "data/weights/model_weights_config.json", "data/weights/weight_0"]
)
def test_a_missing_member_is_named(tmp_path: Path, marker: Path, member: str) -> None:
    path = rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, data: None if m == member else data)
    refused(path, member.rpartition("/")[2])


@pytest.mark.parametrize(
    ("field", "value"),
    [("sizes", [{"as_int": 1 << 40}, {"as_int": 4}]), ("strides", [{"as_int": 1 << 40}, {"as_int": 1}])],
)
def test_a_tensor_that_reaches_beyond_its_bytes_is_refused(
    tmp_path: Path, marker: Path, field: str, value: list[dict[str, int]]
) -> None:
    def edit(member: str, data: bytes) -> bytes:
        if not member.endswith("weights_config.json"):
            return data
        document = json.loads(data)
        document["config"]["layer.weight"]["tensor_meta"][field] = value
        return json.dumps(document).encode()

    refused(rezipped(linear_pt2(), tmp_path / "m.pt2", edit), r"layer\.weight: reaches \d+ bytes into a member of 48")


@pytest.mark.parametrize("content", [b"[" * 200_000, b"{", b"\xff\xfe", b"[]", b"null", b'{"graph_module": {}}'])
def test_json_that_is_none_or_too_deep_is_refused(tmp_path: Path, marker: Path, content: bytes) -> None:
    path = rezipped(linear_pt2(), tmp_path / "m.pt2", lambda m, data: content if m == "models/model.json" else data)
    refused(path, r"models/model\.json")


def test_a_program_that_changes_its_own_weights_is_refused(tmp_path: Path, marker: Path) -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return x + self.seen

    path = written(tmp_path, "m.pt2", exported(Counts(), (torch.ones(2, 4),)))
    with pytest.raises(ArtefactRefused, match="changes its own weights"):
        TorchExportRuntime().load(path, LoadConfig(threads=1, compute_units=1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_file_with_flipped_bits_is_refused_or_sound_but_never_breaks_the_check(
    tmp_path: Path, marker: Path, data: st.DataObject
) -> None:
    broken = bytearray(linear_pt2())
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ArtefactRefused):
        TorchExportRuntime().check(written(tmp_path, "m.pt2", bytes(broken)))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_document_with_anything_anywhere_is_refused_or_sound_but_never_breaks_the_check(
    tmp_path: Path, marker: Path, data: st.DataObject
) -> None:
    junk = st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.just([]), st.just({}), st.just([[1]])
    )

    def change(node: Any) -> None:
        """Walks down a random path and puts junk at its end."""
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            below = node[key]
            if not isinstance(below, (dict, list)) or not below or data.draw(st.integers(0, 7)) == 0:
                node[key] = data.draw(junk)
                return
            node = below

    path = with_model_json(linear_pt2(), tmp_path / "m.pt2", change)
    with contextlib.suppress(ArtefactRefused):
        TorchExportRuntime().check(path)
