from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.worker import process, wire
from gpu_sharing.worker.client import WorkerClient, WorkerConfig
from gpu_sharing.worker.messages import Cancel, Command, Release, Stage, Stop, Submit, TensorRef

COMMANDS = st.lists(
    st.one_of(
        st.builds(Cancel, st.integers(0, 9)),
        st.builds(Release, st.integers(0, 9)),
        st.builds(
            Submit,
            st.just(1),
            st.just(2),
            st.just(1),
            st.binary(max_size=9),
            st.just((TensorRef(0, (1,), 0, 4),)),
            st.just((0,)),
            st.just(5),
        ),
    ),
    max_size=5,
)


@given(st.lists(COMMANDS), st.lists(st.integers(1, 40)))
def test_frames_survive_however_the_stream_is_cut(frames: list[list[Command]], cuts: list[int]) -> None:
    stream = b"".join(wire.encode(frame) for frame in frames)
    decoder, got = wire.commands(), []
    for length in [*cuts, len(stream)]:
        got += decoder.feed(stream[:length])
        stream = stream[length:]
    assert got == frames


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\x01\x00\x00\x00\xc1",
        wire.encode([Stage(1, "loading")]),
        (lambda body: len(body).to_bytes(4, "little") + body)(msgspec.msgpack.encode({"a": 1})),
        (lambda body: len(body).to_bytes(4, "little") + body)(msgspec.msgpack.encode([["Cancel", "nine"]])),
    ],
)
def test_whatever_is_not_a_command_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.commands().feed(data)


RUBBISH = """
import os, socket, sys, time
from gpu_sharing.worker import wire
from gpu_sharing.worker.messages import *
sock = socket.socket(fileno=int(sys.argv[2]))
sock.sendall(wire.encode([Ready(1, "cpu:x", "cpu", 1, "test")]))
time.sleep(0.2)
{then}
time.sleep(60)
"""


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A worker whose program is the test's."""

    async def start(then: str, events: list) -> WorkerClient:
        program = tmp_path / "impostor.sh"
        code = tmp_path / "impostor.py"
        code.write_text(RUBBISH.format(then=then))
        # Called as `python -m gpu_sharing.worker FD…`.
        program.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} {code} "$@"\n')
        program.chmod(0o700)
        monkeypatch.setattr(process.sys, "executable", str(program))
        config = WorkerConfig(cores=(0,), input_arena_bytes=1 << 20, output_arena_bytes=1 << 20)
        return await WorkerClient.start(config, on_events=events.extend)

    return start


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("sock.sendall(b'\\x02\\0\\0\\0\\x80\\x80')", "talked rubbish: a frame that is not messages"),
        (
            "sock.sendall(wire.encode([Done(1, (TensorRef(0, (1,), 1 << 20, 1),), 0, Batch(1, 0, 1, 1, 0, 0, 0, 0, 0))]))",
            "talked rubbish: an output of call 1 lies outside the arena",
        ),
        ("sock.close()", "killed by SIGKILL"),
        ("sys.exit(7)", "exited with status 7"),
    ],
)
async def test_a_worker_that_talks_rubbish_is_killed(impostor, then: str, reason: str) -> None:
    events: list = []
    client = await impostor(then, events)
    assert (await asyncio.wait_for(client.lost, 10)).startswith(reason)
    assert events == []
    await client.stop(0)


async def test_a_worker_that_reads_nothing_does_not_block_the_loop(impostor) -> None:
    client = await impostor("time.sleep(60)", [])
    loop = asyncio.get_running_loop()
    for number in range(50):
        client.send(Submit(number, 1, 1, bytes(1 << 20), (), (), 0))
        await asyncio.sleep(0)
    started = loop.time()
    await asyncio.sleep(0.01)
    assert loop.time() - started < 5
    client.send(Stop(0))
    await client.stop(0)
    assert client.lost.done()
