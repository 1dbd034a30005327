"""A fleet in virtual time: simulated devices around the cores that the real services run. PURE."""
