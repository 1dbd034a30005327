"""Who calls, and what they may do: callers and their roles, API keys, tokens, certificates, and the guard of every method."""
