"""A bare grpc.aio server that gives back what it gets: what Python's gRPC costs when nothing is done with a request.

`python echo_server.py` listens on a free port of 127.0.0.1 and prints it. This file is a yardstick and does not change:
bench/wire.py refuses to run where its checksum is another.
"""

import grpc
import uvloop


async def echo(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
    return request


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods = {"ModelInfer": grpc.unary_unary_rpc_method_handler(echo)}
    handler = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


uvloop.run(main())
