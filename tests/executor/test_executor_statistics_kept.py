"""Counts of versions that have left: kept, but not without end."""

from __future__ import annotations

from services.executor.core.statistics import MOST_VERSIONS, StatisticsLedger


def test_counts_of_versions_that_left_are_kept_until_there_are_too_many_and_those_loaded_always() -> None:
    ledger = StatisticsLedger()
    first = ledger.of("t", "m", 1)
    for version in range(2, MOST_VERSIONS + 2):
        ledger.of("t", "m", version).rows = version
    ledger.trim({("t", "m", 1)})
    assert len(ledger.counts) == MOST_VERSIONS + 1
    ledger.of("t", "m", 2)
    for version in range(MOST_VERSIONS + 2, MOST_VERSIONS + 12):
        ledger.of("t", "m", version)
    ledger.trim({("t", "m", 1)})
    left = [version for _, version, _ in ledger.find("t", "m")]
    assert len(left) == MOST_VERSIONS + 1
    assert left[:3] == [1, 2, 13]
    assert ledger.of("t", "m", 1) is first
    assert ledger.of("t", "m", 2).rows == 2
