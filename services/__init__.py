"""The mesh: frontend, registry, scheduler, executor, trace store, and the command that runs them."""
