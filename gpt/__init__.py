"""The reference GPT-2, written to be read and to be compared with."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt.attention import CausalSelfAttention, Head, LoopedSelfAttention
    from gpt.cache import KVCache
    from gpt.config import PRESETS, GPTConfig
    from gpt.errors import (
        CacheError,
        ConfigError,
        ContextError,
        DataCorrupt,
        DataError,
        DataUnavailable,
        GenerationError,
        GPTError,
        ScalingError,
        SeedError,
        ServingError,
        TextError,
        TokenError,
        WeightsError,
        WeightsUnavailable,
    )
    from gpt.experts import MixtureOfExperts
    from gpt.feed_forward import FeedForward
    from gpt.model import GPT
    from gpt.network import Block
    from gpt.scaling_law import ScalingLaw, fit_iso_flops, fit_scaling_law, optimal_sizes, read_runs, training_flops
    from gpt.serving import Engine, Request
else:

    def __getattr__(name: str) -> object:
        # At the first use: torch takes seconds to import, and `python -m gpt.train --help` does not need it.
        if name in __all__:
            modules = (
                "errors",
                "config",
                "attention",
                "cache",
                "feed_forward",
                "experts",
                "network",
                "model",
                "serving",
            )
            for module in (*modules, "scaling_law"):
                found = getattr(import_module(f"gpt.{module}"), name, None)
                if found is not None:
                    return found
        raise AttributeError(f"module 'gpt' has no attribute '{name}'")


__all__ = [
    "GPT",
    "PRESETS",
    "Block",
    "CacheError",
    "CausalSelfAttention",
    "ConfigError",
    "ContextError",
    "DataCorrupt",
    "DataError",
    "DataUnavailable",
    "Engine",
    "FeedForward",
    "GPTConfig",
    "GPTError",
    "GenerationError",
    "Head",
    "KVCache",
    "LoopedSelfAttention",
    "MixtureOfExperts",
    "Request",
    "ScalingError",
    "ScalingLaw",
    "SeedError",
    "ServingError",
    "TextError",
    "TokenError",
    "WeightsError",
    "WeightsUnavailable",
    "fit_iso_flops",
    "fit_scaling_law",
    "optimal_sizes",
    "read_runs",
    "training_flops",
]
