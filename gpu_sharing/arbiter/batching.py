"""Which requests run together? PURE."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_sharing.arbiter.request import Request


def batch_length(queue: Sequence[Request], max_batch_size: int) -> int:
    """How many requests from the queue's front form the next batch: the most whose rows fit max_batch_size.

    Never fewer than one. Requests of class `batch` do not ride with others, whom they would make late.
    """
    rows = queue[0].rows
    is_batch = queue[0].objective is None
    for length, request in enumerate(queue):
        if length == 0:
            continue
        rows += request.rows
        if rows > max_batch_size or (request.objective is None) != is_batch:
            return length
    return len(queue)
