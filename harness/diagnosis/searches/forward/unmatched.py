"""Findings for the differences that no variant matches: the place, and a relation that holds for the value there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.core.source_lines import location
from harness.diagnosis.finding import NO_VARIANT, Finding
from harness.diagnosis.observation import SAME
from harness.diagnosis.searches.forward import constant_fit
from harness.diagnosis.searches.forward.alignment import Alignment, Taps, largest_difference
from harness.diagnosis.searches.forward.fitted_variants import places_between
from harness.diagnosis.searches.forward.matched import in_words


def unmatched_finding(
    alignment: Alignment,
    taps: Taps,
    reached: int,
    layer: int | None,
    own_values: Mapping[str, Tensor],
    *,
    changed: bool,
) -> Finding:
    """Return the finding for an anchor that the subject does not reach with any variant.

    The place is the first one after the last value that agrees. `changed`: whether `taps` are GPT-2's with variants.
    """
    anchor = alignment.anchors[reached]
    names = places_between(taps, alignment.anchors, reached)
    seen = {name: alignment.step_of(taps, name) for name in names}
    last = max((number for number, name in enumerate(names) if seen[name] is not None), default=-1)
    passed = alignment.last_right_step(taps, reached)
    after = max((step for step in seen.values() if step is not None), default=passed)
    before = f"h.{layer - 1}" if layer else "embedding"
    where = names[last + 1] if last + 1 < len(names) else anchor
    relation = ""
    if last < 0 and layer is not None and before in taps and _differs(own_values.get(before), taps[before]):
        where = before  # the subject computed the right value there, and the next block reads another
    else:
        relation = _relation(alignment, taps, names[last + 1 :], after)
    line = alignment.observed.line(alignment.first_unknown_step(taps, after))
    own = alignment.observed.logits if anchor == "head" else own_values.get(anchor)
    agrees = f"everything before it agrees with GPT-2{' with the differences named before' * changed}"
    evidence = (agrees, *_comparison(alignment, anchor, own, taps, after))
    return Finding(where, "", relation or NO_VARIANT, "; ".join(text for text in evidence if text), *location(line))


def _differs(own: Tensor | None, expected: Tensor) -> bool:
    return own is not None and not largest_difference(own, expected) <= SAME * float(expected.abs().max())


def _relation(alignment: Alignment, taps: Taps, names: list[str], after: int) -> str:
    """Return the sentence about a constant by which one of the places and a value of the subject's differ."""
    for name in names:
        expected = taps[name]
        if isinstance(expected, Tensor) and bool(torch.isfinite(expected).all()):
            found = [v for v in alignment.unknown_values(expected, after, taps) if bool(torch.isfinite(v).all())]
            if says := constant_fit.factor(name, expected, found) or constant_fit.offset(name, expected, found):
                return says
    return ""


def _comparison(alignment: Alignment, anchor: str, own: Tensor | None, taps: Taps, after: int) -> tuple[str, str]:
    """Describe by how much, and at which rows, positions or channels, the subject's value differs."""
    expected = taps.get(anchor)
    if not isinstance(expected, Tensor):
        return "", ""
    if own is None:
        return "", constant_fit.where_it_differs(
            expected, alignment.unknown_values(expected, after, taps), alignment.ids, 0
        )
    if bool(torch.isfinite(own).all()):
        size = f"{in_words(anchor)} differs by {largest_difference(own, expected):.1e}"
    else:
        size = f"{in_words(anchor)} is not finite"
    return size, constant_fit.where_it_differs(expected, [own], alignment.ids, 0)
