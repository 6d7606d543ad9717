"""The diagnosis: where a subject differs from GPT-2, which known mistake that is, and on which line."""

from harness.diagnosis.diagnose import diagnose
from harness.diagnosis.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
