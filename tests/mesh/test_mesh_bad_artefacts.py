"""Pushes that must fail: hostile artefacts, versions that are taken, uploads that are not what they announce, a full disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2, scheduler_pb2_grpc
from services.common.errors import Reason
from tests.gpu_sharing.artefact_samples import linear_onnx
from tests.mesh import tiny
from tests.mesh.calling import Caller, refused, request
from tests.mesh.hostile import HOSTILE, Hostile
from tests.mesh.pushing import ONNX, Pusher, digest_of
from tests.mesh.running import RunningMesh

TENANT = "shady"
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
DATA = b"\x08" + b"weights" * 9
UNSEEN = DATA + b"of which no upload has ever come to its end"
numbers = count(1)


@pytest.fixture(scope="module")
def shady(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """The mesh with a tenant whose honest model is `linear`."""
    linear = tmp_path_factory.mktemp("shady") / "linear.onnx"
    linear.write_bytes(linear_onnx())
    mesh.create_tenant(TENANT, reserve=0.1)
    mesh.push("linear", linear, tenant=TENANT)
    return mesh


@pytest.fixture
def pusher(shady: RunningMesh) -> Iterator[Pusher]:
    """Whoever pushes; afterwards every process is the same and the honest model serves."""
    before = {**shady.pids(), "workers": [worker.pid for worker in shady.workers()]}
    with Pusher(shady, TENANT) as made:
        yield made
    with Caller(shady, TENANT) as caller:
        assert caller.infer("linear", x=ROWS)["y"].shape == (2, 3)
    assert {**shady.pids(), "workers": [worker.pid for worker in shady.workers()]} == before


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.what)
def test_an_artefact_is_refused_by_a_worker_before_any_of_it_runs_that_is(
    pusher: Pusher, shady: RunningMesh, tmp_path: Path, hostile: Hostile
) -> None:
    marker, name = tmp_path / "code-ran", f"hostile-{next(numbers)}"
    pusher.push(name, hostile.bytes_of(tmp_path, marker), format=hostile.format)
    version = pusher.inspected(name)
    assert version.inspection == registry_pb2.INSPECTION_REFUSED
    assert hostile.says in version.inspection_message
    with Caller(shady, TENANT) as caller:
        code, refusal = caller.refusal(request(name, {"x": ROWS}))
    assert (code.name, refusal.reason) == ("FAILED_PRECONDITION", Reason.MODEL_REFUSED)
    assert hostile.says in refusal.message
    assert not marker.exists(), "the artefact ran code"


@dataclass(frozen=True)
class BadPush:
    """A push that the registry refuses. asked: the call."""

    what: str
    asked: Callable[[Pusher], Any]
    told: tuple[str, Reason]
    field: str | None
    says: str


def other_content(pusher: Pusher) -> Any:
    return pusher.push("linear", DATA, version=1, format=ONNX)


def other_configuration(pusher: Pusher) -> Any:
    return pusher.push("linear", linear_onnx(), version=1, format=ONNX, max_batch_size=3)


BAD = [
    BadPush(
        "a version that exists with other content",
        other_content,
        ("ALREADY_EXISTS", Reason.VERSION_EXISTS),
        "version",
        f"with digest {digest_of(linear_onnx())}, not {digest_of(DATA)}",
    ),
    BadPush(
        "a version that exists with another configuration",
        other_configuration,
        ("ALREADY_EXISTS", Reason.VERSION_EXISTS),
        "version",
        "versions are immutable",
    ),
    BadPush(
        "bytes of another digest",
        lambda pusher: pusher.upload(DATA, digest=digest_of(b"other")),
        ("DATA_LOSS", Reason.DIGEST_MISMATCH),
        "header.digest",
        digest_of(DATA),
    ),
    BadPush(
        "fewer bytes than announced",
        lambda pusher: pusher.upload(UNSEEN, size_bytes=len(UNSEEN) + 1),
        ("DATA_LOSS", Reason.SIZE_MISMATCH),
        "header.size_bytes",
        f"{len(UNSEEN)} of the {len(UNSEEN) + 1} bytes announced",
    ),
    BadPush(
        "more bytes than announced",
        lambda pusher: pusher.upload(UNSEEN, size_bytes=10),
        ("DATA_LOSS", Reason.SIZE_MISMATCH),
        "header.size_bytes",
        "more than the 10 bytes announced",
    ),
    BadPush(
        "more bytes than any artefact may have",
        lambda pusher: pusher.upload(UNSEEN, size_bytes=1 << 50),
        ("RESOURCE_EXHAUSTED", Reason.ARTEFACT_TOO_LARGE),
        "header.size_bytes",
        str(8 << 30),
    ),
    BadPush(
        "bytes that nobody uploaded",
        lambda pusher: pusher.version("linear", b"never sent", format=ONNX),
        ("NOT_FOUND", Reason.ARTEFACT_NOT_FOUND),
        "digest",
        "upload it first",
    ),
    BadPush(
        "a tenant that does not exist",
        lambda pusher: pusher.upload(DATA, tenant="nobody"),
        ("NOT_FOUND", Reason.TENANT_NOT_FOUND),
        "header.tenant",
        "no tenant 'nobody'",
    ),
    BadPush(
        "a name that is none",
        lambda pusher: pusher.push("No Name", DATA, format=ONNX),
        ("INVALID_ARGUMENT", Reason.FIELD_INVALID),
        "key.name",
        "1 to 63 of a-z",
    ),
    BadPush(
        "a format that is none",
        lambda pusher: pusher.push("linear", DATA, format=77),
        ("INVALID_ARGUMENT", Reason.FIELD_INVALID),
        "config.format",
        "77",
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.what)
def test_a_push_is_refused_of(pusher: Pusher, bad: BadPush) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        bad.asked(pusher)
    code, refusal = refused(caught.value)
    assert (code.name, refusal.reason, refusal.field) == (*bad.told, bad.field), refusal.message
    assert bad.says in refusal.message


def test_reservations_beyond_what_there_is_are_refused_with_what_is_free(pusher: Pusher, shady: RunningMesh) -> None:
    asked = scheduler_pb2.CheckReservationRequest(tenant="greedy", reservation=common_pb2.Share(millidevices=1000))
    with grpc.insecure_channel(shady.addresses["scheduler"]) as channel, pytest.raises(grpc.RpcError) as caught:
        scheduler_pb2_grpc.SchedulerServiceStub(channel).CheckReservation(asked, timeout=10)
    code, refusal = refused(caught.value)
    assert (code.name, refusal.reason) == ("RESOURCE_EXHAUSTED", Reason.OVERSOLD)
    assert "free of 1.000 (" in refusal.message
    assert f"{TENANT} 0.100" in refusal.message


def test_a_disk_that_is_full_refuses_the_push_and_leaves_nothing_of_it(pusher: Pusher, shady: RunningMesh) -> None:
    """The kernel refuses the registry what a full disk would: to write on. Afterwards the same push goes through."""
    data = b"\x08" + np.random.default_rng(5).bytes(24 << 20)
    digits = hashlib.sha256(data).hexdigest()
    stored = shady.data / "artefacts" / "sha256" / digits[:2] / digits
    registry = psutil.Process(shady.pids()["registry"])
    unlimited = registry.rlimit(psutil.RLIMIT_FSIZE)
    registry.rlimit(psutil.RLIMIT_FSIZE, (16 << 20, unlimited[1]))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            pusher.upload(data)
    finally:
        registry.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    code, refusal = refused(caught.value)
    assert (code.name, refusal.reason, refusal.field) == (
        "RESOURCE_EXHAUSTED",
        Reason.STORAGE_FULL,
        "header.size_bytes",
    )
    assert f"{len(data)} bytes do not fit" in refusal.message
    assert not stored.exists()
    assert not list((shady.data / "artefacts" / "incoming").iterdir())
    pusher.upload(data)
    assert stored.stat().st_size == len(data)
    stored.unlink()


@dataclass(frozen=True)
class BadCommand:
    """A command line that fails, with what its one line says. {linear}, {other}, {cut}, {pickle}: files of that kind."""

    what: str
    line: str
    says: str
    status: int = 1


COMMANDS = [
    BadCommand(
        "pushes a pickle", "model push m {pickle} --tenant shady", "is a pickle, which could run code: it is refused"
    ),
    BadCommand("pushes a model cut short", "model push cut {cut} --tenant shady", "not an ONNX model, or cut short"),
    BadCommand(
        "pushes other content as an existing version",
        "model push linear {other} --tenant shady --version 1",
        "versions are immutable, take another number",
    ),
    BadCommand("pushes for nobody", "model push m {linear} --tenant nobody", "there is no tenant 'nobody'"),
    BadCommand("pushes what is not there", "model push m {missing}", "does not exist", 2),
    BadCommand(
        "names a tensor that the model has not",
        "model push axes {linear} --tenant shady --batch-axis z=0",
        "no tensor is named 'z'; the model has x, y",
    ),
    BadCommand("oversells", "tenant create greedy --reserve 0.95", "greedy needs 0.950 devices, "),
    BadCommand(
        "reserves what no fleet has", "tenant create greedy --reserve 65", "65 is not within 0 to 64 devices", 2
    ),
    BadCommand("creates a tenant twice", "tenant create shady", "there is a tenant 'shady' already"),
    BadCommand("asks for a trace that is not kept", f"trace show {'ab' * 16}", "only violators and a sample"),
]


@pytest.mark.parametrize("bad", COMMANDS, ids=lambda bad: bad.what)
def test_a_command_fails_with_one_line_that(
    pusher: Pusher, shady: RunningMesh, tmp_path: Path, bad: BadCommand
) -> None:
    files = {kind: tmp_path / f"{kind}.onnx" for kind in ("linear", "other", "cut", "pickle", "missing")}
    files["linear"].write_bytes(linear_onnx())
    files["cut"].write_bytes(linear_onnx()[:-40])
    files["pickle"].write_bytes(b"\x80\x04.")
    tiny.echo(files["other"], "float32")
    done = shady.apportion(*bad.line.format(**files).split())
    assert done.returncode == bad.status
    line, *more = done.stderr.splitlines()
    assert not more, done.stderr
    assert line.startswith("error: ")
    assert bad.says in line
    assert "Traceback" not in done.stdout + done.stderr
