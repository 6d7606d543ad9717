"""The diagnosis: where a subject leaves GPT-2's way, what stands there instead, and which line to look at."""

from harness.diagnosis.diagnose import diagnose
from harness.diagnosis.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
