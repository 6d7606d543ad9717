"""Measures of training mode with dropout on: parity under the subject's own masks, and where and how it drops."""
