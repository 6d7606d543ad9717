"""Measures under every condition: shapes, modes, kinds of ids, what happened before, sizes; and what a call leaves."""
