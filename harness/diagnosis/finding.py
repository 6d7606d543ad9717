"""The result of a diagnosis: findings, each with its place, its cause, its evidence and its line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from harness.oracle.named_deviations import ALIASES, NAMED

NO_VARIANT = "no known variant matches"
# What people do on purpose, as the deviations that have a name: a finding of it says how it is declared.
CHOICES = frozenset(("post-norm", "parallel-block", "embedding-scaled", "activation-wrong"))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    `where` is a published component (`h.1.attn.mask`, `ln_f`, `init.wte.weight`, `cache.position`), with `h.*` if it
    is wrong in every layer. `fault` is the catalogue's id, "" if no known variant matches. `source` and `text` are the
    location and the text of the line to look at in the user's file, "" if unknown. `alike` are the ids of other faults
    that make the very same program. `settings` are further lines of its declaration.
    """

    where: str
    fault: str
    cause: str
    evidence: str
    source: str = ""
    text: str = ""
    alike: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def declaration(self) -> str:
        """The lines that declare it in the subject's deviations file; "" if people do not do it on purpose."""
        if self.fault not in CHOICES and ALIASES.get(self.fault, self.fault) not in NAMED:
            return ""
        return "\n".join(("[[deviation]]", f'what = "{self.fault}"', *self.settings, 'reason = "..."'))

    def as_row(self) -> dict[str, Any]:
        """Return the finding as a JSON-ready dict."""
        return {**dataclasses.asdict(self), "declaration": self.declaration}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All findings, in the order in which to fix them.

    `divergence`: by component, in execution order, the largest difference from GPT-2 relative to the largest value
    there: `own` as the subject runs, `alone` with GPT-2's own input; only for components that hooks can read.
    `reproduction`: a stand-alone script that shows the first difference without the harness, "" if there is none.
    `data`: the weights that the script reads, in base64, for a safetensors file of the same name beside it.
    `trouble`: why a part of the diagnosis failed, "" if none did.
    """

    findings: tuple[Finding, ...] = ()
    divergence: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    reproduction: str = ""
    data: str = ""
    trouble: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the diagnosis as a JSON-ready dict."""
        return {
            "kind": "diagnosis",
            "findings": [finding.as_row() for finding in self.findings],
            "divergence": {place: dict(differences) for place, differences in self.divergence.items()},
            "reproduction": self.reproduction,
            "data": self.data,
            "trouble": self.trouble,
        }
