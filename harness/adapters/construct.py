"""How a GPT is built: from a config object, keyword arguments or a dict, under the names that people use."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from harness.errors import MissingAbility, SubjectError
from harness.size import Size

# One row a quantity, the harness's word first; nanoGPT, minGPT, Hugging Face, LLMs-from-scratch, x-transformers.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "vocab_size": ("vocab_size", "n_vocab", "num_tokens", "d_vocab", "padded_vocab_size"),
    "context": (
        "block_size",
        "n_positions",
        "n_ctx",
        "context_length",
        "max_seq_len",
        "context",
        "max_position_embeddings",
        "sequence_length",
        "seq_len",
        "max_len",
        "max_length",
    ),
    "layers": ("n_layer", "n_layers", "num_layers", "layers", "depth", "num_hidden_layers"),
    "heads": ("n_head", "n_heads", "num_heads", "heads", "num_attention_heads"),
    "width": (
        "n_embd",
        "d_model",
        "emb_dim",
        "embed_dim",
        "dim",
        "hidden_size",
        "n_embed",
        "width",
        "embedding_dim",
    ),
    "head_width": ("head_size", "d_head", "head_dim", "dim_head"),
    "feed_forward_width": (
        "n_inner",
        "d_mlp",
        "d_ff",
        "ff_dim",
        "hidden_dim",
        "ffn_dim",
        "intermediate_size",
    ),
    "dropout": (
        "dropout",
        "drop_rate",
        "dropout_rate",
        "dropout_p",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "attn_dropout",
        "ff_dropout",
        "resid_dropout",
        "emb_dropout",
    ),
    "bias": ("bias", "qkv_bias", "use_bias"),
    "tied": ("tied", "tie_weights", "tie_word_embeddings", "weight_tying", "tie_embeddings"),
    "attention": ("attention", "attention_kind", "attn_implementation"),
    "init": ("init", "init_recipe", "initialisation", "initialization"),
    "seed": ("seed",),
    "device": ("device",),
}

# Quantities that are abilities: claimed only where the subject names them.
CHOICES = ("tied", "attention", "init", "seed", "device")


@dataclasses.dataclass(frozen=True)
class Constructor:
    """A way to build the module: which words it takes, and the call itself."""

    words: frozenset[str]
    call: Callable[[dict[str, Any]], nn.Module]
    how: str

    def takes(self, quantity: str) -> bool:
        """Whether the subject has a setting for `quantity` (a key of SYNONYMS)."""
        return any(word in self.words for word in SYNONYMS[quantity])

    def build(self, size: Size, **options: Any) -> nn.Module:
        """The module at `size`. Settings that the subject lacks must be what GPT-2 has, or MissingAbility is raised."""
        quantities: dict[str, Any] = {
            "vocab_size": size.vocab_size,
            "context": size.context,
            "layers": size.layers,
            "heads": size.heads,
            "width": size.width,
            "head_width": size.head_width,
            "feed_forward_width": 4 * size.width,
            "bias": True,
            "dropout": 0.1,  # GPT-2's; in eval mode, where nearly everything is judged, it must not show
            **options,
        }
        for quantity in options:
            if quantity not in ("bias", "dropout", "seed") and not self.takes(quantity):
                raise MissingAbility(
                    f"the subject has no setting '{quantity}' (looked for: {', '.join(SYNONYMS[quantity])})"
                )
        arguments = {
            word: value for quantity, value in quantities.items() for word in SYNONYMS[quantity] if word in self.words
        }
        return self.call(arguments)


def constructor(target: Any, module: ModuleType) -> Constructor:
    """How `target` is built. Raises SubjectError where it cannot be told."""
    if isinstance(target, nn.Module):
        return Constructor(frozenset(), lambda arguments: target, "a module instance")
    if not callable(target):
        raise SubjectError(f"{target!r} is neither a class, nor a function, nor a torch.nn.Module")
    own = _parameters(target)
    if _knows_sizes(own):
        return Constructor(frozenset(own), lambda arguments: _module(target, **arguments), "keyword arguments")
    required = [p for p in own.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    extra = frozenset(name for name, p in own.items() if p.kind is p.KEYWORD_ONLY)
    config_parameter = next(iter(required or own.values()), None)
    if config_parameter is None or config_parameter.kind is config_parameter.KEYWORD_ONLY:
        return Constructor(frozenset(), lambda arguments: _module(target), "a call without arguments")
    if len(required) > 1:
        raise SubjectError(
            f"{target.__name__}{inspect.signature(target)} cannot be called: expected one config, or sizes by the "
            f"names that people use ({', '.join(s[0] for s in SYNONYMS.values())}); or write a factory"
        )
    classes = _config_classes(config_parameter, target, module)
    # A dict does not tell what is read from it: the sizes must be, a choice of attention, say, need not.
    in_a_dict = frozenset(word for quantity, ws in SYNONYMS.items() if quantity not in CHOICES for word in ws)
    words = frozenset(word for c in classes for word in _fields(c)) or in_a_dict

    def call(arguments: dict[str, Any]) -> nn.Module:
        keywords = {key: value for key, value in arguments.items() if key in extra}
        return _first_that_fits(
            [
                *(lambda c=c: _module(target, c(**_only(arguments, _fields(c))), **keywords) for c in classes),
                lambda: _module(target, dict(arguments), **keywords),
            ]
        )

    return Constructor(words | extra, call, f"a {classes[0].__name__}" if classes else "a dict")


def _only(arguments: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: arguments[name] for name in names if name in arguments}


def _first_that_fits(ways: list[Callable[[], nn.Module]]) -> nn.Module:
    """The first way to build that raises no error of the kind that a config of the wrong class gives.

    Where none fits, the first error is the one to tell: it comes from the likeliest way.
    """
    first: Exception | None = None
    for way in ways:
        try:
            return way()
        except (TypeError, AttributeError, KeyError) as error:
            first = first or error
    assert first is not None
    raise first


def _module(target: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
    module = target(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise SubjectError(f"{target.__name__} returned a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _knows_sizes(names: Iterable[str]) -> bool:
    words = set(names)
    return (
        sum(any(word in words for word in SYNONYMS[q]) for q in ("vocab_size", "context", "layers", "heads", "width"))
        >= 3
    )


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """The named parameters of a callable; where a class hands **kwargs on, those of its base classes too."""
    found: dict[str, inspect.Parameter] = {}
    bases = (
        [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    )
    for function in bases:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:
            raise SubjectError(f"{target!r} does not tell its parameters: {error}") from error
        for parameter in parameters[1:] if inspect.isclass(target) else parameters:
            own = function is bases[0]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            # Of a base class, what can be handed on by name; its config has come under the own one's name.
            if own or parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _config_classes(parameter: inspect.Parameter, target: Any, module: ModuleType) -> list[Callable[..., Any]]:
    """The class that the parameter is annotated with; else those beside the subject, or its bases, that know sizes."""
    bases = target.__mro__ if inspect.isclass(target) else ()
    modules = [module, *(sys.modules[c.__module__] for c in bases if not c.__module__.startswith("torch"))]
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = next((vars(m)[annotation] for m in modules if annotation in vars(m)), annotation)
    stated = [annotation, getattr(target, "config_class", None)]
    beside = [value for m in modules for value in vars(m).values()]
    for candidates in (stated, beside):
        found = [c for c in candidates if _is_config_class(c)]
        if found:
            return list(dict.fromkeys(found))
    return []


def _is_config_class(candidate: Any) -> bool:
    return (
        inspect.isclass(candidate)
        and not issubclass(candidate, nn.Module | Mapping)
        and _knows_sizes(_fields(candidate))
    )


def _fields(config_class: Any) -> list[str]:
    if dataclasses.is_dataclass(config_class):
        return [field.name for field in dataclasses.fields(config_class) if field.init]
    try:
        return list(inspect.signature(config_class).parameters)
    except (TypeError, ValueError):
        return []
