"""Shared foundations: errors, limits, records, captured output, global state, resources and sizes."""
