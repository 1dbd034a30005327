"""The documentation: blocks that are marked `<!-- run -->` are run, pages are built, and what is generated is fresh."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from deploy import reference, schema
from services.cli.main import COMMANDS
from tests.gpu_sharing.artefact_samples import onnx_bytes
from tests.mesh.running import RunningMesh, running

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
BLOCK = re.compile(r"<!-- run -->\n```(\w+)\n(.*?)```", re.DOTALL)
RUN = [page for page in PAGES if BLOCK.search(page.read_text())]
CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def laid_out(folder: Path) -> None:
    """The files that the pages' commands name: model.onnx, and models/classifier in Triton's layout."""
    shape = ["batch", 4]
    data = onnx_bytes(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )
    onnx.checker.check_model(onnx.load_from_string(data))
    (folder / "model.onnx").write_bytes(data)
    version = folder / "models" / "classifier" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(data)
    (version.parent / "config.pbtxt").write_text(CONFIG)


class Reader:
    """Somebody who types what a page says, where the mesh and the key are this mesh's."""

    def __init__(self, mesh: RunningMesh, folder: Path) -> None:
        self._mesh, self._folder, self._key = mesh, folder, ""
        programs = folder / "bin"
        programs.mkdir()
        (programs / "apportion").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m services.cli "$@"\n')
        (programs / "apportion").chmod(0o755)
        self._environment = {
            **mesh.environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "APPORTION_DATA": str(mesh.data),
        }

    def runs(self, language: str, text: str) -> str:
        """Runs a block; its output. Fails where it fails."""
        command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
        given = text.replace("ap_…", self._key).replace("localhost:8001", self._mesh.addresses["frontend"])
        done = subprocess.run([*command, given], cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        found = re.search(r"\bap_\S+", done.stdout)
        self._key = found[0] if found else self._key
        return done.stdout


def test_there_are_blocks_to_run() -> None:
    assert {name_of(page) for page in RUN} >= {"README.md", "docs/quickstart.md"}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_blocks_of_a_page_do_what_they_say(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    laid_out(folder)
    with running(tmp_path / "data", "--trace-sample", "1") as mesh:
        reader, said = Reader(mesh, folder), ""
        for language, text in BLOCK.findall(page.read_text()):
            said += reader.runs(language, text)
    assert "[[2. 2. 2. 2.]]" in said


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_a_page_exist(page: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    inline = re.findall(r"`(apportion [^`]+)`", page.read_text())
    for line in [*inline, *(line for block in blocks for line in block.splitlines())]:
        for command in re.findall(r"(?:^|[;&|(]\s*)apportion ([a-z]+)", line):
            assert command in COMMANDS or command == "certs", f"{line}: there is no such command"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_variables_in_a_page_exist(page: Path) -> None:
    from tests.deploy.test_named_things_exist import variables

    named = set(re.findall(r"\bAPPORTION_[A-Z_]+[A-Z]\b(?!…)", page.read_text()))
    assert named - variables() - {"APPORTION_KEY", "APPORTION_VERSION"} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_links_to_or_names_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:deploy|examples|docs|bench|protos)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


def test_the_reference_of_settings_is_what_the_services_take() -> None:
    assert reference.TARGET.read_text() == reference.text(), "run `python -m deploy.reference`"


@pytest.mark.parametrize("service", reference.SERVICES)
def test_every_setting_is_in_the_reference(service: str) -> None:
    text = reference.TARGET.read_text()
    settings = schema.settings_class(service)
    prefix = settings.model_config["env_prefix"]
    for name in settings.model_fields:
        assert f"`{prefix}{name.upper()}`" in text or f"`APPORTION_{name.upper()}`" in text, name


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy/observability/prometheus/rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert set(re.findall(r"^## (\w+)$", (ROOT / "docs/operations/runbooks.md").read_text(), re.MULTILINE)) == alerts


def test_every_page_of_the_documentation_is_in_its_contents() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r": ([\w/.-]+\.md)$", text, re.MULTILINE))


@pytest.mark.deploy
def test_the_documentation_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "operations" / "runbooks" / "index.html").is_file()
