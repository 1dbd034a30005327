"""The runtime "python": an operator's own code, run as it is. Off unless its digest is approved; docs/python.md has the interface.

Nothing here confines it: the code runs with the rights of its worker, and sees what that holds.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import types
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel, Run, Tensors
from gpu_sharing.runtimes.python_place import ROW_ITEMS, Place, PlaceFor, Rows, brought, taken_back
from gpu_sharing.runtimes.python_source import Source, read_approved
from gpu_sharing.runtimes.signature import infer
from gpu_sharing.runtimes.verification import Verdict, verified
from gpu_sharing.runtimes.warmup import EXTENTS_TRIED, Ranges, finish, made_up
from gpu_sharing.tensors import DATATYPES, Signature, TensorSpec
from gpu_sharing.units import Bytes

_NUMBERS = itertools.count(1)
_KEYS = frozenset(("name", "datatype", "shape", "optional", "rows_of"))


class PythonRuntime:
    """The runtime "python"."""

    name = "python"
    starts_threads = False

    def __init__(self, approved: Collection[str] = (), place_for: PlaceFor = Place) -> None:
        """approved: digests of the artefacts that may run; none by default. place_for: where models compute."""
        self._approved, self._place_for = frozenset(approved), place_for

    def check(self, path: Path) -> None:
        """Raises ArtefactRefused unless the artefact was approved and is a module, or an archive of one. Runs nothing."""
        read_approved(path, self._approved)

    def load(self, path: Path, config: LoadConfig) -> LoadedModel:
        """Runs the module of an approved artefact and makes its model. Raises ArtefactRefused where it cannot be served."""
        return PythonModel(path.name, read_approved(path, self._approved), self._place_for, config)


class PythonModel:
    """An operator's model, each with a module and a place of its own: what one tenant's replica remembers no other one sees."""

    def __init__(self, label: str, source: Source, place_for: PlaceFor, config: LoadConfig) -> None:
        self._label, self._source, self._place_for = label, source, place_for
        self._place: Place = place_for(threads=config.threads, compute_units=config.compute_units)
        self._module = _executed(label, source, self._place)
        self.ranges: Ranges = {}
        self.preferred_extent, self.unbatched_because = EXTENTS_TRIED[0], ""
        try:
            self._inputs, self._rows = _declared(label, self._module, "INPUTS")
            self._outputs, _ = _declared(label, self._module, "OUTPUTS")
            self.signature: Signature = self._inferred(config)
            self._model: Any = _made(label, self._module, self._place, source.files)
            self._place.settle()
            self.weight_bytes: Bytes = max(self._place.pool.used_bytes, source.size_bytes, _told_bytes(self._model))
            self._slices = 1
            found = self._settled(config)
        except BaseException:
            self.close()
            raise
        self.signature, self.preferred_extent = found.signature, found.extent
        self.unbatched_because = found.unbatched_because
        known = config.segments if config.segments and not found.ran else None
        self.segments: tuple[str, ...] = known or tuple(f"slice {at}" for at in range(1, self._slices + 1))

    def again(self, config: LoadConfig) -> LoadedModel:
        """The same code once more, with its own state: tenants who brought the same artefact share nothing of it."""
        return PythonModel(self._label, self._source, self._place_for, config)

    def run(self, inputs: Tensors) -> Run:
        """What the model does up to its next `yield` at each `next`."""
        model, place, rows = self._model, self._place, self._rows
        if model is None:
            raise RuntimeError("the model has been closed")
        with place.working():
            given = model.run(brought(place, self.signature.inputs, rows, inputs))
        if inspect.isgenerator(given):
            given = yield from _sliced(place, given)
        with place.working():
            return taken_back(place, self.signature.outputs, given)

    def activation_bytes(self, inputs: Tensors) -> Bytes:
        """Inputs and outputs, or what the pool holds more at any boundary of a run, if that is more. Runs the batch."""
        before, most, run = self._place.pool.used_bytes, 0, self.run(inputs)
        while True:
            try:
                next(run)
            except StopIteration as end:
                outputs: Mapping[str, np.ndarray] = end.value
                break
            most = max(most, self._place.pool.used_bytes - before)
        self._place.settle()
        edges = sum(value.nbytes for value in (*inputs.values(), *outputs.values()))
        return max(edges, most)

    def close(self) -> None:
        """Lets go of the model; a run in flight still ends."""
        model, self._model = getattr(self, "_model", None), None
        sys.modules.pop(self._module.__name__, None)
        end = getattr(model, "close", None)
        if end is not None:
            with self._place.working():
                end()

    def _settled(self, config: LoadConfig) -> Verdict:
        found = verified(self.signature, self._execute, config, self.ranges)
        if found.ran:
            inputs = made_up(found.signature, 1, warmup=config.warmup, ranges=self.ranges, extent=found.extent)
            self._slices = 1 + sum(1 for _ in self.run(inputs))
            self._place.settle()
        return found

    def _execute(self, inputs: Tensors) -> dict[str, np.ndarray]:
        given = finish(self.run(inputs))
        self._place.settle()
        return given

    def _inferred(self, config: LoadConfig) -> Signature:
        rows = config.max_batch_size
        told = getattr(self._module, "MAX_BATCH_SIZE", None)
        if told is not None:
            if not isinstance(told, int) or told < 0:
                raise ArtefactRefused(f"{self._label}: MAX_BATCH_SIZE must be a number of rows, is {told!r}")
            rows = told if rows is None else min(rows, told)
        return infer(self._inputs, self._outputs, batch_axes=config.batch_axes, max_rows=rows)


def _sliced(place: Place, work: Generator[Any, Any, Any]) -> Generator[None, None, Any]:
    """The model's generator, each of its slices at work on its place and nothing in between."""
    try:
        while True:
            with place.working():
                try:
                    next(work)
                except StopIteration as end:
                    return end.value
            yield
    finally:
        # Where the batch was given up: the model's own clean-up.
        with place.working():
            work.close()


def _executed(label: str, source: Source, place: Place) -> types.ModuleType:
    """The module, run, under a name of its own."""
    module = types.ModuleType(f"apportion_python_{next(_NUMBERS)}")
    module.__file__ = source.code.co_filename
    # Dataclasses and pickles look their module up.
    sys.modules[module.__name__] = module
    try:
        with place.working():
            exec(source.code, module.__dict__)
    except MemoryError:
        sys.modules.pop(module.__name__)
        raise
    except Exception as broken:
        sys.modules.pop(module.__name__)
        raise ArtefactRefused(f"{label}: its module cannot be run: {_told(broken)}") from broken
    return module


def _made(label: str, module: types.ModuleType, place: Place, files: Mapping[str, bytes]) -> Any:
    make = getattr(module, "Model", None)
    if not callable(make):
        raise ArtefactRefused(f"{label}: has no class Model")
    try:
        with place.working():
            model = make(place, types.MappingProxyType(dict(files)))
    except MemoryError:
        raise
    except Exception as broken:
        raise ArtefactRefused(f"{label}: its Model cannot be made: {_told(broken)}") from broken
    if not callable(getattr(model, "run", None)):
        raise ArtefactRefused(f"{label}: its Model has no method run")
    return model


def _declared(label: str, module: types.ModuleType, name: str) -> tuple[tuple[TensorSpec, ...], Rows]:
    """The tensors that a module says it has, and what elements of BYTES are rows of."""
    told = getattr(module, name, None)
    if not isinstance(told, Sequence) or not told:
        raise ArtefactRefused(f"{label}: {name} must be a list of tensors")
    specs, rows = [], {}
    for at, each in enumerate(told):
        where = f"{label}: {name}[{at}]"
        if not isinstance(each, Mapping) or not {"name", "datatype", "shape"} <= set(each) <= _KEYS:
            raise ArtefactRefused(f"{where}: must have name, datatype and shape, and may have optional and rows_of")
        specs.append(_spec(where, each))
        if "rows_of" in each:
            if each["datatype"] != "BYTES" or each["rows_of"] not in ROW_ITEMS:
                raise ArtefactRefused(f"{where}: rows_of: is for BYTES, and one of {', '.join(ROW_ITEMS)}")
            rows[each["name"]] = ROW_ITEMS[each["rows_of"]]
    if len({spec.name for spec in specs}) != len(specs):
        raise ArtefactRefused(f"{label}: {name}: a name is given twice")
    return tuple(specs), rows


def _spec(where: str, told: Mapping[str, Any]) -> TensorSpec:
    name, datatype, shape = told["name"], told["datatype"], told["shape"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise ArtefactRefused(f"{where}: name must be text, is {name!r}")
    if datatype not in DATATYPES:
        raise ArtefactRefused(f"{where}: datatype {datatype!r} is not one of {', '.join(sorted(DATATYPES))}")
    fits = isinstance(shape, Sequence) and all(
        each is None or isinstance(each, str) or (isinstance(each, int) and each >= 0) for each in shape
    )
    if not fits:
        raise ArtefactRefused(f"{where}: shape must be of numbers, names of extents that vary, and None; is {shape!r}")
    extents = tuple(each if isinstance(each, int) else None for each in shape)
    symbols = tuple(each if isinstance(each, str) else "" for each in shape)
    return TensorSpec(name, datatype, extents, symbols, optional=bool(told.get("optional", False)))


def _told_bytes(model: Any) -> Bytes:
    told = getattr(model, "weight_bytes", 0)
    return told if isinstance(told, int) and told > 0 else 0


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'without a word')[:400]}"
