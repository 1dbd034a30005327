"""The clients of examples/clients against a real mesh."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.running import RunningMesh, running
from tests.mesh.tiny import echo, slow

ROOT = Path(__file__).parent.parent.parent
CLIENTS = ROOT / "examples" / "clients"
MODEL, INPUT = "echo", "in_float32"
DEADLINE_EXCEEDED, NOT_FOUND = 4, 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("clients")
    with running(folder / "data") as mesh:
        mesh.create_tenant("search", reserve=0.25)
        mesh.push(MODEL, echo(folder / "echo.onnx", "float32"), tenant="search")
        mesh.push("slow", slow(folder / "slow.onnx"), tenant="search")
        yield mesh


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JavaScript client with its packages, where node and npm are."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    # As deep as in the project, beside a copy of the contracts that it loads.
    folder = tmp_path_factory.mktemp("node")
    target = folder / "examples" / "clients" / "javascript"
    shutil.copytree(CLIENTS / "javascript", target, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "protos", folder / "protos")
    done = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=target, capture_output=True, text=True, timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def ran(command: list[str], mesh: RunningMesh, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [*command, mesh.addresses["frontend"], MODEL, INPUT],
        cwd=cwd,
        env={**os.environ, "APPORTION_KEY": mesh.keys["search"], **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Away:
    """The model is off every device, and its worker too busy to load it again, for a while after the block begins."""

    def __init__(self, mesh: RunningMesh, seconds: float) -> None:
        self._mesh, self._seconds = mesh, seconds

    def __enter__(self) -> None:
        self._mesh.command("model", "unload", MODEL, "--tenant", "search")
        self._worker = self._mesh.workers()[0].pid
        os.kill(self._worker, signal.SIGSTOP)
        self._back = threading.Timer(self._seconds, os.kill, (self._worker, signal.SIGCONT))
        self._back.start()
        self._load = threading.Thread(target=self._mesh.command, args=("model", "load", MODEL, "--tenant", "search"))
        self._load.start()
        # Until the wish has reached the frontends.
        time.sleep(0.7)

    def __exit__(self, *_: object) -> None:
        self._back.join()
        self._load.join(60)


def test_node_infers_streams_and_tells_of_deadlines_and_refusals(mesh: RunningMesh, javascript: Path) -> None:
    told = json.loads(ran(["node", "example.mjs"], mesh, javascript, SLOW_MODEL="slow"))
    told["stream"].sort()  # answers come as they are ready
    assert told == {
        "infer": [1, 2, 3],
        "stream": [["0", 1], ["1", 2], ["2", 3]],
        "deadline": {"code": DEADLINE_EXCEEDED, "reason": told["deadline"]["reason"]},
        "unknown": {"code": NOT_FOUND, "reason": "MODEL_NOT_FOUND"},
        "retries": 0,
    }


def test_node_tries_again_when_the_service_says_so(mesh: RunningMesh, javascript: Path) -> None:
    with Away(mesh, 3.0):
        told = json.loads(ran(["node", "example.mjs"], mesh, javascript, ONLY="infer"))
    assert told["infer"] == [1, 2, 3]
    assert told["retries"] >= 1


def test_tritonclient_infers_and_tries_again_when_the_service_says_so(mesh: RunningMesh) -> None:
    command = [sys.executable, "with_tritonclient.py"]
    assert ran(command, mesh, CLIENTS / "python") == "[[1.0, 2.0, 3.0]]\n"
    with Away(mesh, 5.0):
        assert ran(command, mesh, CLIENTS / "python") == "[[1.0, 2.0, 3.0]]\n"


def test_plain_stubs_are_generated_as_told_and_infer_stream_and_try_again(mesh: RunningMesh, tmp_path: Path) -> None:
    script = (CLIENTS / "python" / "with_stubs.py").read_text()
    (line,) = re.findall(r"python -m grpc_tools\.protoc (.*)", script)
    generated = [sys.executable, "-m", "grpc_tools.protoc", *line.replace("OUT", str(tmp_path)).split()]
    subprocess.run(generated, cwd=ROOT, check=True, timeout=60)
    command = [sys.executable, "with_stubs.py"]

    def told() -> tuple[str, set[str]]:
        """The one answer, and the stream's, which come as they are ready."""
        one, *streamed = ran(command, mesh, CLIENTS / "python", PYTHONPATH=str(tmp_path)).splitlines()
        assert len(streamed) == 3
        return one, set(streamed)

    expected = ("[1.0, 2.0, 3.0]", {"0 [0.0]", "1 [1.0]", "2 [2.0]"})
    assert told() == expected
    with Away(mesh, 5.0):
        assert told() == expected


def test_the_files_methods_and_fields_that_recipes_name_are_in_the_contracts() -> None:
    text = (CLIENTS / "grpcurl" / "README.md").read_text() + (CLIENTS / "README.md").read_text()
    contract = (ROOT / "protos/inference/grpc_service.proto").read_text()
    for method in set(re.findall(r"GRPCInferenceService/(\w+)", text)):
        assert f"rpc {method}(" in contract, method
    for path in set(re.findall(r"\b(inference/\w+\.proto)", text)):
        assert (ROOT / "protos" / path).is_file(), path
    for body in re.findall(r"-d '(\{.*\})'", text):
        for field in set(re.findall(r'"(\w+)":', body)):
            assert re.search(rf"\b{field} = \d+", contract), field
