"""The engine of continuous batching beside a GPT: its class, its methods and their parameters, by their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from harness.subjects.adapters.generation import MODELS, SETTINGS
from harness.subjects.adapters.locate import exported
from harness.subjects.forward_style import parameters_of
from harness.subjects.option_names import GENERATE_OPTIONS

# Methods, the usual name first.
SUBMIT = ("submit", "add_request", "add", "enqueue", "add_sequence", "add_seq", "add_prompt", "queue_request")
STEP = ("step", "run_step", "tick", "step_once", "run_once", "schedule_step", "iteration")
CANCEL = ("cancel", "abort", "abort_request", "cancel_request", "remove_request", "stop_request", "remove")
# Classes that are engines, if several have the methods.
ENGINES = ("Engine", "LLMEngine", "BatchEngine", "InferenceEngine", "ServingEngine", "ContinuousBatcher",
           "ContinuousBatchingEngine", "Batcher", "Server", "Scheduler")  # fmt: skip
REQUESTS = ("Request", "GenerationRequest", "Sequence")
# Parameters of the constructor.
PAGES = ("pages", "num_pages", "n_pages", "num_blocks", "n_blocks", "num_kvcache_blocks", "num_kv_blocks", "max_pages",
         "max_blocks", "total_pages", "total_blocks")  # fmt: skip
PAGE_SIZES = ("page_size", "block_size", "kvcache_block_size", "kv_block_size", "tokens_per_page", "tokens_per_block")
POSITIONS = ("max_cache_tokens", "cache_tokens", "max_total_tokens", "kv_tokens", "capacity", "total_tokens")
SLOTS = ("max_batch", "max_batch_size", "batch_size", "max_num_seqs", "slots", "num_slots", "n_slots", "max_slots",
         "max_requests", "max_running", "max_concurrent", "max_seqs")  # fmt: skip
LENGTHS = ("max_len", "max_length", "max_seq_len", "max_model_len", "context", "context_length", "max_context", "ctx")
# Parameters of `submit`, of the object with its settings, and of a request's own class.
PROMPTS = ("ids", "prompt", "prompt_ids", "input_ids", "token_ids", "tokens", "prompt_tokens", "prompt_token_ids",
           "input_tokens")  # fmt: skip
NEW_TOKENS = ("max_new_tokens", "max_tokens", "new_tokens", "n_tokens", "num_tokens", "max_output_tokens", "n_new")
STOPS = ("stop", *GENERATE_OPTIONS["stop token"], "eos_token_ids")
SEEDS = (*SETTINGS["seed"], "generator", "rng")
NUMBERS = ("request_id", "req_id", "rid", "uid", "seq_id", "id", "name")
SAMPLING_OBJECTS = ("sampling_params", "sampling", "params", "sampling_config")
REQUEST_OBJECTS = ("request", "req", "seq", "sequence", "r")


@dataclass(frozen=True)
class EngineClass:
    """A class that is made with a model, and the names of its methods; `cancel` is "" if it has none.

    `request` is the class of what `submit` takes, `sampling` that of its settings; None if it takes them as they are.
    """

    kind: type
    submit: str
    step: str
    cancel: str
    request: type | None = None
    sampling: type | None = None

    @property
    def description(self) -> str:
        """`Engine(pages, page_size, ...): submit(ids, ...), step(), cancel()`."""
        words = ", ".join(list(parameters_of(self.kind, "__init__"))[1:])
        cancel = f", {self.cancel}()" if self.cancel else ""
        return f"{self.kind.__name__}({words}): {self.submit}({', '.join(self.parameters)}), {self.step}(){cancel}"

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters by which a request is described: of `submit`, of its settings and of its own class."""
        found = dict(parameters_of(self.kind, self.submit))
        for kind in (self.request, self.sampling):
            found |= signature_of(kind) if kind is not None else {}
        return found

    def word(self, names: tuple[str, ...]) -> str | None:
        """Return the parameter of a request that has one of these names; None if there is none."""
        return first_of(names, self.parameters)

    def line(self, method: str) -> tuple[str, int] | None:
        """Return the file and the line of a method's `def`; None if they are not known."""
        function = inspect.unwrap(getattr(self.kind, method))
        try:
            lines, first = inspect.getsourcelines(function)
        except (OSError, TypeError):
            return None
        at = next((n for n, line in enumerate(lines) if line.lstrip().startswith(("def ", "async def"))), 0)
        return function.__code__.co_filename, first + at


def engine_class_of(module: ModuleType | None) -> EngineClass | None:
    """Return the engine of a module, defined there or imported into it; None if there is none.

    It is a class that takes a model first, with a method that takes a prompt and one that steps.
    """
    if module is None:
        return None
    # A package may import at the first use: of one with hundreds of names only those of engines are looked at.
    kinds = {**vars(module), **{name: exported(module, name) for name in ENGINES}}
    found = [engine for kind in kinds.values() if (engine := _engine(kind, module)) is not None]
    return min(found, key=lambda engine: _rank(engine.kind.__name__), default=None)


def _rank(name: str) -> int:
    return ENGINES.index(name) if name in ENGINES else len(ENGINES)


def _engine(kind: Any, module: ModuleType) -> EngineClass | None:
    if not inspect.isclass(kind) or issubclass(kind, nn.Module):
        return None
    methods = [next((n for n in names if callable(getattr(kind, n, None))), "") for names in (SUBMIT, STEP, CANCEL)]
    submit, step, cancel = methods
    words = list(parameters_of(kind, "__init__"))
    if not submit or not step or not words or words[0] not in MODELS:
        return None
    taken = list(parameters_of(kind, submit))
    request = sampling = None
    if (word := first_of(REQUEST_OBJECTS, taken)) is not None and first_of(PROMPTS, taken) is None:
        request = _class_for(kind, submit, word, module, REQUESTS)
    if (word := first_of(SAMPLING_OBJECTS, taken)) is not None:
        sampling = _class_for(kind, submit, word, module, ("SamplingParams", "SamplingConfig", "Sampling"))
    engine = EngineClass(kind, submit, step, cancel, request, sampling)
    return engine if engine.word(PROMPTS) is not None and engine.word(NEW_TOKENS) is not None else None


def _class_for(kind: type, method: str, word: str, module: ModuleType, names: tuple[str, ...]) -> type | None:
    """Return the class of a parameter: its annotation, or a class of the engine's or the subject's module."""
    annotation = parameters_of(kind, method)[word].annotation
    if inspect.isclass(annotation) and annotation is not inspect.Parameter.empty:
        return annotation
    said = annotation if isinstance(annotation, str) else ""
    home = inspect.getmodule(kind)
    for name in (said.split("|")[0].strip(), *names):
        for place in (home, module):
            if name and inspect.isclass(found := getattr(place, name, None)):
                return found
    return None


def signature_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function or of a class's constructor."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def first_of(names: tuple[str, ...], parameters: Any) -> str | None:
    """Return the first of the names that is a parameter; None if none is."""
    return next((name for name in names if name in parameters), None)
