"""A local checkpoint directory of Hugging Face as a subject, `hf:DIRECTORY`: the class that its config names."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

from harness.core.errors import SubjectError


def checkpoint_target(directory: Path) -> tuple[Any, types.ModuleType]:
    """Return a class that builds the directory's architecture at any size, and a module for it.

    Raises SubjectError if there is no config.json, or if it does not describe a GPT-2 that transformers can build.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise SubjectError(f"hf:{directory}: {file} is not a file; expected a directory written by save_pretrained")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        # transformers takes seconds to import: only subjects of this form pay for it.
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    except Exception as error:
        raise SubjectError(f"hf:{directory}: {file}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if raw.get("model_type") != "gpt2":
        raise SubjectError(f"hf:{directory}: {file} describes a '{raw.get('model_type')}'; expected a 'gpt2'")

    class FromDirectory(kind):  # type: ignore[misc]
        """The checkpoint's architecture: its own settings, at any size."""

        def __init__(
            self,
            *config_of_loading: Any,
            n_embd: int = config.n_embd,
            n_layer: int = config.n_layer,
            n_head: int = config.n_head,
            n_positions: int = config.n_positions,
            vocab_size: int = config.vocab_size,
        ) -> None:
            if config_of_loading:  # from_pretrained passes a config
                super().__init__(*config_of_loading)
                return
            own = {**config.to_dict(), "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head}
            own |= {"n_positions": n_positions, "vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": None}
            super().__init__(type(config)(**own))

    FromDirectory.__name__ = FromDirectory.__qualname__ = kind.__name__
    return FromDirectory, types.ModuleType("checkpoint")
