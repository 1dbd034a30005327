"""The process that holds models, lanes and their arbiters, and the way in and out of it."""
