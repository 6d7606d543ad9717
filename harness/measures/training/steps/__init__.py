"""Measures of the steps of a training program: gradients, clipping, learning rate, update, types."""
