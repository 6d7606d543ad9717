"""Measures, by subject: each returns a Reading of a model, and no verdict."""
