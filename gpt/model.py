"""The class GPT: the network, with generation and with weights from and to Hugging Face."""

import os
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from gpt.generate import generate
from gpt.network import Network
from gpt.pretrained import from_pretrained, save_pretrained
from gpt.speculation import speculate
from gpt.weights import load_huggingface


class GPT(Network):
    """A GPT-2. `gpt.network.Network` is the formula and documents the arguments; each method here is a function.

    `generate` is `gpt.generate.generate`, `speculate` is `gpt.speculation.speculate`; the others are in
    `gpt.pretrained` and `gpt.weights`.
    """

    generate = generate
    speculate = speculate

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Self:
        """Return a model with published weights; `gpt.pretrained.from_pretrained` has the options and the errors."""
        return from_pretrained(cls, name, **options)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a directory that `from_pretrained` and Hugging Face read; see `gpt.pretrained`."""
        save_pretrained(self, folder)

    def load_huggingface(self, state: Mapping[str, Tensor]) -> None:
        """Copy the weights of Hugging Face's GPT-2 into this model; see `gpt.weights`."""
        load_huggingface(self, state)
