"""Models, versions, traffic and inspections, over gRPC, on both databases."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from registry_world import World, digest_of, key, refusal

from services._proto.apportion.v1 import common_pb2
from services._proto.apportion.v1 import registry_pb2 as pb
from services.common.errors import Reason

CODE = grpc.StatusCode


@pytest.fixture(autouse=True)
async def acme(world: World) -> None:
    await world.tenant()


async def test_the_first_version_makes_the_model_with_its_defaults(world: World) -> None:
    made = await world.push(slo=common_pb2.Slo(objective_us=20_000))
    assert (made.version, made.existed) == (1, False)
    model = made.model
    assert model.slo == common_pb2.Slo(objective_us=20_000, ratio_ppm=990_000, window_s=2_592_000)
    assert (model.traffic_class, model.isolation, model.replicas) == (1, 1, 1)
    version = model.versions[0]
    assert (version.digest, version.size_bytes) == (digest_of(b"weights"), 7)
    assert version.inspection == pb.INSPECTION_PENDING
    assert not version.HasField("signature")
    assert (await world.call.GetModel(pb.GetModelRequest(key=key()))).model == model


async def test_what_a_push_says_of_running_comes_back_whole(world: World) -> None:
    config = pb.VersionConfig(
        format=pb.ARTEFACT_FORMAT_ONNX,
        max_batch_size=8,
        batch_axes={"x": 0, "state": 1, "sr": -1},
        warmup=[pb.WarmupTensor(name="x", shape=[1, 4], data=b"\0" * 16)],
    )
    await world.push(config=config)
    assert (await world.call.GetModel(pb.GetModelRequest(key=key()))).model.versions[0].config == config
    assert (await world.push(config=config, version=1)).existed


async def test_the_same_push_again_changes_nothing(world: World) -> None:
    once = await world.push(version=4)
    again = await world.push(version=4, replicas=9)
    assert (again.existed, again.version, again.model) == (True, 4, once.model)
    assert (await world.snapshot()).revision == once.model.revision


async def test_other_content_under_a_taken_number_is_refused_with_both_digests(world: World) -> None:
    await world.push(version=1)
    found = await refusal(world.push(data=b"other", version=1), Reason.VERSION_EXISTS, CODE.ALREADY_EXISTS)
    assert digest_of(b"weights") in found.message
    assert digest_of(b"other") in found.message
    config = pb.VersionConfig(max_batch_size=2)
    await refusal(world.push(version=1, config=config), Reason.VERSION_EXISTS, CODE.ALREADY_EXISTS)


async def test_of_two_writers_racing_for_a_number_one_wins(world: World) -> None:
    contents = [b"%d" % number for number in range(8)]
    for data in contents:
        await world.upload(data)
    results = await asyncio.gather(*(world.version(data=data, version=1) for data in contents), return_exceptions=True)
    won = [result for result in results if isinstance(result, pb.CreateVersionResponse)]
    lost = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert (len(won), len(lost)) == (1, 7)
    assert {error.code() for error in lost} == {CODE.ALREADY_EXISTS}
    model = (await world.call.GetModel(pb.GetModelRequest(key=key()))).model
    assert model == won[0].model


async def test_writers_that_name_no_number_get_different_ones(world: World) -> None:
    await world.upload(b"weights")
    made = await asyncio.gather(*(world.version() for _ in range(8)))
    assert sorted(answer.version for answer in made) == list(range(1, 9))


async def test_a_version_needs_an_artefact_that_its_tenant_has_uploaded(world: World) -> None:
    await refusal(world.version(), Reason.ARTEFACT_NOT_FOUND, CODE.NOT_FOUND)
    await world.tenant("eve")
    await world.upload(b"weights", "eve")
    await refusal(world.version(), Reason.ARTEFACT_NOT_FOUND, CODE.NOT_FOUND)
    await world.upload(b"weights")
    assert (await world.version()).version == 1


async def test_a_version_whose_artefact_has_gone_from_the_store_is_refused(world: World) -> None:
    await world.upload(b"weights")
    for path in (world.settings.data / "artefacts" / "sha256").rglob("*"):
        if path.is_file():
            path.unlink()
    await refusal(world.version(), Reason.ARTEFACT_NOT_FOUND, CODE.NOT_FOUND)
    assert not (await world.upload(b"weights")).existed
    assert (await world.version()).version == 1


OUTSIDE = [
    ({"version": 0}, "version"),
    ({"version": 1 << 63}, "version"),
    ({"slo": common_pb2.Slo(objective_us=0)}, "slo.objective_us"),
    ({"slo": common_pb2.Slo(ratio_ppm=1_000_001)}, "slo.ratio_ppm"),
    ({"traffic_class": 9}, "traffic_class"),
    ({"isolation": 9}, "isolation"),
    ({"replicas": 65}, "replicas"),
    ({"config": pb.VersionConfig(max_batch_size=4097)}, "config.max_batch_size"),
    ({"config": pb.VersionConfig(format=9)}, "config.format"),
]


async def test_a_push_outside_the_limits_is_refused_by_field(world: World) -> None:
    await world.upload(b"weights")
    for fields, field in OUTSIDE:
        found = await refusal(world.version(**fields), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
        assert found.field == field
    assert (await world.snapshot()).models == {}


async def test_an_update_changes_what_it_names_and_nothing_else(world: World) -> None:
    before = (await world.push(slo=common_pb2.Slo(objective_us=5_000))).model
    request = pb.UpdateModelRequest(key=key(), isolation=pb.ISOLATION_PROCESS, expected_revision=before.revision)
    after = (await world.call.UpdateModel(request)).model
    assert after.isolation == pb.ISOLATION_PROCESS
    assert (after.slo, after.replicas, after.versions) == (before.slo, before.replicas, before.versions)
    again = (await world.call.UpdateModel(pb.UpdateModelRequest(key=key(), isolation=pb.ISOLATION_PROCESS))).model
    assert again.revision == after.revision
    conflict = world.call.UpdateModel(request)
    await refusal(conflict, Reason.REVISION_CONFLICT, CODE.FAILED_PRECONDITION)


async def test_a_model_stays_unloaded_through_pushes_and_updates_until_it_is_loaded(world: World) -> None:
    await world.push()
    first = (await world.call.UpdateModel(pb.UpdateModelRequest(key=key(), unloaded=True))).model
    assert first.unloaded
    again = (await world.call.UpdateModel(pb.UpdateModelRequest(key=key(), unloaded=True))).model
    assert again.revision == first.revision
    await world.upload(b"other")
    assert (await world.push(data=b"other")).model.unloaded
    assert (await world.call.UpdateModel(pb.UpdateModelRequest(key=key(), replicas=2))).model.unloaded
    assert (await world.snapshot()).models["acme", "m"].unloaded
    loaded = (await world.call.UpdateModel(pb.UpdateModelRequest(key=key(), unloaded=False))).model
    assert (loaded.unloaded, loaded.replicas, len(loaded.versions)) == (False, 2, 2)
    assert not (await world.call.GetModel(pb.GetModelRequest(key=key()))).model.unloaded


async def test_traffic_is_split_between_versions_that_exist(world: World) -> None:
    await world.push()
    await world.push(data=b"new")

    def update(*splits: tuple[int, int]):
        traffic = [pb.TrafficSplit(version=version, ppm=ppm) for version, ppm in splits]
        return world.call.UpdateModel(pb.UpdateModelRequest(key=key(), traffic=traffic))

    model = (await update((2, 100_000), (1, 900_000))).model
    assert [(split.version, split.ppm) for split in model.traffic] == [(1, 900_000), (2, 100_000)]
    for splits in (((3, 1_000_000),), ((1, 500_000), (2, 499_999)), ((1, 500_000), (1, 500_000))):
        await refusal(update(*splits), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
    assert (await world.snapshot()).models["acme", "m"] == model
    gone = world.call.DeleteModel(pb.DeleteModelRequest(key=key(), version=2))
    await refusal(gone, Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)
    model = (await update((1, 1_000_000))).model
    await world.call.DeleteModel(pb.DeleteModelRequest(key=key(), version=2))
    assert [version.version for version in (await world.snapshot()).models["acme", "m"].versions] == [1]


async def test_the_number_of_a_removed_version_is_not_given_again(world: World) -> None:
    await world.push()
    await world.push(data=b"new")
    await world.call.DeleteModel(pb.DeleteModelRequest(key=key(), version=2))
    assert (await world.push(data=b"newer")).version == 3


async def test_what_is_not_there_is_not_found(world: World) -> None:
    passed = pb.InspectionPassed()
    for call in (
        world.call.GetModel(pb.GetModelRequest(key=key())),
        world.call.UpdateModel(pb.UpdateModelRequest(key=key())),
        world.call.DeleteModel(pb.DeleteModelRequest(key=key())),
        world.call.RecordInspection(pb.RecordInspectionRequest(key=key(), version=1, passed=passed)),
    ):
        await refusal(call, Reason.MODEL_NOT_FOUND, CODE.NOT_FOUND)
    await world.push()
    for call in (
        world.call.DeleteModel(pb.DeleteModelRequest(key=key(), version=2)),
        world.call.RecordInspection(pb.RecordInspectionRequest(key=key(), version=2, passed=passed)),
    ):
        await refusal(call, Reason.VERSION_NOT_FOUND, CODE.NOT_FOUND)


def inspection(kind: str = "cpu:x", p50_ns: int = 1) -> pb.RecordInspectionRequest:
    spec = common_pb2.TensorSpec(name="x", datatype="FP32", shape=[common_pb2.Dimension(symbol="batch")], batch_axis=0)
    profile = common_pb2.Profile(
        digest=digest_of(b"weights"), device_kind=kind, points=[common_pb2.ProfilePoint(rows=1, p50_ns=p50_ns)]
    )
    signature = common_pb2.Signature(inputs=[spec], max_batch_size=8)
    passed = pb.InspectionPassed(signature=signature, profile=profile)
    return pb.RecordInspectionRequest(key=key(), version=1, passed=passed)


async def test_an_inspection_is_kept_once_for_each_kind_of_device(world: World) -> None:
    await world.push()
    for request in (inspection(), inspection(), inspection("cuda:y", 2), inspection("cpu:x", 1)):
        await world.call.RecordInspection(request)
    model = (await world.snapshot()).models["acme", "m"]
    version = model.versions[0]
    assert version.inspection == pb.INSPECTION_PASSED
    assert version.signature == inspection().passed.signature
    assert list(version.profiles) == [inspection().passed.profile, inspection("cuda:y", 2).passed.profile]
    assert model.revision == 4


async def test_profiles_from_lanes_of_several_sizes_and_shapes_are_kept_together(world: World) -> None:
    await world.push()

    def measured(units: int, bucket: str, p50_ns: int, *segments: str) -> pb.RecordInspectionRequest:
        request = inspection("cpu:x", p50_ns)
        for segment in segments:
            request.passed.profile.segments.add(name=segment, p50_ns=1)
        point = request.passed.profile.points[0]
        point.compute_units, point.shape_bucket, point.activation_bytes = units, bucket, 7
        return request

    for request in (measured(2, "4", 1), measured(1, "4", 2), measured(1, "8", 3), measured(2, "4", 4)):
        await world.call.RecordInspection(request)

    async def kept() -> list[tuple[int, str, int, int]]:
        model = (await world.call.GetModel(pb.GetModelRequest(key=key()))).model
        (profile,) = model.versions[0].profiles
        return [(each.compute_units, each.shape_bucket, each.p50_ns, each.activation_bytes) for each in profile.points]

    assert await kept() == [(1, "4", 2, 7), (1, "8", 3, 7), (2, "4", 4, 7)]
    await world.call.RecordInspection(measured(1, "4", 9, "cut", "anew"))
    assert await kept() == [(1, "4", 9, 7)]


async def test_a_refusal_says_why_and_does_not_undo_a_pass(world: World) -> None:
    await world.push()
    refused = pb.RecordInspectionRequest(key=key(), version=1, refused=pb.InspectionRefused(message="no\0pe"))
    await world.call.RecordInspection(refused)
    version = (await world.snapshot()).models["acme", "m"].versions[0]
    assert (version.inspection, version.inspection_message) == (pb.INSPECTION_REFUSED, "no\ufffdpe")
    await world.call.RecordInspection(inspection())
    await world.call.RecordInspection(refused)
    version = (await world.snapshot()).models["acme", "m"].versions[0]
    assert (version.inspection, version.inspection_message) == (pb.INSPECTION_PASSED, "")


async def test_an_inspection_that_makes_no_sense_is_refused(world: World) -> None:
    await world.push()
    wrong = inspection()
    wrong.passed.profile.digest = digest_of(b"other")
    nameless = inspection(kind="")
    for request in (wrong, nameless, pb.RecordInspectionRequest(key=key(), version=1)):
        await refusal(world.call.RecordInspection(request), Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)


async def test_pages_tell_every_model_once_by_tenant_and_name(world: World) -> None:
    await world.tenant("eve")
    for tenant in ("acme", "eve"):
        await world.upload(b"weights", tenant)
        for name in ("b", "a", "a.b", "a-b"):
            await world.version(name, tenant=tenant)

    async def listed(tenant: str) -> list[tuple[str, str]]:
        told, token, first = [], "", True
        while first or token:
            answer = await world.call.ListModels(pb.ListModelsRequest(tenant=tenant, page_size=3, page_token=token))
            told += [(model.key.tenant, model.key.name) for model in answer.models]
            token, first = answer.next_page_token, False
        return told

    names = ["a", "a-b", "a.b", "b"]
    assert await listed("") == [(tenant, name) for tenant in ("acme", "eve") for name in names]
    assert await listed("eve") == [("eve", name) for name in names]
    token = (await world.call.ListModels(pb.ListModelsRequest(tenant="acme", page_size=1))).next_page_token
    foreign = world.call.ListModels(pb.ListModelsRequest(tenant="eve", page_token=token))
    await refusal(foreign, Reason.FIELD_INVALID, CODE.INVALID_ARGUMENT)


async def test_a_page_of_large_models_ends_before_it_outgrows_a_message(world: World) -> None:
    await world.upload(b"weights")
    config = pb.VersionConfig(warmup=[pb.WarmupTensor(name="x", shape=[1], data=b"\1" * 1_000_000)])
    for number in range(4):
        await world.version(f"m{number}", config=config)
    first = await world.call.ListModels(pb.ListModelsRequest())
    assert 1 <= len(first.models) < 4
    assert first.ByteSize() < 4 << 20
    rest = await world.call.ListModels(pb.ListModelsRequest(page_token=first.next_page_token))
    assert [model.key.name for model in (*first.models, *rest.models)] == ["m0", "m1", "m2", "m3"]


async def test_a_model_that_has_outgrown_a_message_takes_no_more_versions(world: World) -> None:
    await world.upload(b"weights")
    config = pb.VersionConfig(warmup=[pb.WarmupTensor(name="x", shape=[1], data=b"\1" * 1_048_576)])
    for _ in range(7):
        await world.version(config=config)
    found = await refusal(world.version(config=config), Reason.MESSAGE_TOO_LARGE, CODE.RESOURCE_EXHAUSTED)
    assert "remove old versions" in found.message
