"""Whose chunk goes next: transfers take turns, and those without credit wait behind their own tenant only."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from services.executor.core.credits import Credits

Part = bytes | memoryview


class Transfer:
    """A payload on its way: its parts in order, cut to pieces as they are asked for. Nothing is copied before that."""

    __slots__ = ("_at", "_part", "_parts", "call", "length", "offset", "tenant")

    def __init__(self, call: int, tenant: str, parts: Sequence[Part]) -> None:
        self.call, self.tenant = call, tenant
        self._parts = [memoryview(part) for part in parts if len(part)]
        self.length = sum(len(part) for part in self._parts)
        self.offset, self._part, self._at = 0, 0, 0

    @property
    def left(self) -> int:
        """Bytes not yet cut."""
        return self.length - self.offset

    def cut(self, most: int) -> bytes:
        """The next bytes, at most that many; empty at the end."""
        pieces: list[memoryview] = []
        wanted = min(most, self.left)
        self.offset += wanted
        while wanted:
            part = self._parts[self._part]
            piece = part[self._at : self._at + wanted]
            pieces.append(piece)
            wanted -= len(piece)
            self._at += len(piece)
            if self._at == len(part):
                self._part, self._at = self._part + 1, 0
        return b"".join(pieces)


class Turns:
    """The transfers of one session. A transfer is announced when its tenant's credit covers the whole of it, in the order
    of its tenant; the announced ones take turns, one chunk each."""

    def __init__(self, budget: Credits) -> None:
        self._credits = budget
        self._waiting: dict[str, deque[Transfer]] = {}
        self._going: OrderedDict[int, Transfer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._going) + sum(map(len, self._waiting.values()))

    @property
    def ready(self) -> bool:
        """Whether there is a chunk to send."""
        return bool(self._going)

    def add(self, transfer: Transfer) -> list[Transfer]:
        """Queues a transfer. Returns those that start now: their credit is drawn, their results may be announced."""
        self._waiting.setdefault(transfer.tenant, deque()).append(transfer)
        return self.start(transfer.tenant)

    def start(self, tenant: str) -> list[Transfer]:
        """Starts what the tenant's credit covers by now, and returns it."""
        started: list[Transfer] = []
        queue = self._waiting.get(tenant)
        while queue and self._credits.can_draw(tenant, queue[0].length):
            transfer = queue.popleft()
            self._credits.draw(tenant, transfer.length)
            self._going[transfer.call] = transfer
            started.append(transfer)
        if queue is not None and not queue:
            del self._waiting[tenant]
        return started

    def next_chunk(self, most: int) -> tuple[Transfer, int, bytes] | None:
        """The next chunk with its offset; None: nothing is ready. Its transfer goes to the end of the turn, or is over."""
        if not self._going:
            return None
        call, transfer = self._going.popitem(last=False)
        offset = transfer.offset
        data = transfer.cut(most)
        if transfer.left:
            self._going[call] = transfer
        return transfer, offset, data

    def withdraw(self, call: int, tenant: str) -> bool:
        """Takes back a transfer that has not started; False: it has, or is not known."""
        queue = self._waiting.get(tenant, deque())
        found = next((transfer for transfer in queue if transfer.call == call), None)
        if found is None:
            return False
        queue.remove(found)
        if not queue:
            del self._waiting[tenant]
        return True

    def all(self) -> list[Transfer]:
        """Every transfer that is not over."""
        return [*self._going.values(), *(transfer for queue in self._waiting.values() for transfer in queue)]
