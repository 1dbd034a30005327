"""What runs between `apportion up` and a service: it ties the service's life to that of `up`, then becomes the service.

`up` holds the writing end of a pipe that nobody ever writes to. When `up` dies, however it dies, the pipe ends: the
service is asked to stop, and ended where it does not. That needs no code in the services, and works on every POSIX system;
on Linux the kernel's parent-death signal comes on top, for a service whose interpreter hangs.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from contextlib import suppress

PR_SET_PDEATHSIG = 1
GRACE_S = 8.0
"""From SIGTERM to SIGKILL when `up` has died."""


def main() -> None:
    """`python -m services.cli.up.child LIFELINE MODULE`: LIFELINE is the descriptor of the pipe's reading end."""
    lifeline, module = int(sys.argv[1]), sys.argv[2]
    os.set_inheritable(lifeline, False)
    _ask_kernel()
    threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True).start()
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _ask_kernel() -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _watch(lifeline: int) -> None:
    with suppress(OSError):
        while os.read(lifeline, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
