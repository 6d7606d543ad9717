"""Samples of text from a model in training, which leave no trace in the training."""

from gpt.data import Vocabulary
from gpt.model import GPT


def sample_text(model: GPT, vocabulary: Vocabulary, *, prompt: str, tokens: int, seed: int) -> str:
    """Return the prompt and `tokens` sampled tokens after it, as text.

    The tokens are drawn from their own generator, and each module's training mode is restored.

    Raises `UnknownCharacter` or `TokenError` for a prompt that is empty or not in the vocabulary, `ContextError` for
    one that is longer than the context.
    """
    ids = vocabulary.encode(prompt)[None].to(model.lm_head.weight.device)  # (1, T)
    return vocabulary.decode(model.generate(ids, tokens, seed=seed)[0])
