"""Runs the migrations on the connection that `services.registry.database` gives, inside its transaction."""

from __future__ import annotations

from alembic import context

from services.registry.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
