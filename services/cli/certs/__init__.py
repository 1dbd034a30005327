"""Certificates for development: an authority, and what it signs."""
