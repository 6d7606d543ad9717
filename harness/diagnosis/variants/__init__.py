"""Variants that a diagnosis tries besides those of the formula, as tables: one module a subject matter."""
