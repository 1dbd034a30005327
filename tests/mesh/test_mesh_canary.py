"""A pattern in one tenant's tensors never shows up with another: not in outputs, shared memory, logs, spans, errors or metrics,
through switches between tenants, dead workers and reloads."""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from services._proto.inference import grpc_service_pb2 as oip
from tests.mesh import tiny
from tests.mesh.calling import Caller, outputs, request
from tests.mesh.running import SHARED_MEMORY, RunningMesh, wait_until

CANARY = secrets.token_bytes(24)
"""As likely to be anywhere by chance as not at all."""
VALUES = np.frombuffer(CANARY * 64, np.uint8).reshape(1, -1)
TEXT = np.array([[CANARY.hex().encode()] * VALUES.size], object)
MINE = np.array([[b"mine"] * VALUES.size], object)
MARKS = (CANARY, CANARY.hex().encode())
REGION_BYTES = 1 << 16
ROUNDS = 25


def marked(content: bytes) -> bool:
    return any(mark in content for mark in MARKS)


@pytest.fixture
def both(own_mesh: RunningMesh, tmp_path: Path) -> RunningMesh:
    """alice, whose tensors bear the pattern, and bob, on one device and in one worker where they may share it."""
    model = tiny.echo(tmp_path / "echo.onnx", "uint8", "object")
    for tenant in ("alice", "bob"):
        own_mesh.create_tenant(tenant)
        own_mesh.push("echo", model, tenant=tenant)
    own_mesh.push("inflate", tiny.inflate(tmp_path / "inflate.onnx"), tenant="bob")
    return own_mesh


@pytest.fixture
def region() -> Iterator[mmap.mmap]:
    """Shared memory of bob's."""
    path = SHARED_MEMORY / f"bob-{os.getpid()}"
    path.write_bytes(bytes(REGION_BYTES))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), REGION_BYTES) as memory:
        yield memory
    path.unlink()


def alices(mesh: RunningMesh, stop: threading.Event, answered: list[int]) -> None:
    """Calls with the pattern, well and badly, for as long as it takes."""
    with Caller(mesh, "alice") as alice:
        while not stop.is_set():
            with suppress(grpc.RpcError):
                told = alice.infer("echo", in_uint8=VALUES, in_object=TEXT)
                assert told["out_uint8"].tobytes() == VALUES.tobytes(), "alice gets her own"
                assert marked(told["out_uint8"].tobytes()), "it would be found where it is"
                answered.append(1)
            for asked in (
                request("echo", {"in_uint8": VALUES[:, :-1].astype(np.int32), "in_object": TEXT}),
                request(CANARY.hex(), {"in_uint8": VALUES}),
                oip.ModelInferRequest(model_name="echo", id=CANARY.hex(), raw_input_contents=[CANARY * 7]),
            ):
                with suppress(grpc.RpcError):
                    alice.send(asked)


def bobs(bob: Caller, seen: list[bytes]) -> int:
    """Everything that bob can get to see of an answer or an error; how many answers there were."""
    answered = 0
    mine = np.arange(VALUES.size, dtype=np.uint8).reshape(1, -1)
    for asked in (
        request("echo", {"in_uint8": mine, "in_object": MINE}),
        request("inflate", {"size": np.array([VALUES.size], np.int64)}),
        request("echo", {"in_uint8": mine}),
        request("alice/echo", {"in_uint8": mine}),
    ):
        try:
            answer = bob.send(asked)
            answered += 1
            seen.append(answer.SerializeToString())
            seen += [value.tobytes() for value in outputs(answer).values() if value.dtype != object]
        except grpc.RpcError as error:
            seen.append(f"{error.details()}{error.trailing_metadata()}".encode())
    return answered


def in_region(bob: Caller, seen: list[bytes], memory: mmap.mmap) -> None:
    """An answer into bob's shared memory, of which all is looked at."""
    asked = request("inflate", {"size": np.array([64], np.int64)})
    wanted = asked.outputs.add(name="y")
    wanted.parameters["shared_memory_region"].string_param = "bobs"
    wanted.parameters["shared_memory_byte_size"].int64_param = REGION_BYTES
    with suppress(grpc.RpcError):
        bob.send(asked)
    seen.append(bytes(memory))


def test_a_tenants_pattern_is_never_seen_by_another_whatever_happens(both: RunningMesh, region: mmap.mmap) -> None:
    stop, answered, seen, got = threading.Event(), list[int](), list[bytes](), 0
    calling = [threading.Thread(target=alices, args=(both, stop, answered)) for _ in range(2)]
    for thread in calling:
        thread.start()
    try:
        with Caller(both, "bob") as bob:
            name = Path(f"bob-{os.getpid()}").name
            asked = oip.SystemSharedMemoryRegisterRequest(name="bobs", key=f"/{name}", byte_size=REGION_BYTES)
            bob.stub.SystemSharedMemoryRegister(asked, metadata=bob.metadata)
            for number in range(ROUNDS):
                got += bobs(bob, seen)
                in_region(bob, seen, region)
                if number == ROUNDS // 3:
                    for worker in both.workers():
                        worker.kill()
                if number == 2 * ROUNDS // 3:
                    both.command("model", "unload", "echo", "--tenant", "alice")
                    got += bobs(bob, seen)
                    both.command("model", "load", "echo", "--tenant", "alice")
            wait_until(lambda: bobs(bob, seen) >= 2, what="bob being served again")
    finally:
        stop.set()
        for thread in calling:
            thread.join()
    assert len(answered) > 5, "alice was served all the while"
    assert got > ROUNDS
    assert not any(map(marked, seen))
    elsewhere(both)


def elsewhere(mesh: RunningMesh) -> None:
    """Where operators and other tenants look. Of what a caller names itself, the id of a request is in its own spans alone."""
    logs = list((mesh.data / "logs").glob("*"))
    assert logs
    for log in logs:
        assert not marked(log.read_bytes()), log
    for address in (mesh.addresses["metrics"], mesh.addresses["executor_metrics"]):
        assert not any(marked(repr(sample).encode()) for sample in mesh.metrics(address))
    assert not marked(mesh.command("trace", "list", "--tenant", "bob").encode())
    assert CANARY not in (mesh.data / "traces.db").read_bytes()
    assert not marked(mesh.command("audit").encode())
    for path in SHARED_MEMORY.iterdir() if SHARED_MEMORY.exists() else ():
        if path.is_file() and path.stat().st_size < 1 << 28:
            assert not marked(path.read_bytes()), path
