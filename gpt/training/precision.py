"""Precision: the type of the weights, the type of the products, and the scaler that 16-bit gradients need."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from gpt.errors import ConfigError

# From the name to the type of the weights and the type of the products under autocast (None: without autocast).
# The weights stay in float32 in mixed precision: near 1.0 the next bfloat16 is 1.0078, and an update of lr = 6e-4 is
# lost entirely. Gradients and AdamW's moments have the type of the weights.
TYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.float32, torch.bfloat16),
    "float16": (torch.float32, torch.float16),
    "pure-bfloat16": (torch.bfloat16, None),
}


@dataclass(frozen=True)
class Precision:
    """A precision on a device. Raises `ConfigError` for one that is unknown or that the device does not have."""

    name: str
    device: torch.device

    def __post_init__(self) -> None:
        if self.name not in TYPES:
            raise ConfigError(f"precision={self.name!r} is unknown; choose one of {', '.join(map(repr, TYPES))}")
        if self.name == "float16" and self.device.type != "cuda":
            raise ConfigError(
                f"precision='float16' needs a CUDA device, and this run is on {self.device.type}; "
                "use precision='bfloat16', whose gradients need no scaling, or 'float32'"
            )

    @property
    def weights(self) -> torch.dtype:
        """The type in which weights are stored and updated."""
        return TYPES[self.name][0]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass. The backward pass stays outside: it uses the forward's types."""
        products = TYPES[self.name][1]
        return nullcontext() if products is None else torch.autocast(self.device.type, dtype=products)

    def scaler(self) -> torch.amp.GradScaler:
        """Return a scaler of the loss. It is active in float16 only, where small gradients would become 0.

        The smallest positive float16 is 6e-8; bfloat16 has float32's exponents and needs no scaling.
        """
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "float16")
