"""One small file per group of commands."""
