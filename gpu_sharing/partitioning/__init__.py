"""Layouts of a device. PURE."""
