"""The seams at which a recorder observes a program: what it replaces, hooks or wraps."""
