"""Continue a prompt with a GPT's own generate function, in the styles that people write."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import textwrap
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import Size
from harness.subjects.forward_style import parameters_of, style_of
from harness.subjects.option_names import GENERATE_OPTIONS

# The settings of `Generates.generate`, and the names that functions have for them.
SETTINGS = {
    "temperature": ("temperature", "temp"),
    "top_k": ("top_k", "topk", "k"),
    "top_p": ("top_p", "topp", "p", "nucleus_p"),
    "seed": ("seed", "random_seed"),
    "use_cache": ("use_cache", "cached", "use_kv_cache", "kv_cache"),
}
# A part of the name of the parameter that takes the number of new tokens.
NEW_TOKENS = ("token", "length", "step", "new", "num", "max", "len", "count", "amount", "size")
# Parts of names that have one of these parts in them, and take something else.
NO_COUNT = (
    *("tokenizer", "stop", "eos", "bos", "pad", "special", "start", "penalty", "vocab", "beam", "min", "samples"),
    "sequences",
)
SAMPLING = ("do_sample", "sample", "sampling")
GREEDY = ("greedy",)
TOKENIZERS = ("enc", "tok", "sp", "bpe", "stoi", "itos", "decode")
MODELS = ("model", "net", "gpt", "llm", "transformer")
CONTEXTS = ("context_size", "context_length", "block_size", "ctx_len", "max_context", "context")


@dataclass(frozen=True)
class GenerateFunction:
    """A function that continues a prompt: a method of the model, or a function of its module that takes the model."""

    function: Callable[..., Any]
    parameters: Mapping[str, inspect.Parameter]
    takes_model: bool
    count: str = ""  # the parameter that takes the number of new tokens

    def word(self, setting: str) -> str | None:
        """Return the function's own name for a setting (a key of SETTINGS); None if it lacks it."""
        return next((w for w in SETTINGS[setting] if w in self.parameters), None)

    def counts_prompt(self, module: nn.Module, size: Size) -> bool:
        """Return True if the number of tokens is that of the answer, the prompt included, as a `max_length` may be.

        Where the name leaves it open, it is found out once, by asking for five tokens after a prompt of three.
        """
        if "len" not in self.count or "new" in self.count:
            return False
        if self.function not in _prompt_is_counted:
            _prompt_is_counted[self.function] = False
            prompt = torch.tensor([[1, 2, 3]], device=next(module.parameters()).device)
            with contextlib.suppress(Exception), torch.random.fork_rng():
                answer = _run(self, module, size, prompt, 5, {})
                _prompt_is_counted[self.function] = answer.shape == (1, 5) and torch.equal(answer[:, :3], prompt)
        return _prompt_is_counted[self.function]

    def flag(self, words: tuple[str, ...]) -> str | None:
        """Return the first of `words` that is a parameter; None if none is."""
        return next((w for w in words if w in self.parameters), None)


_prompt_is_counted: weakref.WeakKeyDictionary[Callable[..., Any], bool] = weakref.WeakKeyDictionary()
_seen_sampling: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()  # functions that gave two answers


def generate_function_of(kind: type, module: ModuleType | None) -> GenerateFunction | None:
    """Return the generate function of a class; None if it has none.

    It is a method generate(ids, new tokens, ...), or generate...(model, ids, new tokens, ...) in `module`. One that
    takes its prompt as text is none: nothing is known of the tokenizer that it needs.
    """
    for name in ("generate", "generate_text", "sample"):
        method = getattr(kind, name, None)
        if callable(method):
            parameters = parameters_of(kind, name)
            count = _count_of(list(parameters)[1:])
            if _is_transformers(kind) or (count is not None and not _takes_text(method, parameters)):
                return GenerateFunction(method, parameters, False, count or "")
    for name, function in vars(module).items() if module is not None else ():
        if not name.startswith("generate") or not inspect.isfunction(function):
            continue
        parameters = dict(inspect.signature(function).parameters)
        words = list(parameters)
        count = _count_of(words[2:])
        if words and words[0] in MODELS and count is not None:
            after_the_model = {word: parameters[word] for word in words[1:]}
            if not _takes_text(function, after_the_model):
                return GenerateFunction(function, parameters, True, count)
    return None


def _count_of(words: Sequence[str]) -> str | None:
    """Return the first parameter whose name says that it takes the number of new tokens; None if none does."""
    taken = {word for names in (*SETTINGS.values(), SAMPLING, GREEDY, CONTEXTS) for word in names} - {"k"}
    free = [word for word in words if word not in taken and not any(part in word for part in NO_COUNT)]
    return next((w for w in free if w in ("n", "k", "m") or any(part in w for part in NEW_TOKENS)), None)


def _takes_text(function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return True if prompt or answer is text: it says so, it is encoded or decoded, or a tokenizer is required."""
    prompt = next(iter(parameters))
    stated = (parameters[prompt].annotation, inspect.signature(function).return_annotation)
    if any(each in (str, "str", list[str], "list[str]", "List[str]") for each in stated):
        return True
    needed = [word for word in parameters if parameters[word].default is inspect.Parameter.empty]
    if any("tokenizer" in word or "encod" in word or word in TOKENIZERS for word in needed):
        return True
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    of_prompt = [
        getattr(node.func, "attr", getattr(node.func, "id", ""))
        for node in calls
        if any(isinstance(inside, ast.Name) and inside.id == prompt for arg in node.args for inside in ast.walk(arg))
    ]
    answers = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    decoded = any(isinstance(answer, ast.Call) and getattr(answer.func, "attr", "") == "decode" for answer in answers)
    return decoded or (any("encode" in word for word in of_prompt) and "isinstance" not in of_prompt)


def _is_transformers(kind: type) -> bool:
    return any(
        base.__module__.startswith("transformers.") and base.__name__ == "GenerationMixin" for base in kind.__mro__
    )


def continue_with(
    function: GenerateFunction,
    name: str,
    module: nn.Module,
    size: Size,
    ids: Tensor,
    new_tokens: int,
    options: Mapping[str, Any],
    *,
    greedy: bool,
    seed: int | None,
) -> Any:
    """Return what the function itself returns for options under its own names; see `TakesOptions.generate_with`."""
    settings = {**_neutral(function, size), **options}
    if (word := function.word("seed")) is not None and seed is not None:
        settings[word] = seed
    elif seed is not None:
        torch.manual_seed(seed)
    if greedy:
        return _greedy(function, name, module, size, ids, new_tokens, settings)
    return _sampled(function, name, module, size, ids, new_tokens, settings, 1.0)


def _neutral(function: GenerateFunction, size: Size) -> dict[str, Any]:
    """Return the settings by which defaults that filter, penalise or stop do nothing, by the function's own names."""
    found = {}
    for word, parameter in function.parameters.items():
        default, neutral = parameter.default, _neutral_value(word, size)
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        if word != function.count and is_number and neutral not in (None, default) and default < size.vocab_size:
            found[word] = neutral
    return found


def _neutral_value(word: str, size: Size) -> float | None:
    """Return the value of a setting with which it does nothing; None if it is no filter, penalty or stop token."""
    values = {"repetition penalty": 1.0, "frequency penalty": 0.0, "presence penalty": 0.0, "min-p": 0.0}
    values["stop token"] = -1  # the id of no token
    names = {**GENERATE_OPTIONS, "top-p": SETTINGS["top_p"]}
    values |= {"top-k": size.vocab_size, "top-p": 1.0}
    return next((value for option, value in values.items() if word in names[option]), None)


def generate(
    function: GenerateFunction,
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
    """Return the prompt and the new tokens; see `Generates.generate`.

    Raises MissingAbility for a setting that the function `name` lacks, unless it has no effect.
    """
    if _is_transformers(type(module)):
        return _by_transformers(module, size, ids, new_tokens, temperature, top_k, top_p, seed, use_cache)
    values: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "seed": seed, "use_cache": use_cache}
    settings = _neutral(function, size)
    for setting, value in values.items():
        word = function.word(setting)
        if word is not None and value is not None:
            settings[word] = value
        elif setting == "seed" and value is not None:
            torch.manual_seed(value)  # the function uses the global generator
        elif value is not None:
            raise MissingAbility(f"generate of {name} has no setting '{setting}'")
    if temperature == 0:
        answer = _greedy(function, name, module, size, ids, new_tokens, settings)
    else:
        answer = _sampled(function, name, module, size, ids, new_tokens, settings, temperature)
    return _checked(answer, ids, new_tokens)


def _greedy(
    function: GenerateFunction,
    name: str,
    module: nn.Module,
    size: Size,
    ids: Tensor,
    new_tokens: int,
    settings: dict[str, Any],
) -> Any:
    """Generate greedily: by the setting for it, else temperature 0, or top_k 1 where that divides by zero."""
    if (flag := function.flag(SAMPLING)) is not None:
        return _run(function, module, size, ids, new_tokens, {**settings, flag: False})
    if (flag := function.flag(GREEDY)) is not None:
        return _run(function, module, size, ids, new_tokens, {**settings, flag: True})
    temperature, top_k = function.word("temperature"), function.word("top_k")
    if temperature is None and top_k is None:
        if _samples(function, module, size, ids):
            raise MissingAbility(f"generate of {name} samples every token: it has no temperature, top_k or do_sample")
        return _run(function, module, size, ids, new_tokens, settings)
    if temperature is None:
        return _run(function, module, size, ids, new_tokens, {**settings, str(top_k): 1})
    try:
        with _DivisionByZero() as division:
            answer = _run(function, module, size, ids, new_tokens, {**settings, temperature: 0.0})
        if not division.seen or top_k is None:
            return answer
    except Exception:
        if top_k is None:
            raise
    return _run(function, module, size, ids, new_tokens, {**settings, temperature: 1.0, top_k: 1})


def at_temperature_zero(
    function: GenerateFunction, module: nn.Module, size: Size, ids: Tensor, new_tokens: int
) -> Tensor:
    """Return what the function itself generates at temperature 0."""
    return _checked(
        _run(function, module, size, ids, new_tokens, {str(function.word("temperature")): 0.0}), ids, new_tokens
    )


class _DivisionByZero(torch.overrides.TorchFunctionMode):
    """Record in `seen` if a tensor is divided by the number zero inside the block: the result is infinite or NaN."""

    seen = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _DIVISIONS and len(args) > 1 and isinstance(args[1], int | float) and args[1] == 0:
            self.seen = True
        return function(*args, **(kwargs or {}))


_DIVISIONS = (torch.Tensor.div, torch.Tensor.__truediv__, torch.Tensor.true_divide, torch.div, torch.Tensor.div_,
              torch.Tensor.__itruediv__)  # fmt: skip


def _sampled(
    function: GenerateFunction,
    name: str,
    module: nn.Module,
    size: Size,
    ids: Tensor,
    new_tokens: int,
    settings: dict[str, Any],
    temperature: float,
) -> Any:
    word = function.word("temperature")
    if word is not None:
        settings[word] = temperature
    elif temperature != 1.0:
        raise MissingAbility(f"generate of {name} has no setting 'temperature'")
    if (flag := function.flag(SAMPLING)) is not None:
        settings[flag] = True
    elif (
        word is None
        and function.word("top_k") is None
        and function.word("seed") is None
        and function.flag(GREEDY) is None
    ):
        state = torch.get_rng_state()
        samples = _samples(function, module, size, ids)
        torch.set_rng_state(state)
        if not samples:
            raise MissingAbility(f"generate of {name} is greedy only: it has no temperature and samples nothing")
    return _run(function, module, size, ids, new_tokens, settings)


def _samples(function: GenerateFunction, module: nn.Module, size: Size, ids: Tensor) -> bool:
    """Return True if a function without a setting for it samples: two seeds give different tokens.

    Only that it samples is remembered: equal tokens may follow from the weights.
    """
    if function.function in _seen_sampling:
        return True
    answers, training = [], module.training
    module.eval()  # so that dropout draws no random numbers
    for seed in (0, 1):
        torch.manual_seed(seed)
        answers.append(_ids_in(_run(function, module, size, ids[:2], min(16, size.context), {})))
    module.train(training)
    if differ := not torch.equal(answers[0], answers[1]):
        _seen_sampling.add(function.function)
    return differ


def _run(
    function: GenerateFunction, module: nn.Module, size: Size, ids: Tensor, new_tokens: int, settings: dict[str, Any]
) -> Any:
    if (context := function.flag(CONTEXTS)) is not None:
        settings = {context: size.context, **settings}
    if function.counts_prompt(module, size):
        new_tokens += ids.shape[1]
    settings = {function.count: new_tokens, **settings}
    if function.takes_model:
        method = functools.partial(function.function, module)
    else:
        method = getattr(module, function.function.__name__)
    with torch.no_grad() if function.takes_model else contextlib.nullcontext():
        if style_of(module).one_sequence:
            rows = [torch.as_tensor(method(row, **settings)) for row in ids]
            return torch.stack(rows) if len({row.shape for row in rows}) == 1 else rows
        return method(ids, **settings)


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
        raise MissingAbility("generate of transformers does not slide its window: it stops at the context")
    if seed is not None:
        torch.manual_seed(seed)
    module.generation_config.eos_token_id = None  # the length alone ends the generation
    sampling = {"do_sample": False} if temperature == 0 else {
        "do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": 1.0 if top_p is None else top_p
    }  # fmt: skip
    answer = module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        pad_token_id=0,
        use_cache=use_cache is not False,
        **sampling,
    )
    return _checked(answer, ids, new_tokens)


def _ids_in(answer: Any) -> Any:
    """Return the ids (B, T) in an answer: a tensor, rows, one sequence of each prompt, or the first of a tuple."""
    if isinstance(answer, tuple) and answer and (not isinstance(answer[0], Tensor) or answer[0].ndim > 1):
        answer = answer[0]
    with contextlib.suppress(Exception):
        answer = torch.stack([torch.as_tensor(row) for row in answer])
    return answer[:, 0] if isinstance(answer, Tensor) and answer.ndim == 3 and answer.shape[1] == 1 else answer


def _checked(answer: Any, ids: Tensor, new_tokens: int) -> Tensor:
    """Return the generated ids (B, T + new_tokens). Raises SubjectError for another shape."""
    answer = _ids_in(answer)
    expected = (ids.shape[0], ids.shape[1] + new_tokens)
    if isinstance(answer, Tensor) and answer.shape == (ids.shape[0], new_tokens) != expected:
        answer = torch.cat((ids, answer), dim=1)  # the function returned only the new tokens
    if not isinstance(answer, Tensor) or answer.shape != expected:
        found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise SubjectError(
            f"generate returned {found}, expected ids of shape {expected}: the prompt and the new tokens"
        )
    return answer
