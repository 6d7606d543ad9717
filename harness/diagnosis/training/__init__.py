"""The diagnosis of a training program: which of its events is the first that is wrong, and on which line."""

from harness.diagnosis.training.diagnose import diagnose_training
from harness.diagnosis.training.events import EVENTS
from harness.diagnosis.training.source_lines import Source

__all__ = ["EVENTS", "Source", "diagnose_training"]
