"""Pushing a model: what is refused before a byte is sent, and how a version is followed until it serves."""

from __future__ import annotations

import pickle
import zipfile
from concurrent import futures

import grpc
import pytest

from services._proto.apportion.v1 import common_pb2, registry_pb2, registry_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from services.cli import main
from services.cli.errors import CommandError
from services.cli.push import follow, loading, parse
from services.cli.push.artefact import digest, inspect
from services.cli.push.standing import Refused, Serving, Unplaced, Waiting, at_one_row, standing, wanted
from services.common.errors import Reason, Refusal
from services.common.status import DETAILS_KEY, to_status

KEY = common_pb2.ModelKey(tenant="search", name="sentences")
ONNX = b"\x08\x07" + b"x" * 100


@pytest.fixture
def archive(tmp_path):
    def make(name, *members):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as made:
            for member in members:
                made.writestr(member, "{}")
        return path

    return make


def test_an_onnx_model_and_a_torch_export_archive_are_taken(tmp_path, archive):
    onnx = tmp_path / "a.onnx"
    onnx.write_bytes(ONNX)
    assert inspect(onnx).format == registry_pb2.ARTEFACT_FORMAT_ONNX
    exported = inspect(archive("a.pt2", "a/archive_format", "a/models/model.json"))
    assert exported.format == registry_pb2.ARTEFACT_FORMAT_TORCH_EXPORT
    assert exported.digest == digest(exported.path)
    assert exported.digest.startswith("sha256:")
    assert len(exported.digest) == 7 + 64


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pkl", b"", "push a .onnx or a .pt2"),
        ("a", b"", "without an extension"),
        ("a.onnx", pickle.dumps({}), "is a pickle"),
        ("a.pt2", pickle.dumps({}), "is a pickle"),
        ("a.onnx", b"PK\x03\x04", "is a zip archive"),
        ("a.onnx", b"", "is not an ONNX model"),
        ("a.pt2", ONNX, "is not a torch.export archive"),
        ("a.pt2", b"PK\x03\x04 and nothing more", "is a broken archive"),
    ],
)
def test_what_is_neither_is_refused_before_a_byte_is_sent(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CommandError, match=says):
        inspect(path)


def test_a_checkpoint_and_any_other_archive_are_refused(archive, tmp_path):
    with pytest.raises(CommandError, match=r"pickled checkpoint .torch\.save."):
        inspect(archive("a.pt2", "a/data.pkl", "a/version"))
    with pytest.raises(CommandError, match="not one of"):
        inspect(archive("b.pt2", "notes.txt"))
    with pytest.raises(CommandError, match="is a folder"):
        inspect(tmp_path)


def test_an_archive_that_is_cut_short_is_not_taken_for_one_that_lies_inside_it(archive, tmp_path):
    inner, outer = archive("inner.zip", "archive/data.pkl"), tmp_path / "whole.pt2"
    with zipfile.ZipFile(outer, "w") as made:
        made.writestr("a/models/model.json", "{}")
        made.writestr("a/data/sample_inputs/model.pt", inner.read_bytes())
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(outer.read_bytes()[:-60])
    with pytest.raises(CommandError, match="is a broken archive: it is cut short"):
        inspect(cut)


def test_an_archive_of_a_later_zip_format_is_refused_in_one_line(archive):
    path = archive("a.pt2", "a/models/model.json")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # the version that reading this member needs
    path.write_bytes(content)
    with pytest.raises(CommandError, match=r"is a broken archive: zip file version 9\.9"):
        inspect(path)


def test_batch_axes_are_read_by_name():
    assert parse.batch_axes(["state=1", "sr=none", "x=0"]) == {"state": 1, "sr": -1, "x": 0}
    for wrong in ("state", "=1", "state=first", "state=-2"):
        with pytest.raises(CommandError, match="--batch-axis"):
            parse.batch_axes([wrong])


def test_warm_up_tensors_are_filled_with_their_value():
    assert parse.warmup("x=1x4") == ("x", (1, 4), b"")
    assert parse.warmup("sr=scalar:16000") == ("sr", (), (16000).to_bytes(8, "little"))
    assert parse.warmup("x=1x2:1:INT32") == ("x", (1, 2), b"\1\0\0\0" * 2)
    assert parse.warmup("x=1:0.5") == ("x", (1,), b"\0\0\0\x3f")
    for wrong in ("x", "x=", "x=1xa", "x=0", "x=1:a", "x=1:1:COMPLEX", "x=1:300:INT8", "x=1:1:INT8:1"):
        with pytest.raises(CommandError, match="--warmup"):
            parse.warmup(wrong)


def model(inspection=registry_pb2.INSPECTION_PENDING, message=""):
    version = registry_pb2.ModelVersion(version=3, inspection=inspection, inspection_message=message)
    return registry_pb2.Model(key=KEY, versions=[version])


def fleet(state=None, *, attached=True, unplaced="", **report):
    made = scheduler_pb2.GetFleetResponse()
    executor = made.executors.add(executor_id="e1", attached=attached)
    if state is not None:
        executor.report.replicas.add(key=KEY, version=3, state=state, lane=1, **report)
    if unplaced:
        made.unplaced.add(key=KEY, version=3, message=unplaced)
    return made


def test_a_version_waits_serves_is_refused_or_has_no_place():
    assert standing(model(), 3, fleet()) == Waiting("waiting for a place")
    loading = fleet(scheduler_pb2.REPLICA_STATE_LOADING, stage="warming up")
    assert standing(model(), 3, loading) == Waiting("warming up")
    failed = fleet(scheduler_pb2.REPLICA_STATE_FAILED, message="the worker died")
    assert standing(model(), 3, failed) == Waiting("failed, trying again: the worker died")
    serving = standing(model(), 3, fleet(scheduler_pb2.REPLICA_STATE_READY))
    assert isinstance(serving, Serving)
    assert (serving.executor_id, serving.lane) == ("e1", 1)
    refused = standing(model(registry_pb2.INSPECTION_REFUSED, "holds a pickle"), 3, fleet())
    assert refused == Refused("holds a pickle")
    assert standing(model(), 3, fleet(scheduler_pb2.REPLICA_STATE_REFUSED, message="bad")) == Refused("bad")
    assert standing(model(), 3, fleet(unplaced="needs 3 GiB")) == Unplaced("needs 3 GiB")


def test_other_versions_and_executors_that_are_gone_do_not_count():
    ready = fleet(scheduler_pb2.REPLICA_STATE_READY)
    assert standing(model(), 2, ready) == Waiting("waiting for a place")
    gone = fleet(scheduler_pb2.REPLICA_STATE_READY, attached=False)
    assert standing(model(), 3, gone) == Waiting("waiting for a place")


def test_a_profile_is_read_at_its_fewest_rows():
    points = [common_pb2.ProfilePoint(rows=rows, p99_ns=rows) for rows in (8, 1, 4)]
    assert at_one_row(common_pb2.Profile(points=points)).rows == 1
    assert at_one_row(common_pb2.Profile()) is None


class FakeRegistry(registry_pb2_grpc.RegistryServiceServicer):
    """Keeps what it is told; no rules."""

    def __init__(self):
        self.tenants, self.models, self.uploaded = {}, {}, b""
        self.unloaded = set()

    def ListTenants(self, request, context):
        return registry_pb2.ListTenantsResponse(tenants=self.tenants.values())

    def CreateTenant(self, request, context):
        self.tenants[request.name] = registry_pb2.Tenant(
            name=request.name, reservation=request.reservation, weight=request.weight or 1
        )
        return registry_pb2.CreateTenantResponse(tenant=self.tenants[request.name], api_key="ak_secret")

    def GetTenant(self, request, context):
        if request.name not in self.tenants:
            refuse(context, Refusal(Reason.TENANT_NOT_FOUND, f"name: there is no tenant {request.name!r}"))
        return registry_pb2.GetTenantResponse(tenant=self.tenants[request.name])

    def UploadArtefact(self, requests, context):
        next(requests)
        self.uploaded = b"".join(part.data for part in requests)
        return registry_pb2.UploadArtefactResponse()

    def CreateVersion(self, request, context):
        made = registry_pb2.Model(key=request.key, slo=request.slo, traffic_class=request.traffic_class)
        made.versions.add(version=1, digest=request.digest, config=request.config)
        made.unloaded = request.key.name in self.unloaded
        self.models[request.key.name] = made
        return registry_pb2.CreateVersionResponse(model=made, version=1)

    def UpdateModel(self, request, context):
        made = self.models[request.key.name]
        made.unloaded = request.unloaded
        self.unloaded = {name for name, model in self.models.items() if model.unloaded}
        return registry_pb2.UpdateModelResponse(model=made)

    def GetModel(self, request, context):
        return registry_pb2.GetModelResponse(model=self.models[request.key.name])

    def ListModels(self, request, context):
        return registry_pb2.ListModelsResponse(models=self.models.values())


class FakeScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Says what a test wants it to say, the last thing for ever."""

    def __init__(self):
        self.fleets, self.oversold = [scheduler_pb2.GetFleetResponse()], False
        self.objective = None

    def GetFleet(self, request, context):
        return self.fleets.pop(0) if len(self.fleets) > 1 else self.fleets[0]

    def GetObjective(self, request, context):
        if self.objective is None:
            # As a scheduler of an older release.
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
        return self.objective(request, context)

    def CheckReservation(self, request, context):
        if self.oversold:
            refuse(context, Refusal(Reason.OVERSOLD, "asked for 0.9 devices, 0.5 of 1 are free"))
        return scheduler_pb2.CheckReservationResponse()


def refuse(context, refusal):
    status = to_status(refusal)
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.abort(code, refusal.message)


@pytest.fixture
def mesh(monkeypatch, tmp_path):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    registry, scheduler = FakeRegistry(), FakeScheduler()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("APPORTION_REGISTRY", f"127.0.0.1:{port}")
    monkeypatch.setenv("APPORTION_SCHEDULER", f"127.0.0.1:{port}")
    monkeypatch.setattr(follow, "EVERY_S", 0.01)
    monkeypatch.setattr(follow, "UNPLACED_PATIENCE_S", 0.05)
    yield registry, scheduler
    server.stop(None)


@pytest.fixture
def onnx(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(ONNX + bytes(3 << 20))
    return path


def ready_fleet(p99_ns=2_000_000):
    made = fleet(scheduler_pb2.REPLICA_STATE_READY)
    replica = made.executors[0].report.replicas[0]
    tensor = common_pb2.TensorSpec(
        name="y", datatype="FP32", shape=[common_pb2.Dimension(symbol="batch")], batch_axis=0
    )
    replica.signature.outputs.append(tensor)
    replica.signature.max_batch_size = 8
    replica.profile.points.add(rows=1, shape_bucket="4", p50_ns=1_000_000, p99_ns=p99_ns, compute_units=1)
    for one in (replica.key,):
        one.CopyFrom(common_pb2.ModelKey(tenant="default", name="m"))
    replica.version = 1
    return made


def test_a_push_uploads_every_byte_and_waits_until_the_version_serves(mesh, onnx, capsys):
    registry, scheduler = mesh
    scheduler.fleets = [scheduler_pb2.GetFleetResponse(), ready_fleet()]
    assert main.run(["model", "push", "m", str(onnx), "--slo-ms", "10", "--class", "batch", "--max-batch", "8"]) == 0
    said = capsys.readouterr()
    assert registry.uploaded == onnx.read_bytes()
    assert "default/m version 1" in said.out
    assert "serves on e1, lane 1" in said.out
    assert "p50 1.0 ms, p99 2.0 ms" in said.out
    assert "created the tenant default" in said.err
    assert "warning" not in said.err
    made = registry.models["m"]
    assert made.slo.objective_us == 10_000
    assert made.traffic_class == common_pb2.TRAFFIC_CLASS_BATCH
    assert made.versions[0].config.max_batch_size == 8


def test_an_objective_below_the_models_own_p99_is_warned_about(mesh, onnx, capsys):
    _, scheduler = mesh
    scheduler.fleets = [ready_fleet(p99_ns=20_000_000)]
    assert main.run(["model", "push", "m", str(onnx), "--slo-ms", "10"]) == 0
    assert "warning: the objective of 10.0 ms is below the model's own p99 of 20.0 ms" in capsys.readouterr().err


def test_a_version_that_has_no_place_fails_the_push_with_the_numbers(mesh, onnx, capsys):
    _, scheduler = mesh
    full = scheduler_pb2.GetFleetResponse()
    full.unplaced.add(
        key=common_pb2.ModelKey(tenant="default", name="m"), version=1, message="needs 3 GiB, 1 GiB is free"
    )
    scheduler.fleets = [full]
    assert main.run(["model", "push", "m", str(onnx)]) == 1
    note, error = capsys.readouterr().err.splitlines()
    assert note.startswith("note: created the tenant default")
    assert error == "error: default/m version 1 has no place: needs 3 GiB, 1 GiB is free"


def test_a_push_that_need_not_wait_does_not_ask_the_scheduler(mesh, onnx, monkeypatch):
    monkeypatch.setenv("APPORTION_SCHEDULER", "127.0.0.1:1")
    assert main.run(["model", "push", "m", str(onnx), "--no-wait"]) == 0


def test_without_a_scheduler_a_push_says_that_the_version_is_stored(mesh, onnx, monkeypatch, capsys):
    monkeypatch.setenv("APPORTION_SCHEDULER", "127.0.0.1:1")
    assert main.run(["model", "push", "m", str(onnx)]) == 1
    assert "is stored, but nobody can say whether it serves" in capsys.readouterr().err


def test_a_push_of_an_unloaded_model_is_stored_and_says_how_to_have_it_served(mesh, onnx, monkeypatch, capsys):
    registry, _ = mesh
    registry.unloaded.add("m")
    monkeypatch.setenv("APPORTION_SCHEDULER", "127.0.0.1:1")
    assert main.run(["model", "push", "m", str(onnx)]) == 0
    assert "note: default/m is unloaded by request; `apportion model load m` has it served" in capsys.readouterr().err


def test_a_model_is_unloaded_until_nobody_holds_it_and_loaded_until_it_serves(mesh, onnx, monkeypatch, capsys):
    registry, scheduler = mesh
    monkeypatch.setattr(loading, "EVERY_S", 0.01)
    scheduler.fleets = [ready_fleet()]
    assert main.run(["model", "push", "m", str(onnx)]) == 0
    scheduler.fleets = [ready_fleet(), ready_fleet(), scheduler_pb2.GetFleetResponse()]
    assert main.run(["model", "unload", "m"]) == 0
    assert registry.unloaded == {"m"}
    assert len(scheduler.fleets) == 1
    assert main.run(["model", "list"]) == 0
    assert "unloaded" in capsys.readouterr().out.splitlines()[-1]
    scheduler.fleets = [scheduler_pb2.GetFleetResponse(), ready_fleet()]
    assert main.run(["model", "load", "m"]) == 0
    assert registry.unloaded == set()
    assert "default/m version 1 serves on e1, lane 1" in capsys.readouterr().out
    assert main.run(["model", "unload", "m", "--timeout", "0"]) == 1
    assert "still held by e1" in capsys.readouterr().err


def test_the_versions_that_a_load_waits_for_are_those_that_are_wanted():
    made = registry_pb2.Model(versions=[registry_pb2.ModelVersion(version=number) for number in (1, 2, 3)])
    assert wanted(made) == [3]
    made.versions[2].inspection = registry_pb2.INSPECTION_REFUSED
    assert wanted(made) == [2]
    made.traffic.add(version=1, ppm=1_000_000)
    made.traffic.add(version=2, ppm=0)
    assert wanted(made) == [1, 2]
    assert wanted(registry_pb2.Model()) == []


def test_a_tenant_gets_its_key_once_and_a_reservation_that_was_checked(mesh, capsys):
    registry, _ = mesh
    assert main.run(["tenant", "create", "search", "--reserve", "0.25"]) == 0
    assert "ak_secret" in capsys.readouterr().out
    assert registry.tenants["search"].reservation.millidevices == 250


def test_a_reservation_that_does_not_fit_is_refused_with_the_numbers(mesh, capsys):
    registry, scheduler = mesh
    scheduler.oversold = True
    assert main.run(["tenant", "create", "search", "--reserve", "0.9"]) == 1
    assert capsys.readouterr().err == "error: --reserve: asked for 0.9 devices, 0.5 of 1 are free\n"
    assert not registry.tenants


def test_without_a_scheduler_a_tenant_is_created_with_a_note(mesh, monkeypatch, capsys):
    monkeypatch.setenv("APPORTION_SCHEDULER", "127.0.0.1:1")
    assert main.run(["tenant", "create", "search", "--reserve", "0.25"]) == 0
    assert "nobody checked that the reservation fits" in capsys.readouterr().err


def test_a_refusal_of_the_registry_is_said_in_its_own_words(mesh, capsys):
    assert main.run(["tenant", "show", "nobody"]) == 1
    assert capsys.readouterr().err == "error: name: there is no tenant 'nobody'\n"


def test_status_shows_the_fleet(mesh, capsys):
    _, scheduler = mesh
    made = ready_fleet()
    made.executors[0].device.lanes.add(lane=1, compute_units=2)
    made.tenants.add(tenant="default", device_ns=1_500_000_000, requests=7)
    scheduler.fleets = [made]
    assert main.run(["status"]) == 0
    shown = capsys.readouterr().out
    for part in ("attached", "ready", "1.50", "e1/1"):
        assert part in shown
