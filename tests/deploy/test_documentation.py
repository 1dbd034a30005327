"""The documentation: marked blocks are run, pages are built, and what is generated is fresh.

A block is run where `<!-- run -->` stands before it; `<!-- run after docs/quickstart.md -->` runs that page's blocks first;
`<!-- run: status 0 or 1 -->` lets each of its lines end with 1, as reports do where an objective is broken.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import typer
import yaml
from onnx import TensorProto, helper

from deploy import reference, schema
from services.cli.main import COMMANDS, app
from tests.gpu_sharing.artefact_samples import onnx_bytes
from tests.mesh.running import RunningMesh, running

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
BLOCK = re.compile(r"<!-- run( after [\w/.-]+|: status 0 or 1)? -->\n```(\w+)\n(.*?)```", re.DOTALL)
ONE_IS_FINE = "trap 'status=$?; [ $status -eq 1 ] || exit $status' ERR\n"
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
        self._mesh, self._folder, self._key, self._key_id = mesh, folder, "", ""
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

    def runs(self, language: str, text: str, *, one_is_fine: bool = False) -> str:
        """Runs a block; its output. Fails where it fails."""
        shell = ["bash", "-Euo" if one_is_fine else "-euo", "pipefail", "-c"]
        command = {"sh": shell, "python": [sys.executable, "-c"]}[language]
        given = text.replace("ap_…", self._key).replace("localhost:8001", self._mesh.addresses["frontend"])
        given = (ONE_IS_FINE if one_is_fine else "") + given.replace("k_3FaB…", self._key_id)
        done = subprocess.run([*command, given], cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode <= one_is_fine, f"{text}\n{done.stdout}{done.stderr}"
        self._key = next(iter(re.findall(r"\bap_\S+", done.stdout)), self._key)
        self._key_id = next(iter(re.findall(r"^key (k_\S+)", done.stdout, re.MULTILINE)), self._key_id)
        return done.stdout


def test_there_are_blocks_to_run() -> None:
    commands = {f"docs/{name}.md" for name in ("quickstart", "access", "metering", "quotas", "slo")}
    assert {name_of(page) for page in RUN} == {"README.md", *commands}


def blocks(page: Path) -> Iterator[tuple[str, str, bool]]:
    """The blocks to run, those of the page that this one comes after first: language, text, whether status 1 is fine."""
    for said, language, text in BLOCK.findall(page.read_text()):
        if said.startswith(" after "):
            yield from blocks(ROOT / said.removeprefix(" after "))
        yield language, text, said.startswith(":")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_blocks_of_a_page_do_what_they_say(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    laid_out(folder)
    with running(tmp_path / "data", "--trace-sample", "1") as mesh:
        reader, said = Reader(mesh, folder), ""
        for language, text, one_is_fine in blocks(page):
            said += reader.runs(language, text, one_is_fine=one_is_fine)
    assert "[[2. 2. 2. 2.]]" in said or "```python" not in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_a_page_exist(page: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    inline = re.findall(r"`(apportion [^`]+)`", page.read_text())
    for line in [*inline, *(line for block in blocks for line in block.splitlines())]:
        for command in re.findall(r"(?:^|[;&|(]\s*)apportion ([a-z]+)", line):
            assert command in COMMANDS, f"{line}: there is no such command"
        for words in re.findall(r"(?:^|[;&|(]\s*|\bcli )apportion ([a-z].*?)(?=[;&|)]|$)", line):
            assert list(unknown_flags(words)) == [], line


def unknown_flags(text: str) -> Iterator[str]:
    """Flags of a command line that the command does not have."""
    words = shlex.split(text.partition(" #")[0])
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "list_commands") and words[0] in command.list_commands(None):
        command = command.get_command(None, words.pop(0))
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    yield from (word for word in words if word.startswith("--") and word.partition("=")[0] not in known)


def test_a_flag_that_a_command_does_not_have_is_found() -> None:
    assert list(unknown_flags("tenant create search --reserve 0.25 --jsno # not --this")) == ["--jsno"]


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
