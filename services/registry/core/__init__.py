"""What the registry decides, without I/O, clock or chance."""
