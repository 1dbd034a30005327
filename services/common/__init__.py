"""What the services share: settings, servers, channels, errors, telemetry. The one shared room with I/O."""
