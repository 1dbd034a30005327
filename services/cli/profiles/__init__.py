"""What was measured of a model, and which objective that allows."""
