"""Which rehearsals a check of training programs judges."""

from __future__ import annotations

from harness.measures.all_measures import measures
from harness.suites.check import Check


def rehearsals_of(check: Check) -> set[str]:
    """Return the names of the rehearsals that a check's measure asks for: its parameters, or their defaults."""
    parameters = measures()[check.measure].parameters
    defaults = {name: parameters[name].default for name in ("rehearsal", "other") if name in parameters}
    return {str(check.parameters.get(name, default)) for name, default in defaults.items()}
