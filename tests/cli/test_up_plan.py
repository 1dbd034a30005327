"""What each process of a mesh is started with, where there are several of a kind."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.cli.up.core import Start
from services.cli.up.plan import Listen, Plan, slices

KNOWN = {
    "registry": {"listen": "127.0.0.1:1"},
    "scheduler": {"listen": "127.0.0.1:2"},
    "tracestore": {"listen": "127.0.0.1:3"},
}


def environment(plan: Plan, name: str, *, known=None, pinned=None, inherited=None):
    start = Start(name, {**KNOWN, **(known or {})}, pinned)
    return plan.environment(start, Path("/run/x.ready"), inherited or {})


def test_one_of_each_is_started_as_ever():
    plan = Plan(Listen(), Path("/data"), cores=(0, 1, 2))
    assert [one.name for one in plan.services] == ["registry", "tracestore", "scheduler", "executor", "frontend"]
    alone = environment(plan, "executor")
    assert not {"APPORTION_EXECUTOR_CORES", "APPORTION_EXECUTOR_EXECUTOR_ID"} & alone.keys()
    assert "APPORTION_FRONTEND_REUSE_PORT" not in environment(plan, "frontend")


def test_executors_have_names_ports_caches_and_cores_of_their_own():
    plan = Plan(Listen(), Path("/data"), executors=2, cores=(0, 1, 2, 3, 4))
    first, second = environment(plan, "executor"), environment(plan, "executor-2")
    assert (first["APPORTION_EXECUTOR_LISTEN"], second["APPORTION_EXECUTOR_LISTEN"]) == (
        "127.0.0.1:8110",
        "127.0.0.1:8111",
    )
    assert (first["APPORTION_EXECUTOR_CORES"], second["APPORTION_EXECUTOR_CORES"]) == ("1,2", "3,4")
    assert second["APPORTION_EXECUTOR_EXECUTOR_ID"].endswith("-2")
    assert first["APPORTION_EXECUTOR_CACHE"] != second["APPORTION_EXECUTOR_CACHE"]
    assert plan.module("executor-2") == "services.executor"


def test_a_name_that_the_user_gave_is_kept_and_counted():
    plan = Plan(Listen(), Path("/data"), executors=2)
    second = environment(plan, "executor-2", inherited={"APPORTION_EXECUTOR_EXECUTOR_ID": "left"})
    assert second["APPORTION_EXECUTOR_EXECUTOR_ID"] == "left-2"


def test_every_executor_tells_its_device_time_on_a_port_of_its_own_also_the_only_one():
    alone, two = (
        Plan(Listen(), Path("/data")),
        Plan(Listen(executor_metrics="127.0.0.1:9000"), Path("/data"), executors=2),
    )
    assert environment(alone, "executor")["APPORTION_EXECUTOR_METRICS_LISTEN"] == Listen.executor_metrics
    ports = [environment(two, name)["APPORTION_EXECUTOR_METRICS_LISTEN"] for name in ("executor", "executor-2")]
    assert ports == ["127.0.0.1:9000", "127.0.0.1:9001"]
    free = Plan(Listen(executor_metrics="127.0.0.1:0"), Path("/data"))
    again = environment(free, "executor", pinned={"listen": "127.0.0.1:1", "metrics": "127.0.0.1:4711"})
    assert again["APPORTION_EXECUTOR_METRICS_LISTEN"] == "127.0.0.1:4711"
    ready = {"executor": {"listen": "a:1", "metrics": "a:2"}, "executor-2": {"listen": "b:1", "metrics": "b:2"}}
    addresses = two.mesh_addresses(ready)
    assert (addresses["executor_metrics"], addresses["executor_metrics-2"]) == ("a:2", "b:2")


def test_frontends_share_the_port_that_the_first_one_got():
    plan = Plan(Listen(frontend="127.0.0.1:0", metrics="127.0.0.1:0"), Path("/data"), frontends=2)
    assert {one.name: one.needs for one in plan.services}["frontend-2"] > {"frontend"}
    second = environment(plan, "frontend-2", known={"frontend": {"listen": "127.0.0.1:4711"}})
    assert second["APPORTION_FRONTEND_LISTEN"] == "127.0.0.1:4711"
    assert second["APPORTION_FRONTEND_REUSE_PORT"] == "on"
    assert second["APPORTION_FRONTEND_METRICS_LISTEN"] == "127.0.0.1:0"


def test_metrics_of_several_frontends_have_ports_of_their_own():
    plan = Plan(Listen(), Path("/data"), frontends=3)
    ports = [environment(plan, name)["APPORTION_FRONTEND_METRICS_LISTEN"] for name in ("frontend", "frontend-3")]
    assert ports == ["127.0.0.1:8002", "127.0.0.1:8004"]


def test_a_frontend_that_is_started_again_listens_where_it_did():
    plan = Plan(Listen(), Path("/data"), frontends=2)
    again = environment(plan, "frontend-2", pinned={"listen": "127.0.0.1:8001", "metrics": "127.0.0.1:9999"})
    assert again["APPORTION_FRONTEND_METRICS_LISTEN"] == "127.0.0.1:9999"


def test_every_further_process_is_written_down_under_a_name_of_its_own():
    plan = Plan(Listen(), Path("/data"), executors=2, frontends=2)
    ready = {
        name: {"listen": f"{name}:1", "metrics": f"{name}:2"}
        for name in ("executor", "executor-2", "frontend", "frontend-2")
    }
    addresses = plan.mesh_addresses(ready)
    assert addresses["executor-2"] == "executor-2:1"
    assert (addresses["metrics"], addresses["metrics-2"]) == ("frontend:2", "frontend-2:2")


@given(cores=st.sets(st.integers(0, 63), max_size=24), parts=st.integers(2, 16))
def test_cores_are_dealt_whole_and_to_one_executor_each(cores, parts):
    dealt = slices(tuple(cores), parts)
    if len(cores) < parts:
        assert dealt == []
        return
    together = [core for part in dealt for core in part]
    assert all(dealt)
    assert len(set(together)) == len(together)
    assert set(together) == (cores - {min(cores)} if len(cores) > parts else cores)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_each_service_has_its_own_certificate_whatever_all_of_them_share():
    shared = {"APPORTION_TLS_CERTIFICATE": "/x.pem", "APPORTION_TLS_KEY": "/x.key", "APPORTION_TLS_CA": "/x-ca.pem"}
    plan = Plan(Listen(), Path("/data"), executors=2, certs=Path("/certs"))
    for name in ("registry", "scheduler", "tracestore", "executor-2", "frontend"):
        kind = name.partition("-")[0]
        told = environment(plan, name, inherited=shared)
        assert told[f"APPORTION_{kind.upper()}_TLS_CERTIFICATE"] == f"/certs/{kind}.pem"
        assert told[f"APPORTION_{kind.upper()}_TLS_KEY"] == f"/certs/{kind}.key"
        assert told[f"APPORTION_{kind.upper()}_TLS_CA"] == "/certs/ca.pem"
    assert environment(Plan(Listen(), Path("/data")), "frontend", inherited=shared).keys() >= shared.keys()
    assert "APPORTION_FRONTEND_TLS_KEY" not in environment(Plan(Listen(), Path("/data")), "frontend", inherited=shared)
