"""What cutting models into segments costs and gains: `python -m bench.segments [--folder DIR] [--runs N]`.

Per model: how many segments, a run in segments against the same run whole (the two take turns, timed on processor time of the
thread that runs them, so that what else the machine does stays out), the longest segment, and how long a first and a second
load take. The last line is JSON. Models: perceptrons of this folder, the file type model and the sentence model of the demo,
where their packages are installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from bench.models import perceptron
from demo.models import export_sentences, filetypes_artefact, sentences_artefact
from gpu_sharing.measurements import Profile
from gpu_sharing.runtimes.base import LoadConfig, LoadedModel
from gpu_sharing.runtimes.profile import measure
from gpu_sharing.runtimes.registry import runtime_for
from gpu_sharing.runtimes.stopwatch import Stopwatch
from gpu_sharing.runtimes.warmup import bounds, finish, made_up
from gpu_sharing.tensors import WarmupTensor
from gpu_sharing.units import MS

CONFIG = LoadConfig(threads=1, compute_units=1)


def models(folder: Path) -> Iterator[tuple[str, str, Path, LoadConfig]]:
    """(what it is, format, artefact, configuration)."""
    for blocks in (16, 160):
        path = folder / f"perceptron{blocks}.onnx"
        yield f"perceptron, {blocks} blocks", "onnx", path if path.exists() else perceptron(path, blocks=blocks), CONFIG
    try:
        yield "file types (magika)", "onnx", filetypes_artefact(), CONFIG
        sentences = sentences_artefact(folder)
        if not sentences.exists():
            export_sentences(sentences)
    except ImportError as missing:
        print(f"left out: {missing}")
        return
    except FileNotFoundError as missing:
        print(f"left out: {missing}")
        return
    for tokens in (16, 256):
        shape = (1, tokens)
        ids = WarmupTensor("input_ids", shape, np.full(shape, 101, np.int64).tobytes())
        mask = WarmupTensor("attention_mask", shape, np.ones(shape, np.int64).tobytes())
        yield f"sentences (MiniLM), {tokens} tokens", "torch_export", sentences, replace(CONFIG, warmup=(ids, mask))


def loaded(runtime: str, path: Path, config: LoadConfig, known: Profile | None) -> tuple[LoadedModel, Profile, float]:
    """The model, its profile, and the processor seconds that both took."""
    began = time.process_time()
    if known is not None:
        config = replace(config, segments=tuple(segment.name for segment in known.segments) or None)
    model = runtime_for(runtime).load(path, config)
    if known is None:
        stopwatch = Stopwatch.of_this_thread(time.monotonic_ns, threads=1)
        known, _ = measure(model, config, digest="d", device_kind="d", stopwatch=stopwatch, on_stage=lambda _: None)
    return model, known, time.process_time() - began


def turns(one: LoadedModel, other: LoadedModel, config: LoadConfig, runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each, taking turns."""
    ranges, extent = bounds(one)
    inputs = made_up(one.signature, 1, warmup=config.warmup, ranges=ranges, extent=extent)
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * runs):
        model, times = ((one, taken[0]), (other, taken[1]))[turn % 2]
        began = time.thread_time_ns()
        finish(model.run(inputs))
        times.append((time.thread_time_ns() - began) / MS)
    return taken


def row(runtime: str, path: Path, config: LoadConfig, runs: int) -> dict[str, Any]:
    """One model's figures."""
    cut, profile, first_s = loaded(runtime, path, config, None)
    _, again, second_s = loaded(runtime, path, replace(config, signature=cut.signature), profile)
    assert again is profile
    whole = runtime_for(runtime).load(path, replace(config, segments=("whole",), signature=cut.signature))
    if runtime == "torch_export":
        whole = uncut(whole)
    whole_ms, cut_ms = turns(whole, cut, config, runs)
    base, median = statistics.median(whole_ms), statistics.median(cut_ms)
    return {
        "segments": len(cut.segments),
        "whole_p50_ms": round(base, 3),
        "cut_p50_ms": round(median, 3),
        "overhead_percent": round(100 * (median / base - 1), 1),
        "longest_segment_ms": round(max((each.p50_ns for each in profile.segments), default=0) / MS, 3),
        "longest_at_most_rows_ms": round(max(profile.points[-1].segments_ns, default=0) / MS, 3),
        "most_rows": profile.points[-1].rows,
        "first_load_cpu_s": round(first_s, 2),
        "second_load_cpu_s": round(second_s, 2),
    }


def uncut(model: Any) -> Any:
    """The same exported program as one segment."""
    from gpu_sharing.runtimes.torch_segments import whole

    model._parts = whole(model._module)
    model.segments = tuple(part.name for part in model._parts)
    return model


def main() -> None:
    """Prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where made models are kept; default: nowhere")
    parser.add_argument("--runs", type=int, default=60, help="of each way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = {name: row(runtime, path, config, arguments.runs) for name, runtime, path, config in models(folder)}
    columns = list(next(iter(rows.values())))
    print(f"{'':32}" + "".join(f"{column:>24}" for column in columns))
    for name, figures in rows.items():
        print(f"{name:32}" + "".join(f"{figures[column]:>24}" for column in columns))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
