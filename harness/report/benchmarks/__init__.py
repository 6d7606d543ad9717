"""The sections of the report about benchmarks."""
