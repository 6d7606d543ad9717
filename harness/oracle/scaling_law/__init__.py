"""Scaling laws: the loss as a function of parameters and tokens, and the fits that find one from runs."""
