"""From the name of a GPT on the command line to a Subject that measures can use."""

from harness.subjects.adapters.subject_spec import adapt

__all__ = ["adapt"]
