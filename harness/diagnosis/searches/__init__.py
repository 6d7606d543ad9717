"""Searches for a cause, one module for each kind of behaviour."""
