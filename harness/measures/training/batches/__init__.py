"""Measures of the batches of a training program: targets, origin, coverage."""
