"""The demo: three real models for three tenants on one machine, one of whom floods. `python -m demo` runs it."""
