"""Regions of other processes' memory in a worker: opened and closed by a thread of their own, used by the lane in between."""

from __future__ import annotations

import math
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from gpu_sharing.devices.regions import DeviceRegions, Opened, RegionRefused, absent
from gpu_sharing.runtimes.base import LoadedModel, Tensors
from gpu_sharing.runtimes.lent import Borrower, LentInputs, Piece
from gpu_sharing.tensors import ITEM_BYTES, NUMPY_NAMES, Signature, TensorSpec
from gpu_sharing.units import Bytes
from gpu_sharing.worker.gather import join, read
from gpu_sharing.worker.messages import (
    CloseRegion,
    Event,
    OpenRegion,
    RegionFailed,
    RegionOpened,
    RegionPart,
    Submit,
    TensorRef,
)

T = TypeVar("T")
MOST_OPEN = 4096
_STOP_S = 5.0


class RegionLost(Exception):
    """A request names a region that is not open, or bytes outside it. reason: REGION_NOT_FOUND or FIELD_INVALID."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Region:
    """uses: batches that have borrowed it. closing: it is borrowed no more."""

    __slots__ = ("closing", "opened", "size_bytes", "tenant", "uses")

    def __init__(self, opened: Opened, tenant: str, size_bytes: Bytes) -> None:
        self.opened, self.tenant, self.size_bytes = opened, tenant, size_bytes
        self.uses, self.closing = 0, False


class Regions:
    """What is open, by id. Every method may be called by any thread; what a lease does, by the lane's."""

    def __init__(self, opener: DeviceRegions, tell: Callable[[Sequence[Event]], None]) -> None:
        """tell: takes the answers to commands, on the thread that opens."""
        self._opener, self._tell = opener, tell
        self._lock = threading.Condition()
        self._open: dict[str, _Region] = {}
        self._asked: queue.SimpleQueue[OpenRegion | CloseRegion | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def obey(self, command: OpenRegion | CloseRegion) -> None:
        """Does it later, in the order of commands: a driver may take its time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="regions", daemon=True)
            self._thread.start()
        self._asked.put(command)

    def borrow(self, requests: Sequence[Submit]) -> Lease | None:
        """The regions of a batch, which stay open until the lease ends; None where it uses none. Raises RegionLost."""
        parts = [part for request in requests for part in (*request.sources, *request.sinks)]
        if not parts:
            return None
        held: dict[str, _Region] = {}
        with self._lock:
            for part in parts:
                held[part.region] = self._checked(part)
            for region in held.values():
                region.uses += 1
        return Lease(self, self._opener, held)

    def give_back(self, regions: Sequence[_Region]) -> None:
        """A lease has ended."""
        with self._lock:
            for region in regions:
                region.uses -= 1
            self._lock.notify_all()

    def stop(self) -> None:
        """Closes everything; the lane has ended."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(_STOP_S)
        self._opener.stop()

    def _checked(self, part: RegionPart) -> _Region:
        region = self._open.get(part.region)
        if region is None or region.closing:
            raise RegionLost("REGION_NOT_FOUND", "a region of shared memory that the request names is open no more")
        if part.offset < 0 or part.length_bytes < 0 or part.offset + part.length_bytes > region.size_bytes:
            raise RegionLost(
                "FIELD_INVALID",
                f"{part.length_bytes} bytes at {part.offset} reach beyond the {region.size_bytes} bytes of a region",
            )
        return region

    def _run(self) -> None:
        while (command := self._asked.get()) is not None:
            try:
                if isinstance(command, OpenRegion):
                    self._tell([self._answer(command)])
                else:
                    self._close(command.region)
            except (BrokenPipeError, ConnectionResetError):
                # The executor is gone, and the worker with it.
                return
        # The lane has ended: whatever it had borrowed is used no more.
        for region in list(self._open):
            self._close(region, wait=False)

    def _answer(self, asked: OpenRegion) -> RegionOpened | RegionFailed:
        try:
            return RegionOpened(asked.region, self._opened(asked))
        except RegionRefused as refused:
            return RegionFailed(asked.region, refused.reason, str(refused))
        except Exception:  # whatever it was, the executor waits for a word
            traceback.print_exc()
            sys.stderr.flush()
            return RegionFailed(asked.region, "UNSUPPORTED", "this worker could not open it")

    def _opened(self, asked: OpenRegion) -> Bytes:
        found = self._open.get(asked.region)
        if found is not None:
            return found.opened.size_bytes
        if len(self._open) >= MOST_OPEN:
            raise RegionRefused("OUT_OF_MEMORY", f"a worker opens {MOST_OPEN} regions at most")
        opened = self._opener.open(asked.handle)
        try:
            self._check(asked, opened)
        except RegionRefused:
            self._opener.close(opened)
            raise
        with self._lock:
            self._open[asked.region] = _Region(opened, asked.tenant, asked.size_bytes)
        return opened.size_bytes

    def _check(self, asked: OpenRegion, opened: Opened) -> None:
        same = (each for each in self._open.values() if each.opened.identity == opened.identity)
        if any(each.tenant != asked.tenant for each in same):
            raise absent()
        if not 0 < asked.size_bytes <= opened.size_bytes:
            raise RegionRefused(
                "FIELD_INVALID", f"{asked.size_bytes} bytes are more than the {opened.size_bytes} of the memory"
            )

    def _close(self, name: str, *, wait: bool = True) -> None:
        with self._lock:
            region = self._open.get(name)
            if region is None:
                return
            region.closing = True
            if wait:
                self._lock.wait_for(lambda: not region.uses)
            del self._open[name]
        try:
            self._opener.close(region.opened)
        except Exception:  # a broken device is found out by the lane; nothing else depends on this
            traceback.print_exc()
            sys.stderr.flush()


class Lease:
    """The regions of one batch."""

    def __init__(self, regions: Regions, opener: DeviceRegions, held: dict[str, _Region]) -> None:
        self._regions, self._opener, self._held = regions, opener, held
        self._ended = False

    def end(self) -> None:
        """The batch has ended, and its outputs are written; twice is once."""
        if not self._ended:
            self._ended = True
            self._regions.give_back(list(self._held.values()))

    def join(self, signature: Signature, requests: Sequence[Submit], arena: memoryview, model: object) -> Tensors:
        """The inputs of a batch as `gather.join` makes them, those in regions read from there: by the model itself, on the device,
        where it can. Raises TensorInvalid, RegionLost."""
        direct = isinstance(model, Borrower) and model.takes_lent
        inputs: dict[str, np.ndarray] = {}
        lent: dict[str, list[Piece]] = {}
        for place, ref in enumerate(requests[0].inputs):
            spec = signature.inputs[ref.index]
            chosen = requests if spec.batch_axis is not None else requests[:1]
            pieces: list[Piece] = []
            parts: list[np.ndarray] = []
            # Rows lie one behind another only along the first axis.
            as_pieces = pieces if direct and not spec.batch_axis else None
            for request in chosen:
                at = sum(part.nbytes for part in parts)
                parts.append(self._tensor(request, place, spec, arena, as_pieces, at))
            inputs[spec.name] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=spec.batch_axis)
            if pieces:
                lent[spec.name] = pieces
        return LentInputs(inputs, lent) if lent else inputs

    def write(self, sink: RegionPart, spec: TensorSpec, tensor: np.ndarray) -> None:
        """Writes an output to where it is to go. Raises RegionLost where it does not fit, or the memory is there no more."""
        content = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        if content.nbytes > sink.length_bytes:
            raise RegionLost(
                "FIELD_INVALID",
                f"output {spec.name!r} has {content.nbytes} bytes, more than the {sink.length_bytes} that were given for it",
            )
        try:
            self._opener.write(self._held[sink.region].opened, sink.offset, content)
        except RegionRefused as refused:
            raise RegionLost(refused.reason, f"output {spec.name!r}: {refused}") from refused

    def _tensor(
        self,
        request: Submit,
        place: int,
        spec: TensorSpec,
        arena: memoryview,
        pieces: list[Piece] | None,
        at: Bytes,
    ) -> np.ndarray:
        ref = request.inputs[place]
        source = next((each for each in request.sources if each.place == place), None)
        if source is None:
            return read(arena, ref, spec)
        length_bytes = ITEM_BYTES.get(spec.datatype, 0) * math.prod(ref.shape)
        if source.length_bytes != length_bytes:
            raise RegionLost(
                "FIELD_INVALID",
                f"input {spec.name!r}: {source.length_bytes} bytes in shared memory where {length_bytes} are needed",
            )
        opened = self._held[source.region].opened
        if pieces is not None:
            there = self._opener.lent(opened, source.offset, length_bytes)
            if there is not None:
                pieces.append(Piece(at, length_bytes, there))
                return np.empty(ref.shape, NUMPY_NAMES[spec.datatype])
        return self._fetched(opened, source, ref, spec)

    def _fetched(self, opened: Opened, source: RegionPart, ref: TensorRef, spec: TensorSpec) -> np.ndarray:
        content = np.empty(source.length_bytes, np.uint8)
        try:
            self._opener.read(opened, source.offset, content)
        except RegionRefused as refused:
            raise RegionLost(refused.reason, f"input {spec.name!r}: {refused}") from refused
        return read(content.data, TensorRef(ref.index, ref.shape, 0, content.nbytes), spec)


def begun(regions: Regions | None, requests: Sequence[Submit], begin: Callable[[Lease | None], T]) -> T:
    """What `begin` makes of the memory that a batch's requests are lent, if any; it is given back where that fails."""
    lease = None if regions is None else regions.borrow(requests)
    try:
        return begin(lease)
    except BaseException:
        if lease is not None:
            lease.end()
        raise


def joined(lease: Lease | None, model: LoadedModel, requests: Sequence[Submit], arena: memoryview) -> Tensors:
    """A batch's inputs, put together from the arena and from what is lent."""
    if lease is None:
        return join(model.signature, requests, arena)
    return lease.join(model.signature, requests, arena, model)
