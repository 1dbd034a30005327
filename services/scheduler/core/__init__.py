"""PURE: events in, actions out. No clock, no chance, no I/O, no protobuf."""
