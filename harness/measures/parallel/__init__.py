"""Measures of training on several ranks, compared with one process on the global batch."""
