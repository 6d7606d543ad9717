"""GPT-2 with deviations as a subject: a check that it fails says nothing else of a subject with these deviations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.core.sizes import Size
from harness.oracle.declared import DeclaredGPT2
from harness.oracle.probe_weights import state_of
from harness.subjects.model import Model


@dataclass(eq=False)  # measurements of a subject are cached under its hash
class DeviatingSubject:
    """A GPT-2 with deviations, with GPT-2's initialisation."""

    gpt2: DeclaredGPT2
    name: str = "GPT-2 with the deviations"

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """Return a new model in eval mode; see `Subject.build`. Its weights are those of one seed."""
        return self.gpt2.oracle(size, state_of(size, "standard"), dtype)
