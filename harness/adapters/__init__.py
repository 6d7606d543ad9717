"""From what the user names on the command line to a Subject that the measures can ask."""

from harness.adapters.generic import adapt

__all__ = ["adapt"]
