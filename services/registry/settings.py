"""The registry's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.common.settings import Address, ServiceSettings


class RegistrySettings(ServiceSettings):
    """Each field is a flag and a variable APPORTION_REGISTRY_…; `data` is also read from APPORTION_DATA."""

    model_config = SettingsConfigDict(
        env_prefix="APPORTION_REGISTRY_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    listen: Address = "127.0.0.1:8101"
    """HOST:PORT of the registry's gRPC."""
    data: Path = Path("~/.local/share/apportion")
    """Folder for what is kept on this machine."""
    database_url: str | None = None
    """SQLAlchemy URL, sqlite:///PATH or postgresql://…; none: registry.db in the data folder."""
    artefacts_url: str | None = None
    """Folder or fsspec URL that holds artefacts; none: artefacts in the data folder."""
    max_artefact_bytes: int = Field(default=8 << 30, ge=1)
    """Largest artefact that may be uploaded, in bytes."""
    history_revisions: int = Field(default=10_000, ge=1)
    """Revisions that a watcher may be behind; further back, it has to take a new snapshot."""
    bookmark_s: float = Field(default=5.0, gt=0)
    """Seconds of silence after which a watcher is sent a bookmark."""
    poll_s: float = Field(default=0.2, gt=0, le=0.25)
    """How often the database is asked whether another registry process has committed, while anybody watches."""
    upload_idle_s: float = Field(default=60.0, gt=0)
    """Seconds without a message after which an upload is given up."""

    python_artefacts: tuple[Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")], ...] = ()
    """Python code that an operator has approved, by digest, as a JSON list: versions of other code are refused. Executors have a
    list of their own, which decides what runs."""

    collect_every_s: float = Field(default=600.0, ge=0)
    """How often artefacts that no version refers to are removed; 0: never."""
    collect_grace_s: float = Field(default=86_400.0, ge=60)
    """How long an uploaded artefact may wait for a version that refers to it."""
    audit_s: float = Field(default=400 * 86_400.0, ge=3600)
    """How long lines of the audit log are kept."""
    usage_names_days: int = Field(default=400, ge=1)
    """Days after which a name of counts (an executor's book, a frontend) under which nothing was told is let go of. What was
    counted stays; an executor that comes back later than that with its old book is counted anew."""

    @field_validator("data")
    @classmethod
    def _home(cls, data: Path) -> Path:
        return data.expanduser().absolute()

    @property
    def database(self) -> str:
        """The URL of the database, the default filled in."""
        return self.database_url or f"sqlite:///{self.data / 'registry.db'}"

    @property
    def artefacts(self) -> str:
        """The folder or URL of the artefacts, the default filled in."""
        return self.artefacts_url or str(self.data / "artefacts")
