"""Whose slice runs next: queue, order, estimates, batching, admission. PURE: events and time in, actions out."""
