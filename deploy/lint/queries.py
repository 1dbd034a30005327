"""What PromQL asks for: metrics, and the labels that it matches, groups by or shows, read without a server.

Enough of the language for our own queries: names, matchers, aggregations with `by`, functions, arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
MATCHER = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
BY = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?([a-zA-Z_][a-zA-Z0-9_]*)\s*\}\}")
NUMBER = re.compile(r"\b[0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?(?:ms|[smhdwy])?\b")
KEYWORDS = {"and", "or", "unless", "on", "ignoring", "bool", "offset", "group_left", "group_right", "inf", "nan"}


@dataclass(frozen=True)
class Use:
    """A metric in a query. matched: by label, the values that are asked for (a pattern's alternatives); grouped: labels."""

    metric: str
    matched: tuple[tuple[str, tuple[str, ...]], ...]
    grouped: frozenset[str]


def uses(expression: str) -> Iterator[Use]:
    """Every metric of an expression."""
    groups = [(found, frozenset(WORD.findall(found[1]))) for found in BY.finditer(expression)]
    reach = [(*_operand(expression, found), labels) for found, labels in groups]
    bare = BY.sub(lambda found: " " * len(found[0]), expression)
    braces = [(found.start(), found.end(), found[0]) for found in re.finditer(r"\{[^}]*\}", bare)]
    hidden = list(bare)
    for begin, end, _ in braces:
        hidden[begin:end] = " " * (end - begin)
    plain = NUMBER.sub(lambda found: " " * len(found[0]), "".join(hidden))
    for found in WORD.finditer(plain):
        follows = plain[found.end() :].lstrip()
        # A name before a parenthesis is a function or an aggregation, also where its `by` stood between the two.
        if found[0].lower() in KEYWORDS or follows.startswith("("):
            continue
        inside = next((text for begin, _, text in braces if not expression[found.end() : begin].strip() and begin >= found.end()), "")  # fmt: skip
        matched = tuple((label, _alternatives(how, value)) for label, how, value in MATCHER.findall(inside))
        grouped = frozenset[str]().union(*(labels for begin, end, labels in reach if begin <= found.start() < end))
        yield Use(found[0], matched, grouped)


def result_labels(expression: str) -> frozenset[str] | None:
    """Labels of what an expression gives, where its outermost aggregation says so; None: those of its metrics."""
    text = expression.strip()
    found = re.match(r"(?:[a-z_]+\([0-9.]+,\s*)?[a-z]+\s+by\s*\(([^)]*)\)", text)
    return frozenset(WORD.findall(found[1])) if found else None


def shown(legend: str) -> set[str]:
    """Labels that a legend or an annotation shows."""
    return set(SHOWN.findall(legend)) - {"value"}


def _alternatives(how: str, value: str) -> tuple[str, ...]:
    if "$" in value or how in ("!=", "!~"):
        return ()
    return tuple(value.split("|")) if how == "=~" and re.fullmatch(r"[A-Za-z_|]+", value) else (value,) if how == "=" else ()  # fmt: skip


def _operand(expression: str, by: re.Match[str]) -> tuple[int, int]:
    """Where the parenthesis that an aggregation works on begins and ends."""
    begin = expression.index("(", by.end())
    depth = 0
    for at in range(begin, len(expression)):
        depth += (expression[at] == "(") - (expression[at] == ")")
        if depth == 0:
            return begin, at + 1
    return begin, len(expression)
