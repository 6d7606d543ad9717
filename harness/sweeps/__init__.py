"""Scaling sweeps: runs of the trainer over sizes, budgets and seeds, and the laws that are fitted to them."""
