"""How a GPT is built: from a config object, keyword arguments or a dict, under the names that people use."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Literal

from torch import nn

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import Size

# One row a quantity, the harness's word first; nanoGPT, minGPT, Hugging Face, LLMs-from-scratch, x-transformers,
# TransformerLens. Compared without case and underscores: vocabSize, VOCAB_SIZE and vocab_size are one word.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "vocab_size": (
        "vocab_size", "n_vocab", "num_tokens", "d_vocab", "padded_vocab_size", "vocab", "vocabulary_size", "n_tokens",
        "num_embeddings", "vocab_len", "ntoken", "ntokens", "num_vocab", "vocabulary",
    ),
    "context": (
        "block_size", "n_positions", "n_ctx", "context_length", "max_seq_len", "context", "max_position_embeddings",
        "sequence_length", "seq_len", "max_len", "max_length", "seq_length", "context_len", "context_size", "window",
        "ctx_len", "max_sequence_length", "max_context", "max_context_length", "max_seq_length", "window_size",
        "max_positions", "n_seq", "ctx", "max_context_len", "num_positions", "max_T", "context_window",
    ),
    "layers": (
        "n_layer", "n_layers", "num_layers", "layers", "depth", "num_hidden_layers", "n_blocks", "num_blocks", "blocks",
        "num_decoder_layers", "layer_count", "nlayers", "num_layer", "n_block",
    ),
    "heads": (
        "n_head", "n_heads", "num_heads", "heads", "num_attention_heads", "nhead", "nheads", "num_head", "head_count",
    ),
    "width": (
        "n_embd", "d_model", "emb_dim", "embed_dim", "dim", "n_embed", "width", "embedding_dim", "embedding_size",
        "model_dim", "embd_dim", "emb_size", "embed_size", "d_embed", "d_embd", "n_emb", "channels", "n_state", "ninp",
        "residual_dim", "d_emb", "model_width", "dmodel",
    ),
    "head_width": ("head_size", "d_head", "head_dim", "dim_head", "d_k", "head_width", "d_v"),
    "feed_forward_width": (
        "n_inner", "d_mlp", "d_ff", "ff_dim", "ffn_dim", "intermediate_size", "dim_feedforward", "mlp_dim",
        "ffn_hidden", "mlp_hidden", "ff_hidden", "d_ffn", "ffn_size", "ff_size", "n_ff", "d_inner", "mlp_width",
        "ff_width", "feed_forward_dim", "ffn_hidden_size", "mlp_hidden_dim", "ffn_hidden_dim", "mlp_size",
        "d_feedforward",
    ),
    "feed_forward_factor": (
        "mlp_ratio", "ff_mult", "expansion", "expansion_factor", "mlp_mult", "ffn_mult", "ff_ratio", "mlp_expansion",
        "ff_expansion", "ffn_ratio", "ff_factor", "widening_factor", "mlp_factor", "forward_expansion", "mlp_scale",
    ),
    "epsilon": (
        "layer_norm_eps", "eps", "layer_norm_epsilon", "norm_eps", "ln_eps", "layernorm_eps", "layernorm_epsilon",
    ),
    "dropout": (
        "dropout", "drop_rate", "dropout_rate", "dropout_p", "resid_pdrop", "embd_pdrop", "attn_pdrop", "attn_dropout",
        "ff_dropout", "resid_dropout", "emb_dropout", "p_drop", "dropout_prob", "p_dropout", "drop", "embed_dropout",
        "attention_dropout", "residual_dropout", "mlp_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
        "embd_dropout", "embedding_dropout", "drop_p", "pdrop", "attn_drop", "resid_drop", "emb_drop",
    ),
    "bias": (
        "bias", "qkv_bias", "use_bias", "attn_bias", "mlp_bias", "linear_bias", "add_bias", "proj_bias", "ln_bias",
    ),
    "tied": (
        "tied", "tie_weights", "tie_word_embeddings", "weight_tying", "tie_embeddings", "tie_embedding", "tie",
        "share_embeddings", "tied_embeddings",
    ),
    "attention": (
        "attention", "attention_kind", "attn_implementation", "attn_impl", "attention_impl", "attention_type",
    ),
    "init": ("init", "init_recipe", "initialisation", "initialization", "init_scheme"),
    "seed": ("seed",),
    "device": ("device",),
}  # fmt: skip

# The width, unless another word says that: then the feed-forward's.
WIDTH_OR_INNER = ("hidden_size", "hidden_dim", "hidden", "d_hidden", "n_hidden", "dim_hidden", "hidden_width")
# Quantities that are abilities: claimed only where the subject names them.
CHOICES = ("tied", "attention", "init", "seed", "device")
SIZES_ASKED = ("vocab_size", "context", "layers", "heads", "width")
# The words that a subject may have for the harness's ways to compute attention.
ATTENTIONS = {
    "looped": ("looped", "loop", "per_head"),
    "naive": ("naive", "eager", "manual", "math", "vanilla", "standard"),
    "flash": ("flash", "sdpa", "fused", "flash_attention"),
}
ESCAPE = (
    "or say it in an adapter, a class with `name` and `build(size, ...)` that returns a harness.subjects.model.Model: "
    "'Add a subject' in CONTRIBUTING.md has one of ten lines"
)


def plain(word: str) -> str:
    """A word without case and underscores."""
    return word.lower().replace("_", "")


_QUANTITY = {plain(word): quantity for quantity, words in SYNONYMS.items() for word in words}


def quantity_of(word: str, beside: Iterable[str]) -> str | None:
    """What a setting's name means (a key of SYNONYMS), given the names beside it; None for an unknown one."""
    if word.lower() in WIDTH_OR_INNER or plain(word) in map(plain, WIDTH_OR_INNER):
        others = {_QUANTITY.get(plain(other)) for other in beside}
        return "feed_forward_width" if "width" in others else "width"
    return _QUANTITY.get(plain(word))


@dataclasses.dataclass(frozen=True)
class Constructor:
    """A way to build the module: which words it takes, the call itself, and in which words a choice is made."""

    words: frozenset[str]
    call: Callable[[dict[str, Any]], nn.Module]
    how: str
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def takes(self, quantity: str) -> bool:
        """Whether the subject has a setting for `quantity` (a key of SYNONYMS)."""
        return any(quantity_of(word, self.words) == quantity for word in self.words)

    def arguments(self, size: Size, **options: Any) -> dict[str, Any]:
        """The value of each of the subject's words at `size`."""
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
            "dropout": 0.1,  # GPT-2's; in eval mode, where nearly everything is judged, it must not show
            **options,
        }
        means = {word: quantity_of(word, self.words) for word in self.words}
        return {word: quantities[q] for word, q in means.items() if q in quantities}

    def build(self, size: Size, **options: Any) -> nn.Module:
        """The module at `size`. BuildSettings that the subject lacks must be what GPT-2 has, or MissingAbility is raised."""
        for quantity, value in options.items():
            if quantity not in ("bias", "dropout", "seed") and not self.takes(quantity):
                raise MissingAbility(
                    f"the subject has no setting '{quantity}' (looked for: {', '.join(SYNONYMS[quantity])})"
                )
            if quantity in self.choices:
                options[quantity] = self._choice(quantity, value)
        return self.call(self.arguments(size, **options))

    def _choice(self, quantity: str, value: str) -> str:
        known = self.choices[quantity]
        for word in (value, *ATTENTIONS.get(value, ())):
            if word in known:
                return word
        raise MissingAbility(f"the subject has no {quantity} '{value}'; it has {', '.join(known)}")


def constructor(target: Any, module: ModuleType) -> Constructor:
    """How `target` is built. Raises SubjectError where it cannot be told."""
    if isinstance(target, nn.Module):
        return Constructor(frozenset(), lambda arguments: copy.deepcopy(target), "a module instance")
    if not callable(target):
        raise SubjectError(f"{target!r} is neither a class, nor a function, nor a torch.nn.Module")
    own = _parameters(target)
    modules = _modules(target, module)
    if _knows_sizes(own):
        _refuse_unknown(target, own)
        words = frozenset(own)
        return Constructor(
            words, lambda arguments: _module(target, **arguments), "keyword arguments", _choices(own, target, modules)
        )
    required = [p for p in own.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    extra = frozenset(name for name, p in own.items() if p.kind is p.KEYWORD_ONLY)
    config_parameter = next(iter(required or own.values()), None)
    if config_parameter is None or config_parameter.kind is config_parameter.KEYWORD_ONLY:
        return _of_globals(target, own, module) or Constructor(
            frozenset(), lambda arguments: _module(target), "a call without arguments"
        )
    others = {p.name: p for p in required[1:]}
    if any(quantity_of(name, own) is None for name in others) or (quantity_of(config_parameter.name, own) is not None):
        by_globals = _of_globals(target, own, module)
        if by_globals is not None:
            return by_globals
        raise SubjectError(
            f"{_name(target)}{_signature(target)} cannot be called: expected one config, or sizes by the names that "
            f"people use ({', '.join(SYNONYMS[q][0] for q in SIZES_ASKED)}, ...); rename them, {ESCAPE}"
        )
    return _of_config(target, config_parameter, extra | frozenset(others), own, modules)


def _of_config(
    target: Any,
    parameter: inspect.Parameter,
    extra: frozenset[str],
    own: Mapping[str, inspect.Parameter],
    modules: list[ModuleType],
) -> Constructor:
    """The ways in which a config can be made; the first that the subject takes is kept."""
    classes = _config_classes(parameter, target, modules)
    prototypes = [] if classes else _prototypes(parameter, target, modules)
    words: frozenset[str]
    if classes:
        words = frozenset(word for c in classes for word in _fields(c))
    elif prototypes:
        words = frozenset(word for _, p in prototypes for word in _entries(p))
    else:
        # A dict does not tell what is read from it: the sizes must be, a choice of attention, say, need not.
        words = frozenset(w for quantity, ws in SYNONYMS.items() if quantity not in CHOICES for w in ws)
        words |= frozenset(WIDTH_OR_INNER)
    choices = _choices({**own, **{n: p for c in classes for n, p in _fields(c).items()}}, classes or target, modules)

    def call(arguments: dict[str, Any]) -> nn.Module:
        keywords = {key: value for key, value in arguments.items() if key in extra}
        settings = BuildSettings(arguments)
        configs: list[Callable[[], Any]] = [functools.partial(_made, c, arguments) for c in classes]
        configs += [functools.partial(_filled, prototype, arguments) for _, prototype in prototypes]
        if not prototypes:
            configs.append(lambda: settings)
        module = _first_that_fits(target, configs, keywords)
        return _module(target, BuildSettings(again), **keywords) if (again := settings.meant()) else module

    how = f"a {classes[0].__name__}" if classes else f"a copy of {prototypes[0][0]}" if prototypes else "a dict"
    return Constructor(words | extra, call, how, choices)


class BuildSettings(dict[str, Any]):
    """A config that answers to cfg["n_embd"], cfg.n_embd and cfg.get("n_embd") alike, and keeps what it was asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["_asked"] = set()

    def __getitem__(self, word: str) -> Any:
        self.__dict__["_asked"].add(word)
        return super().__getitem__(word)

    def get(self, word: str, default: Any = None) -> Any:
        """As a dict's; what is asked for is kept here too."""
        self.__dict__["_asked"].add(word)
        return super().get(word, default)

    def __getattr__(self, word: str) -> Any:
        if word.startswith("__"):
            raise AttributeError(word)
        try:
            return self[word]
        except KeyError:
            raise AttributeError(f"the config is asked for '{word}', which the harness does not know") from None

    def __setattr__(self, word: str, value: Any) -> None:
        self[word] = value

    def meant(self) -> dict[str, Any] | None:
        """These settings, where 'hidden_size' was asked for as the width and had been answered as the inner one's."""
        asked = self.__dict__["_asked"]
        if len(asked) == 0 or any(_QUANTITY.get(plain(word)) == "width" for word in asked):
            return None
        wrong = dict.fromkeys(asked & set(WIDTH_OR_INNER), self["n_embd"])
        return {**self, **wrong} if wrong else None


def _first_that_fits(target: Any, configs: list[Callable[[], Any]], keywords: dict[str, Any]) -> nn.Module:
    """The model of the first config that raises no error of the kind that one of the wrong class gives.

    Where none fits, the first error is the one to tell: it comes from the likeliest way.
    """
    first: Exception | None = None
    for make in configs:
        try:
            return _module(target, make(), **keywords)
        except (TypeError, AttributeError, KeyError) as error:
            first = first or error
    assert first is not None
    if isinstance(first, KeyError) or "which the harness does not know" in str(first):
        raise SubjectError(
            f"{_name(target)} reads {first} from its config, which the harness does not know under that name; "
            f"put a config class or a dict of defaults beside it, {ESCAPE}"
        ) from first
    raise first


def _module(target: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
    module = target(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise SubjectError(f"{_name(target)} returned a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _knows_sizes(names: Iterable[str]) -> bool:
    words = list(names)
    found = {quantity_of(word, words) for word in words}
    return sum(quantity in found for quantity in SIZES_ASKED) >= 3


def _refuse_unknown(target: Any, parameters: Mapping[str, inspect.Parameter]) -> None:
    """A required parameter that no word explains would be a TypeError at every check: one clear error instead."""
    unknown = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and quantity_of(name, parameters) in (None, "attention", "init", "tied")
    ]
    if unknown:
        raise SubjectError(
            f"{_name(target)}{_signature(target)}: no value is known for '{unknown[0]}', which has no default; give "
            f"it one, name it as people do ({', '.join(SYNONYMS[q][0] for q in SIZES_ASKED)}, ...), {ESCAPE}"
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
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                break
        elif not found and function is not bases[0]:
            continue
    if not found and inspect.isclass(target):  # def __init__(self, *args, **kwargs): all of it is a base class's
        for function in bases[1:]:
            parameters = list(inspect.signature(function).parameters.values())[1:]
            named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if named:
                return {p.name: p for p in named}
    return found


def _modules(target: Any, module: ModuleType) -> list[ModuleType]:
    """The modules in which the subject, its bases and what it is annotated with were written."""
    bases = target.__mro__ if inspect.isclass(target) else ()
    named = [sys.modules.get(c.__module__) for c in bases if c.__module__.split(".")[0] not in ("torch", "builtins")]
    return list(dict.fromkeys([module, *(m for m in named if m is not None)]))


def _annotated(parameter: inspect.Parameter, modules: list[ModuleType]) -> Any:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        word = annotation.strip("'\"").split("|")[0].strip()
        return next((vars(m)[word] for m in modules if word in vars(m)), annotation)
    return annotation


def _config_classes(parameter: inspect.Parameter, target: Any, modules: list[ModuleType]) -> list[Callable[..., Any]]:
    """The class that the parameter is annotated with; else those beside the subject, or its bases, that know sizes."""
    stated = [_annotated(parameter, modules), getattr(target, "config_class", None)]
    beside = [value for m in modules for value in vars(m).values()]
    written_there = [c for c in beside if getattr(c, "__module__", "") == getattr(target, "__module__", None)]
    for candidates in (stated, written_there, beside):
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


def _fields(config_class: Any) -> dict[str, inspect.Parameter]:
    """The settings of a config class, with default and annotation: what it can be called with, else its attributes."""
    try:
        parameters = inspect.signature(config_class).parameters
    except (TypeError, ValueError):
        parameters = types.MappingProxyType({})
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if any(quantity_of(name, named) in SIZES_ASKED for name in named):
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # minGPT's: what is handed on becomes attributes
            for word in ("n_layer", "n_head", "n_embd"):
                named.setdefault(word, inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY))
        return named
    return {
        word: inspect.Parameter(word, inspect.Parameter.KEYWORD_ONLY, default=value)
        for c in reversed(getattr(config_class, "__mro__", ())[:-1])
        for word, value in vars(c).items()
        if not word.startswith("_") and not callable(value) and not isinstance(value, property | classmethod)
    }


def _made(config_class: Any, arguments: Mapping[str, Any]) -> Any:
    """A config of that class; one that takes no arguments is made first and filled then."""
    wanted = {word: arguments[word] for word in _fields(config_class) if word in arguments}
    try:
        return config_class(**wanted)
    except TypeError as error:
        if "unexpected keyword" not in str(error) and "takes no arguments" not in str(error):
            raise
        return _filled(config_class(), arguments)


def _prototypes(parameter: inspect.Parameter, target: Any, modules: list[ModuleType]) -> list[tuple[str, Any]]:
    """Configs with defaults that lie at hand: minGPT's get_default_config(), a parameter's default, a dict beside."""
    found: list[tuple[str, Any]] = []
    make = getattr(target, "get_default_config", None)
    if callable(make):
        found.append((f"{_name(target)}.get_default_config()", make()))
    if parameter.default is not parameter.empty and parameter.default is not None:
        found.append((f"the default of '{parameter.name}'", parameter.default))
    for module in modules[:1]:
        for name, value in vars(module).items():
            if (
                not name.startswith("__")
                and not inspect.isclass(value)
                and not isinstance(value, ModuleType | nn.Module)
            ):
                found.append((name, value))
    return [(name, value) for name, value in found if _knows_sizes(_entries(value))][:4]


def _entries(prototype: Any) -> list[str]:
    if isinstance(prototype, Mapping):
        return [word for word in prototype if isinstance(word, str)]
    if callable(prototype) or isinstance(prototype, str | int | float | tuple | list | set):
        return []
    own = getattr(prototype, "__dict__", None)
    return [word for word in own if not word.startswith("_")] if isinstance(own, dict) else []


def _filled(prototype: Any, arguments: Mapping[str, Any]) -> Any:
    """A copy of a config, with the sizes in the place of its own. A name of a preset among them is taken out."""
    config = copy.deepcopy(prototype)
    sizes = {word: arguments[word] for word in [*_entries(config), *dir(type(config))] if word in arguments}
    if isinstance(config, dict):
        config.update(sizes)
        return config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.replace(config, **sizes)
    for word, value in sizes.items():
        setattr(config, word, value)
    if getattr(config, "model_type", None) is not None and isinstance(config.model_type, str):
        config.model_type = None  # minGPT's preset, which refuses sizes beside it
    return config


def _of_globals(target: Any, own: Mapping[str, inspect.Parameter], module: ModuleType) -> Constructor | None:
    """Sizes that stand in the module as n_embd = 384, beside a class that takes none, or just the vocabulary's."""
    words = frozenset(
        name for name, value in vars(module).items() if isinstance(value, int | float) and not name.startswith("_")
    )
    if not _knows_sizes([*words, *own]) or any(
        quantity_of(name, own) is None for name, p in own.items() if p.default is p.empty
    ):
        return None

    def call(arguments: dict[str, Any]) -> nn.Module:
        for word in words & set(arguments):
            if quantity_of(word, words) in (*SIZES_ASKED, "head_width", "dropout", "feed_forward_width"):
                setattr(module, word, arguments[word])
        return _module(target, **{word: arguments[word] for word in own if word in arguments})

    kept = frozenset(word for word in words if quantity_of(word, words) not in (None, *CHOICES))
    return Constructor(kept | frozenset(own), call, f"the global names of {module.__name__.removeprefix('_subject_')}")


def _choices(
    parameters: Mapping[str, inspect.Parameter], owners: Any, modules: list[ModuleType]
) -> dict[str, tuple[str, ...]]:
    """What can be chosen for 'attention' and 'init': only where the subject itself says it.

    As Literal[...] in the annotation, an `attentions` or `recipes` of the class, or a collection of words in the module
    that has the default among them and the quantity in its name.
    """
    found: dict[str, tuple[str, ...]] = {}
    owners = owners if isinstance(owners, list) else [owners]
    homes = [sys.modules[o.__module__] for o in owners if getattr(o, "__module__", None) in sys.modules]
    for name, parameter in parameters.items():
        quantity = quantity_of(name, parameters)
        if quantity not in ("attention", "init"):
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str) and annotation.startswith(("Literal", "typing.Literal")):
            annotation = Literal[tuple(re.findall(r"['\"]([^'\"]+)['\"]", annotation))]
        stated: Any = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
        attribute = {"attention": "attentions", "init": "recipes"}[quantity]
        stated = stated or next((getattr(o, attribute) for o in owners if hasattr(o, attribute)), ())
        if not stated or callable(stated):
            stem = {"attention": "ATT", "init": "INIT"}[quantity]
            stated = next(
                (
                    value
                    for m in [*homes, *modules]
                    for word, value in vars(m).items()
                    if stem in word.upper()
                    and isinstance(value, tuple | list | set | frozenset | Mapping)
                    and all(isinstance(item, str) for item in value)
                    and parameter.default in value
                ),
                (),
            )
        if stated and all(isinstance(word, str) for word in stated):
            found[quantity] = tuple(stated)
    return found


def _name(target: Any) -> str:
    return getattr(target, "__name__", type(target).__name__)


def _signature(target: Any) -> str:
    """The parameters, without annotations, as the user would call it."""
    return f"({', '.join(_parameters(target))})"
