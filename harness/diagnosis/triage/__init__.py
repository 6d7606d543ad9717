"""The triage of a trained GPT that generates nonsense: which of the known causes it has, with the evidence."""

from harness.diagnosis.triage.stored_checkpoint import read_checkpoint
from harness.diagnosis.triage.triage import Triage, triage

__all__ = ["Triage", "read_checkpoint", "triage"]
