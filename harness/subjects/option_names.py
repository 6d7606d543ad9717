"""The options of a forward pass and of generate that checks judge, under the names that people give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.subjects.forward_style import POSITIONS

PADDING_MASKS = ("attention_mask", "padding_mask")

# What an option is in words, and the names of the parameter that sets it, the usual one first.
FORWARD_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "positions": POSITIONS,
    "last n": ("logits_to_keep", "num_logits_to_keep", "last_n", "n_last", "keep_last", "num_last_tokens"),
    "last only": ("last_only", "only_last", "return_last", "last_token_only", "only_last_token", "return_last_only"),
    "use_cache": ("use_cache",),
    "reduction": ("reduction", "loss_reduction"),
    "ignore_index": ("ignore_index", "ignore_id"),
    "label smoothing": ("label_smoothing", "smoothing"),
}
GENERATE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "stop token": (
        *("eos_token_id", "eos_id", "eos_token", "eos", "stop_token_id", "stop_token", "stop_id", "end_token"),
        *("end_token_id", "eot_token", "eot_id", "eot", "stop_tokens", "stop_token_ids", "stop_ids"),
    ),
    "pad token": ("pad_token_id", "pad_id", "pad_token", "pad"),
    "sequences": ("num_return_sequences", "num_sequences", "n_sequences", "num_samples", "n_samples"),
    "repetition penalty": ("repetition_penalty", "rep_penalty", "repeat_penalty"),
    "frequency penalty": ("frequency_penalty", "freq_penalty"),
    "presence penalty": ("presence_penalty",),
    "min-p": ("min_p", "minp"),
    # Judged in generation.toml by every value but 0.
    "top-k": ("top_k", "topk", "k"),
    "sampling": ("do_sample", "sample", "sampling"),
}


def own_name(option: str, names: Mapping[str, tuple[str, ...]], parameters: Iterable[str]) -> str | None:
    """Return the parameter that sets an option (a key of `names`); None if there is none."""
    own = set(parameters)
    return next((name for name in names[option] if name in own), None)
