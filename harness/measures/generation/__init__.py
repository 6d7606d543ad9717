"""Measures of generation: greedy tokens, sampled tokens and the key-value cache, each against its definition."""
