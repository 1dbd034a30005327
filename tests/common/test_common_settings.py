"""Settings: flag before own variable before shared variable before default."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from services.common.settings import Address, ServiceSettings, is_loopback


class RoomSettings(ServiceSettings):
    """A service's."""

    model_config = SettingsConfigDict(
        env_prefix="APPORTION_ROOM_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )
    listen: Address = "127.0.0.1:1"
    """Where."""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.upper().startswith("APPORTION_"):
            monkeypatch.delenv(name)


def test_a_flag_beats_the_own_variable_which_beats_the_shared_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RoomSettings().mesh_token is None
    monkeypatch.setenv("APPORTION_MESH_TOKEN", "shared")
    assert RoomSettings().mesh_token == "shared"
    monkeypatch.setenv("APPORTION_ROOM_MESH_TOKEN", "own")
    assert RoomSettings().mesh_token == "own"
    assert RoomSettings(mesh_token="flag").mesh_token == "flag"


def test_another_services_variable_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPORTION_OTHER_LISTEN", "127.0.0.1:9")
    monkeypatch.setenv("APPORTION_ROOMY", "x")
    assert RoomSettings().listen == "127.0.0.1:1"


@pytest.mark.parametrize("text", ["", "8001", ":8001", "host", "host:", "host:x", "host:70000", "host:-1", "host:１"])
def test_an_address_that_is_none_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(ValidationError, match="listen"):
        RoomSettings(listen=text)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        RoomSettings().listen = "127.0.0.1:2"  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    for name, field in RoomSettings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.com:1", False),
        (":1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_only_loopback_is_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
