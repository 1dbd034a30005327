"""Metrics over HTTP."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client import Counter

from services.common import metrics
from services.common.process import StartupError


def test_metrics_are_served_until_closed_and_the_port_is_free_again() -> None:
    Counter("apportion_test_served", "Of this test.").inc(3)
    address, close = metrics.serve("127.0.0.1:0")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert b"apportion_test_served_total 3.0" in answer.read()
    with pytest.raises(StartupError, match=f"cannot listen on {address}: .*--metrics-listen"):
        metrics.serve(address)
    close()
    again, close_again = metrics.serve(address)
    assert again == address
    close_again()
