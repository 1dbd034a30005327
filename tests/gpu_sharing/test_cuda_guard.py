from __future__ import annotations

import pytest
import torch

from gpu_sharing.runtimes.torch_guard import StreamGuard, WrongStream


def guard(current: list[int], *, raises: bool = True) -> StreamGuard:
    return StreamGuard({16, 32}, raises=raises, current=lambda: current[0], is_there=lambda tensor: True)


def test_work_on_a_lanes_stream_passes() -> None:
    with guard([16]) as watching:
        assert (torch.ones(3) + 1).sum() == 6
    assert watching.found == []


def test_work_on_the_default_stream_is_found_where_it_is_launched() -> None:
    with pytest.raises(WrongStream, match="was launched on stream 0x0, which is no lane's"), guard([0]):
        torch.ones(3)


def test_every_operator_on_a_plain_stream_is_noted() -> None:
    with guard([99], raises=False) as watching:
        torch.ones(3) @ torch.ones(3)
    assert any("dot" in name for name in watching.found)
    assert any("ones" in name for name in watching.found)


def test_what_is_on_the_processor_is_nobodys_business() -> None:
    with StreamGuard({16}, current=lambda: 0):
        torch.ones(3) + 1


def test_a_thread_that_changes_streams_is_seen() -> None:
    current = [16]
    with guard(current, raises=False) as watching:
        x = torch.ones(3)
        current[0] = 7
        x.add_(1)
    assert [name for name in watching.found if "add" in name] == watching.found != []
