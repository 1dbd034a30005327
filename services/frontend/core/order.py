"""Answers of one stream in the order of their questions, for each request id alike: ids do not wait for one another."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ticket(Generic[Item]):
    """A question's place. answer: None while there is none."""

    __slots__ = ("answer", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.answer: Item | None = None


class Order(Generic[Item]):
    """Questions that are not answered yet, by request id. Those without an id are of one id: ""."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, deque[Ticket[Item]]] = {}

    def begin(self, key: bytes) -> Ticket[Item]:
        """Takes a question in, behind those of the same id."""
        ticket: Ticket[Item] = Ticket(key)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = deque()
        waiting.append(ticket)
        return ticket

    def finish(self, ticket: Ticket[Item], answer: Item) -> list[Item]:
        """Takes a question's answer; returns what may be told now, in order. Each ticket is finished once."""
        ticket.answer = answer
        waiting = self._waiting[ticket.key]
        told: list[Item] = []
        while waiting and (first := waiting[0].answer) is not None:
            told.append(first)
            waiting.popleft()
        if not waiting:
            del self._waiting[ticket.key]
        return told

    def left(self) -> list[Item]:
        """Answers that wait for earlier ones."""
        return [ticket.answer for waiting in self._waiting.values() for ticket in waiting if ticket.answer is not None]

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))
