"""What `apportion top` makes of a fleet, and how it fits a terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services._proto.apportion.v1 import common_pb2, scheduler_pb2
from services.cli.top.figures import figures
from services.cli.top.frame import frame

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def fleet(*, attached: bool = True, tenants: int = 2) -> scheduler_pb2.GetFleetResponse:
    made = scheduler_pb2.GetFleetResponse(epoch=7)
    executor = made.executors.add(executor_id="e1", attached=attached)
    executor.device.compute_units = 4
    executor.device.lanes.add(lane=0, compute_units=1)
    executor.device.lanes.add(lane=1, compute_units=3)
    executor.report.lanes.add(lane=1, busy_ppm=625_000, waiting_requests=4)
    for number in range(tenants):
        one = made.tenants.add(tenant=f"tenant-{number}", weight=number + 1, used_ppm=125_000, compute_unit_ns=10**9)
        one.reservation.millidevices = 250 * (1 - number % 2)
        one.recent.CopyFrom(
            scheduler_pb2.RecentRequests(window_ms=60_000, requests=200, within=199, missed=1, p99_us=12_345)
        )
        key = common_pb2.ModelKey(tenant=one.tenant, name="embed")
        one.models.add(key=key, used_ppm=125_000)
        executor.report.replicas.add(key=key, lane=1, waiting_requests=number + 2)
    return made


def test_use_is_a_part_of_the_reservation_and_attainment_a_part_of_what_had_an_objective():
    first, second = figures(fleet())["tenants"]
    assert (first["used_devices"], first["of_reservation"], first["attainment"]) == (0.125, 0.5, 0.995)
    assert (first["p99_ms"], first["waiting"], second["waiting"]) == (12.345, 2, 3)
    assert second["of_reservation"] is None, "nothing was promised"
    assert first["models"][0]["attainment"] is None, "nothing was asked with an objective"
    assert [each["tenant"] for each in figures(fleet(), "tenant-1")["tenants"]] == ["tenant-1"]


def test_an_executor_that_is_gone_has_no_busy_lanes_and_nothing_waiting():
    shown = figures(fleet(attached=False))
    assert [(lane["busy"], lane["waiting"]) for lane in shown["executors"][0]["lanes"]] == [(0.0, 0)] * 2
    assert [tenant["waiting"] for tenant in shown["tenants"]] == [0, 0]
    assert any("(gone)" in line for line in frame(shown, 80, colours=False))


def test_a_wide_terminal_shows_everything_and_a_narrow_one_what_matters_most():
    shown = figures(fleet())
    wide = "\n".join(frame(shown, 120, models=True, colours=False))
    for part in (
        "1 executor, 2 tenants",
        "e1/1",
        "62 %",
        "██████░░░░",
        "tenant-0",
        "50 %",
        "99.50 %",
        "12.3 ms",
        "  embed",
    ):
        assert part in wide
    narrow = "\n".join(frame(shown, 34, colours=False))
    assert "IN OBJ." in narrow
    assert "WEIGHT" not in narrow
    assert "99.50 %" in narrow


@given(width=st.integers(1, 200), tenants=st.integers(0, 5), models=st.booleans(), note=st.text("abc ", max_size=300))
def test_no_line_is_longer_than_the_terminal_is_wide(width, tenants, models, note):
    for line in frame(figures(fleet(tenants=tenants)), width, models=models, note=note):
        assert len(ESCAPES.sub("", line)) <= width


@pytest.mark.parametrize(
    ("within", "missed", "shown"), [(99_999, 1, "99.99 %"), (100_000, 0, "100.00 %"), (0, 5, "0.00 %")]
)
def test_attainment_is_never_rounded_up_to_everything(within, missed, shown):
    made = fleet(tenants=1)
    made.tenants[0].recent.within, made.tenants[0].recent.missed = within, missed
    assert any(shown in line for line in frame(figures(made), 120, colours=False))


def test_a_mesh_in_which_nothing_runs_has_a_frame_too():
    assert frame(figures(scheduler_pb2.GetFleetResponse()), 80, colours=False)[0].startswith(
        "apportion top   0 executors"
    )
