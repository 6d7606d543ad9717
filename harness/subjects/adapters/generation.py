"""How a GPT continues a prompt and keeps a cache, in the styles that people write: said in the harness's words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import Size
from harness.subjects.forward_call import forward_parameters, parameters_of, unpack

SETTINGS = {
    "temperature": ("temperature", "temp"),
    "top_k": ("top_k", "topk", "k"),
    "top_p": ("top_p", "topp", "p", "nucleus_p"),
    "seed": ("seed", "random_seed"),
    "use_cache": ("use_cache", "cached", "use_kv_cache", "kv_cache"),
}
NEW_TOKENS = ("token", "length", "step", "new", "num", "max", "len", "count", "amount", "size")
DRAWING = ("do_sample", "sample", "sampling")
GREEDY = ("greedy",)
MODELS = ("model", "net", "gpt", "llm", "transformer")
CONTEXTS = ("context_size", "context_length", "block_size", "ctx_len", "max_context", "context")
GROWING = "growing"  # the parameter of new_cache by which a subject offers a cache that is concatenated
PASTS = (
    "past_key_values",
    "kv_cache",
    "past",
    "cache",
    "layer_past",
    "past_kv",
    "past_kvs",
    "kv_caches",
    "caches",
    "kv",
)
RESETS = ("reset_kv_cache", "reset_cache", "clear_cache", "clear_kv_cache", "reset_caches", "empty_cache")


@dataclass(frozen=True)
class Generator:
    """A function that continues a prompt: a method of the model, or one beside its class that takes the model."""

    function: Callable[..., Any]
    parameters: Mapping[str, inspect.Parameter]
    takes_the_model: bool

    def word(self, setting: str) -> str | None:
        """The function's own word for a setting (a key of SETTINGS)."""
        return next((w for w in SETTINGS[setting] if w in self.parameters), None)

    def flag(self, words: tuple[str, ...]) -> str | None:
        """The first of `words` that is a parameter."""
        return next((w for w in words if w in self.parameters), None)


def generator_of(kind: type, module: ModuleType | None) -> Generator | None:
    """How the subject generates: generate(ids, new tokens, ...), or generate(model, ids, new tokens, ...) beside it."""
    for name in ("generate", "generate_text", "sample"):
        method = getattr(kind, name, None)
        if callable(method):
            parameters = parameters_of(kind, name)
            words = list(parameters)
            if _is_transformers(kind) or (len(words) > 1 and _counts(words[1])):
                return Generator(method, parameters, False)
    for name, function in vars(module).items() if module is not None else ():
        if not name.startswith("generate") or not inspect.isfunction(function):
            continue
        parameters = dict(inspect.signature(function).parameters)
        words = list(parameters)
        if len(words) > 2 and words[0] in MODELS and _counts(words[2]):
            return Generator(function, parameters, True)
    return None


def _counts(word: str) -> bool:
    return word in ("n", "k", "m") or any(part in word for part in NEW_TOKENS)


def _is_transformers(kind: type) -> bool:
    return any(
        base.__module__.startswith("transformers.") and base.__name__ == "GenerationMixin" for base in kind.__mro__
    )


def generate(
    how: Generator,
    name: str,
    module: nn.Module,
    size: Size,
    ids: Tensor,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    use_cache: bool | None = None,
) -> Tensor:
    """See `Generates.generate`. A setting that the subject lacks, and that matters, is MissingAbility."""
    if _is_transformers(type(module)):
        return _by_transformers(module, size, ids, new_tokens, temperature, top_k, top_p, seed, use_cache)
    wanted: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "seed": seed, "use_cache": use_cache}
    settings: dict[str, Any] = {}
    for setting, value in wanted.items():
        word = how.word(setting)
        if word is not None and value is not None:
            settings[word] = value
        elif setting == "seed" and value is not None:
            torch.manual_seed(value)  # it draws from the global generator
        elif value is not None:
            raise MissingAbility(f"generate of {name} has no setting '{setting}'")
    if temperature == 0:
        answer = _greedy(how, name, module, size, ids, new_tokens, settings)
    else:
        answer = _sampled(how, name, module, size, ids, new_tokens, settings, temperature)
    return _checked(answer, ids, new_tokens)


def _greedy(
    how: Generator, name: str, module: nn.Module, size: Size, ids: Tensor, new_tokens: int, settings: dict[str, Any]
) -> Any:
    """By the word that says it; else temperature 0; else, where that divides by zero, the likeliest one (top_k 1)."""
    if (flag := how.flag(DRAWING)) is not None:
        return _run(how, module, size, ids, new_tokens, {**settings, flag: False})
    if (flag := how.flag(GREEDY)) is not None:
        return _run(how, module, size, ids, new_tokens, {**settings, flag: True})
    temperature, top_k = how.word("temperature"), how.word("top_k")
    if temperature is None and top_k is None:
        if _draws(how, module, size, ids):
            raise MissingAbility(f"generate of {name} draws every token: it has no temperature, top_k or do_sample")
        return _run(how, module, size, ids, new_tokens, settings)
    if temperature is None:
        return _run(how, module, size, ids, new_tokens, {**settings, str(top_k): 1})
    try:
        with _DividesByZero() as divided:
            answer = _run(how, module, size, ids, new_tokens, {**settings, temperature: 0.0})
        if not divided.seen or top_k is None:
            return answer
    except Exception:
        if top_k is None:
            raise
    return _run(how, module, size, ids, new_tokens, {**settings, temperature: 1.0, top_k: 1})


def at_temperature_zero(how: Generator, module: nn.Module, size: Size, ids: Tensor, new_tokens: int) -> Tensor:
    """What the function itself does with a temperature of zero."""
    return _checked(_run(how, module, size, ids, new_tokens, {str(how.word("temperature")): 0.0}), ids, new_tokens)


class _DividesByZero(torch.overrides.TorchFunctionMode):
    """While open, notes whether a tensor is divided by the number zero: what follows is infinite or not a number."""

    seen = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DIVISIONS and len(args) > 1 and isinstance(args[1], int | float) and args[1] == 0:
            self.seen = True
        return function(*args, **(kwargs or {}))


_DIVISIONS = (torch.Tensor.div, torch.Tensor.__truediv__, torch.Tensor.true_divide, torch.div, torch.Tensor.div_,
              torch.Tensor.__itruediv__)  # fmt: skip


def _sampled(
    how: Generator,
    name: str,
    module: nn.Module,
    size: Size,
    ids: Tensor,
    new_tokens: int,
    settings: dict[str, Any],
    temperature: float,
) -> Any:
    word = how.word("temperature")
    if word is not None:
        settings[word] = temperature
    elif temperature != 1.0:
        raise MissingAbility(f"generate of {name} has no setting 'temperature'")
    if (flag := how.flag(DRAWING)) is not None:
        settings[flag] = True
    elif word is None and how.word("top_k") is None and how.word("seed") is None and how.flag(GREEDY) is None:
        state = torch.get_rng_state()
        draws = _draws(how, module, size, ids)
        torch.set_rng_state(state)
        if not draws:
            raise MissingAbility(f"generate of {name} is greedy only: it has no temperature and draws nothing")
    return _run(how, module, size, ids, new_tokens, settings)


def _draws(how: Generator, module: nn.Module, size: Size, ids: Tensor) -> bool:
    """Whether a function without a word for it draws tokens at random: two seeds, two answers."""
    answers, training = [], module.training
    module.eval()  # or it is dropout that draws
    for seed in (0, 1):
        torch.manual_seed(seed)
        answers.append(_run(how, module, size, ids[:2], min(16, size.context), {}))
    module.train(training)
    return not torch.equal(answers[0], answers[1])


def _run(how: Generator, module: nn.Module, size: Size, ids: Tensor, new_tokens: int, settings: dict[str, Any]) -> Any:
    if (context := how.flag(CONTEXTS)) is not None:
        settings = {context: size.context, **settings}
    if how.takes_the_model:
        with torch.no_grad():
            return how.function(module, ids, new_tokens, **settings)
    method = getattr(module, how.function.__name__)
    return method(ids, new_tokens, **settings)


def _by_transformers(
    module: Any,
    size: Size,
    ids: Tensor,
    new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    use_cache: bool | None,
) -> Tensor:
    if ids.shape[1] + new_tokens > size.context:
        raise MissingAbility("generate of transformers does not slide its window: it ends at the context")
    if seed is not None:
        torch.manual_seed(seed)
    module.generation_config.eos_token_id = None  # by length alone
    drawing = {"do_sample": False} if temperature == 0 else {
        "do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": 1.0 if top_p is None else top_p
    }  # fmt: skip
    answer = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        pad_token_id=0,
        use_cache=use_cache is not False,
        **drawing,
    )
    return _checked(answer, ids, new_tokens)


def _checked(answer: Any, ids: Tensor, new_tokens: int) -> Tensor:
    if isinstance(answer, tuple | list) and answer and isinstance(answer[0], Tensor):
        answer = answer[0]
    expected = (ids.shape[0], ids.shape[1] + new_tokens)
    if isinstance(answer, Tensor) and answer.shape == (ids.shape[0], new_tokens) != expected:
        answer = torch.cat((ids, answer), dim=1)  # the new tokens alone
    if not isinstance(answer, Tensor) or answer.shape != expected:
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise SubjectError(f"generate gave {found}, expected ids of shape {expected}: the prompt and the new tokens")
    return answer


class Past:
    """What a model that decodes step by step hands back, to be handed in again at the next step."""

    def __init__(self) -> None:
        self.state: Any = None
        self.length = 0


def caches(kind: type) -> bool:
    """Whether the forward pass can keep keys and values, in one of the ways that `step` knows."""
    words = parameters_of(kind, "forward")
    if callable(getattr(kind, "new_cache", None)) and "cache" in words:
        return True
    if "use_cache" in words and _reset_of(kind) is not None:
        return True
    return any(word in words for word in PASTS) and ("use_cache" in words or "past_key_values" in words)


def grows(kind: type) -> bool:
    """Whether `new_cache(batch_size, growing=True)` offers a cache that is concatenated at each step."""
    return callable(getattr(kind, "new_cache", None)) and GROWING in parameters_of(kind, "new_cache")


def new_cache(module: Any, batch_size: int, *, growing: bool = False) -> Any:
    """See `ChoosesCache.new_cache`."""
    if callable(getattr(module, "new_cache", None)):
        return module.new_cache(batch_size, **({GROWING: True} if growing else {}))
    if (reset := _reset_of(type(module))) is not None:
        getattr(module, reset)()
    return Past()


def step(module: nn.Module, ids: Tensor, cache: Any) -> Tensor:
    """See `Caches.step`."""
    if not isinstance(cache, Past):
        return unpack(module(ids, cache=cache), ids)[0]
    words = forward_parameters(module)
    more: dict[str, Any] = {"use_cache": True} if "use_cache" in words else {}
    word = next((w for w in PASTS if w in words), None)
    if word is not None:
        more[word] = cache.state
    answer = module(ids, **more)
    if word is not None:
        cache.state = _past_in(answer, word)
        if cache.state is None:
            raise MissingAbility(f"forward takes '{word}' and gives none back: what it keeps, the harness cannot tell")
    cache.length += ids.shape[1]
    logits = unpack(answer, ids)[0]
    if logits.shape[1] != ids.shape[1]:
        raise MissingAbility(f"a cached step answers {logits.shape[1]} positions for {ids.shape[1]} tokens")
    return logits


def _reset_of(kind: type) -> str | None:
    return next((name for name in RESETS if callable(getattr(kind, name, None))), None)


def _past_in(answer: Any, word: str) -> Any:
    for name in (word, *PASTS):
        if isinstance(answer, Mapping) and answer.get(name) is not None:
            return answer[name]
        if not isinstance(answer, tuple | list) and getattr(answer, name, None) is not None:
            return getattr(answer, name)
    if isinstance(answer, tuple | list):
        return next((item for item in reversed(answer) if item is not None and not isinstance(item, Tensor)), None)
    return None
