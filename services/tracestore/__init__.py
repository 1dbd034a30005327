"""The embedded trace store: OTLP in, Jaeger's query API out, SQLite between them."""
