"""What is new in what is told of use: each count once, whoever tells it, in which order, however often.

Counts are told under names, and those of one name never shrink: what is new is what goes beyond the most that was told before.
A tenant's total under a name is what it is billed by; models are its parts. A model that is gone for good is told no more, and
goes on within the total: so what the total grows by is given to the models that say that they grew, and what is left to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Counts(NamedTuple):
    """As UsageCounts has them."""

    device_ns: int = 0
    compute_unit_ns: int = 0
    requests: int = 0
    batches: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def plus(self, other: Counts) -> Counts:
        """The sum of each."""
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def beyond(self, other: Counts) -> Counts:
        """What each has more than the other's; at least 0."""
        return Counts(*(max(0, a - b) for a, b in zip(self, other, strict=True)))

    def at_most(self, other: Counts) -> Counts:
        """The lesser of each."""
        return Counts(*(min(a, b) for a, b in zip(self, other, strict=True)))

    def or_more(self, other: Counts) -> Counts:
        """The larger of each."""
        return Counts(*(max(a, b) for a, b in zip(self, other, strict=True)))


class Part(NamedTuple):
    """A model's counts have lives: one that comes after it was gone is counted from nothing."""

    model: str
    life: int


NOTHING = Counts()
UNTOLD = ""
"""In place of a model's name: models that are not told apart any more."""


class Book(NamedTuple):
    """The most that was told under one name, in all and by part."""

    total: Counts
    parts: Mapping[Part, Counts]


def taken(before: Book, total: Counts | None, parts: Mapping[Part, Counts]) -> tuple[Book, dict[str, Counts]]:
    """The book after it was told so much, and what is new, by model: it adds up to what the book's total has grown by.

    total None: the parts are all there is, and those that are left out are as they were. What is older than what is known
    changes nothing.
    """
    if total is None:
        return _without_total(before, parts)
    if total.beyond(before.total) == NOTHING and before.total.beyond(total) != NOTHING:
        return before, {}
    left = total.beyond(before.total)
    news: dict[str, Counts] = {}
    for part, counts in sorted(parts.items()):
        more = counts.beyond(before.parts.get(part, NOTHING)).at_most(left)
        left = left.beyond(more)
        _add(news, part.model, more)
    _add(news, UNTOLD, left)
    after = {part: counts.or_more(before.parts.get(part, NOTHING)) for part, counts in parts.items()}
    return Book(total.or_more(before.total), after), news


def _without_total(before: Book, parts: Mapping[Part, Counts]) -> tuple[Book, dict[str, Counts]]:
    news: dict[str, Counts] = {}
    after, total = dict(before.parts), before.total
    for part, counts in sorted(parts.items()):
        known = before.parts.get(part, NOTHING)
        _add(news, part.model, counts.beyond(known))
        total = total.plus(counts.beyond(known))
        after[part] = counts.or_more(known)
    return Book(total, after), news


def _add(news: dict[str, Counts], model: str, more: Counts) -> None:
    if more != NOTHING:
        news[model] = news.get(model, NOTHING).plus(more)
