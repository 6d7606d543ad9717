"""The pytest plugin: hooks, items, the session's records, and the terminal summary."""
