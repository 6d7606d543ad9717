"""The claims that an arm's name makes, checked against the witness of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.bench.witness.profile import Witness
from harness.core.errors import HarnessError

# More than this share of the products' FLOPs must run where the arm claims: in its dtype, in its compiled graphs.
REQUIRED_SHARE = 0.5


def violated_claim(witness: Witness, *, claims: Mapping[str, Any], flops: float | None = None) -> str | None:
    """Return a sentence about the first claim that the call violated, or None if it violated none.

    Claims:
        dtype: most products run in it.
        attention: the name of an algorithm, or several of which each may run.
        compiled: True if most products run in compiled graphs, False if no graph runs.
        quadratic: whether a score matrix of all queries by all keys is written out.

    A claim about something that was not seen is violated. `flops` is the cost of the work by closed form: if most of it
    was not seen, `dtype` is violated too. Raises HarnessError for a claim of another name.
    """
    checks = {
        "dtype": lambda claimed: _dtype_violation(witness, claimed, flops),
        "attention": lambda claimed: _attention_violation(witness, claimed),
        "compiled": lambda claimed: _compiled_violation(witness, claimed),
        "quadratic": lambda claimed: _quadratic_violation(witness, claimed),
    }
    if unknown := set(claims) - set(checks):
        raise HarnessError(f"unknown claims of an arm: {sorted(unknown)}; expected some of {sorted(checks)}")
    return next(filter(None, (checks[name](claimed) for name, claimed in claims.items())), None)


def _dtype_violation(witness: Witness, claimed: str, flops: float | None) -> str | None:
    seen = sum(witness.flops.values())
    if not seen:
        return f"claims {claimed}, but no matrix product could be seen"
    if witness.products.get(claimed, 0.0) <= REQUIRED_SHARE:
        found = ", ".join(f"{dtype} ({share:.0%})" for dtype, share in witness.products.items())
        return f"claims {claimed}, but its matrix products ran in {found}"
    if flops and seen <= REQUIRED_SHARE * flops:
        return f"claims {claimed}, but only {seen / flops:.0%} of its matrix products could be seen"
    return None


def _attention_violation(witness: Witness, claimed: str | Sequence[str]) -> str | None:
    allowed = [claimed] if isinstance(claimed, str) else list(claimed)
    if not witness.attention:
        return f"claims {' or '.join(allowed)} attention, but no attention could be seen"
    others = [f"{name} ({operation})" for name, operation in witness.attention.items() if name not in allowed]
    return f"claims {' or '.join(allowed)} attention, but it ran as {', '.join(others)}" if others else None


def _compiled_violation(witness: Witness, claimed: bool) -> str | None:
    if not claimed:
        return f"claims not to be compiled, but called {witness.graphs} compiled graphs" if witness.compiled else None
    if not witness.compiled:
        return "claims to be compiled, but no compiled graph ran"
    total = sum(witness.flops.values())
    if total and witness.flops_in_graphs <= REQUIRED_SHARE * total:
        outside = 1 - witness.flops_in_graphs / total
        return f"claims to be compiled, but {outside:.0%} of its matrix products ran outside the compiled graphs"
    return None


def _quadratic_violation(witness: Witness, claimed: bool) -> str | None:
    if not witness.attention:
        return f"claims {'a' if claimed else 'no'} score matrix, but no attention could be seen"
    heads, queries, keys = witness.scores or (0, 0, 0)
    # The row of scores of one new token is no matrix, nor is the strip of a few queries that chunked attention writes.
    quadratic = max(queries, keys) < 2 * min(queries, keys)
    if claimed and not quadratic:
        return f"claims a score matrix, but its attention ({', '.join(witness.attention)}) wrote none"
    if quadratic and not claimed:
        return f"claims no score matrix, but wrote one of {heads} x {queries} x {keys}"
    return None
