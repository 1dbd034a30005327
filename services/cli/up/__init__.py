"""`apportion up`: the whole mesh as local processes. `core` decides, the other modules do."""
