"""Measures of whole runs of a training program: the loss, validation, logs, resuming, seeds, ranks."""
