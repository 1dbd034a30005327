"""A worker without a process: the interface of WorkerClient, and a model whose outputs are its inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gpu_sharing.measurements import Batch, Profile
from gpu_sharing.memory.arena import Arena
from gpu_sharing.tensors import Signature, TensorSpec
from gpu_sharing.worker.messages import (
    Cancel,
    CloseRegion,
    Done,
    Event,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    OpenRegion,
    Ready,
    RegionFailed,
    RegionOpened,
    RegionPart,
    Release,
    Submit,
    TensorRef,
    Unload,
    Unloaded,
)

ECHO = Signature(
    inputs=(TensorSpec("x", "FP32", (None, None), ("", "n"), 0),),
    outputs=(TensorSpec("y", "FP32", (None, None), ("", "n"), 0),),
    max_batch_size=8,
)


class FakeWorker:
    """signatures: by model name. Models named "refused" are refused, "crash" lose the worker. hold: answer nothing."""

    def __init__(self, on_events: Callable[[Sequence[Event]], None], signatures: dict[str, Signature]) -> None:
        self._on_events, self._signatures = on_events, signatures
        self._loop = asyncio.get_running_loop()
        self.inputs = Arena.create(32 << 20)
        self._outputs = Arena.create(64 << 20)
        self.outputs = self._outputs.view.toreadonly()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.ready = Ready(1, "cpu:fake", "cpu", 1, "a test")
        self.pid = 1
        self.hold = False
        self.silent = False
        self.held: list[Submit] = []
        self.commands: list[Any] = []
        self.blocks: dict[int, list[int]] = {}
        self.memories: dict[bytes, int] = {}
        self.regions: dict[str, bytearray] = {}
        self.hold_regions = False

    @property
    def output_bytes(self) -> int:
        return self._outputs.used_bytes

    def send(self, command: Any) -> None:
        if self.lost.done():
            return
        self.commands.append(command)
        self._loop.call_soon(self._obey, command)

    def release(self, call: int, length_bytes: int) -> None:
        self.send(Release(call))

    async def stop(self, grace_s: float) -> None:
        if not self.lost.done():
            self.lost.set_result("stopped")

    def die(self, reason: str = "killed by SIGKILL") -> None:
        self.lost.set_result(reason)

    def kill(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    def answer_held(self) -> None:
        held, self.held = self.held, []
        for submit in held:
            self._run(submit)

    def _tell(self, *events: Event) -> None:
        if not self.lost.done():
            self._on_events(events)

    def _obey(self, command: Any) -> None:
        match command:
            case Load():
                self._load(command)
            case Unload():
                self._tell(Unloaded(command.replica))
            case Submit() if self.hold:
                self.held.append(command)
            case Submit():
                self._run(command)
            case Cancel() if any(each.call == command.call for each in self.held):
                self.held = [each for each in self.held if each.call != command.call]
                self._tell(Failed(command.call, "CANCELLED", "cancelled"))
            case OpenRegion() if self.hold_regions:
                pass
            case OpenRegion(handle=handle):
                size = self.memories.get(handle)
                if size is None:
                    self._tell(RegionFailed(command.region, "FIELD_INVALID", "is of no memory that can be opened here"))
                else:
                    self.regions[command.region] = bytearray(size)
                    self._tell(RegionOpened(command.region, size))
            case CloseRegion():
                self.regions.pop(command.region, None)
            case Release(call=call) if call not in self.blocks:
                pass
            case Release():
                for block in self.blocks.pop(command.call):
                    self._outputs.free(block)

    def _through_regions(
        self, submit: Submit, source: TensorRef, sink: RegionPart | None, blocks: list[int]
    ) -> TensorRef:
        """Echoes an input that may lie in a region to an output that may go to one."""
        data = bytes(self.inputs.view[source.offset : source.offset + source.length_bytes])
        for part in submit.sources:
            data = bytes(self.regions[part.region][part.offset : part.offset + part.length_bytes])
        if sink is not None:
            self.regions[sink.region][sink.offset : sink.offset + len(data)] = data
            return TensorRef(source.index, source.shape, 0, 0)
        block = self._outputs.allocate(len(data))
        assert block is not None
        blocks.append(block)
        self._outputs.view[block : block + len(data)] = data
        return TensorRef(source.index, source.shape, block, len(data))

    def _load(self, load: Load) -> None:
        if load.model == "crash":
            self.die("killed by SIGSEGV")
        elif load.model == "refused":
            self._tell(LoadFailed(load.replica, True, "the artefact is hostile"))
        elif not self.silent:
            signature = self._signatures.get(load.model, ECHO)
            self._tell(Loaded(load.replica, signature, Profile(load.digest, "cpu:fake", 10), 10))

    def _run(self, submit: Submit) -> None:
        refs, blocks = [], []
        sinks = {sink.place: sink for sink in submit.sinks}
        for place, index in enumerate(submit.outputs):
            source = submit.inputs[index]
            if submit.sources or sinks:
                refs.append(self._through_regions(submit, source, sinks.get(place), blocks))
                continue
            block = self._outputs.allocate(max(1, source.length_bytes))
            assert block is not None
            blocks.append(block)
            data = self.inputs.view[source.offset : source.offset + source.length_bytes]
            self._outputs.view[block : block + source.length_bytes] = data
            refs.append(TensorRef(index, source.shape, block, source.length_bytes))
        self.blocks[submit.call] = blocks
        start = submit.arrived + 1000
        batch = Batch(submit.call, 0, submit.rows, 1, start, start + 1000, 0, 0, 0, (start + 1000,))
        self._tell(Done(submit.call, tuple(refs), submit.arrived, batch))
