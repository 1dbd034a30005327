"""`python -m services.frontend` as an operator runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from urllib.request import urlopen

import grpc

from services._proto.inference import grpc_service_pb2 as oip
from services._proto.inference import grpc_service_pb2_grpc


async def spawn(**variables: str) -> asyncio.subprocess.Process:
    environment = {**os.environ, **{f"APPORTION_FRONTEND_{name.upper()}": value for name, value in variables.items()}}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.frontend", env=environment, stderr=asyncio.subprocess.PIPE
    )


async def test_it_lives_without_registry_and_scheduler_says_so_and_ends_on_sigterm(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = await spawn(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        registry="127.0.0.1:1",
        scheduler="127.0.0.1:1",
        ready_file=str(ready),
    )
    async with asyncio.timeout(30):
        while not ready.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    told = json.loads(ready.read_text())
    assert told["pid"] == process.pid
    async with grpc.aio.insecure_channel(told["listen"]) as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(oip.ServerLiveRequest())).live
        assert not (await stub.ServerReady(oip.ServerReadyRequest())).ready
        code = None
        try:
            await stub.ModelInfer(oip.ModelInferRequest(model_name="m"))
        except grpc.aio.AioRpcError as error:
            code = error.code()
        assert code is grpc.StatusCode.UNAVAILABLE
    page = await asyncio.to_thread(lambda: urlopen(f"http://{told['metrics']}/metrics").read().decode())
    assert 'apportion_frontend_requests_total{model="",outcome="NOT_SERVING",tenant="default"} 1.0' in page
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 15) == 0


async def test_serving_anonymous_callers_on_a_network_is_refused_with_one_line() -> None:
    process = await spawn(listen="0.0.0.0:0", anonymous="on")
    _, output = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert output.decode().startswith("error: frontend: refusing to serve callers without credentials on 0.0.0.0:0")
