"""Whose slice runs next on a lane. PURE: no clock, no chance, no I/O; time is an argument."""

from gpu_sharing.arbiter.core import Arbiter

__all__ = ["Arbiter"]
