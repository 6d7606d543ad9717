"""Models on disk, in Hugging Face's format: config.json and model.safetensors."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gpt.checkpoint import Checkpoint, digest, read_json
from gpt.config import LAYER_NORM_EPS, PRESETS, GPTConfig
from gpt.errors import ConfigError, WeightsError
from gpt.hub import CONFIG, SINGLE, locate
from gpt.network import Network
from gpt.weights import HuggingFaceWeights, mapped_weights, to_huggingface

Model = TypeVar("Model", bound=Network)

# The values that a configuration may have, where it has the key, for this GPT-2 to be the same function.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "layer_norm_epsilon": (LAYER_NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "add_cross_attention": (False,),
}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def from_pretrained(
    model_class: type[Model],
    name: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    attention: str = "flash",
    dropout: float | None = None,
    download: bool = True,
) -> Model:
    """Return a `model_class` with published weights, in eval mode.

    `name` is "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", the hub's id of any other GPT-2, or a
    directory. The hub's local cache is searched before the hub. Only safetensors are read, never a pickle.
    `dtype` None keeps the dtype of the file, and `dropout` None the dropout of the configuration.

    Raises `WeightsUnavailable` when there is nothing to load, `ConfigError` for a configuration that is not
    GPT-2's function, `WeightsError` for a damaged checkpoint or one that does not fit.
    """
    config_file, weight_files = locate(name, download=download)
    raw = read_json(config_file)
    config = config_from_huggingface(raw, config_file, attention=attention, dropout=dropout)
    checkpoint = Checkpoint(weight_files)
    checkpoint.verify()
    try:
        weights = HuggingFaceWeights(checkpoint, checkpoint.shapes)
        weights.check_layers(config.n_layer)  # building a million layers takes minutes, even on meta
        model = model_class(config, device="meta")
        weights.check_fit(model)
        # One tensor after the other, each straight into its final memory: the peak is the weights once.
        state = {weight.ours: _copy(weights.read(weight), dtype, device) for weight in mapped_weights(config)}
        _check_one_dtype(state)
    except WeightsError as error:
        raise WeightsError(f"{config_file.parent}: {error}") from error
    if config.tied:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state, assign=True)
    return model.eval()


def _check_one_dtype(state: Mapping[str, Tensor]) -> None:
    dtypes = {str(tensor.dtype) for tensor in state.values()}
    if len(dtypes) > 1:
        raise WeightsError(f"the weights mix {', '.join(sorted(dtypes))}; choose one with dtype=")


def _copy(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """Return a contiguous copy, never a view of the memory-mapped file; `dtype` None keeps the tensor's."""
    return torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=device).copy_(tensor)


def save_pretrained(model: Network, folder: str | os.PathLike[str]) -> None:
    """Write config.json and model.safetensors, as Hugging Face's `GPT2LMHeadModel.from_pretrained` reads them.

    Each file appears whole or not at all. The weights file contains a checksum, which `from_pretrained` verifies.

    Raises `WeightsError` when the folder cannot be written, or Hugging Face's GPT-2 cannot represent the model.
    """
    from safetensors.torch import save_file  # here to save start-up time

    tensors = {name: tensor.cpu() for name, tensor in to_huggingface(model).items()}
    metadata = {"format": "pt", "sha256": digest(tensors, list(tensors))}
    config = config_to_huggingface(model.config, next(iter(tensors.values())).dtype)
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as staging:
            save_file(tensors, Path(staging, SINGLE), metadata=metadata)
            Path(staging, CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            # safetensors writes a file that only its owner can read; config.json has the user's default mode.
            shutil.copymode(Path(staging, CONFIG), Path(staging, SINGLE))
            for file in (SINGLE, CONFIG):
                os.replace(Path(staging, file), folder / file)
    except OSError as error:
        raise WeightsError(f"{folder}: the model cannot be saved there ({error})") from error


def config_to_huggingface(config: GPTConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the contents of config.json."""
    end_of_text = 50256 if config.vocab_size > 50256 else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPS,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tied,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": str(dtype).removeprefix("torch."),
    }


def config_from_huggingface(
    raw: Mapping[str, Any],
    where: str | os.PathLike[str] = CONFIG,
    *,
    attention: str = "flash",
    dropout: float | None = None,
) -> GPTConfig:
    """Return the GPTConfig for the contents of a config.json.

    A key that is absent has its value in GPT-2 small, as in Hugging Face's own reader.

    Raises `ConfigError`, whose message begins with `where`, when it describes another function than GPT-2.
    """
    for key, allowed in SUPPORTED.items():
        if key in raw and raw[key] not in allowed:
            raise _unsupported(where, key, raw[key], allowed)
    small = PRESETS["gpt2"]
    try:
        config = GPTConfig(
            vocab_size=raw.get("vocab_size", small.vocab_size),
            block_size=raw.get("n_positions", raw.get("n_ctx", small.block_size)),
            n_layer=raw.get("n_layer", small.n_layer),
            n_head=raw.get("n_head", small.n_head),
            n_embd=raw.get("n_embd", small.n_embd),
            dropout=_only_dropout(raw) if dropout is None else dropout,
            tied=raw.get("tie_word_embeddings", True),
            attention=attention,
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if raw.get("n_inner") not in (None, 4 * config.n_embd):
        raise _unsupported(where, "n_inner", raw["n_inner"], (4 * config.n_embd,))
    return config


def _unsupported(where: object, key: str, found: object, allowed: tuple[Any, ...]) -> ConfigError:
    options = " or ".join(repr(value) for value in allowed)
    return ConfigError(f"{where}: {key} is {found!r}, expected {options}; gpt.GPT computes GPT-2 only")


def _only_dropout(raw: Mapping[str, Any]) -> Any:
    rates = {key: raw.get(key, 0.1) for key in DROPOUTS}  # absent is 0.1, as in Hugging Face's
    if any(rate != rates["embd_pdrop"] for rate in rates.values()):
        raise ConfigError(f"the dropout differs by site, {rates}; choose one with dropout=")
    return rates["embd_pdrop"]
