"""Measures of training programs: pure functions of what a program did, event by event."""
