"""Measures of speculative decoding: the tokens, their distribution, the caches and the calls of the target."""
