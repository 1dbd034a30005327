"""What an image's health check runs: exits with 0 where the service says SERVING.

APPORTION_HEALTH: HOST:PORT of the service, the frontend's by default; APPORTION_HEALTH_SERVICE: one of its services by name.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

PATIENCE_S = 2.0


def main() -> int:
    """Asks once; returns the exit status."""
    address = os.environ.get("APPORTION_HEALTH", "127.0.0.1:8001")
    asked = health_pb2.HealthCheckRequest(service=os.environ.get("APPORTION_HEALTH_SERVICE", ""))
    try:
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        print(f"{address}: {error.code().name}", file=sys.stderr)
        return 1
    print(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
