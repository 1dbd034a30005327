"""Calls that wait on the same terms. PURE."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from gpu_sharing.arbiter.calls import Call, Kind

_Entry: TypeAlias = tuple[Any, Call]
# Places end with the call's number, so two entries never compare their calls.


class Waiting:
    """By place, once all together and once by kind."""

    __slots__ = ("_kinds", "_order")

    def __init__(self) -> None:
        self._order: list[_Entry] = []
        self._kinds: dict[Kind, list[_Entry]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Call]:
        return (call for _, call in self._order)

    @property
    def head(self) -> Call | None:
        """The call that goes first; None where none waits."""
        return self._order[0][1] if self._order else None

    def of_kind(self, kind: Kind) -> Sequence[_Entry]:
        """Those of a kind, and their places, in order. To be read at once: it changes as calls come and go."""
        return self._kinds.get(kind, ())

    def first_beyond(self, calls: Sequence[Call]) -> Call | None:
        """The first that waits and is none of these, which are in order; None where all are. More of them may follow."""
        order, length = self._order, len(calls)
        if len(order) < length or order[length - 1][1] is not calls[-1]:
            return next((call for (_, call), member in zip(order, calls, strict=False) if call is not member), None)
        return order[length][1] if len(order) > length else None

    def add(self, call: Call) -> None:
        """The call waits."""
        entry = (call.place, call)
        bisect.insort(self._order, entry)
        same = self._kinds.get(call.kind)
        if same is None:
            self._kinds[call.kind] = [entry]
        else:
            bisect.insort(same, entry)

    def remove(self, call: Call) -> None:
        """The call waits no longer. AssertionError where it did not."""
        same = self._kinds.get(call.kind, [])
        _delete(same, call)
        if not same:
            del self._kinds[call.kind]
        _delete(self._order, call)

    def take(self, calls: Sequence[Call]) -> None:
        """These wait no longer: the first of one kind, in order."""
        if not calls:
            return
        kind, length = calls[0].kind, len(calls)
        same = self._kinds[kind]
        del same[:length]
        if not same:
            del self._kinds[kind]
        if len(self._order) >= length and self._order[length - 1][1] is calls[-1]:
            del self._order[:length]
        else:
            for call in calls:
                _delete(self._order, call)

    def check_invariants(self) -> None:
        """Raises AssertionError unless both orders hold the same calls, each in its place."""
        if sorted(entry for entries in self._kinds.values() for entry in entries) != self._order:
            raise AssertionError("the queue by kind differs from the whole queue")
        for kind, entries in self._kinds.items():
            if not entries or entries != sorted(entries) or any(call.kind != kind for _, call in entries):
                raise AssertionError(f"the queue of kind {kind!r} is out of order")


def _delete(entries: list[_Entry], call: Call) -> None:
    index = bisect.bisect_left(entries, (call.place,))
    if index == len(entries) or entries[index][1] is not call:
        raise AssertionError(f"call {call.request.call} does not wait here")
    del entries[index]
