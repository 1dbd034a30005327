"""Callbacks of an allocator, as machine code made by llvmlite: they count, refuse what is above a budget, and wipe what they give.

torch calls a pool's allocator with its own lock held. Callbacks in Python would want the interpreter's lock there, which another
thread may hold while it waits for torch's.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from gpu_sharing.units import Bytes

_COUNTING = """
define internal i1 @draw(i64 %cells, i64 %size) {
entry:
  %limit_at = add i64 %cells, 8
  %peak_at = add i64 %cells, 16
  %refused_at = add i64 %cells, 24
  %used_cell = inttoptr i64 %cells to ptr
  %limit_cell = inttoptr i64 %limit_at to ptr
  %peak_cell = inttoptr i64 %peak_at to ptr
  %refused_cell = inttoptr i64 %refused_at to ptr
  %before = atomicrmw add ptr %used_cell, i64 %size seq_cst
  %after = add i64 %before, %size
  %limit = load atomic i64, ptr %limit_cell monotonic, align 8
  %fits = icmp ule i64 %after, %limit
  br i1 %fits, label %drawn, label %full
drawn:
  %most = atomicrmw umax ptr %peak_cell, i64 %after seq_cst
  ret i1 1
full:
  %undone = atomicrmw sub ptr %used_cell, i64 %size seq_cst
  %counted = atomicrmw add ptr %refused_cell, i64 1 seq_cst
  ret i1 0
}
define internal void @return(i64 %cells, i64 %size) {
entry:
  %used_cell = inttoptr i64 %cells to ptr
  %before = atomicrmw sub ptr %used_cell, i64 %size seq_cst
  ret void
}
"""

_CALLBACKS = """
define i64 @allocate(i64 %size, i32 %device, i64 %stream) {{
entry:
  %slot = alloca i64
  %mode = alloca i32
  %state = alloca i32
  %own = call i1 @draw(i64 {cells}, i64 %size)
  br i1 %own, label %look_up, label %refused
look_up:
  %above = load i64, ptr inttoptr (i64 {parent} to ptr)
  %has = icmp ne i64 %above, 0
  br i1 %has, label %draw_above, label %ask
draw_above:
  %more = call i1 @draw(i64 %above, i64 %size)
  br i1 %more, label %ask, label %undo_own
ask:
  store i64 0, ptr %slot
  {relax}
  %code = call i32 inttoptr (i64 {malloc} to ptr)(ptr %slot, i64 %size)
  %address = load i64, ptr %slot
  %good = icmp eq i32 %code, 0
  br i1 %good, label %wipe, label %undo
wipe:
  {wipe}
unwiped:
  %given = call i32 inttoptr (i64 {free} to ptr)(i64 %address)
  br label %undo
done:
  {restore}
  ret i64 %address
undo:
  {restore}
  br i1 %has, label %undo_above, label %undo_own
undo_above:
  call void @return(i64 %above, i64 %size)
  br label %undo_own
undo_own:
  call void @return(i64 {cells}, i64 %size)
  br label %refused
refused:
  ret i64 0
}}
define void @release(i64 %address, i64 %size, i32 %device, i64 %stream) {{
entry:
  %code = call i32 inttoptr (i64 {free} to ptr)(i64 %address)
  call void @return(i64 {cells}, i64 %size)
  %above = load i64, ptr inttoptr (i64 {parent} to ptr)
  %has = icmp ne i64 %above, 0
  br i1 %has, label %above_too, label %over
above_too:
  call void @return(i64 %above, i64 %size)
  br label %over
over:
  ret void
}}
"""

# While its thread captures, the driver allows it what it must do here only in the relaxed mode: 2.
_RELAX = "store i32 2, ptr %mode\n  call i32 inttoptr (i64 {exchange} to ptr)(ptr %mode)"
_RESTORE = "call i32 inttoptr (i64 {exchange} to ptr)(ptr %mode)"
_UNWIPED = "br i1 1, label %done, label %unwiped"
# On the stream that asks, which the block belongs to from now on. A capture would take the wiping in, and repeat it at each replay:
# there it goes to a stream beside, and is waited for.
_WIPE = """store i32 0, ptr %state
  %asked = call i32 inttoptr (i64 {is_capturing} to ptr)(i64 %stream, ptr %state)
  %told = load i32, ptr %state
  %either = or i32 %asked, %told
  %is_free = icmp eq i32 %either, 0
  br i1 %is_free, label %along, label %aside
along:
  %here = call i32 inttoptr (i64 {memset} to ptr)(i64 %address, i8 0, i64 %size, i64 %stream)
  br label %wiped
aside:
  %there = call i32 inttoptr (i64 {memset} to ptr)(i64 %address, i8 0, i64 %size, i64 {stream})
  %ended = call i32 inttoptr (i64 {synchronize} to ptr)(i64 {stream})
  %both = or i32 %there, %ended
  br label %wiped
wiped:
  %how = phi i32 [ %here, %along ], [ %both, %aside ]
  %is_wiped = icmp eq i32 %how, 0
  br i1 %is_wiped, label %done, label %unwiped"""


class PoolUnavailable(RuntimeError):
    """Budgets cannot be had here. The message says what is missing."""


class Wiping(NamedTuple):
    """Addresses of the driver's `cuMemsetD8Async`, `cuStreamIsCapturing`, `cuStreamSynchronize`, `cuThreadExchangeStreamCaptureMode`.

    stream: where memory is wiped that a capture asks for; one that nobody captures on.
    """

    memset: int
    is_capturing: int
    synchronize: int
    exchange: int
    stream: int


class _Cells(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("used", "limit", "peak", "refusals", "parent")]


class Callbacks(NamedTuple):
    """allocate, release: addresses of machine code. cells: the counters that it works on. keep: what must not be freed."""

    allocate: int
    release: int
    cells: Any
    keep: tuple[Any, ...]

    def within(self, parent: Callbacks | None) -> None:
        """What is drawn from now on counts on the parent, too. For callbacks that nothing is drawn on."""
        self.cells.parent = 0 if parent is None else ctypes.addressof(parent.cells)


_FOREVER: list[Any] = []
"""Pools call their callbacks after everybody has forgotten them, too."""


def keep_for_ever(*held: Any) -> None:
    """For what a library may call or look at until the process ends."""
    _FOREVER.extend(held)


def callbacks(malloc: int, free: int, limit_bytes: Bytes, *, wiping: Wiping | None = None) -> Callbacks:
    """Counting ones around `int malloc(void **, size_t)` and `int free(uint64_t)`, given by their addresses.

    wiping: None: what is given holds whatever was there. PoolUnavailable without llvmlite.
    """
    try:
        import llvmlite.binding as llvm
    except ImportError as missing:
        raise PoolUnavailable("llvmlite is not installed: memory pools have no budgets of their own") from missing
    for name in ("initialize", "initialize_native_target", "initialize_native_asmprinter"):
        try:
            getattr(llvm, name)()
        except RuntimeError:
            # Newer releases start by themselves, and say so.
            continue
    cells = _Cells(limit=max(0, limit_bytes))
    at = ctypes.addressof(cells)
    told = wiping._asdict() if wiping is not None else {}
    code = _COUNTING + _CALLBACKS.format(
        cells=at,
        parent=at + _Cells.parent.offset,
        malloc=malloc,
        free=free,
        relax=_RELAX.format(**told) if told else "",
        restore=_RESTORE.format(**told) if told else "",
        wipe=_WIPE.format(**told) if told else _UNWIPED,
    )
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(code), machine)
    engine.finalize_object()
    made = Callbacks(
        engine.get_function_address("allocate"), engine.get_function_address("release"), cells, (engine, machine)
    )
    keep_for_ever(made)
    return made
