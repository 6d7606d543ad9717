"""Variants of attention: projections, heads, scores, mask, softmax."""
