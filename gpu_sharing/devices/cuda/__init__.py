"""A CUDA device: found, divided once into green contexts, and run on by one thread a lane. Imports without a GPU."""
