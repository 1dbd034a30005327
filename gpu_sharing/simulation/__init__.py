"""Devices, lanes and tenants in virtual time, around the arbiter that real lanes use. PURE: seeds and time are arguments."""
