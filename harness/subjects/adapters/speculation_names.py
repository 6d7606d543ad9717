"""The names that people give to speculative decoding, its parameters and its drafts."""

from __future__ import annotations

import re

MODEL = "model"
# What drafts without a second model, and what functions and classes that do it are called.
SELF_DRAFTS = {
    "prompt-lookup": re.compile(r"lookup|n_?gram|pld"),
    "early-exit": re.compile(r"early|exit|self|skip|layer"),
}
DRAFT_CLASSES = {
    "prompt-lookup": re.compile(r"lookup|n_?gram", re.IGNORECASE),
    "early-exit": re.compile(r"early_?exit|layer_?skip|self_?draft", re.IGNORECASE),
}
SPECULATIVE = re.compile(r"specul|assisted_|prompt_lookup|draft_and_verify|self_draft")
# Functions that are a part of it: one round, one acceptance.
PARTS = re.compile(r"step|round|verify|accept|propos|reject|residual|benchmark|test|main|stats")

NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        *("idx", "ids", "input_ids", "prompt", "prefix", "tokens", "prompt_ids", "prompt_tokens", "x", "inputs"),
        *("token_ids", "initial_prompt_seq", "seq", "sequence", "context", "input_tokens", "start_ids", "prime"),
    ),
    "count": (
        *("max_new_tokens", "new_tokens", "num_new_tokens", "n_new_tokens", "max_new", "max_tokens", "num_tokens"),
        *("n_tokens", "max_len", "max_length", "min_len", "n", "n_new", "length", "seq_len", "total_len", "N"),
        *("gen_len", "steps", "num_steps", "target_len", "n_tokens_to_generate", "count"),
    ),
    "lookahead": (
        *("gamma", "lookahead", "k", "K", "n_draft", "num_speculative_tokens", "draft_len", "draft_length", "n_drafts"),
        *("num_draft_tokens", "n_draft_tokens", "speculate_k", "speculative_k", "spec_len", "spec_k", "draft_k"),
        *("speculative_length", "speculation_length", "n_speculative", "num_assistant_tokens", "draft_tokens"),
        *("n_speculative_tokens", "max_draft_tokens", "draft_size", "num_drafts", "num_spec_tokens", "L"),
    ),
    "temperature": ("temperature", "temp", "tau"),
    "top_k": ("top_k", "topk"),
    "top_p": ("top_p", "topp", "nucleus_p"),
    "seed": ("seed", "random_seed", "rng_seed"),
}
SAMPLING = ("do_sample", "sample", "sampling")
GREEDY = ("greedy",)
# Words in the name of a parameter that takes a model.
DRAFTS = frozenset(("draft", "drafter", "approx", "small", "assistant", "proposer", "speculator", "student", "mq", "q"))
TARGETS = frozenset(
    ("target", "model", "large", "big", "main", "verifier", "mp", "base", "teacher", "net", "gpt", "llm")
)
NO_MODELS = frozenset(
    ("len", "length", "num", "n", "k", "tokens", "token", "steps", "count", "size", "max", "layers", "temperature")
) | {"temp", "seed", "probs", "cache", "ids", "prob", "ngram", "kwargs"}
# Where an answer that is more than ids has them.
IDS = ("ids", "tokens", "sequences", "output_ids", "generated_ids", "token_ids", "generated", "output", "sequence")


def is_speculative(name: str) -> bool:
    """Return True if a function or a class of this name decodes speculatively, from a prompt to a text."""
    own = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return bool(SPECULATIVE.search(own)) and not PARTS.search(own) and not own.startswith("_")


def drafts_alone(name: str) -> str:
    """Return what a function without a parameter for a draft drafts with, by its name."""
    own = name.lower()
    return next((draft for draft, pattern in SELF_DRAFTS.items() if pattern.search(own)), "early-exit")


def role_of(word: str) -> str | None:
    """Return the role of a parameter by its name: a key of NAMES, "target" or "draft"; None if it has none."""
    for role, names in NAMES.items():
        if word in names:
            return role
    words = set(word.lower().split("_"))
    if words & NO_MODELS:
        return None
    if words & DRAFTS:
        return "draft"
    return "target" if words & TARGETS else None
