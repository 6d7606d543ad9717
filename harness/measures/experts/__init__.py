"""Measures of a mixture of experts."""
