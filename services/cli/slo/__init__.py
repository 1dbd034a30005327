"""Objectives: how they are said, what other tools make of them, and whether they were kept."""
