"""Suites of checks: suite files, expectations, the registry of measures, and the records of results."""
