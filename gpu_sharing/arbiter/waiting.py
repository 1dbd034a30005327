"""Calls that wait on the same terms. PURE.

Those of a replica that is held (`Replica.ready_at`) are set aside: they wait, and are in nobody's way.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from gpu_sharing.arbiter.calls import Call, Kind

_Entry: TypeAlias = tuple[Any, Call]
# Places end with the call's number, so two entries never compare their calls.


class Waiting:
    """By place, once all together and once by kind; and by replica those that are set aside."""

    __slots__ = ("_aside", "_kinds", "_order")

    def __init__(self) -> None:
        self._order: list[_Entry] = []
        self._kinds: dict[Kind, list[_Entry]] = {}
        self._aside: dict[int, dict[int, Call]] = {}

    def __len__(self) -> int:
        return len(self._order) + sum(map(len, self._aside.values())) if self._aside else len(self._order)

    def __iter__(self) -> Iterator[Call]:
        yield from (call for _, call in self._order)
        for aside in self._aside.values():
            yield from aside.values()

    @property
    def head(self) -> Call | None:
        """The call that goes first; None where none waits that may start."""
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
        if call.replica.ready_at is not None:
            self._aside.setdefault(call.replica.replica, {})[call.number] = call
            return
        entry = (call.place, call)
        bisect.insort(self._order, entry)
        same = self._kinds.get(call.kind)
        if same is None:
            self._kinds[call.kind] = [entry]
        else:
            bisect.insort(same, entry)

    def remove(self, call: Call) -> None:
        """The call waits no longer. AssertionError where it did not."""
        aside = self._aside.get(call.replica.replica) if self._aside else None
        if aside is not None and aside.pop(call.number, None) is not None:
            if not aside:
                del self._aside[call.replica.replica]
            return
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

    def set_aside(self, replica: int) -> None:
        """The replica is held from now on: its calls wait aside."""
        for call in [call for _, call in self._order if call.replica.replica == replica]:
            self.remove(call)
            self._aside.setdefault(replica, {})[call.number] = call

    def take_back(self, replica: int) -> None:
        """The replica is held no longer: its calls are in line again, each in its place."""
        for call in self._aside.pop(replica, {}).values():
            self.add(call)

    def check_invariants(self) -> None:
        """Raises AssertionError unless both orders hold the same calls, each in its place, and those aside are of held replicas."""
        if any(call.replica.ready_at is not None for _, call in self._order):
            raise AssertionError("a call of a held replica is in line")
        if any(call.replica.ready_at is None for aside in self._aside.values() for call in aside.values()):
            raise AssertionError("a call is set aside whose replica is not held")
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
