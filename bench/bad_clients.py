"""Bad clients, each in a process of its own; `bench.slow_clients` measures what others notice of them.

    python -m bench.bad_clients KIND ADDRESS KEY MODEL

unread: 32 streams that ask for large answers as fast as they are let, and as many single calls, of which nothing is read.
streams: 1,000 streams at once, idle for a second, then a byte of a request on each in turn, a hundred a second.
trickle: 20 connections that send a request at a byte a second, and 20 that send HTTP/2's own framing so.
preface: 100 connections that never get to the end of the preface.

They say that they have begun, run until there is standard input, and print what became of them as JSON.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from collections.abc import Callable, Iterator

from bench.http2 import DATA, END_STREAM, PREFACE, Connection, call, frame, message, settings
from services._proto.inference import grpc_service_pb2 as pb

UNREAD_STREAMS, REQUESTS_EACH, SINGLE_CALLS = 32, 64, 512
STREAMS = 1000
TRICKLES, PREFACES = 20, 100
STEP_S = 0.01
Told = dict[str, int]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("kind", choices=KINDS)
    arguments.add_argument("address")
    arguments.add_argument("key")
    arguments.add_argument("model")
    chosen = arguments.parse_args()
    client = KINDS[chosen.kind](chosen.address, chosen.key, chosen.model)
    told = next(client)
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        told = next(client)
    print(json.dumps({**told, "cpu_ms": round(time.process_time() * 1e3)}))


def unread(address: str, key: str, model: str) -> Iterator[Told]:
    """Two connections without a window for answers; asks on for as long as it may."""
    streams, single = Connection(address), Connection(address)
    for connection in (streams, single):
        connection.send(PREFACE + settings(window_bytes=0))
    asked = 0
    body = message(_request(model))
    numbers = [1 + 2 * index for index in range(UNREAD_STREAMS)]
    for number in numbers:
        streams.send(call(number, "ModelStreamInfer", address, key))
    for turn in range(1 << 30):
        if turn < REQUESTS_EACH or turn % 100 == 0:
            asked += sum(streams.send_data(number, body) for number in numbers)
        if turn < SINGLE_CALLS // 2:
            for index in range(2):
                number = 1 + 2 * (2 * turn + index)
                begun = single.send(call(number, "ModelInfer", address, key))
                asked += begun and single.send_data(number, body, END_STREAM)
        # Control frames alone: without a window no answer ever comes. The other connection is never read from.
        streams.read()
        yield {"asked": asked, "connected": streams.alive + single.alive}
        time.sleep(STEP_S)


def many_streams(address: str, key: str, model: str) -> Iterator[Told]:
    """One connection; whatever comes is read."""
    connection = Connection(address)
    connection.send(PREFACE + settings())
    body = message(_request(model))
    numbers = [1 + 2 * index for index in range(STREAMS)]
    for at in range(0, STREAMS, 50):
        connection.send(b"".join(call(number, "ModelStreamInfer", address, key) for number in numbers[at : at + 50]))
        connection.read()
        time.sleep(STEP_S)
    yield {"streams": STREAMS}
    time.sleep(1.0)
    for turn in range(1 << 30):
        number = numbers[turn % STREAMS]
        at = turn // STREAMS
        if number not in connection.ended and at < len(body):
            connection.send_data(number, body[at : at + 1])
        connection.read()
        yield {"streams": STREAMS, "ended": len(connection.ended), "connected": int(connection.alive)}
        time.sleep(STEP_S)


def trickle(address: str, key: str, model: str) -> Iterator[Told]:
    """Requests a byte a second: half of the connections in whole frames of a byte, half byte by byte of the framing."""
    body = message(_request(model))
    framed, raw = [Connection(address) for _ in range(TRICKLES)], [Connection(address) for _ in range(TRICKLES)]
    for connection in framed:
        connection.send(PREFACE + settings() + call(1, "ModelInfer", address, key))
    for connection in raw:
        connection.send(PREFACE + settings())
    content = call(1, "ModelInfer", address, key) + frame(DATA, END_STREAM, 1, body)
    everybody = [*framed, *raw]
    for second in range(1 << 30):
        for index, connection in enumerate(everybody):
            connection.read()
            if connection in framed:
                last = END_STREAM if second == len(body) - 1 else 0
                connection.send_data(1, body[second : second + 1], last)
            else:
                connection.send(content[second : second + 1])
            if index % 4 == 3:
                time.sleep(4.0 / len(everybody))
                yield {"connections": len(everybody), "connected": sum(each.alive for each in everybody)}


def prefaces(address: str, _key: str, _model: str) -> Iterator[Told]:
    """A byte of the preface every few seconds on each connection, and never the last."""
    everybody = [Connection(address) for _ in range(PREFACES)]
    for turn in range(1 << 30):
        connection = everybody[turn % PREFACES]
        at = turn // PREFACES
        connection.read()
        if at < len(PREFACE) - 1:
            connection.send(PREFACE[at : at + 1])
        time.sleep(4 * STEP_S)
        yield {"connections": PREFACES, "connected": sum(each.alive for each in everybody)}


def _request(model: str) -> bytes:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[bytes(64)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    return request.SerializeToString()


KINDS: dict[str, Callable[[str, str, str], Iterator[Told]]] = {
    "unread": unread,
    "streams": many_streams,
    "trickle": trickle,
    "preface": prefaces,
}

if __name__ == "__main__":
    main()
