"""The comparisons: arms that do the same work, one module a question."""
