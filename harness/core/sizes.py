"""The sizes at which a GPT is judged, in words that belong to no implementation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One architecture: how many of what. Widths and lengths are counts, not bytes."""

    name: str
    vocab_size: int
    context: int
    layers: int
    heads: int
    width: int

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


# Every dimension of the debug size is different from every other, so that no mix-up of two can hide.
SIZES: dict[str, Size] = {
    size.name: size
    for size in (
        Size("debug", vocab_size=211, context=32, layers=3, heads=4, width=48),
        # As small, and with a context beyond 256, where positions in bfloat16 collapse, and beyond its width.
        Size("debug-long", vocab_size=211, context=519, layers=1, heads=4, width=48),
        Size("124M", vocab_size=50257, context=1024, layers=12, heads=12, width=768),
        Size("355M", vocab_size=50257, context=1024, layers=24, heads=16, width=1024),
        Size("774M", vocab_size=50257, context=1024, layers=36, heads=20, width=1280),
        Size("1558M", vocab_size=50257, context=1024, layers=48, heads=25, width=1600),
    )
}

# What the Hugging Face hub calls them.
PUBLISHED = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
