from __future__ import annotations

import mmap
import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_sharing.memory.arena import ROUND, WARM_BYTES, Arena, ArenaView, read_only
from gpu_sharing.memory.extents import Extents

CAPACITY = 64 * 64


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1500))))
def test_extents_never_overlap_and_are_joined_when_freed(steps: list[tuple[bool, int]]) -> None:
    extents, taken = Extents(CAPACITY), {}
    for allocates, number in steps:
        if allocates:
            largest = extents.largest_free_bytes
            offset = extents.allocate(number)
            assert (offset is None) == (max(number, 1) > largest)
            if offset is not None:
                assert offset % 64 == 0
                assert all(offset + number <= other or other + length <= offset for other, length in taken.items())
                taken[offset] = number
        elif taken:
            offset = list(taken)[number % len(taken)]
            del taken[offset]
            extents.free(offset)
        extents.check_invariants()
    for offset in taken:
        extents.free(offset)
    extents.check_invariants()
    assert (extents.used_bytes, extents.largest_free_bytes) == (0, CAPACITY)


def test_the_lowest_free_address_is_used_again() -> None:
    extents = Extents(CAPACITY)
    first, second, _ = (extents.allocate(100) for _ in range(3))
    extents.free(second)
    extents.free(first)
    assert extents.allocate(200) == first


def test_freeing_what_is_not_allocated_is_an_error() -> None:
    with pytest.raises(KeyError):
        Extents(CAPACITY).free(64)


def test_what_one_side_writes_the_other_reads_and_cannot_write() -> None:
    arena = Arena.create(1 << 20)
    view = ArenaView(read_only(arena.fd), 1 << 20)
    offset = arena.allocate(5)
    arena.view[offset : offset + 5] = b"hello"
    assert bytes(view.view[offset : offset + 5]) == b"hello"
    assert view.view.readonly
    with pytest.raises(PermissionError):
        mmap.mmap(view.fd, 1 << 20)
    view.close()
    arena.close()


def test_neither_side_can_resize_an_arena() -> None:
    arena = Arena.create(1 << 20)
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 1)
    arena.close()


def test_memory_far_up_goes_back_to_the_system_when_freed() -> None:
    arena = Arena.create(2 * WARM_BYTES)
    arena.allocate(WARM_BYTES)
    offset = arena.allocate(mmap.PAGESIZE * 2)
    arena.view[offset] = 7
    before = os.fstat(arena.fd).st_blocks
    arena.free(offset)
    assert os.fstat(arena.fd).st_blocks < before
    arena.close()


def test_closing_an_arena_that_is_still_viewed_is_no_error() -> None:
    arena = Arena.create(1 << 20)
    part = arena.view[:10]
    arena.close()
    arena.close()
    assert bytes(part) == bytes(10)


def test_a_capacity_that_is_not_whole_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity_bytes: must be a positive multiple of 4096, is 100"):
        Arena.create(100)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3 * 4096), st.booleans()), max_size=40), st.randoms())
def test_nobody_is_given_what_another_has_left(steps: list[tuple[int, int, bool]], chance: Random) -> None:
    arena = Arena.create(16 * 4096)
    held: list[int] = []
    for owner, length, frees in steps:
        if frees and held:
            arena.free(held.pop(chance.randrange(len(held))))
        offset = arena.allocate(length, owner)
        if offset is None:
            continue
        held.append(offset)
        extent = arena.view[offset : offset + length]
        assert set(bytes(extent)) <= {0, owner}
        extent[:] = bytes([owner]) * length
        extent.release()
    arena.check_invariants()
    arena.close()


def test_what_its_owner_has_left_is_not_wiped_for_the_same_one() -> None:
    arena = Arena.create(1 << 20)
    first = arena.allocate(10_000, 1)
    arena.view[first : first + 10_000] = b"a" * 10_000
    arena.free(first)
    again = arena.allocate(10_000, 1)
    assert bytes(arena.view[again : again + 10_000]) == b"a" * 10_000
    arena.free(again)
    other = arena.allocate(5_000, 2)
    assert bytes(arena.view[other : other + 10_000]) == bytes(5_056) + b"a" * 4_944
    arena.close()


def test_pages_that_a_moment_of_many_requests_needed_go_back_and_what_is_held_stays() -> None:
    arena = Arena.create(WARM_BYTES)
    held = arena.allocate(1 << 20)
    many = [arena.allocate(1 << 20) for _ in range(32)]
    kept = many[7]
    assert held is not None
    assert kept is not None
    for offset in (held, *many):
        assert offset is not None
        arena.view[offset : offset + (1 << 20)] = b"x" * (1 << 20)
    for offset in many:
        if offset is not None and offset != kept:
            arena.free(offset)
    for _ in range(2 * ROUND):
        small = arena.allocate(4096)
        assert small is not None
        arena.view[small : small + 4096] = b"y" * 4096
        arena.free(small)
    assert os.fstat(arena.fd).st_blocks * 512 <= 9 << 20
    assert bytes(arena.view[kept : kept + (1 << 20)]) == b"x" * (1 << 20)
    assert bytes(arena.view[held : held + (1 << 20)]) == b"x" * (1 << 20)
    again = arena.allocate(20 << 20)
    assert again is not None
    assert not any(arena.view[16 << 20 : 20 << 20])
    arena.check_invariants()
    arena.close()
