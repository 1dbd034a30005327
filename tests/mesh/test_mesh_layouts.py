"""A real executor changes its layout under load: by demand, and as an operator wants it. With figures: bench/layouts.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.layouts import change_layouts
from tests.mesh.surviving import OK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two cores are needed"),
]


async def test_a_device_changes_its_layout_under_load_and_no_request_fails(tmp_path: Path) -> None:
    story = await change_layouts(tmp_path)
    assert "there would be no place for default/large version 1" in story.refused
    assert len(story.answers) > 100
    assert not [each for each in story.answers if each.code != OK]
