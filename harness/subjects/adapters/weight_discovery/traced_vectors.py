"""The norms and biases of a traced forward pass: which component each gain and each bias belongs to."""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.labelled_parameters import LabelledParameters
from harness.subjects.adapters.weight_discovery.layer_numbers import numbered
from harness.subjects.adapters.weight_discovery.traced_blocks import TracedBlock, own_name
from harness.subjects.adapters.weight_discovery.tracing import Use


def norms(
    uses: list[Use], blocks: dict[int, TracedBlock], parameters: LabelledParameters, size: Size
) -> Iterator[tuple[str, Use, Use | None]]:
    """Yield (published component, gain, bias) of every norm.

    Gains in execution order are ln_1, ln_2, ln_1, ... and ln_f, and each bias follows its gain. Where some are not
    used, the next matrix decides: the attention's, the feed-forward layer's, or none.
    """
    gains = [use for use in uses if use.kind == "gain" and use.entries.numel() == size.width]
    by_name = numbered(parameters.module, size)
    named = [by_name.get(own_name(gain, parameters)) for gain in gains]
    layers = [i // 2 if place is None else place.layer for i, place in enumerate(named)]
    components = [f"transformer.h.{layer}.ln_{i % 2 + 1}" for i, layer in enumerate(layers[:-1])]
    components.append("transformer.ln_f")
    if len(gains) != 2 * size.layers + 1:
        components = [_norm_before_next_matrix(gain, uses, blocks) for gain in gains]
    # Of several norms before one matrix, as where the embeddings have one of their own, the last is GPT-2's.
    for component, gain in dict(zip(components, gains, strict=True)).items():
        yield component, gain, _bias_of_gain(gain, uses)


def _norm_before_next_matrix(gain: Use, uses: list[Use], blocks: dict[int, TracedBlock]) -> str:
    """Return the norm that a gain belongs to, by the matrix that is used next."""
    following = next((u for u in uses if u.number > gain.number and u.kind == "matrix"), None)
    for layer, block in blocks.items():
        mlp = (*block.up, block.down)
        if following is not None and following in (*block.attention_in, *block.attention_out, *mlp):
            return f"transformer.h.{layer}.ln_{2 if following in mlp else 1}"
    return "transformer.ln_f"


def _bias_of_gain(gain: Use, uses: list[Use]) -> Use | None:
    linked = next((u for u in uses if u.kind == "bias" and u.source is gain), None)
    if linked is not None:
        return linked
    # In `gain * (x - mean) / std + bias` the bias is not added to the product itself; no other use comes between.
    following = [u for u in uses if u.number > gain.number]
    if following and following[0].kind == "bias" and following[0].source is None:
        return following[0]
    return None


def biases(uses: list[Use]) -> dict[Use, Use]:
    """Return the bias of each matrix: the one added to its result, else the next one that belongs to nothing else."""
    found = {u.source: u for u in uses if u.kind == "bias" and u.source is not None and u.source.kind == "matrix"}
    last_matrix: Use | None = None
    last_gain: Use | None = None
    for use in uses:
        if use.kind == "gain":
            last_gain, last_matrix = use, None
        elif use.kind == "matrix":
            last_matrix, last_gain = use, None
        elif use.kind == "bias" and use.source is None and last_gain is None and last_matrix is not None:
            found.setdefault(last_matrix, use)
    return {use: bias for use, bias in found.items() if bias.entries.numel() == use.entries.shape[1]}
