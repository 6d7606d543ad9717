"""nanoGPT as a peer, from the user's own copy of it. It has no cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from harness.core.errors import HarnessError, MissingAbility, MissingResource
from harness.core.sizes import Size
from harness.oracle.probe_weights import state
from harness.subjects.adapters import adapt
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Generates

VARIABLE = "GPT_HARNESS_NANOGPT"
SOURCE = "https://github.com/karpathy/nanoGPT"


class NanoGPT:
    """The class GPT of nanoGPT's model.py.

    path: the file, or its folder; by default the environment variable GPT_HARNESS_NANOGPT.
    tanh_gelu: replace nanoGPT's exact GELU by GPT-2's. Otherwise its answers differ from GPT-2's and fail the
    verification.

    Raises MissingResource without a path, and HarnessError for a path without a file.
    """

    def __init__(self, path: str | Path | None = None, *, tanh_gelu: bool = True) -> None:
        self._adapted = adapt(f"{_file(path)}:GPT")
        self.tanh_gelu = tanh_gelu
        self.name = f"nanoGPT{' with the tanh GELU' if tanh_gelu else ''}"

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """Return the model in eval mode, with the probe weights, for any `seed`. Raises MissingAbility for options."""
        if options:
            raise MissingAbility(f"{self.name} is built without options, got {sorted(options)}")
        model = build_with_weights(self._adapted, size, state(size.name, "probe"), dtype)
        if self.tanh_gelu:
            for part in model.module.modules():
                if isinstance(part, nn.GELU):
                    part.approximate = "tanh"
        model.module.to(device)
        return model

    def generate(
        self,
        model: Model,
        ids: Tensor,
        new_tokens: int,
        *,
        temperature: float = 1.0,
        use_cache: bool | None = None,
        **settings: Any,
    ) -> Tensor:
        """Generate with nanoGPT's own method; see `Generates.generate`. Raises MissingAbility for `use_cache`."""
        if use_cache:
            raise MissingAbility(f"{self.name} generates without a cache: it has none")
        assert isinstance(self._adapted, Generates)
        if temperature == 0:  # it divides by the temperature; top_k=1 chooses the same token in one pass
            temperature, settings["top_k"] = 1.0, 1
        return self._adapted.generate(model, ids, new_tokens, temperature=temperature, **settings)


def _file(path: str | Path | None) -> Path:
    """Return the path of model.py, from the path of it or of its folder. Raises as NanoGPT does."""
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise MissingResource(
            f"nanoGPT: name a copy of it with --nanogpt PATH, or in {VARIABLE}; `git clone {SOURCE}` makes one"
        )
    file = Path(path) / "model.py" if Path(path).is_dir() else Path(path)
    if not file.is_file():  # an error, not a missing resource: a typing error must not turn an arm off silently
        raise HarnessError(f"--nanogpt {path}: {file} is not a file; expected nanoGPT's folder, or its model.py")
    return file
