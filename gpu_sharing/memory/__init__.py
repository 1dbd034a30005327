"""Memory: the ledger that admits loads by bytes, and the arenas that tensors cross processes in."""
