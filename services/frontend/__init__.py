"""The frontend: the Open Inference Protocol for clients, the Execute stream towards executors."""
