"""Sharing of one device, the same scenarios on whatever device this machine has.

A scenario is a module of three functions: `measure` runs it on a real worker process, off/on/off interleaved; `simulate` runs
what was measured on the simulated device; `judge` is pure and turns samples into figures. No scenario knows a device: what a
machine cannot show is told under `not_measured`, with the reason.
"""
