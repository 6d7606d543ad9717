"""Measures of continuous batching: each request against itself alone, the memory that is read, and who waits."""
