"""Known faults of a GPT, each put into a correct one, and the matrix of which check kills which fault."""

from harness.faults.catalogue import Catalogue, Fault, read_catalogue

__all__ = ["Catalogue", "Fault", "read_catalogue"]
