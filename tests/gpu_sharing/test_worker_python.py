"""Operators' code in a worker of its own process: what was approved runs, slice by slice, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from artefact_samples import linear_python, written
from worker_models import Books, digest_of

from gpu_sharing.worker.messages import Done, Loaded, LoadFailed


async def test_a_worker_runs_the_code_that_its_executor_was_told_of_and_no_other(tmp_path: Path) -> None:
    approved = written(tmp_path, "approved.py", linear_python(yields=True))
    other = written(tmp_path, "other.py", linear_python())
    books = await Books.open(python_artefacts=(digest_of(approved),))
    try:
        loaded = await books.load(approved, 1, format="python")
        assert isinstance(loaded, Loaded), loaded
        assert [segment.name for segment in loaded.profile.segments] == ["slice 1", "slice 2"]
        assert loaded.signature.inputs[0].batch_axis == 0
        x = np.ones((2, 4), np.float32)
        done = await books.submit([x], rows=2)
        assert isinstance(done, Done), done
        weights = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)
        np.testing.assert_allclose(books.read(done), np.maximum(x @ weights, 0), rtol=1e-5)
        refused = await books.load(other, 2, format="python")
        assert isinstance(refused, LoadFailed)
        assert refused.refused
        assert "is not among the executor's python_artefacts" in refused.message
    finally:
        await books.client.stop(1.0)
