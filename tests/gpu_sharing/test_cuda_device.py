from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cuda_double import CudaDouble, CUresult
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.devices.cuda.device import CudaDevice
from gpu_sharing.devices.cuda.driver import Driver, NoDriver, call
from gpu_sharing.devices.cuda.errors import FAULTS, CudaError, Fault, is_lost
from gpu_sharing.devices.cuda.lanes import CudaLanes
from gpu_sharing.devices.cuda.stream import CudaStream
from gpu_sharing.devices.cuda.survey import Facts, choose, survey
from gpu_sharing.devices.probe import probe
from gpu_sharing.partitioning.groups import Groups
from gpu_sharing.partitioning.layout import LayoutInvalid
from gpu_sharing.partitioning.partitions import Partitions, parse_layouts, prepared
from gpu_sharing.units import MS

HOPPER = Groups(8, 16, 4)
LAYOUTS = "0-131|0-95;96-131|0-63;64-131|0-31;32-63;64-95;96-131"


def facts_of(driver: CudaDouble) -> Facts:
    found = survey(driver)
    assert isinstance(found, Facts), found
    return found


def made(driver: CudaDouble, text: str = LAYOUTS) -> tuple[Partitions, CudaLanes]:
    device = CudaDevice(facts_of(driver), choose(facts_of(driver)))
    partitions = device.fitted(parse_layouts(text, device.units()))
    driver.calls.clear()
    driver.splits = 0
    return partitions, device.lanes(driver, partitions)


# Which way is taken.


def test_a_whole_hopper_is_split_into_green_contexts_and_says_so_in_a_line() -> None:
    choice = choose(facts_of(CudaDouble()))
    assert choice.backend == "cuda_green"
    assert choice.reason == (
        "green contexts: 16 groups of 8 SMs and 4 left over, driver 13.0 (no MIG: the device is whole)"
    )


def test_ways_are_tried_in_their_order() -> None:
    old = CudaDouble(version=12_040)
    assert [step.way for step in choose(facts_of(old)).steps] == ["MIG", "green contexts", "MPS", "plain streams"]
    assert choose(facts_of(old)).backend == "cuda_streams"
    assert "green contexts: driver 12.4 is older than 12.5" in choose(facts_of(old)).reason
    with_daemon = survey(old, mps=lambda: "a daemon answers at /x")
    assert choose(with_daemon).backend == "cuda_mps"
    part = CudaDouble(name="NVIDIA H200 MIG 1g.18gb", sms=16)
    assert choose(survey(part, mps=lambda: "a daemon")).backend == "cuda_mig"


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (CudaDouble(devices=0), "cuInit: CUDA_ERROR_NO_DEVICE \\(100\\)"),
        (CudaDouble(has_library=False), "cuInit: Failed to dlopen libcuda.so.1"),
        (CudaDouble(failing={"cuInit": [CUresult.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH]}), "DRIVER_MISMATCH"),
        (CudaDouble(failing={"cuDeviceTotalMem": [CUresult.CUDA_ERROR_UNKNOWN]}), "cuDeviceTotalMem"),
    ],
)
def test_without_a_device_to_use_the_survey_says_why_in_one_line(driver: CudaDouble, why: str) -> None:
    told = survey(driver)
    assert isinstance(told, str)
    assert re.search(why, told)
    assert "\n" not in told
    assert choose(told).backend == "cpu"
    assert told in choose(told).reason


def test_a_driver_that_refuses_the_split_leaves_plain_streams() -> None:
    driver = CudaDouble(failing={"cuDevSmResourceSplitByCount": [CUresult.CUDA_ERROR_NOT_SUPPORTED]})
    choice = choose(facts_of(driver))
    assert choice.backend == "cuda_streams"
    assert "CUDA_ERROR_NOT_SUPPORTED" in choice.reason


def test_a_device_of_one_group_is_not_split() -> None:
    assert choose(facts_of(CudaDouble(sms=14))).backend == "cuda_streams"


def test_an_operator_may_ask_for_a_way_and_is_told_where_it_cannot_be_had() -> None:
    facts = facts_of(CudaDouble())
    assert choose(facts, wanted="cuda_streams").backend == "cuda_streams"
    assert choose(facts, wanted="cpu").backend == "cpu"
    with pytest.raises(ValueError, match="cuda_mps cannot be had: no daemon answers"):
        choose(facts, wanted="cuda_mps")
    with pytest.raises(ValueError, match="cuda_green cannot be had: no device"):
        choose("no device", wanted="cuda_green")


def test_a_survey_makes_no_context() -> None:
    driver = CudaDouble()
    survey(driver)
    assert driver.alive == {"contexts": 0, "streams": 0, "events": 0, "primary": 0}


def machine(root: Path) -> Path:
    (root / "dev").mkdir()
    (root / "dev/nvidia0").touch()
    return root


def test_the_probe_serves_on_cuda_where_the_driver_answers(tmp_path: Path) -> None:
    driver = CudaDouble()
    device = probe(root=machine(tmp_path), asked=lambda: survey(driver))
    assert (device.backend, device.device_kind) == ("cuda_green", "cuda:NVIDIA H200")
    assert (device.compute_units, device.memory_bytes) == (132, 139 << 30)
    assert isinstance(device, CudaDevice)


def test_the_probe_says_in_one_line_why_a_device_that_is_there_is_not_used(tmp_path: Path) -> None:
    device = probe(root=machine(tmp_path), asked=lambda: survey(CudaDouble(devices=0)))
    assert device.backend == "cpu"
    assert device.reason.startswith("a CUDA device is present, but cuInit: CUDA_ERROR_NO_DEVICE")


def test_a_machine_without_one_is_not_asked(tmp_path: Path) -> None:
    device = probe(root=tmp_path, asked=lambda: pytest.fail("asked"))
    assert (device.backend, device.reason) == ("cpu", "no CUDA device found")
    with pytest.raises(ValueError, match="cuda_green cannot be had: no CUDA device found"):
        probe(root=tmp_path, wanted="cuda_green")


def test_everything_of_cuda_imports_without_a_gpu_and_without_its_packages() -> None:
    rooms = sorted(Path("gpu_sharing/devices/cuda").glob("*.py"))
    modules = [".".join(path.with_suffix("").parts) for path in rooms if path.stem != "__init__"]
    code = f"import sys; sys.modules['cuda'] = sys.modules['cupy'] = None\nimport {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_binding_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    told = survey()
    assert isinstance(told, str)
    assert "cuda-bindings is not installed" in told


# Lanes.


def test_all_lanes_come_from_one_split_and_are_disjoint_within_every_layout() -> None:
    driver = CudaDouble()
    partitions, lanes = made(driver)
    assert driver.splits == 1
    for layout in partitions.layouts:
        sets = [lanes.lanes[number].context.sms for number in layout]
        assert sum(map(len, sets)) == len(frozenset().union(*sets)) == 132
    assert [lanes.lanes[number].sms for number in partitions.layouts[1]] == [96, 36]
    lanes.close()


def test_contexts_are_used_again_by_every_layout_that_has_the_lane() -> None:
    driver = CudaDouble()
    _, lanes = made(driver, "0-63;64-131|0-31;32-63;64-131|0-131")
    assert driver.names().count("cuGreenCtxCreate") == 5
    assert [(each.name, len(each.lanes)) for each in lanes.prepared] == [
        ("0-63;64-131", 2),
        ("0-31;32-63;64-131", 3),
        ("0-131", 1),
    ]
    assert [each.memory_bytes for each in lanes.prepared] == [2 * (6 << 20), 2 * (6 << 20), 6 << 20]
    assert all(each.took_ns >= 0 for each in lanes.prepared)


def test_calls_come_in_the_order_that_the_driver_wants() -> None:
    driver = CudaDouble()
    made(driver, "0-63;64-131")
    names = [name for name in driver.names() if name not in ("cuMemGetInfo", "cuDeviceGetAttribute")]
    lane = [
        "cuDevResourceGenerateDesc",
        "cuGreenCtxCreate",
        "cuGreenCtxGetDevResource",
        "cuGreenCtxStreamCreate",
        "cuGreenCtxStreamCreate",
    ]
    assert names == [
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuCtxSetCurrent",
        "cuDeviceGetDevResource",
        "cuDevSmResourceSplitByCount",
        *lane,
        *lane,
    ]


def test_every_stream_is_non_blocking_and_the_loading_one_goes_behind() -> None:
    driver = CudaDouble()
    made(driver)
    made_streams = [each for each in driver.calls if each[0] == "cuGreenCtxStreamCreate"]
    assert {flags for _, _, flags, _ in made_streams} == {1}
    assert {priority for *_, priority in made_streams} == {-1, 0}


def test_no_green_context_is_ever_made_current() -> None:
    driver = CudaDouble()
    _, lanes = made(driver)
    assert {context for name, *rest in driver.calls if name == "cuCtxSetCurrent" for context in rest} == {
        driver.primary
    }
    lanes.close()


def test_closing_lets_go_of_everything_streams_before_their_contexts() -> None:
    driver = CudaDouble()
    _, lanes = made(driver)
    driver.calls.clear()
    lanes.close()
    assert driver.alive == {"contexts": 0, "streams": 0, "events": 0, "primary": 0}
    names = driver.names()
    assert names[-1] == "cuDevicePrimaryCtxRelease"
    assert all(
        driver.names()[at - 1] == "cuStreamSynchronize" for at, name in enumerate(names) if name == "cuStreamDestroy"
    )
    lanes.close()
    assert driver.names() == names


@pytest.mark.parametrize(
    "call_name", ["cuGreenCtxCreate", "cuGreenCtxStreamCreate", "cuDevResourceGenerateDesc", "cuMemGetInfo"]
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_breaks_on_the_way_leaves_nothing_behind(call_name: str, which: int) -> None:
    driver = CudaDouble()
    partitions = parse_layouts("0-63;64-127|0-127", range(132))
    survey(driver)
    driver.failing[call_name] = [CUresult.CUDA_SUCCESS] * which + [CUresult.CUDA_ERROR_OUT_OF_MEMORY]
    with pytest.raises(CudaError, match=f"{call_name}: CUDA_ERROR_OUT_OF_MEMORY"):
        CudaLanes(driver, partitions, groups=HOPPER)
    assert driver.alive == {"contexts": 0, "streams": 0, "events": 0, "primary": 0}


def test_an_error_while_closing_does_not_keep_the_rest() -> None:
    driver = CudaDouble()
    _, lanes = made(driver)
    driver.failing["cuStreamSynchronize"] = [CUresult.CUDA_ERROR_ILLEGAL_ADDRESS]
    with pytest.raises(CudaError, match="ILLEGAL_ADDRESS"):
        lanes.close()
    assert driver.alive == {"contexts": 0, "streams": 0, "events": 0, "primary": 0}


def test_a_driver_that_takes_no_remainder_leaves_it_unused_and_it_is_told() -> None:
    driver = CudaDouble(rest_is_aligned=False)
    partitions, lanes = made(driver, "0-63;64-131")
    assert [lanes.lanes[number].sms for number in partitions.layouts[0]] == [64, 64]
    assert lanes.notes[0].startswith("lane 1: 4 SMs left over by the split stay unused: cuDevResourceGenerateDesc")


def test_a_device_that_splits_otherwise_than_planned_is_not_used() -> None:
    driver = CudaDouble()
    survey(driver)
    driver.granularity = 16
    with pytest.raises(ValueError, match="gives 8 groups of 16 SMs"):
        CudaLanes(driver, parse_layouts("0-63;64-131", range(132)), groups=HOPPER)
    assert driver.alive["primary"] == 0


def test_plain_streams_make_no_context_and_one_lane() -> None:
    driver = CudaDouble()
    device = CudaDevice(facts_of(driver), choose(facts_of(driver), wanted="cuda_streams"))
    lanes = device.lanes(driver, device.fitted(parse_layouts("0-131", device.units())))
    assert driver.alive == {"contexts": 0, "streams": 2, "events": 0, "primary": 1}
    lanes.close()
    with pytest.raises(LayoutInvalid, match="one lane is all there can be: plain streams"):
        device.fitted(parse_layouts("0-63;64-131", device.units()))


# Rounding.


def test_layouts_are_rounded_to_whole_groups() -> None:
    device = CudaDevice(facts_of(CudaDouble()), choose(facts_of(CudaDouble())))
    fitted = device.fitted(parse_layouts("0-98;99-131|0-65;66-131", device.units()))
    assert fitted.names == ("0-95;96-131", "0-63;64-131")
    assert [fitted.capacity(lane) for lane in fitted.layouts[0]] == [727, 272]


def test_a_lane_without_a_group_is_refused_with_the_least_that_there_is() -> None:
    with pytest.raises(
        LayoutInvalid, match="layouts: 129-131 would get no group; this device is divided in groups of 8"
    ):
        HOPPER.fitted(parse_layouts("0-128;129-131", range(132)))
    with pytest.raises(LayoutInvalid, match="0-2 would get no group"):
        HOPPER.fitted(parse_layouts("0-2;3-131", range(132)))


def test_layouts_that_become_the_same_are_refused() -> None:
    with pytest.raises(LayoutInvalid, match="is given twice"):
        HOPPER.fitted(parse_layouts("0-63;64-131|0-64;65-131", range(132)))


def test_lanes_that_are_not_whole_groups_have_no_pieces() -> None:
    assert HOPPER.pieces(range(120, 132)) == (15, 16)
    with pytest.raises(LayoutInvalid, match="0-6 are not whole groups of 8 units"):
        HOPPER.pieces(range(7))


def test_shares_become_whole_groups() -> None:
    assert [len(lane) for lane in HOPPER.shared([0.25, 0.75])] == [32, 100]
    assert [len(lane) for lane in HOPPER.shared([0.5, 0.001, 0.499])] == [64, 8, 60]
    with pytest.raises(LayoutInvalid, match="1 to 16 positive parts"):
        HOPPER.shared([1.0] * 17)


@given(
    size=st.integers(1, 8),
    count=st.integers(1, 20),
    rest=st.integers(0, 7),
    data=st.data(),
)
def test_whatever_is_rounded_is_whole_disjoint_and_rounds_to_itself(
    size: int, count: int, rest: int, data: st.DataObject
) -> None:
    groups = Groups(size, count, rest)
    owner = data.draw(st.lists(st.integers(0, 3), min_size=groups.units, max_size=groups.units))
    layout = tuple(lane for each in range(3) if (lane := tuple(at for at, to in enumerate(owner) if to == each)))
    try:
        rounded = groups.rounded(layout)
    except LayoutInvalid:
        return
    pieces = [piece for lane in rounded for piece in groups.pieces(lane)]
    assert len(pieces) == len(set(pieces))
    assert groups.rounded(rounded) == rounded
    shares = data.draw(st.lists(st.floats(0.001, 1), min_size=1, max_size=count))
    shared = groups.shared(shares)
    assert groups.rounded(shared) == shared
    assert sum(map(len, shared)) == groups.units


# Streams.


def stream_of(driver: CudaDouble, ahead: int = 2) -> tuple[CudaLanes, CudaStream]:
    _, lanes = made(driver, "0-131")
    return lanes, CudaStream(driver, lanes.lanes[0].compute, lanes.primary, ahead=ahead)


def test_events_tell_what_the_device_took_for_each_segment_in_order() -> None:
    driver = CudaDouble()
    _, stream = stream_of(driver)
    stream.begin()
    driver.launch(stream.stream, 1.5)
    first = stream.end()
    stream.begin()
    driver.launch(stream.stream, 0.25)
    second = stream.end()
    assert stream.out == 2
    assert stream.wait() == (first, round(1.5 * MS))
    # It was launched while the first still ran, and is charged from when the device came to it.
    assert stream.wait() == (second, round(0.25 * MS))
    assert driver.now == 1.75


def test_no_more_than_two_segments_are_out() -> None:
    driver = CudaDouble()
    _, stream = stream_of(driver)
    for _ in range(2):
        stream.begin()
        stream.end()
    with pytest.raises(RuntimeError, match="2 segments are out, 2 may be"):
        stream.begin()
    stream.wait()
    stream.begin()


def test_events_are_used_again_and_let_go_of() -> None:
    driver = CudaDouble()
    lanes, stream = stream_of(driver)
    for _ in range(50):
        stream.begin()
        stream.end()
        stream.wait()
    assert len(driver.events) == 2
    stream.close()
    lanes.close()
    assert driver.alive == {"contexts": 0, "streams": 0, "events": 0, "primary": 0}


def test_a_stream_has_one_thread() -> None:
    driver = CudaDouble()
    _, stream = stream_of(driver)
    stream.begin()
    stream.end()
    wrong: list[str] = []

    def use() -> None:
        with pytest.raises(RuntimeError, match="belongs to thread") as told:
            stream.begin()
        wrong.append(str(told.value))

    other = threading.Thread(target=use)
    other.start()
    other.join()
    assert wrong
    assert driver.current[threading.get_ident()] is driver.primary


def test_a_segment_that_could_not_be_launched_whole_is_waited_for() -> None:
    driver = CudaDouble()
    _, stream = stream_of(driver)
    stream.drop()
    stream.begin()
    driver.launch(stream.stream, 3.0)
    stream.drop()
    assert (stream.out, driver.now) == (0, 3.0)
    stream.begin()
    stream.end()


def test_an_error_of_the_device_comes_with_the_wait() -> None:
    driver = CudaDouble()
    _, stream = stream_of(driver)
    stream.begin()
    stream.end()
    driver.failing["cuEventSynchronize"] = [CUresult.CUDA_ERROR_ILLEGAL_ADDRESS]
    with pytest.raises(CudaError) as told:
        stream.wait()
    assert told.value.fault is Fault.LOST
    assert is_lost(told.value)


# Errors.


@pytest.mark.parametrize("error", [each for each in CUresult if each])
def test_every_error_of_the_driver_that_is_used_means_something(error: CUresult) -> None:
    assert error.name in FAULTS
    driver = CudaDouble(failing={"cuInit": [error]})
    with pytest.raises(CudaError, match=re.escape(f"cuInit: {error.name} ({int(error)}): ")) as told:
        call(driver, "cuInit", 0)
    assert (told.value.fault, told.value.number) == (FAULTS[error.name], int(error))


def test_what_is_not_known_counts_as_lost() -> None:
    assert CudaError("cuX", "CUDA_ERROR_NEVER_HEARD_OF", 12345).fault is Fault.LOST
    assert is_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_lost(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_lost(CudaError("cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY", 2))


def test_a_function_that_the_library_lacks_is_told_as_such() -> None:
    with pytest.raises(NoDriver, match="cuNothing"):
        call(CudaDouble(), "cuNothing")


# The double against the real thing.


def test_the_double_has_the_names_and_the_arguments_of_the_real_driver() -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    double = CudaDouble()
    functions = [name for name in dir(CudaDouble) if name.startswith("cu") and name[2].isupper()]
    assert len(functions) > 25
    for name in functions:
        line = (getattr(real, name).__doc__ or "").strip().splitlines()[0]
        arguments = [each for each in re.sub(r"^\w+\(|\)$", "", line).split(", ") if each]
        ours = list(inspect.signature(object.__getattribute__(double, name)).parameters)
        assert len(arguments) == len(ours), (name, line, ours)
    for error in CUresult:
        assert int(getattr(real.CUresult, error.name)) == int(error)


def test_every_call_that_is_made_is_in_the_protocol_and_every_name_of_an_error_exists() -> None:
    sources = "".join(path.read_text() for path in Path("gpu_sharing/devices/cuda").glob("*.py"))
    called = set(re.findall(r'"(cu[A-Z]\w+)"', sources))
    declared = {name for name in dir(Driver) if name.startswith("cu")}
    assert called <= declared
    if importlib.util.find_spec("cuda") is not None:
        real = pytest.importorskip("cuda.bindings.driver")
        assert all(hasattr(real, name) for name in declared)
        assert set(FAULTS) <= set(real.CUresult.__members__)
        for enum in ("CUdevResourceType", "CUgreenCtxCreate_flags", "CUstream_flags", "CUevent_flags"):
            assert hasattr(real, enum)


def test_prepared_layouts_need_no_device() -> None:
    assert prepared([HOPPER.shared([1, 1])]).names == ("0-63;64-131",)
