"""Measures of options: what a parameter of forward or generate promises by its name, against its definition."""
