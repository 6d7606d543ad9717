"""A sweep of a Markov source that is small enough for a test."""

SMALL = """
[[plan]]
name = "small"
about = "For tests."
seeds = [0, 1]
layers = 1
heads = 2
rate_times_width = 0.2
tokens_per_step = 64
validation_tokens = 1024

[[plan.source]]
name = "markov"
symbols = 16
characters = 20000
context = 16

[[plan.source.budget]]
flops = 3e7
widths = [2, 4, 8]

[[plan.source.budget]]
flops = 1.2e8
widths = [4, 8, 12]
"""
