"""The searches for a cause, one module for each kind of behaviour: `search` returns the findings."""
