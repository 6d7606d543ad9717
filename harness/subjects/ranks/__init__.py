"""Subjects on several ranks: the functions that a program has for them, a wrapped model, and what it sends."""
