"""What a support file is scraped with."""

from __future__ import annotations

import pytest

from services.cli.commands import support
from services.common import metrics

MESH, OWN = {"APPORTION_MESH_TOKEN": "mesh"}, {"APPORTION_METRICS_TOKEN": "own"}


@pytest.mark.parametrize(
    ("address", "environment", "token"),
    [
        ("10.0.0.1:8002", {}, None),
        ("10.0.0.1:8002", MESH, "mesh"),
        ("10.0.0.1:8002", MESH | OWN, "own"),
        # There, services ask for nothing unless they have a token for metrics alone: the mesh's stays at home.
        ("127.0.0.1:8002", MESH, None),
        ("127.0.0.1:8002", MESH | OWN, "own"),
    ],
)
def test_metrics_are_asked_for_with_what_services_take(
    address: str, environment: dict[str, str], token: str | None
) -> None:
    assert support._metrics_token(address, environment) == token


def test_metrics_behind_a_token_are_in_the_file_and_a_wrong_one_is_an_error_that_stops_nothing() -> None:
    address, close = metrics.serve("127.0.0.1:0", "right")
    errors: list[str] = []
    try:
        assert "python_info" in (support._scraped(address, "right", errors) or "")
        assert not errors
        assert support._scraped(address, "wrong", errors) is None
    finally:
        close()
    assert len(errors) == 1
    assert "401" in errors[0]
