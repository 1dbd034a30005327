"""`apportion model push`: look at the artefact, upload it, and follow it until it serves."""
