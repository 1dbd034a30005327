"""What the three models are asked, and what their answers mean."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.client import Infers, Tensors
from demo.models import magika_folder, minilm
from demo.sound import RATE_HZ, Phrase, Samples, render

SENTENCES = (
    "A small boat crosses the bay at dawn.",
    "The ferry leaves the harbour early in the morning.",
    "My laptop battery dies after an hour.",
    "The computer runs out of power far too quickly.",
    "Add two eggs and a pinch of salt to the flour.",
    "Knead the dough, then let it rest for an hour.",
    "The court overturned the ruling on appeal.",
    "Judges reversed the earlier verdict.",
)
"""Each belongs with its neighbour: (0, 1), (2, 3), (4, 5), (6, 7)."""

WINDOW = 512
CONTEXT = 64
"""Samples of a request, and of the one before that it starts with."""
SPEECH = 0.5
PHRASES = (Phrase(0.8, "aeiouae", 115), Phrase(3.2, "oaieu", 140), Phrase(5.4, "iauoea", 105))
SOUND_S = 7.5


@dataclass(frozen=True)
class Pair:
    """Two sentences and how alike they are, at most 1."""

    one: str
    other: str
    similarity: float


@dataclass(frozen=True)
class FileType:
    """What a file is said to be. expected: what it is."""

    name: str
    label: str
    score: float
    expected: str


@dataclass(frozen=True)
class Voice:
    """Speech over time: one probability a window of 32 ms, and whether there was a voice."""

    probabilities: tuple[float, ...]
    spoken: tuple[bool, ...]

    @property
    def agreement(self) -> float:
        """The part of windows in which the detector is right, those at a phrase's edge apart."""
        sure = [k for k in range(2, len(self.spoken) - 2) if len(set(self.spoken[k - 2 : k + 3])) == 1]
        return sum((self.probabilities[k] >= SPEECH) == self.spoken[k] for k in sure) / len(sure)


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    return tokenizer


def tokens(sentences: tuple[str, ...]) -> Tensors:
    """The inputs of the sentence model, padded to the longest sentence."""
    encoded = _tokenizer().encode_batch(list(sentences))
    return {
        "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
    }


async def most_similar(model: Infers, sentences: tuple[str, ...] = SENTENCES) -> list[Pair]:
    """Each sentence's closest other, as pairs, most alike first."""
    embedding = next(iter((await model.infer(tokens(sentences))).values()))
    alike = embedding @ embedding.T
    np.fill_diagonal(alike, -1)
    pairs = {tuple(sorted((k, int(row.argmax())))): float(row.max()) for k, row in enumerate(alike)}
    return sorted(
        (Pair(sentences[a], sentences[b], value) for (a, b), value in pairs.items()), key=lambda p: -p.similarity
    )


@cache
def _filetypes() -> dict[str, Any]:
    return json.loads((magika_folder() / "config.min.json").read_text())


def features(content: bytes) -> NDArray[np.int32]:
    """A file as the model sees it, [2048]: its first and last 1024 bytes that are not white space, 256 where there are none."""
    config = _filetypes()
    padding, block = config["padding_token"], config["block_size"]
    row = np.full(config["beg_size"] + config["end_size"], padding, dtype=np.int32)
    first = np.frombuffer(content[:block].lstrip()[: config["beg_size"]], dtype=np.uint8)
    last = np.frombuffer(content[-block:].rstrip()[-config["end_size"] :], dtype=np.uint8)
    row[: len(first)] = first
    row[len(row) - len(last) :] = last
    return row


async def file_types(model: Infers, files: list[tuple[str, bytes, str]]) -> list[FileType]:
    """What each of (name, content, expected) is said to be."""
    asked = (model.infer({"bytes": features(content)[None]}) for _, content, _ in files)
    scores = [next(iter(answer.values()))[0] for answer in await asyncio.gather(*asked)]
    labels, renamed = _filetypes()["target_labels_space"], _filetypes()["overwrite_map"]
    found = []
    for (name, _, expected), row in zip(files, scores, strict=True):
        label = labels[int(row.argmax())]
        found.append(FileType(name, renamed.get(label, label), float(row.max()), expected))
    return found


def sample_files() -> list[tuple[str, bytes, str]]:
    """Real files of this machine and some made on the fly: (name, content, what it is)."""
    here, library = Path(__file__).parent, Path(json.__file__).parent
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for source in sorted(library.glob("*.py")):
            made.write(source, f"notes/{source.stem}.txt")
    catalogue = {"models": [{"name": name, "versions": list(range(4)), "ready": True} for name in ("search", "voice")]}
    page = "<!DOCTYPE html>\n<html><head><title>Tides</title></head><body><h1>Tides</h1><p>High at noon.</p></body></html>\n"
    return [
        (f"{library.name}/decoder.py", (library / "decoder.py").read_bytes(), "python"),
        (f"{here.parent.name}/README.md", (here.parent / "README.md").read_bytes(), "markdown"),
        ("catalogue.json", json.dumps(catalogue, indent=2).encode(), "json"),
        ("tides.html", (page * 4).encode(), "html"),
        ("square.png", png(), "png"),
        ("notes.zip", archive.getvalue(), "zip"),
        (Path(sys.executable).name, Path(sys.executable).resolve().read_bytes()[: 1 << 20], "elf"),
    ]


def png(side: int = 64) -> bytes:
    """A small picture: a gradient, as a PNG."""
    rows = b"".join(
        b"\0" + bytes((4 * x) & 255 if c == 0 else (4 * y) & 255 for x in range(side) for c in range(3))
        for y in range(side)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def window(samples: Samples, at: int, state: NDArray[np.float32]) -> Tensors:
    """The inputs of the speech detector for the window that starts at sample `at`, with the context before it."""
    before = samples[max(0, at - CONTEXT) : at]
    joined = np.concatenate([np.zeros(CONTEXT - len(before), np.float32), before, samples[at : at + WINDOW]])
    return {"input": joined[None], "state": state, "sr": np.array(RATE_HZ, dtype=np.int64)}


def silence() -> NDArray[np.float32]:
    """The detector's state before anything was heard."""
    return np.zeros((2, 1, 128), dtype=np.float32)


async def where_voice_is(model: Infers) -> Voice:
    """Listens to a few phrases, window by window: the state of each answer goes into the next request."""
    samples, state = render(PHRASES, SOUND_S), silence()
    probabilities, spoken = [], []
    for at in range(0, len(samples) - WINDOW + 1, WINDOW):
        answer = await model.infer(window(samples, at, state))
        probability, state = answer["output"], answer["stateN"].astype(np.float32)
        probabilities.append(float(probability[0, 0]))
        middle_s = (at + WINDOW / 2) / RATE_HZ
        spoken.append(any(phrase.start_s <= middle_s < phrase.end_s for phrase in PHRASES))
    return Voice(tuple(probabilities), tuple(spoken))
