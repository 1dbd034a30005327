"""What lies in a model's folder: its versions, each with one artefact, and the files that its configuration names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from services.cli.errors import CommandError
from services.cli.push.artefact import Artefact, inspect
from services.cli.push.repository.config import FILE_NAME

USUAL = ("model.onnx", "model.pt2")
INSTEAD: dict[str, str] = {
    "model.pt": "is TorchScript, which may run code: export the model with torch.export and save it as model.pt2",
    "model.pth": "is a pickle, which may run code: export the model with torch.export and save it as model.pt2",
    "model.plan": "is a TensorRT engine for one kind of GPU: push the ONNX model that it was made from",
    "model.py": "is code: export the model to model.onnx or model.pt2",
    "model.graphdef": "is a TensorFlow graph: convert the model to model.onnx",
    "model.savedmodel": "is a TensorFlow model: convert it to model.onnx",
    "model.xml": "is an OpenVINO model: push the ONNX model that it was made from",
    "model.dali": "is a DALI pipeline: do its work in the model, or before the request",
}
"""What Triton serves and we do not, and what to do."""
_VERSION = re.compile(r"[1-9][0-9]{0,9}")


@dataclass(frozen=True)
class ModelFolder:
    """One model's folder. numbers: its versions, ascending."""

    root: Path
    numbers: tuple[int, ...]

    def artefact(self, number: int, file_name: str) -> Artefact:
        """The artefact of a version, checked as far as a look can. file_name: the configuration's; "": the usual one.

        Raises CommandError where there is none, or one that is not served, with what to do.
        """
        folder = self.root / str(number)
        if file_name:
            _plain(file_name, "default_model_filename")
        wanted = (file_name,) if file_name else USUAL
        found = [folder / name for name in wanted if (folder / name).exists()]
        if len(found) > 1:
            both = " and ".join(path.name for path in found)
            raise CommandError(
                f"{folder}: holds {both}: name the one that counts in {FILE_NAME}, default_model_filename"
            )
        if not found:
            raise CommandError(_missing(folder, wanted))
        return inspect(found[0])

    def beside(self, number: int, artefact: Artefact) -> list[str]:
        """Other files of a version's folder, which are not pushed."""
        others = (path.name for path in (self.root / str(number)).iterdir() if path.name != artefact.path.name)
        return [f"{number}/{name}" for name in sorted(others) if not name.startswith(".")]

    def read(self, name: str, field: str, *, most_bytes: int, under: str = "") -> bytes:
        """A small file that the configuration names. Raises CommandError where it lies elsewhere, is missing or too large.

        A repository may come from anybody, and what it names is uploaded: nothing outside its folder is read.
        """
        _plain(name, field)
        path = self.root / under / name
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
            if not inside:
                raise CommandError(f"{FILE_NAME}: {field}: {name!r} leads out of {self.root}")
            if path.stat().st_size > most_bytes:
                raise CommandError(f"{path}: has more than {most_bytes} bytes")
            return path.read_bytes()
        except OSError as error:
            raise CommandError(f"{FILE_NAME}: {field}: cannot read {path}: {error.strerror}") from None


def scan(root: Path) -> ModelFolder:
    """Looks for versions. Raises CommandError where there are none."""
    numbers = sorted(int(path.name) for path in root.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name))
    if not numbers:
        models = sorted(path.parent.name for path in root.glob(f"*/{FILE_NAME}"))
        if models:
            raise CommandError(f"{root}: is a whole repository: push its models one by one, like {root / models[0]}")
        raise CommandError(f"{root}: has no version: a model's folder holds 1/{USUAL[0]} or 1/{USUAL[1]}")
    return ModelFolder(root, tuple(numbers))


def _missing(folder: Path, wanted: tuple[str, ...]) -> str:
    for name, instead in INSTEAD.items():
        if (folder / name).exists():
            return f"{folder / name}: {instead}"
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return f"{folder}: holds no {' or '.join(wanted)}, but {held}"


def _plain(name: str, field: str) -> None:
    """Raises CommandError unless the name is that of a file, and nothing more."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CommandError(f"{FILE_NAME}: {field}: {name!r} is not the plain name of a file")
