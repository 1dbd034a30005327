"""Operators' own code: what runs and what does not, where it computes, and rows of different lengths. GPUs are doubles."""

from __future__ import annotations

import gc
import hashlib
import io
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from artefact_samples import linear_python, written

from gpu_sharing.runtimes.base import ArtefactRefused, LoadConfig, LoadedModel
from gpu_sharing.runtimes.python_code import PythonRuntime
from gpu_sharing.runtimes.python_device import CupyLibrary, DevicePlace
from gpu_sharing.runtimes.python_place import HostPool, Place
from gpu_sharing.runtimes.python_source import read_approved
from gpu_sharing.runtimes.ragged import Ragged, pad, starts_of, unpad
from gpu_sharing.runtimes.registry import runtime_for
from gpu_sharing.runtimes.warmup import finish
from gpu_sharing.units import MiB
from gpu_sharing.worker.cuda_seats import budgets_on, place_on_cuda

CONFIG = LoadConfig(threads=1, compute_units=1)
TENSORS = """
INPUTS = [{"name": "x", "datatype": "FP32", "shape": ["batch", 2]}]
OUTPUTS = [{"name": "y", "datatype": "FP32", "shape": ["batch", 2]}]
"""
ECHO = """
INPUTS = [{"name": "text", "datatype": "BYTES", "shape": ["batch"]}]
OUTPUTS = [{"name": "shout", "datatype": "BYTES", "shape": ["batch"]}, {"name": "sum", "datatype": "INT64", "shape": ["batch"]}]


class Model:
    def __init__(self, place, files):
        self.place, self.xp = place, place.xp

    def run(self, inputs):
        rows = inputs["text"]
        inside = rows.mask(self.xp)
        yield
        upper = self.xp.where((rows.padded >= 97) & (rows.padded <= 122), rows.padded - 32, rows.padded)
        return {
            "shout": type(rows)(upper.astype("uint8"), rows.lengths, rows.shape),
            "sum": (rows.padded.astype("int64") * inside).sum(axis=1),
        }
"""


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def zipped(**members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return held.getvalue()


def load(folder: Path, code: str | bytes, place_for: Any = Place, config: LoadConfig = CONFIG) -> LoadedModel:
    data = code.encode() if isinstance(code, str) else code
    return PythonRuntime({digest_of(data)}, place_for).load(written(folder, "model.py", data), config)


# Approval.


@pytest.mark.parametrize("approved", [(), ("sha256:" + "0" * 64,), (digest_of(b"another"),)])
def test_code_that_nobody_approved_is_refused_and_never_runs(tmp_path: Path, approved: tuple[str, ...]) -> None:
    mark = tmp_path / "ran"
    path = written(tmp_path, "model.py", f"open({str(mark)!r}, 'w')".encode())
    runtime = runtime_for("python", approved=approved)
    for attempt in (lambda: runtime.check(path), lambda: runtime.load(path, CONFIG)):
        with pytest.raises(ArtefactRefused, match=r"model\.py: Python code runs only where an operator has approved"):
            attempt()
    assert not mark.exists()


def test_by_default_no_code_is_approved(tmp_path: Path) -> None:
    with pytest.raises(ArtefactRefused, match="no Python code is, here"):
        runtime_for("python").check(written(tmp_path, "model.py", linear_python()))


def test_a_check_runs_nothing_of_approved_code_either(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    data = f"open({str(mark)!r}, 'w')".encode()
    runtime_for("python", approved=[digest_of(data)]).check(written(tmp_path, "model.py", data))
    assert not mark.exists()


def test_one_changed_byte_is_another_code(tmp_path: Path) -> None:
    data = linear_python()
    changed = data.replace(b"(7)", b"(8)")
    with pytest.raises(ArtefactRefused, match=digest_of(changed)):
        runtime_for("python", approved=[digest_of(data)]).load(written(tmp_path, "model.py", changed), CONFIG)


def test_code_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "model.py", linear_python())
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"print('another')")
    with pytest.raises(ArtefactRefused, match="has changed while it was read"):
        read_approved(path, {digest_of(linear_python())})


def test_code_is_never_told_from_the_artefact(tmp_path: Path) -> None:
    from services.executor.cache import format_of

    assert format_of(written(tmp_path, "a", linear_python())) == "onnx"
    assert format_of(written(tmp_path, "b", zipped(model__py=linear_python()))) == "torch_export"


# What it may be.


def test_an_archive_brings_its_files(tmp_path: Path) -> None:
    code = (
        TENSORS
        + """
class Model:
    def __init__(self, place, files):
        self.factor = place.xp.frombuffer(files["factor.bin"], "float32")

    def run(self, inputs):
        return {"y": inputs["x"] * self.factor}
"""
    )
    data = zipped(model__py=code.encode(), factor__bin=np.array([2, 3], np.float32).tobytes())
    model = load(tmp_path, data)
    given = finish(model.run({"x": np.ones((1, 2), np.float32)}))
    assert given["y"].tolist() == [[2.0, 3.0]]
    assert model.weight_bytes == len(code) + 8


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = (", "is no Python module"),
        ("1 / 0", "its module cannot be run: ZeroDivisionError: division by zero"),
        ("INPUTS = []", "INPUTS must be a list of tensors"),
        (TENSORS, "has no class Model"),
        (TENSORS + "class Model:\n def __init__(self, p, f): raise KeyError('w')", "its Model cannot be made: KeyError"),
        (TENSORS + "class Model:\n def __init__(self, p, f): pass", "its Model has no method run"),
        (TENSORS.replace("FP32", "FLOAT", 1), r"INPUTS\[0\]: datatype 'FLOAT' is not one of BF16"),
        (TENSORS.replace("2]", "2.5]", 1), r"INPUTS\[0\]: shape must be of numbers"),
        (TENSORS.replace('"name": "x", ', "", 1), r"INPUTS\[0\]: must have name, datatype and shape"),
        (TENSORS.replace('2]}', '2], "rows_of": "INT8"}', 1), "rows_of: is for BYTES"),
        (TENSORS + "MAX_BATCH_SIZE = 'many'\nclass Model: pass", "MAX_BATCH_SIZE must be a number of rows"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_code_is_said(tmp_path: Path, code: str, message: str) -> None:
    before = set(sys.modules)
    with pytest.raises(ArtefactRefused, match=message):
        load(tmp_path, code)
    assert not {name for name in set(sys.modules) - before if name.startswith("apportion_python")}


def test_an_archive_without_a_module_and_one_that_is_broken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactRefused, match=r"has a member model\.py; this one has none"):
        load(tmp_path, zipped(main__py=b"pass"))
    with pytest.raises(ArtefactRefused, match="is a broken archive"):
        load(tmp_path, zipped(model__py=b"pass")[:-8])


def test_the_codes_own_limit_of_rows_and_the_operators_both_hold(tmp_path: Path) -> None:
    code = linear_python() + b"\nMAX_BATCH_SIZE = 5\n"
    assert load(tmp_path, code).signature.max_batch_size == 5
    for told, expected in ((3, 3), (9, 5)):
        config = LoadConfig(threads=1, compute_units=1, max_batch_size=told)
        assert load(tmp_path, code, config=config).signature.max_batch_size == expected


def test_what_a_model_returns_must_be_its_outputs(tmp_path: Path) -> None:
    code = TENSORS + "class Model:\n def __init__(self, p, f): pass\n def run(self, inputs): return {}"
    with pytest.raises(ArtefactRefused, match="output 'y' is declared, but a run did not give it"):
        load(tmp_path, code)
    model = load(tmp_path, code.replace("return {}", "return 5"))
    with pytest.raises(TypeError, match="the model returned int"):
        finish(model.run({"x": np.ones((1, 2), np.float32)}))


# Life.


COUNTING = (
    TENSORS
    + """
SEEN = []


class Model:
    def __init__(self, place, files):
        self.left = []

    def run(self, inputs):
        SEEN.append(1)
        try:
            yield
            yield
            return {"y": inputs["x"] + len(SEEN)}
        finally:
            self.left.append(1)

    def close(self):
        SEEN.clear()
"""
)


def test_each_yield_is_a_boundary(tmp_path: Path) -> None:
    model = load(tmp_path, COUNTING)
    assert model.segments == ("slice 1", "slice 2", "slice 3")
    run = model.run({"x": np.zeros((1, 2), np.float32)})
    assert [next(run), next(run)] == [None, None]
    with pytest.raises(StopIteration):
        next(run)


def test_a_batch_that_is_given_up_is_cleaned_up_by_the_models_own_hand(tmp_path: Path) -> None:
    model = load(tmp_path, COUNTING)
    before = len(model._model.left)  # type: ignore[attr-defined]
    run = model.run({"x": np.zeros((1, 2), np.float32)})
    next(run)
    run.close()
    assert len(model._model.left) == before + 1  # type: ignore[attr-defined]


def test_replicas_of_one_code_remember_nothing_of_each_other(tmp_path: Path) -> None:
    first = load(tmp_path, COUNTING)
    x = {"x": np.zeros((1, 2), np.float32)}
    for _ in range(5):
        finish(first.run(x))
    alone = finish(load(tmp_path, COUNTING).run(x))["y"]
    assert finish(first.again(CONFIG).run(x))["y"].tolist() == alone.tolist()


def test_a_closed_model_leaves_no_module(tmp_path: Path) -> None:
    model = load(tmp_path, COUNTING)
    name = model._module.__name__  # type: ignore[attr-defined]
    assert name in sys.modules
    model.close()
    assert name not in sys.modules


def test_the_pool_of_a_processor_has_a_limit_and_takes_back_what_is_collected() -> None:
    pool = HostPool(1024)
    held = pool.empty((16, 8), "float32")
    assert pool.used_bytes == held.nbytes == 512
    view = held[:2]
    with pytest.raises(MemoryError, match="600 bytes asked for, 512 of the pool's 1024 are taken"):
        pool.empty(600, "u1")
    del held
    assert pool.used_bytes == 512, "a view of it is still there"
    del view
    gc.collect()
    assert pool.used_bytes == 0


def test_a_model_that_wants_more_than_its_pool_has_is_out_of_memory(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        load(tmp_path, linear_python(), lambda **sizes: Place(limit_bytes=8, **sizes))


def test_tensors_of_torch_and_arrays_share_memory() -> None:
    place = Place()
    array = place.pool.empty(3, "float32")
    tensor = place.torch(array)
    tensor.fill_(2)
    assert array.tolist() == [2.0, 2.0, 2.0]
    again = place.array(tensor)
    assert again.__array_interface__["data"][0] == array.__array_interface__["data"][0]


# On a GPU.


class Library:
    """CuPy's part, by NumPy: it notes whose stream and which pool each thread is at."""

    xp = np

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.entered = 0

    def current(self) -> Any:
        return SimpleNamespace(ptr=0x7F00 + threading.get_ident() % 256, synchronize=lambda: None)

    @contextmanager
    def computing(self, stream: Any) -> Iterator[None]:
        self.inside.append(stream.ptr)
        self.entered += 1
        try:
            yield
        finally:
            self.inside.pop()


class Backend:
    device = "cpu"
    pins = False

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.waits = 0

    @contextmanager
    def allocating(self, pool: Any) -> Iterator[None]:
        self.pools.append(pool)
        try:
            yield
        finally:
            self.pools.pop()

    def synchronize(self) -> None:
        self.waits += 1


class Budget:
    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.used_bytes, self.pools = limit_bytes, 0, list[Any]()

    def pool(self) -> Any:
        self.pools.append(object())
        return self.pools[-1]


class Lane:
    def __init__(self) -> None:
        self.library, self.backend, self.budgets = Library(), Backend(), list[Budget]()

    def place(self, **sizes: int) -> DevicePlace:
        self.budgets.append(Budget(MiB))
        return DevicePlace(self.backend, self.library, self.budgets[-1], **sizes)  # type: ignore[arg-type]


@pytest.fixture
def lane() -> Lane:
    return Lane()


WORDS = np.array([b"ab", b"", b"xyz.", b"Q"], dtype=object)


@pytest.mark.parametrize("where", ["processor", "GPU"])
def test_rows_of_different_lengths_go_in_and_come_out_as_they_are(tmp_path: Path, lane: Lane, where: str) -> None:
    model = load(tmp_path, ECHO, Place if where == "processor" else lane.place)
    assert model.signature.inputs[0].batch_axis == 0
    given = finish(model.run({"text": WORDS}))
    assert given["shout"].tolist() == [b"AB", b"", b"XYZ.", b"Q"]
    assert given["sum"].tolist() == [sum(word) for word in WORDS]
    none = finish(model.run({"text": np.array([b"", b""], dtype=object)}))
    assert (none["shout"].tolist(), none["sum"].tolist()) == ([b"", b""], [0, 0])


@pytest.mark.parametrize("where", ["processor", "GPU"])
def test_elements_may_be_rows_of_other_items(tmp_path: Path, lane: Lane, where: str) -> None:
    code = """
INPUTS = [{"name": "ids", "datatype": "BYTES", "shape": ["batch", 1], "rows_of": "INT64"}]
OUTPUTS = [{"name": "sum", "datatype": "INT64", "shape": ["batch"]}]


class Model:
    def __init__(self, place, files):
        pass

    def run(self, inputs):
        return {"sum": inputs["ids"].padded.sum(axis=1)}
"""
    model = load(tmp_path, code, Place if where == "processor" else lane.place)
    rows = [np.arange(3, dtype=np.int64), np.array([], np.int64), np.array([-7], np.int64)]
    told = np.empty((3, 1), dtype=object)
    told[:, 0] = [row.tobytes() for row in rows]
    assert finish(model.run({"ids": told}))["sum"].tolist() == [3, 0, -7]


def test_lengths_that_do_not_fit_their_rows_are_refused(tmp_path: Path) -> None:
    for wrong, message in (("[9, 9]", "2 lengths for rows of the shape"), ("[9]", "a row of 9 items in an array of 1")):
        model = load(tmp_path, ECHO.replace("rows.lengths, rows.shape)", f"{wrong}, rows.shape)"))
        with pytest.raises(ValueError, match=f"output 'shout': {message}"):
            finish(model.run({"text": np.array([b"a"], dtype=object)}))


def test_inputs_and_outputs_on_a_gpu_are_what_they_are_on_a_processor(tmp_path: Path, lane: Lane) -> None:
    here, there = load(tmp_path, linear_python(yields=True)), load(tmp_path, linear_python(yields=True), lane.place)
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    assert finish(there.run({"x": x}))["y"].tobytes() == finish(here.run({"x": x}))["y"].tobytes()
    assert (here.signature, here.segments) == (there.signature, there.segments)


def test_at_a_boundary_the_threads_stream_and_pool_are_nobodys(tmp_path: Path, lane: Lane) -> None:
    model = load(tmp_path, linear_python(yields=True), lane.place)
    run = model.run({"x": np.ones((1, 4), np.float32)})
    entered = lane.library.entered
    next(run)
    assert (lane.library.inside, lane.backend.pools) == ([], [])
    assert lane.library.entered > entered
    run.close()
    assert (lane.library.inside, lane.backend.pools) == ([], [])


def test_every_thread_draws_on_a_pool_of_its_own_and_all_on_one_budget(lane: Lane) -> None:
    place = lane.place()
    (budget,) = lane.budgets
    inside: list[Any] = []

    def work() -> None:
        with place.working():
            inside.append(lane.backend.pools[-1])

    work()
    other = threading.Thread(target=work)
    other.start()
    other.join()
    work()
    assert inside == [budget.pools[0], budget.pools[1], budget.pools[0]]
    budget.used_bytes, budget.limit_bytes = 1400, 2000
    assert (place.pool.used_bytes, place.pool.limit_bytes) == (1400, 2000)


def test_rows_are_padded_and_taken_apart_by_numpy_as_the_kernels_do_it() -> None:
    flat = np.arange(1, 7, dtype=np.int16)
    starts = starts_of([2, 0, 3, 1])
    padded = pad(flat, starts, 3, filler=9)
    assert padded.tolist() == [[1, 2, 9], [9, 9, 9], [3, 4, 5], [6, 9, 9]]
    assert unpad(padded, starts, 6).tolist() == flat.tolist()
    assert Ragged(padded, np.array([2, 0, 3, 1])).mask(np).sum() == 6
    deep = np.arange(12).reshape(6, 2)
    assert unpad(pad(deep, starts, 4), starts, 6).tolist() == deep.tolist()


class Cupy:
    """As much of CuPy as the runtime's own part takes, by NumPy, and what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.allocators: list[Any] = []
        self.cuda = SimpleNamespace(
            PythonFunctionAllocator=lambda malloc, free: SimpleNamespace(malloc=(malloc, free)),
            Stream=SimpleNamespace(from_external=self._external),
            Device=lambda ordinal: self._entered("device", ordinal),
            using_allocator=self._using,
        )

    def _external(self, stream: Any) -> Any:
        return self._entered("stream", stream)

    @contextmanager
    def _entered(self, *what: Any) -> Iterator[None]:
        self.asked.append(what)
        yield

    @contextmanager
    def _using(self, allocator: Any) -> Iterator[None]:
        self.allocators.append(allocator)
        yield
        self.allocators.pop()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Cupy:
    import torch

    made = Cupy()
    monkeypatch.setitem(sys.modules, "cupy", made)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"lane of {device}")
    return made


def test_cupys_arrays_are_drawn_where_torchs_are_and_on_the_same_stream(
    cupy: Cupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", lambda *how: drawn.append(how) or 0x1000)
    monkeypatch.setattr(torch.cuda, "caching_allocator_delete", lambda address: drawn.append((address,)))
    library = CupyLibrary(3)
    with library.computing(library.current()):
        malloc, free = cupy.allocators[0]
        assert malloc(0, 3) == malloc(512, 3) == 0x1000
        free(0x1000, 3)
        free(0, 3)
    assert cupy.asked == [("stream", "lane of 3"), ("device", 3)] or cupy.asked == [
        ("device", 3),
        ("stream", "lane of 3"),
    ]
    assert drawn == [(1, 3, "lane of 3"), (512, 3, "lane of 3"), (0x1000,)]
    assert cupy.allocators == []


def test_beyond_the_budget_torchs_error_is_cupys_memory_error(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(*how: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", full)
    library = CupyLibrary(0)
    with library.computing(library.current()), pytest.raises(MemoryError, match="CUDA out of memory"):
        cupy.allocators[0][0](1 << 40, 0)


def part(limit_bytes: int) -> Any:
    return budgets_on(Backend(), 0)(limit_bytes, None)  # type: ignore[arg-type]


def test_a_gpu_without_what_code_needs_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
    with pytest.raises(ArtefactRefused, match=r"python is not served on this device: .*cupy"):
        place_on_cuda(Backend(), part, MiB, 0, threads=1, compute_units=1)  # type: ignore[arg-type]


def test_a_gpu_whose_torch_has_no_pools_with_budgets_serves_no_code(
    cupy: Cupy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.delattr(torch._C, "_cuda_customAllocator", raising=False)
    monkeypatch.setattr(Backend, "pool", object, raising=False)
    monkeypatch.setattr(Backend, "pool_bytes", lambda self, pool: 0, raising=False)
    with pytest.raises(ArtefactRefused, match="takes no allocator of others' making"):
        place_on_cuda(Backend(), part, MiB, 0, threads=1, compute_units=1)  # type: ignore[arg-type]
    assert "memory of tenants has no limits on this device: torch" in capfd.readouterr().err


def test_on_cupys_arrays_the_kernel_is_launched_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[Any, ...]] = []

    class Foreign:
        """An array that is no numpy.ndarray, as CuPy's are not."""

        def __init__(self, held: np.ndarray) -> None:
            self.held, self.dtype, self.shape, self.ndim = held, held.dtype, held.shape, held.ndim

        def view(self, dtype: Any) -> Foreign:
            return Foreign(self.held.view(dtype))

        def __len__(self) -> int:
            return len(self.held)

    def kernel(name: str, item_bytes: int) -> Any:
        return lambda blocks, threads, arguments: launched.append((name, item_bytes, blocks, threads, arguments))

    fake = SimpleNamespace(empty=lambda shape, dtype: Foreign(np.zeros(shape, dtype)), ascontiguousarray=lambda a: a)
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    monkeypatch.setattr("gpu_sharing.runtimes.ragged.kernel", kernel)
    flat, starts = Foreign(np.arange(6, dtype=np.float32)), Foreign(starts_of([2, 0, 4]))
    padded = pad(flat, starts, 4, filler=7)
    assert padded.shape == (3, 4)
    name, item_bytes, blocks, threads, arguments = launched.pop()
    assert (name, item_bytes, blocks, threads) == ("pad", 4, (1,), (256,))
    assert [each.dtype for each in arguments[:3]] == [np.uint32, np.int64, np.uint32]
    assert [int(each) for each in arguments[3:]] == [3, 4, 1, 7]
    assert arguments[-1].dtype == np.uint32
    again = unpad(padded, starts, 6)
    assert again.shape == (6,)
    name, _, _, _, arguments = launched.pop()
    assert (name, [int(each) for each in arguments[3:]]) == ("unpad", [3, 4, 1])
    pad(Foreign(np.zeros(0, np.uint8)), Foreign(starts_of([0, 0])), 0)
    assert launched == [], "nothing is launched for nothing"
