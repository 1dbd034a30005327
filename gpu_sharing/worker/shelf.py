"""The models of a worker by what they are: equal artefacts are loaded once, and no replica can tell.

Whatever a load would have shown, had it been alone, it shows: its stages take as long as they took when the artefact was
loaded. Otherwise a tenant could learn what others deploy by deploying it too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from gpu_sharing.measurements import Profile
from gpu_sharing.runtimes.base import LoadConfig, LoadedModel
from gpu_sharing.units import Bytes, Nanoseconds


class Measured(NamedTuple):
    """A profile that was measured here. stages: what was told of it meanwhile, and how long each took."""

    profile: Profile
    activation_bytes: Bytes
    stages: tuple[tuple[str, Nanoseconds], ...]


@dataclass
class Shelved:
    """One artefact's model. origin: as it was loaded, for the first of its users; the others have it once more.

    charged_bytes: what each replica's weights count for, whether it shares them or not.
    moves: its weights may leave the device. drawn_bytes: the most that trying it drew on a tenant's pool. loading_ns: how long loading it took. measured: by the configuration that the profile is for.
    """

    origin: LoadedModel
    charged_bytes: Bytes
    loading_ns: Nanoseconds
    measured: dict[bytes, Measured] = field(default_factory=dict)
    users: set[int] = field(default_factory=set)
    moves: bool = False
    drawn_bytes: Bytes = 0


class Shelf:
    """By digest and the name of the runtime. One thread."""

    def __init__(self) -> None:
        self._shelved: dict[tuple[str, str], Shelved] = {}

    def find(self, digest: str, runtime: str) -> Shelved | None:
        """The artefact's model, if one is loaded."""
        return self._shelved.get((digest, runtime))

    def put(self, digest: str, runtime: str, shelved: Shelved) -> None:
        """Keeps a model for as long as it has users. An artefact without a digest is nobody else's."""
        if digest:
            self._shelved[digest, runtime] = shelved

    def leave(self, replica: int, model: LoadedModel) -> list[LoadedModel]:
        """The replica has gone, and with it its model. Returns what is to be closed."""
        found = next(((key, each) for key, each in self._shelved.items() if replica in each.users), None)
        if found is None:
            return [model]
        key, shelved = found
        shelved.users.discard(replica)
        if shelved.users:
            return [model] if model is not shelved.origin else []
        del self._shelved[key]
        return [model, shelved.origin] if model is not shelved.origin else [model]


def variant(config: LoadConfig) -> bytes:
    """Equal where a profile of one is a profile of the other."""
    settled = msgspec.structs.replace(config, signature=None, segments=None, tenant="", memory_bytes=None)
    return msgspec.msgpack.encode(settled, order="deterministic")
