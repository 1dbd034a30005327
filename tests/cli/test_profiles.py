"""Profiles as tables and charts; objectives before and after a push."""

from __future__ import annotations

import json

import pytest
from test_push import KEY, mesh, onnx, ready_fleet, refuse

from services._proto.apportion.v1 import common_pb2, registry_pb2, scheduler_pb2
from services.cli import main
from services.cli.profiles import measuring, plot
from services.cli.profiles.table import charts, curves
from services.common.errors import invalid

__all__ = ["mesh", "onnx"]


def chart(*values: float, name: str = "p50", places: int | None = None) -> plot.Chart:
    labels = [str(1 << index) for index in range(places or len(values))]
    return plot.Chart("latency", [plot.Curve(name, values)], labels, "rows", lambda value: f"{value:g} ms")


@pytest.mark.parametrize("width", [10, 30, 45, 76, 200])
@pytest.mark.parametrize("marks", [plot.UNICODE, plot.ASCII])
def test_a_chart_is_as_wide_as_it_may_be_and_every_line_of_it_is(width, marks):
    lines = plot.draw(chart(1, 2, 4, 8), width, marks)
    assert {len(line) for line in lines} == {max(plot.LEAST_WIDTH, min(width, plot.WIDEST))}
    assert len(lines) == plot.HEIGHT + 4


def test_the_largest_value_is_at_the_top_and_rising_values_rise():
    lines = plot.draw(chart(0, 4, 8), 60, plot.ASCII)
    assert lines[1].startswith("8 ms |")
    assert [
        next(at for at, line in enumerate(lines) if line[column : column + 1] == "o") for column in columns(lines)
    ] == [
        plot.HEIGHT,
        1 + plot.HEIGHT // 2,
        1,
    ]


def columns(lines: list[str]) -> list[int]:
    body = lines[1 : 1 + plot.HEIGHT]
    return sorted(column for line in body for column, mark in enumerate(line) if mark == "o" and column > 5)


def test_charts_stand_side_by_side_where_there_is_room_and_below_one_another_elsewhere():
    two = [chart(1, 2), chart(2, 1)]
    wide, narrow = plot.beside(two, 110, plot.UNICODE), plot.beside(two, 60, plot.UNICODE)
    assert len(wide) == plot.HEIGHT + 4
    assert len(narrow) == 2 * (plot.HEIGHT + 4) + 1
    assert max(map(len, wide)) <= 110
    assert max(map(len, narrow)) <= 60


def test_ascii_is_all_that_a_plain_terminal_gets_and_nothing_is_drawn_of_nothing():
    assert "".join(plot.draw(chart(1, 2), 60, plot.ASCII)).isascii()
    assert plot.draw(chart(0.0, 0.0), 60, plot.UNICODE)
    assert plot.draw(chart(*range(40)), 40, plot.UNICODE)


def profile():
    made = common_pb2.Profile(digest="sha256:1", device_kind="cpu:test", weight_bytes=3 << 20)
    made.segments.add(name="one", p50_ns=400_000)
    made.segments.add(name="two", p50_ns=600_000)
    for units in (2, 1):
        for rows in (1, 4, 2):
            made.points.add(
                rows=rows,
                shape_bucket="16x[4]",
                compute_units=units,
                p50_ns=1_000_000 * rows // units,
                p99_ns=1_500_000 * rows // units,
                runs=9,
                activation_bytes=2048,
                segments_ns=[400_000 * rows, 600_000 * rows],
            )
    return made


def test_points_are_drawn_by_size_of_lane_and_shape_in_the_order_of_rows():
    found = curves(profile())
    assert [(place, [point.rows for point in points]) for place, points in found] == [
        ((1, "16x[4]"), [1, 2, 4]),
        ((2, "16x[4]"), [1, 2, 4]),
    ]
    latency, throughput = charts(found[1][1])
    assert latency.curves[1].values == [750_000, 1_500_000, 3_000_000]
    assert throughput.curves[0].values == [2000, 2000, 2000]


def keep(registry, *profiles):
    made = registry_pb2.Model(key=KEY, slo=common_pb2.Slo(objective_us=5000))
    made.versions.add(version=1, inspection=registry_pb2.INSPECTION_PASSED, profiles=profiles)
    registry.models["sentences"] = made


def test_a_profile_is_shown_as_a_table_and_curves(mesh, capsys, monkeypatch):
    keep(mesh[0], profile())
    monkeypatch.setenv("COLUMNS", "100")
    assert main.run(["model", "profile", "sentences", "--tenant", "search"]) == 0
    said = capsys.readouterr().out
    for part in (
        "2 segments, the longest 600 µs",
        "weights 3.0 MiB",
        "16x[4]",
        "2.0 KiB",
        "2,000",
        "shape 16x[4], 2 compute units",
    ):
        assert part in said
    assert said.count("throughput") == 2
    assert "\x1b[" not in said
    assert max(len(line.rstrip()) for line in said.splitlines() if "│" in line) <= 100


def test_a_profile_as_json_is_whole(mesh, capsys):
    keep(mesh[0], profile())
    assert main.run(["model", "profile", "sentences", "--tenant", "search", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["profiles"]
    assert len(told["points"]) == 6
    assert told["points"][0]["activation_bytes"] == "2048"


def test_a_version_without_a_profile_or_that_is_not_there_is_said_to_be_so(mesh, capsys):
    keep(mesh[0])
    assert main.run(["model", "profile", "sentences", "--tenant", "search"]) == 1
    assert "no worker has loaded it yet" in capsys.readouterr().err
    assert main.run(["model", "profile", "sentences", "--tenant", "search", "--version", "7"]) == 1
    assert "has no version 7" in capsys.readouterr().err


def promise(mesh, *answers, asked=None):
    """Has the scheduler answer so."""

    def answered(request, context):
        if asked is not None:
            asked.append(request)
        return scheduler_pb2.GetObjectiveResponse(answers=answers, version=1)

    mesh[1].objective = answered


def lane(verdict, message, **fields):
    made = scheduler_pb2.ObjectiveAnswer(
        device_kind="cpu:test", compute_units=1, verdict=verdict, message=message, serves=True, **fields
    )
    made.lane.millidevices = 1000
    return made


TIGHT = lane(
    scheduler_pb2.OBJECTIVE_VERDICT_TOO_TIGHT, "the objective of 5.0 ms cannot be promised: 20.2 ms", cost_us=2000
)
FINE = lane(scheduler_pb2.OBJECTIVE_VERDICT_PROMISED, "0.25 devices promise 4.2 ms", least_objective_us=4200)
NOTHING = lane(scheduler_pb2.OBJECTIVE_VERDICT_NOTHING_RESERVED, "nothing is promised")


def test_a_push_whose_objective_cannot_be_promised_completes_with_a_warning(mesh, onnx, capsys):
    mesh[1].fleets = [ready_fleet()]
    promise(mesh, FINE, TIGHT)
    assert main.run(["model", "push", "m", str(onnx), "--slo-ms", "5"]) == 0
    said = capsys.readouterr()
    assert "warning: the objective of 5.0 ms cannot be promised: 20.2 ms" in said.err
    assert "serves on e1" in said.out


def test_strictly_such_a_push_completes_and_exits_with_1(mesh, onnx, capsys):
    mesh[1].fleets = [ready_fleet()]
    for told in (TIGHT, NOTHING):
        promise(mesh, told)
        assert main.run(["model", "push", "m", str(onnx), "--slo-ms", "5", "--strict"]) == 1
        said = capsys.readouterr()
        assert "serves on e1" in said.out
        assert "--strict: default/m version 1 serves, but its objective is not promised" in said.err
    promise(mesh, FINE)
    assert main.run(["model", "push", "m", str(onnx), "--slo-ms", "5", "--strict"]) == 0
    assert "the objective is promised: 0.25 devices promise 4.2 ms" in capsys.readouterr().out
    assert main.run(["model", "push", "m", str(onnx), "--strict"]) == 0, (
        "without an objective there is nothing to promise"
    )


def test_strict_needs_to_wait_and_a_scheduler_that_can_say(mesh, onnx, capsys):
    assert main.run(["model", "push", "m", str(onnx), "--strict", "--no-wait"]) == 2
    mesh[1].fleets = [ready_fleet()]
    assert main.run(["model", "push", "m", str(onnx), "--slo-ms", "5", "--strict"]) == 1
    assert "nobody can say whether its objective is promised" in capsys.readouterr().err


def test_json_tells_of_the_objective_and_its_standard_output_stays_json(mesh, onnx, capsys):
    mesh[1].fleets = [ready_fleet()]
    promise(mesh, TIGHT)
    assert main.run(["model", "push", "m", str(onnx), "--slo-ms", "5", "--json", "--strict"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["objective"]["verdict"] == "OBJECTIVE_VERDICT_TOO_TIGHT"
    assert "warning: the objective" in said.err


def test_show_and_status_keep_saying_what_is_not_promised(mesh, capsys):
    keep(mesh[0], profile())
    promise(mesh, TIGHT)
    assert main.run(["model", "show", "sentences", "--tenant", "search"]) == 0
    assert "warning: the objective of 5.0 ms" in capsys.readouterr().err
    mesh[1].fleets = [ready_fleet()]
    mesh[1].fleets[0].unpromised.add(key=KEY, version=1, message=TIGHT.message)
    assert main.run(["status"]) == 0
    shown = capsys.readouterr().out
    assert "objectives that are not promised" in shown
    assert TIGHT.message in shown


def test_a_question_goes_to_the_scheduler_as_it_was_asked(mesh, capsys):
    asked = []
    promise(mesh, FINE, asked=asked)
    flags = ["--reserve", "0.25", "--rate", "40", "--burst", "2", "--slo-ms", "30", "--rows", "4", "--strict"]
    assert main.run(["model", "objective", "sentences", "--tenant", "search", *flags]) == 0
    (request,) = asked
    assert (request.key, request.reservation.millidevices, request.rate) == (KEY, 250, 40.0)
    assert (request.burst, request.rows, request.objective_us, request.way_us) == (2, 4, 30_000, 2_000)
    said = capsys.readouterr().out
    assert "cpu:test  a lane of 1 compute unit, worth 1 devices, serves there" in said
    assert "0.25 devices promise 4.2 ms" in said
    promise(mesh, TIGHT)
    assert main.run(["model", "objective", "sentences"]) == 0
    assert main.run(["model", "objective", "sentences", "--strict"]) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rate", "-1"], "--rate: must be above 0 and at most 1e+06, and is -1"),
        (["--rate", "nan"], "--rate: must be above 0 and at most 1e+06, and is nan"),
        (["--reserve", "nan"], "--reserve: nan is not within 0 to 64 devices"),
        (["--reserve", "65"], "--reserve: 65 is not within 0 to 64 devices"),
        (["--burst", "0"], "--burst: must be 1 to 1e+06, and is 0"),
        (["--rows", "0"], "--rows: must be 1 to 4096, and is 0"),
        (["--slo-ms", "nan"], "--slo-ms: nan is not within"),
        (["--slo-ms", "0"], "--slo-ms: must be above 0"),
        (["--way-ms", "-1"], "--way-ms: -1 is not within"),
        (["--error", "0.1"], "--error: must be 1 to 100, and is 0.1"),
    ],
)
def test_nonsense_is_refused_by_its_flag_and_limit(mesh, capsys, flags, says):
    assert main.run(["model", "objective", "m", *flags]) == 2
    assert says in capsys.readouterr().err


def test_what_the_scheduler_refuses_is_said_of_the_flag(mesh, capsys):
    def refused(request, context):
        refuse(context, invalid("reservation.millidevices", "1.5 devices are asked for, and no more than 1 fit"))

    mesh[1].objective = refused
    assert main.run(["model", "objective", "m", "--reserve", "1.5"]) == 2
    assert capsys.readouterr().err == "error: --reserve: 1.5 devices are asked for, and no more than 1 fit\n"


def test_a_file_and_a_name_exclude_each_other_and_a_file_needs_a_reservation(mesh, onnx, capsys):
    assert main.run(["model", "objective"]) == 2
    assert main.run(["model", "objective", "m", "--file", str(onnx)]) == 2
    assert main.run(["model", "objective", "--file", str(onnx)]) == 2
    assert "--reserve: is needed with --file" in capsys.readouterr().err


def known(monkeypatch):
    """Has measuring find the profile above on one compute unit."""
    asked = []

    async def measure(artefact, config, *, units, timeout_s):
        asked.append(units)
        found = common_pb2.Profile()
        found.CopyFrom(profile())
        kept = [point for point in found.points if point.compute_units == 1]
        del found.points[:]
        found.points.extend(kept)
        return measuring.Measured(found, 4, 1)

    monkeypatch.setattr(measuring, "measure", measure)
    return asked


def test_a_file_is_answered_for_the_meshs_lanes_that_are_like_the_measured_one(mesh, onnx, capsys, monkeypatch):
    asked, made = known(monkeypatch), ready_fleet()
    described = made.executors[0].device
    described.device_kind, described.compute_units, described.quantum_ns = "cpu:test", 2, 3_000_000
    described.backend = scheduler_pb2.BACKEND_CPU
    for number in range(2):
        described.lanes.add(lane=number, compute_units=1)
    mesh[1].fleets = [made]
    arguments = ["model", "objective", "--file", str(onnx), "--reserve", "0.25"]
    assert main.run([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (answer,) = told["answers"]
    assert asked == [1]
    assert (answer["lane"]["millidevices"], answer["slices_us"], answer["burst_us"]) == (500, "6000", "3000")
    assert "holds for the mesh's lanes of 1 compute unit of cpu:test" in told["holds"]
    described.device_kind = "cuda:x"
    assert main.run(arguments) == 0
    assert "no lane of the mesh is like it" in capsys.readouterr().out


def test_without_a_mesh_a_file_is_answered_for_a_device_of_its_own(onnx, capsys, monkeypatch):
    monkeypatch.setenv("APPORTION_SCHEDULER", "127.0.0.1:1")
    assert known(monkeypatch) == []
    assert main.run(["model", "objective", "--file", str(onnx), "--reserve", "0.5", "--rate", "100"]) == 0
    said = capsys.readouterr().out
    assert "measured here; holds for a device of 1 compute unit of cpu:test with one lane; no mesh was reached" in said
    assert main.run(["model", "objective", "--file", str(onnx), "--reserve", "1.5"]) == 2
    assert "--reserve: 1.5 devices are more than such a lane is worth, 1" in capsys.readouterr().err
