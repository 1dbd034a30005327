"""`apportion up`: the whole mesh as local processes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import show
from services.cli.errors import CommandError, usage
from services.cli.main import SERVICES
from services.cli.options import OPERATOR, Data, certificate, data_folder
from services.cli.up.files import Folder, Lock
from services.cli.up.follow import stream_logs
from services.cli.up.plan import MOST_OF_A_KIND, Listen, Plan, kind_of
from services.cli.up.shell import Shell
from services.common.server import unbindable

app = typer.Typer()


def _listens(what: str, variable: str) -> Any:
    return typer.Option(metavar="HOST:PORT", envvar=variable, help=f"{what}; port 0 takes a free one.")


def _many(what: str) -> Any:
    return typer.Option(metavar="N", min=1, max=MOST_OF_A_KIND, help=f"{what}.")


@app.command()
def up(
    data: Data = None,
    frontend: Annotated[str, _listens("Where clients reach it", "APPORTION_FRONTEND_LISTEN")] = Listen.frontend,
    metrics: Annotated[str, _listens("Prometheus metrics", "APPORTION_FRONTEND_METRICS_LISTEN")] = Listen.metrics,
    registry: Annotated[str, _listens("The registry", "APPORTION_REGISTRY_LISTEN")] = Listen.registry,
    scheduler: Annotated[str, _listens("The scheduler", "APPORTION_SCHEDULER_LISTEN")] = Listen.scheduler,
    executor: Annotated[str, _listens("The executor", "APPORTION_EXECUTOR_LISTEN")] = Listen.executor,
    otlp: Annotated[str, _listens("Traces in, over OTLP", "APPORTION_TRACESTORE_LISTEN")] = Listen.otlp,
    query: Annotated[str, _listens("Jaeger's query API", "APPORTION_TRACESTORE_QUERY_LISTEN")] = Listen.query,
    executor_metrics: Annotated[
        str, _listens("Prometheus metrics of the executor", "APPORTION_EXECUTOR_METRICS_LISTEN")
    ] = Listen.executor_metrics,
    trace_sample: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="Part of the requests whose traces are kept; violations always are."),
    ] = None,
    executors: Annotated[int, _many("Executors, each with cores of its own where they suffice")] = 1,
    frontends: Annotated[int, _many("Frontends, all on one port")] = 1,
    certs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Certificates of `apportion certs init`: all services, and callers, speak TLS."
        ),
    ] = None,
    logs: Annotated[bool, typer.Option("--logs", help="Show every service's log.")] = False,
) -> None:
    """Run the whole mesh as local processes, in the foreground, until Ctrl-C."""
    started = time.monotonic()
    listen = Listen(frontend, metrics, registry, scheduler, executor, otlp, query, executor_metrics)
    check(listen)
    certs = None if certs is None else checked_certs(certs.expanduser().absolute())
    folder = Folder(data_folder(data).absolute())
    folder.make()
    lock = Lock(folder)
    lock.acquire()
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    plan = Plan(listen, folder.root, sampled(trace_sample), executors, frontends, cores, certs)

    def announce(addresses: dict[str, str]) -> None:
        _announce(addresses, folder, time.monotonic() - started, default_data=data is None)

    async def body() -> None:
        shell = Shell(plan, folder, says=lambda text: show.err.print(f"[yellow]{text}[/]"), announces=announce)
        tail = asyncio.create_task(stream_logs(folder, [s.name for s in plan.services])) if logs else None
        finish = await shell.run()
        if tail is not None:
            tail.cancel()
        if finish.status:
            raise CommandError(finish.error or "the mesh failed", status=finish.status)

    try:
        check_free(listen)
        asyncio.run(body())
    finally:
        lock.release()
    show.out.print("stopped")


def check(listen: Listen) -> None:
    """Raises CommandError unless every address is HOST:PORT."""
    for name, address in vars(listen).items():
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit() and int(port) <= 65535):
            raise usage(f"--{flag(name)}: {address!r} is not HOST:PORT with a port of 0 to 65535")


def flag(name: str) -> str:
    """The option that sets where something listens."""
    return name.replace("_", "-")


def check_free(listen: Listen) -> None:
    """Raises CommandError where something else listens already: before any service starts, and with our own flag's name."""
    for name, address in vars(listen).items():
        problem = unbindable(address)
        if problem is not None:
            raise usage(f"--{flag(name)}: cannot listen on {address}: {problem} choose another")


def sampled(ratio: float | None) -> float | None:
    """The part of traces to keep, where it was given. Raises CommandError unless it is 0 to 1."""
    if ratio is not None and not 0 <= ratio <= 1:
        raise usage(f"--trace-sample: {ratio:g} is not within 0 to 1")
    return ratio


def checked_certs(folder: Path) -> Path:
    """The folder. Raises CommandError where a certificate of a service, or the operator's, cannot be read."""
    for name in (*SERVICES, OPERATOR):
        try:
            certificate(folder, name).check()
        except OSError as error:
            raise usage(
                f"--certs: cannot read {error.filename}: {error.strerror}; `apportion certs init {folder}` makes them"
            ) from None
    return folder


def _announce(addresses: dict[str, str], folder: Folder, took_s: float, *, default_data: bool) -> None:
    what = {
        "frontend": "requests (Open Inference Protocol over gRPC)",
        "metrics": "metrics (Prometheus)",
        "registry": "tenants, models, artefacts",
        "scheduler": "the fleet",
        "executor": "where requests run",
        "executor_metrics": "metrics of device time (Prometheus)",
        "otlp": "traces in (OTLP)",
        "query": "traces out (Jaeger's query API)",
    }
    show.out.print(f"[bold green]apportion is up[/] after {took_s:.1f} s, data in {folder.root}")
    rows = [
        [f"  {name}", address, f"[dim]{text}[/]"]
        for kind, text in what.items()
        for name, address in addresses.items()
        if kind_of(name) == kind
    ]
    made = show.table(None, ["", "", ""], rows)
    made.show_header = False
    show.print_table(made)
    option = "" if default_data else f" --data {folder.root}"
    show.out.print(f"next: apportion model push NAME PATH{option}    stop: Ctrl-C")
