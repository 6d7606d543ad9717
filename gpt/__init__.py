"""The reference GPT-2, written to be read and to be compared with."""

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
    TextError,
    TokenError,
    WeightsError,
    WeightsUnavailable,
)
from gpt.model import GPT
from gpt.network import Block, FeedForward

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
    "FeedForward",
    "GPTConfig",
    "GPTError",
    "GenerationError",
    "Head",
    "KVCache",
    "LoopedSelfAttention",
    "TextError",
    "TokenError",
    "WeightsError",
    "WeightsUnavailable",
]
