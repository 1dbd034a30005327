"""Everything about sharing one device among many tenants; importable alone, knows no gRPC."""
