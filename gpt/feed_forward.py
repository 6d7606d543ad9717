"""The feed-forward network of a block."""

from torch import Tensor, nn

from gpt.config import GPTConfig
from gpt.linear import Linear


class FeedForward(nn.Module):
    """The feed-forward network, on each position separately: widen to 4C, GELU, project back to C."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh")  # GPT-2's; the exact form differs by 8e-4 in the logits
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        x = self.gelu(self.c_fc(x))  # (..., C) -> (..., 4C)
        out: Tensor = self.dropout(self.c_proj(x))  # (..., 4C) -> (..., C)
        return out
