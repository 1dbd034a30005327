"""A window of a trace of functions, scaled to models: who is asked when. Shapes are the trace's; rates and time are scaled, as stated."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpu_sharing.units import SECOND, Nanoseconds

Arrivals = list[tuple[Nanoseconds, int]]


class Window(NamedTuple):
    """first, minutes: of the trace's day. span_ns: what they are compressed to. per_s: requests a second then, over all models.

    seed: which functions stand for models, and the moments within a minute, which are a Poisson stream's.
    """

    models: int
    span_ns: Nanoseconds
    per_s: float
    first: int = 600
    minutes: int = 60
    seed: int = 0

    def told(self, source: str) -> str:
        """In words, for reports."""
        return (
            f"{source}, minutes {self.first} to {self.first + self.minutes - 1}, compressed to {self.span_ns / SECOND:g} s, "
            f"{self.models} functions as models, rates scaled to {self.per_s:g} requests/s in all, seed {self.seed}"
        )


def counts_of(trace: Path, window: Window) -> np.ndarray:
    """Calls by model and minute. Functions that are called in the window at all, drawn by the seed; ValueError where they are fewer."""
    with trace.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = [f"minute_{minute}" for minute in range(window.first, window.first + window.minutes)]
    counts = np.array([[int(row[name]) for name in names] for row in rows], np.float64)
    called = np.flatnonzero(counts.sum(axis=1))
    if len(called) < window.models:
        raise ValueError(f"{trace.name}: {len(called)} functions are called in this window, {window.models} are needed")
    drawn = np.random.Generator(np.random.PCG64(window.seed)).permutation(called)[: window.models]
    return counts[np.sort(drawn)]


def by_rank(window: Window) -> np.ndarray:
    """Where there is no trace: rates fall as one over the rank, the same in every minute."""
    return np.repeat(1.0 / np.arange(1, window.models + 1)[:, None], window.minutes, axis=1)


def arrivals(counts: np.ndarray, window: Window) -> Arrivals:
    """Moments within the span, ascending, each with its model."""
    chance = np.random.Generator(np.random.PCG64([window.seed, 1]))
    minute_ns = window.span_ns / window.minutes
    expected = counts * (window.per_s * window.span_ns / SECOND / counts.sum())
    drawn = chance.poisson(expected)
    found = [
        (int((minute + offset) * minute_ns), model)
        for (model, minute), count in np.ndenumerate(drawn)
        for offset in chance.random(int(count))
    ]
    return sorted(found)
