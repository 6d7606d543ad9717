"""Known ways to get a GPT wrong, each injected into a right one, and the matrix of which check sees which."""

from harness.faults.catalogue import Catalogue, Fault, read_catalogue

__all__ = ["Catalogue", "Fault", "read_catalogue"]
