"""The executor: owns one device, supervises its workers, and serves their replicas to frontends."""
