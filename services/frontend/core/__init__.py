"""What the frontend decides: PURE, no I/O, no clock, no chance."""
