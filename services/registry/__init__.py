"""The registry: the source of truth for tenants, models, versions, objectives and artefacts."""
