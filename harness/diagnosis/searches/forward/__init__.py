"""The search for the variants of GPT-2 that a subject's forward pass computes."""

from harness.diagnosis.searches.forward.alignment import Alignment, place_of
from harness.diagnosis.searches.forward.search import ForwardResult, search

__all__ = ["Alignment", "ForwardResult", "place_of", "search"]
