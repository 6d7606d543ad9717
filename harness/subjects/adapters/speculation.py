"""Continue a prompt with a GPT's own speculative decoding, in the styles that people write."""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility, SubjectError
from harness.subjects.adapters.speculation_names import (
    DRAFT_CLASSES,
    GREEDY,
    IDS,
    MODEL,
    SAMPLING,
    drafts_alone,
    is_speculative,
    role_of,
)
from harness.subjects.option_names import GENERATE_OPTIONS

__all__ = ["MODEL", "Speculator", "speculate", "speculators_of"]


@dataclass(frozen=True)
class Speculator:
    """A function that decodes speculatively: a method of the model, a function beside it, or a class of its own.

    `roles`: from a role (target, draft, prompt, count, lookahead, temperature, ...) to the function's own parameter.
    `maker` and `made_with`, of a class: the class, and its roles; the function is then a method of what it makes.
    """

    function: Callable[..., Any]
    roles: Mapping[str, str]
    is_method: bool = False
    maker: type | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"{self.maker.__name__}.{self.function.__name__}" if self.maker else self.function.__name__

    @property
    def line(self) -> tuple[str, int]:
        """The file and the line of its `def`."""
        code = inspect.unwrap(self.function).__code__
        lines, first = inspect.getsourcelines(code)
        return code.co_filename, first + next(n for n, text in enumerate(lines) if text.lstrip().startswith("def "))

    def has(self, role: str) -> bool:
        """Return True if it takes that role."""
        return role in self.roles or role in self.made_with

    @property
    def drafts(self) -> tuple[str, ...]:
        """The drafts that it takes: "model", or what it drafts with by itself, and its module's classes of drafts."""
        if not self.has("draft"):
            return (drafts_alone(self.name),)
        return (MODEL, *self._draft_classes())

    def _draft_classes(self) -> dict[str, type]:
        beside = inspect.unwrap(self.function).__globals__
        return {
            draft: kind
            for draft, pattern in DRAFT_CLASSES.items()
            for kind in beside.values()
            if inspect.isclass(kind) and pattern.search(kind.__name__) and kind.__module__ == beside["__name__"]
        }

    def draft_of(self, target: nn.Module, draft: str) -> Any:
        """Return the function's own draft of a kind that is no model; an early exit after the first layer."""
        kind = self._draft_classes()[draft]
        needed = [p for p in inspect.signature(kind).parameters.values() if p.default is inspect.Parameter.empty]
        return kind(*(target, 1)[: len(needed)])

    def call(self, target: nn.Module, draft: Any, ids: Tensor, count: int, settings: Mapping[str, Any]) -> Any:
        """Return what the function returns for ids (1, T); `settings` are by role, or under its own names."""
        given = {"target": target, "draft": draft, "prompt": self._prompt(ids), "count": count, **settings}
        if self.maker is None:
            function = functools.partial(self.function, target) if self.is_method else self.function
        else:
            instance = self.maker(**self._named(given, self.made_with))
            function = functools.partial(self.function, instance)
        named = self._named(given, self.roles)
        own = inspect.signature(self.function).parameters  # flags and stop tokens have no role
        named |= {word: value for word, value in settings.items() if word in own and word not in named}
        # As for `generate`: who calls a function with a model switches gradients off, and a method does that itself.
        with contextlib.nullcontext() if self.is_method else torch.no_grad():
            return function(**named)

    def _named(self, given: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
        return {own: given[role] for role, own in roles.items() if role in given}

    def _prompt(self, ids: Tensor) -> Any:
        parameter = inspect.signature(self.function).parameters[self.roles["prompt"]]
        is_list = "list" in str(parameter.annotation).lower()
        return ids[0].tolist() if is_list else ids


def speculators_of(kind: type, module: ModuleType | None) -> Iterator[Speculator]:
    """Yield every function of a class and its module that decodes speculatively and whose parameters are understood."""
    yield from _of_module(module, own=True)  # before a method of a class that the file imports
    for base in kind.__mro__:
        if base.__module__.startswith(("torch.", "transformers.", "builtins")):
            break
        for name, function in vars(base).items():
            if is_speculative(name) and inspect.isfunction(function):
                roles = _roles(function, skipped=1)
                if roles is not None and "target" not in roles:
                    yield Speculator(function, roles, is_method=True)
    yield from _of_module(module, own=False)


def _of_module(module: ModuleType | None, *, own: bool) -> Iterator[Speculator]:
    """Yield the functions of a module that it defines (`own`), or those that it imports."""
    if module is None:
        return
    for name, found in list(vars(module).items()):
        if (getattr(found, "__module__", "") == module.__name__) is not own:
            continue
        if inspect.isfunction(found) and is_speculative(name):
            roles = _roles(found, skipped=0)
            if roles is not None and "target" in roles:
                yield Speculator(found, roles)
        elif inspect.isclass(found) and is_speculative(found.__name__) and not issubclass(found, nn.Module):
            yield from _of_class(found)


def _of_class(found: type) -> Iterator[Speculator]:
    made_with = _understood(vars(found).get("__init__", object.__init__), skipped=1)
    if made_with is None or "target" not in made_with:
        return
    for name, function in vars(found).items():
        if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__"):
            roles = _roles(function, skipped=1)
            if roles is not None:
                yield Speculator(function, roles, maker=found, made_with=made_with)
                return


def _roles(function: Callable[..., Any], *, skipped: int) -> dict[str, str] | None:
    roles = _understood(function, skipped=skipped)
    return None if roles is None or not {"prompt", "count"} <= roles.keys() else roles


def _understood(function: Callable[..., Any], *, skipped: int) -> dict[str, str] | None:
    """Return the roles of a function's parameters; None if one that it needs has no role."""
    roles: dict[str, str] = {}
    for word, parameter in list(inspect.signature(function).parameters.items())[skipped:]:
        role = role_of(word)
        if role is not None and role not in roles:
            roles[role] = word
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            return None
    return roles


def speculate(
    found: Speculator,
    name: str,
    target: nn.Module,
    draft: nn.Module | str,
    ids: Tensor,
    new_tokens: int,
    *,
    lookahead: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
) -> Tensor:
    """Return the prompt (1, T) and the new tokens, all of them; see `Speculates.speculate`.

    Raises MissingAbility for a setting that the function lacks.
    """
    given = draft if not isinstance(draft, str) or not found.has("draft") else found.draft_of(target, draft)
    settings = _neutral(found)
    for role, value in {"lookahead": lookahead, "top_k": top_k, "top_p": top_p, "seed": seed}.items():
        if value is not None and found.has(role):
            settings[role] = value
        elif role == "seed" and value is not None:
            torch.manual_seed(value)
        elif value is not None and role != "lookahead":
            raise MissingAbility(f"{found.name} of {name} has no setting '{role}'")
    run = functools.partial(_run, found, target, given, ids, new_tokens)
    if temperature == 0:
        return _greedy(found, name, run, settings)
    if found.has("temperature"):
        settings["temperature"] = temperature
    elif temperature != 1.0:
        raise MissingAbility(f"{found.name} of {name} has no setting 'temperature'")
    if (flag := _flag(found, SAMPLING)) is not None:
        settings[flag] = True
    if (flag := _flag(found, GREEDY)) is not None:
        settings[flag] = False
    if not found.has("temperature") and not found.has("top_k") and flag is None and _is_greedy(found, run, settings):
        raise MissingAbility(f"{found.name} of {name} is greedy only: it has no temperature and draws nothing")
    return run(settings)


def _greedy(found: Speculator, name: str, run: Callable[[dict[str, Any]], Tensor], settings: dict[str, Any]) -> Tensor:
    """Decode greedily: by the setting for it, else temperature 0, or top-k 1 where that divides by zero."""
    for words, value in ((SAMPLING, False), (GREEDY, True)):
        if (flag := _flag(found, words)) is not None:
            return run({**settings, flag: value})
    if found.has("temperature"):
        try:
            return run({**settings, "temperature": 0.0})
        except (ZeroDivisionError, RuntimeError, ValueError):
            if not found.has("top_k"):
                raise
    if found.has("top_k"):
        return run({**settings, **({"temperature": 1.0} if found.has("temperature") else {}), "top_k": 1})
    if not _is_greedy(found, run, settings):
        raise MissingAbility(f"{found.name} of {name} samples every token: it has no temperature or top_k")
    return run(settings)


def _is_greedy(found: Speculator, run: Callable[[dict[str, Any]], Tensor], settings: dict[str, Any]) -> bool:
    """Return True if a function without a setting for it is greedy: eight seeds give the same tokens.

    Only that it samples is remembered: equal tokens may follow from the weights.
    """
    if found.function in _seen_sampling:
        return False
    before, answers = torch.get_rng_state(), []
    for seed in range(8):
        torch.manual_seed(seed)
        answers.append(run({**settings, "seed": seed} if found.has("seed") else settings))
    torch.set_rng_state(before)
    same = all(torch.equal(answers[0], answer) for answer in answers)
    if not same:
        _seen_sampling.add(found.function)
    return same


_seen_sampling: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()  # functions that gave two answers


def _neutral(found: Speculator) -> dict[str, Any]:
    """Return settings, by role or own name, with which a default that filters or stops does nothing."""
    settings: dict[str, Any] = {}
    for word, parameter in inspect.signature(found.function).parameters.items():
        role, default = role_of(word), parameter.default
        if role == "top_k" and default not in (0, None, inspect.Parameter.empty):
            settings[role] = 1_000_000
        if role == "top_p" and default not in (0, None, 1, inspect.Parameter.empty):
            settings[role] = 1.0
        if role == "temperature" and default is not inspect.Parameter.empty:
            settings[role] = 1.0
        if word in GENERATE_OPTIONS["stop token"] and isinstance(default, int):
            settings[word] = -1  # the id of no token
    return settings


def _flag(found: Speculator, words: tuple[str, ...]) -> str | None:
    return next((word for word in words if word in inspect.signature(found.function).parameters), None)


def _run(
    found: Speculator, target: nn.Module, draft: Any, ids: Tensor, new_tokens: int, settings: Mapping[str, Any]
) -> Tensor:
    """Return the prompt and all new tokens, (1, T + n). Raises SubjectError for an answer without ids."""
    length = ids.shape[1]
    answer = _ids_in(found.call(target, draft, ids, new_tokens, settings))
    counts = "len" in found.roles["count"] and answer.shape[1] == max(new_tokens, length)
    if counts and new_tokens and torch.equal(answer[:, :length], ids.to(answer)):  # its number includes the prompt
        answer = _ids_in(found.call(target, draft, ids, new_tokens + length, settings))
    # A prompt that comes back begins the answer; the new tokens alone are about as many as were asked for. They may
    # begin as the prompt does by chance, so that a function that did without it once is remembered.
    returned = answer.shape[1] >= length and torch.equal(answer[:, :length], ids.to(answer))
    if not returned and answer.shape[1] == new_tokens:
        _seen_without_prompt.add(found.function)
    returned &= not (answer.shape[1] == new_tokens and found.function in _seen_without_prompt)
    if not returned and abs(answer.shape[1] - new_tokens) < length:
        answer = torch.cat((ids.to(answer), answer), dim=1)
    return answer


_seen_without_prompt: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()  # functions that return new tokens alone


def _ids_in(answer: Any) -> Tensor:
    """Return the ids (1, n) in an answer: a tensor, a list, the first of a tuple, an entry or an attribute."""
    found = answer
    if isinstance(found, tuple):
        found = found[0]
    if isinstance(found, Mapping):
        found = next((found[word] for word in IDS if word in found), None)
    elif not isinstance(found, Tensor | list):
        found = next((getattr(found, word) for word in IDS if hasattr(found, word)), found)
    with contextlib.suppress(Exception):
        ids = torch.as_tensor(found, dtype=torch.int64 if isinstance(found, list) and not found else None)
        if not ids.is_floating_point() and ids.ndim in (1, 2):
            return ids.reshape(1, -1) if ids.ndim == 1 else ids
    raise SubjectError(f"speculative decoding returned {type(answer).__name__}; expected ids, or a tuple that begins "
                       f"with them, or an attribute or an entry called {', '.join(IDS[:3])}")  # fmt: skip
