"""The schema's history, for Alembic. A new one: change tables.py, then write the next numbered file in versions/."""
