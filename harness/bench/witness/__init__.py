"""What one call of an arm ran, as the profiler saw it, and whether that is what the arm claims."""

from harness.bench.witness.claims import violated_claim
from harness.bench.witness.profile import Witness, busy_threads, examine, witness

__all__ = ["Witness", "busy_threads", "examine", "violated_claim", "witness"]
