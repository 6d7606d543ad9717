"""What a diagnosis says: findings in execution order, each with its place, its cause, its evidence and its line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    `where` is a published component (`h.1.attn.mask`, `ln_f`, `init.wte.weight`, `cache.position`), with `h.*` where
    every layer has it; `fault` the catalogue's id, "" where no explanation fits; `source` and `text` the line of the
    user's file to look at, "" where it is not known; `alike` the ids of other faults that are the very same program.
    """

    where: str
    fault: str
    cause: str
    evidence: str
    source: str = ""
    text: str = ""
    alike: tuple[str, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything that was found, the first to mend first.

    `divergence`: the largest difference from GPT-2 at each component in execution order, relative to the values there:
    `own` as the subject runs, `alone` given GPT-2's own input; for the components that hooks can see.
    `reproduction`: a stand-alone script that shows the first difference without the harness, "" where there is none;
    `data`: the weights that it reads, for a safetensors file of the same name beside it.
    """

    findings: tuple[Finding, ...] = ()
    divergence: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    reproduction: str = ""
    data: str = ""  # what the script reads, in base64
    trouble: str = ""  # why the diagnosis could not be made, or stopped short

    def as_row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kind": "diagnosis",
            "findings": [finding.as_row() for finding in self.findings],
            "divergence": {place: dict(gaps) for place, gaps in self.divergence.items()},
            "reproduction": self.reproduction,
            "data": self.data,
            "trouble": self.trouble,
        }
