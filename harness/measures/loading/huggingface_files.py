"""Checkpoint directories of Hugging Face's GPT-2: how one is written, changed and read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.oracle import model_cache, noise_verdict
from harness.oracle.hugging_face import huggingface_config, oracle
from harness.oracle.probe_weights import Weights, state

WEIGHTS_FILE = "model.safetensors"


def save_with_huggingface(weights: Weights, size: str, folder: Path) -> None:
    """Write the directory that `save_pretrained` of Hugging Face's GPT-2 writes for these weights."""

    def files() -> dict[str, bytes]:
        model: Any = oracle(SIZES[size], state(size, weights), "float32").module
        model.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    for name, content in model_cache.cached_if_small(size, ("saved", weights), files).items():
        (folder / name).write_bytes(content)


def files_and_logits_with_setting(size: str, setting: dict[str, Any], ids: Tensor) -> tuple[dict[str, bytes], Tensor]:
    """Return the files of a Hugging Face GPT-2 with that setting and probe weights, and its logits (B, T, V)."""
    from transformers import GPT2LMHeadModel  # slow to import

    config, given = huggingface_config(SIZES[size]), state(size, "probe")
    config.update(setting)
    config._attn_implementation = "eager"
    model: Any = GPT2LMHeadModel(config).eval()
    untied_head = torch.flip(given["transformer.wte.weight"], [0])  # differs from the embedding, if it is not tied
    is_untied = setting.get("tie_word_embeddings", True) is False
    model.load_state_dict({**given, **({"lm_head.weight": untied_head} if is_untied else {})}, strict=False)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}, model(ids).logits


def load_with_huggingface(folder: Path) -> torch.nn.Module:
    """Return the model that Hugging Face loads from a directory, in float32."""
    from transformers import GPT2LMHeadModel  # slow to import

    huggingface_config(SIZES["debug"])  # silences the library's log
    model: torch.nn.Module = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    return model


def rewrite_weights(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the tensors of a safetensors file by `change(tensors)`."""
    from safetensors.torch import load, save_file

    save_file(change(load(file.read_bytes())), file, metadata={"format": "pt"})


def same_logits(found: Tensor, expected: Tensor) -> bool:
    """Return True if the largest difference is at most 1e-4 of the largest logit, far above float32 rounding."""
    return noise_verdict.distance(found, expected) <= 1e-4 * noise_verdict.max_abs(expected)
