"""Searches for what is wrong under one condition only: the failed condition is replayed, in float64."""

from harness.diagnosis.searches.conditions.search import REPLAYED, search

__all__ = ["REPLAYED", "search"]
