"""From what the user names on the command line to a Subject that the measures can ask."""

from harness.subjects.adapters.generic import adapt

__all__ = ["adapt"]
