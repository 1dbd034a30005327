"""`python -m deploy.lint`: everything under deploy/ that can be checked without a container engine or a cluster."""
