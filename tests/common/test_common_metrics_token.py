"""Who may read metrics, which tell of every tenant."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from services.common import metrics
from services.common.process import StartupError
from services.common.settings import ServiceSettings


def got(address: str, token: str | None) -> int:
    request = urllib.request.Request(f"http://{address}/metrics")
    if token is not None:
        request.add_header("authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code if b"python_info" not in error.read() else 0


def test_metrics_with_a_token_are_read_by_those_who_show_it() -> None:
    address, close = metrics.serve("127.0.0.1:0", "right")
    assert [got(address, token) for token in (None, "wrong", "", "right and more", "right")] == [
        401,
        401,
        401,
        401,
        200,
    ]
    close()


def test_beyond_loopback_metrics_need_a_token_and_the_mesh_token_does() -> None:
    with pytest.raises(StartupError, match="METRICS_TOKEN"):
        metrics.token_of(ServiceSettings(metrics_listen="0.0.0.0:0"))
    assert metrics.token_of(ServiceSettings(metrics_listen="0.0.0.0:0", mesh_token="m")) == "m"
    assert metrics.token_of(ServiceSettings(metrics_listen="0.0.0.0:0", mesh_token="m", metrics_token="t")) == "t"
    assert metrics.token_of(ServiceSettings(metrics_listen="127.0.0.1:0", mesh_token="m")) is None
    assert metrics.token_of(ServiceSettings(metrics_listen="127.0.0.1:0", metrics_token="t")) == "t"
