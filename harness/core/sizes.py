"""The sizes at which a GPT is judged, in terms of no particular implementation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The sizes of one architecture. Widths and lengths are counts, not bytes.

    The fields with a default are GPT-2's. A subject may have others: a hidden width of its MLP that is not 4C
    (`hidden`), a second matrix beside the MLP's first, with which its output is multiplied (`gated`, as in SwiGLU), or
    fewer heads of keys and values than of queries (`key_value_heads`, as in grouped-query attention).
    """

    name: str
    vocab_size: int
    context: int
    layers: int
    heads: int
    width: int
    hidden: int = 0  # 0: 4 · width
    gated: bool = False
    key_value_heads: int = 0  # 0: as many as heads

    @property
    def head_width(self) -> int:
        """The number of channels of one attention head."""
        return self.width // self.heads

    @property
    def hidden_width(self) -> int:
        """The number of channels between the two projections of the MLP."""
        return self.hidden or 4 * self.width

    @property
    def key_value_width(self) -> int:
        """The number of channels of all keys, and of all values."""
        return (self.key_value_heads or self.heads) * self.head_width

    @property
    def has_gpt2_widths(self) -> bool:
        """True if the MLP and the attention are as wide as GPT-2's."""
        return not (self.hidden or self.gated or self.key_value_heads)

    @property
    def third_edges(self) -> tuple[int, int, int, int]:
        """The columns of the fused projection at which queries, keys and values begin, and its number of columns."""
        C, K = self.width, self.key_value_width
        return 0, C, C + K, C + 2 * K


# All dimensions of the debug size differ, so that two that are mixed up give an error or another result.
SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("debug", vocab_size=211, context=32, layers=3, heads=4, width=48),
        # As small, but its context is beyond 256, where positions in bfloat16 collapse, and beyond its width.
        Size("debug-long", vocab_size=211, context=519, layers=1, heads=4, width=48),
        # GPT-2's own width, heads and context, in two layers with few tokens: a tenth of the time of 124M.
        Size("124M-shallow", vocab_size=211, context=1024, layers=2, heads=12, width=768),
        Size("124M", vocab_size=50257, context=1024, layers=12, heads=12, width=768),
        Size("355M", vocab_size=50257, context=1024, layers=24, heads=16, width=1024),
        Size("774M", vocab_size=50257, context=1024, layers=36, heads=20, width=1280),
        Size("1558M", vocab_size=50257, context=1024, layers=48, heads=25, width=1600),
    )
}

# The names of the published sizes on the Hugging Face hub.
PUBLISHED = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
