"""The constructor of a subject: which settings it takes, and the call that builds the module."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import Size
from harness.subjects.adapters.construction.build_settings import UNKNOWN, BuildSettings
from harness.subjects.adapters.construction.choices import ATTENTIONS, stated_choices
from harness.subjects.adapters.construction.config_class import config_classes, make_config, settings_of
from harness.subjects.adapters.construction.prototype import entries_of, filled, prototypes
from harness.subjects.adapters.construction.setting_names import (
    CHOICES,
    SIZES,
    SYNONYMS,
    WIDTH_OR_FEED_FORWARD_WIDTH,
    names_sizes,
    quantity_of,
)
from harness.subjects.adapters.construction.signature import format_signature, modules_of, name_of, parameters_of

COMMON_NAMES = f"{', '.join(SYNONYMS[size][0] for size in SIZES)}, ..."
ADAPTER_HINT = (
    "or write an adapter: a class with `name` and `build(size, ...)` that returns a harness.subjects.model.Model; "
    "'Add a subject' in CONTRIBUTING.md has one of ten lines"
)


@dataclasses.dataclass(frozen=True)
class Constructor:
    """The names of the settings that a subject takes, the call that builds it, and the choices that it states."""

    words: frozenset[str]
    call: Callable[[dict[str, Any]], nn.Module]
    description: str
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def takes(self, quantity: str) -> bool:
        """Return True if the subject has a setting for `quantity` (a key of SYNONYMS)."""
        return any(quantity_of(word, self.words) == quantity for word in self.words)

    def arguments(self, size: Size, **options: Any) -> dict[str, Any]:
        """Return the value of each of the subject's settings at `size`."""
        quantities: dict[str, Any] = {
            "vocab_size": size.vocab_size,
            "context": size.context,
            "layers": size.layers,
            "heads": size.heads,
            "width": size.width,
            "head_width": size.head_width,
            "feed_forward_width": 4 * size.width,
            "feed_forward_factor": 4,
            "epsilon": 1e-5,
            "bias": True,
            "dropout": 0.1,  # GPT-2's; most checks run in eval mode, where it must have no effect
            **options,
        }
        by_word = {word: quantity_of(word, self.words) for word in self.words}
        return {word: quantities[q] for word, q in by_word.items() if q in quantities}

    def build(self, size: Size, **options: Any) -> nn.Module:
        """Return the module at `size`.

        Raises MissingAbility for an option (other than bias, dropout and seed) that the subject has no setting for.
        """
        for quantity, value in options.items():
            if quantity not in ("bias", "dropout", "seed") and not self.takes(quantity):
                raise MissingAbility(
                    f"the subject has no setting '{quantity}' (looked for: {', '.join(SYNONYMS[quantity])})"
                )
            if quantity in self.choices:
                options[quantity] = self._choice(quantity, value)
        return self.call(self.arguments(size, **options))

    def _choice(self, quantity: str, value: str) -> str:
        """Return the subject's own word for a value. Raises MissingAbility if it has none."""
        known = self.choices[quantity]
        for word in (value, *ATTENTIONS.get(value, ())):
            if word in known:
                return word
        raise MissingAbility(f"the subject has no {quantity} '{value}'; it has {', '.join(known)}")


def constructor(target: Any, module: ModuleType) -> Constructor:
    """Return the constructor of `target`. Raises SubjectError if the harness cannot call it."""
    if isinstance(target, nn.Module):
        return Constructor(frozenset(), lambda arguments: copy.deepcopy(target), "a module instance")
    if not callable(target):
        raise SubjectError(f"{target!r} is neither a class, nor a function, nor a torch.nn.Module")
    own = parameters_of(target)
    modules = modules_of(target, module)
    if names_sizes(own):
        return _from_keywords(target, own, modules)
    required = [p for p in own.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    keyword_only = frozenset(name for name, p in own.items() if p.kind is p.KEYWORD_ONLY)
    config_parameter = next(iter(required or own.values()), None)
    if config_parameter is None or config_parameter.kind is config_parameter.KEYWORD_ONLY:
        return _from_globals(target, own, module) or Constructor(
            frozenset(), lambda arguments: _build(target), "a call without arguments"
        )
    others = {p.name: p for p in required[1:]}
    if any(quantity_of(name, own) is None for name in others) or (quantity_of(config_parameter.name, own) is not None):
        by_globals = _from_globals(target, own, module)
        if by_globals is not None:
            return by_globals
        raise SubjectError(
            f"{name_of(target)}{format_signature(target)} cannot be called: expected one config, or sizes by the names "
            f"that people use ({COMMON_NAMES}); rename them, {ADAPTER_HINT}"
        )
    return _from_config(target, config_parameter, keyword_only | frozenset(others), own, modules)


def _from_keywords(target: Any, own: Mapping[str, inspect.Parameter], modules: list[ModuleType]) -> Constructor:
    """Return the constructor of a class or function that takes the sizes as arguments."""
    # A required parameter without a known value would be a TypeError in every check: raise one clear error instead.
    unknown = [
        name
        for name, p in own.items()
        if p.default is p.empty and quantity_of(name, own) in (None, "attention", "init", "tied")
    ]
    if unknown:
        raise SubjectError(
            f"{name_of(target)}{format_signature(target)}: no value is known for '{unknown[0]}', which has no default; "
            f"give it one, use a common name ({COMMON_NAMES}), {ADAPTER_HINT}"
        )
    choices = stated_choices(own, target, modules)
    return Constructor(frozenset(own), lambda arguments: _build(target, **arguments), "keyword arguments", choices)


def _from_config(
    target: Any,
    parameter: inspect.Parameter,
    keywords: frozenset[str],
    own: Mapping[str, inspect.Parameter],
    modules: list[ModuleType],
) -> Constructor:
    """Return the constructor of a subject that takes a config: of a class, a copy of a prototype, or a dict."""
    classes = config_classes(parameter, target, modules)
    copied = [] if classes else prototypes(parameter, target, modules)
    words: frozenset[str]
    if classes:
        words = frozenset(word for c in classes for word in settings_of(c))
    elif copied:
        words = frozenset(word for _, p in copied for word in entries_of(p))
    else:
        # Which keys are read from a dict is unknown. The sizes must be among them; choices need not be.
        words = frozenset(w for quantity, ws in SYNONYMS.items() if quantity not in CHOICES for w in ws)
        words |= frozenset(WIDTH_OR_FEED_FORWARD_WIDTH)
    stated = {**own, **{n: p for c in classes for n, p in settings_of(c).items()}}
    choices = stated_choices(stated, classes or target, modules)

    def call(arguments: dict[str, Any]) -> nn.Module:
        beside = {key: value for key, value in arguments.items() if key in keywords}
        settings = BuildSettings(arguments)
        configs: list[Callable[[], Any]] = [functools.partial(make_config, c, arguments) for c in classes]
        configs += [functools.partial(filled, prototype, arguments) for _, prototype in copied]
        if not copied:
            configs.append(lambda: settings)
        module = _build_from_first(target, configs, beside)
        return _build(target, BuildSettings(again), **beside) if (again := settings.corrected()) else module

    description = f"a {classes[0].__name__}" if classes else f"a copy of {copied[0][0]}" if copied else "a dict"
    return Constructor(words | keywords, call, description, choices)


def _from_globals(target: Any, own: Mapping[str, inspect.Parameter], module: ModuleType) -> Constructor | None:
    """Return the constructor of a class whose sizes are global names of its module, as n_embd = 384; None if not so.

    The class may take some of the sizes as arguments, such as the vocabulary's.
    """
    words = frozenset(
        name for name, value in vars(module).items() if isinstance(value, int | float) and not name.startswith("_")
    )
    if not names_sizes([*words, *own]) or any(
        quantity_of(name, own) is None for name, p in own.items() if p.default is p.empty
    ):
        return None

    def call(arguments: dict[str, Any]) -> nn.Module:
        for word in words & set(arguments):
            if quantity_of(word, words) in (*SIZES, "head_width", "dropout", "feed_forward_width"):
                setattr(module, word, arguments[word])
        return _build(target, **{word: arguments[word] for word in own if word in arguments})

    known = frozenset(word for word in words if quantity_of(word, words) not in (None, *CHOICES))
    where = module.__name__.removeprefix("_subject_")
    return Constructor(known | frozenset(own), call, f"the global names of {where}")


def _build_from_first(target: Any, configs: list[Callable[[], Any]], keywords: dict[str, Any]) -> nn.Module:
    """Return the module built from the first config that raises no error typical of a wrong config class.

    If none fits, raise the first error: it comes from the most likely config.
    """
    first: Exception | None = None
    for make in configs:
        try:
            return _build(target, make(), **keywords)
        except (TypeError, AttributeError, KeyError) as error:
            first = first or error
    assert first is not None
    if isinstance(first, KeyError) or UNKNOWN in str(first):
        setting = repr(first.name) if isinstance(first, AttributeError) and first.name else first
        raise SubjectError(
            f"{name_of(target)} reads {setting} from its config, {UNKNOWN} under that name; put a config class or a "
            f"dict of defaults beside it, {ADAPTER_HINT}"
        ) from first
    raise first


def _build(target: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
    module = target(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise SubjectError(f"{name_of(target)} returned a {type(module).__name__}, expected a torch.nn.Module")
    return module
