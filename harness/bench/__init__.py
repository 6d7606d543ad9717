"""Benchmarks: arms timed in interleaved pairs, verified, and compared with the machine's ceilings."""
