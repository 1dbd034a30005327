"""What the executor decides: checks of requests, states of replicas, credits, turns. PURE: no I/O, no clock, no chance."""
