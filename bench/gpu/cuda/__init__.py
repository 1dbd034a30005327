"""Checks of `python -m bench.gpu.on_cuda`, by what they are about. They import without a device, and run on one."""
