"""The scheduler: which replica lives on which lane of which device, and at what share."""
