"""The shape of a GPT as one frozen dataclass, and the published shapes as data."""

import math
from dataclasses import dataclass, fields

from gpt.errors import ConfigError

ATTENTIONS = ("looped", "naive", "flash")
INITS = ("gpt2", "unscaled", "pytorch", "kaiming")

LARGEST = 2**31 - 1  # of a size: no product of two overflows 64 bits
LAYER_NORM_EPS = 1e-5  # GPT-2's, in every published size


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture of a GPT; the defaults are GPT-2 small.

    Raises `ConfigError` when a value has the wrong type or describes no GPT.
    """

    vocab_size: int = 50257
    block_size: int = 1024
    """The context: the largest number of tokens in one forward pass."""
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    """At GPT-2's four sites: the embeddings, the attention weights and both residual branches."""
    bias: bool = True
    """False drops the biases of every linear layer and LayerNorm (published GPT-2 has them)."""
    tied: bool = True
    """True makes the head the token embedding: one parameter with two uses."""
    attention: str = "flash"
    """The form of attention: "looped" (head by head), "naive" (batched) or "flash" (fused)."""
    init: str = "gpt2"
    """The initialisation: a name in `gpt.init.RECIPES`."""
    n_experts: int = 0
    """The feed-forward networks of a block, of which a router chooses; 0 is GPT-2's one network without a router."""
    experts_per_token: int = 2
    """The experts that compute a token, where there are experts."""
    capacity_factor: float = 0.0
    """The most tokens of a batch that an expert computes, in units of its even share; 0 is no limit."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), field.type)
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not positive; give at least 1")
            if getattr(self, name) > LARGEST:
                raise ConfigError(f"{name}={getattr(self, name)} is too large for a size; give at most {LARGEST}")
        if self.n_embd % self.n_head:
            below = max(self.n_head, self.n_embd - self.n_embd % self.n_head)
            raise ConfigError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; the heads share the width "
                f"evenly: try n_embd={below} or another n_head"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is outside [0, 1); it is the share of values dropped")
        self._check_experts()
        check_choice("attention", self.attention, ATTENTIONS)
        check_choice("init", self.init, INITS)

    def _check_experts(self) -> None:
        if self.n_experts < 0:
            raise ConfigError(f"n_experts={self.n_experts} is negative; give 0 for none")
        most = self.n_experts or math.inf
        if not 1 <= self.experts_per_token <= most:
            raise ConfigError(
                f"experts_per_token={self.experts_per_token} is outside 1 to n_experts, {most}; "
                "a token is computed by at least one expert, and by each at most once"
            )
        if not 0 <= self.capacity_factor < math.inf:
            raise ConfigError(
                f"capacity_factor={self.capacity_factor} is not a positive number; give 1 or more, or 0 for no limit"
            )

    @property
    def head_size(self) -> int:
        """The width of one head, D = C / H."""
        return self.n_embd // self.n_head


def check_type(name: str, value: object, expected: object) -> None:
    """Raise `ConfigError` unless `value` has the type `expected`: int, float, bool or str."""
    if isinstance(value, int) and value.bit_length() > 64:  # it may have more digits than Python shows
        raise ConfigError(f"{name} is a whole number of {value.bit_length()} bits; expected at most 64")
    # A bool is an int in Python, and an int is a valid float: the two cases that isinstance alone gets wrong.
    if expected is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif expected is int:
        right = isinstance(value, int) and not isinstance(value, bool)
    else:
        right = isinstance(value, expected)  # type: ignore[arg-type]  # str and bool
    if not right:
        kind = getattr(expected, "__name__", expected)
        raise ConfigError(f"{name}={value!r} is of type {type(value).__name__}; expected {kind}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}")


PRESETS: dict[str, GPTConfig] = {
    # Every size of debug differs from every other, so that a swapped dimension cannot hide.
    "debug": GPTConfig(vocab_size=211, block_size=32, n_layer=3, n_head=4, n_embd=48),
    # Published: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
}
