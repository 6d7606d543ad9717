"""An engine of continuous batching in use: made, given requests, stepped, and its tokens read."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.subjects.adapters import serving
from harness.subjects.adapters.generation import SETTINGS
from harness.subjects.adapters.serving import EngineClass, first_of, signature_of
from harness.subjects.forward_style import parameters_of
from harness.subjects.model import Model

PAGE = 4  # positions in a page, where the engine has pages: less than a prompt, so that requests have several
# Attributes of a request that have its new tokens, or all of them.
TOKENS = ("new_tokens", "generated", "generated_tokens", "generated_ids", "output_ids", "output_tokens",
          "output_token_ids", "completion_token_ids", "completion", "outputs", "output", "out", "tokens", "token_ids",
          "ids", "all_ids")  # fmt: skip
# Attributes of an engine that have the tokens of requests, by their number.
RESULTS = ("outputs", "results", "finished", "completed", "done", "generated", "responses")
# Attributes and methods of an engine that say whether a request is left.
WORK = ("has_unfinished_requests", "has_unfinished", "has_work", "has_requests", "busy", "active", "pending")
NO_WORK = ("idle", "is_finished", "finished", "is_idle", "done", "all_done")
DEPTH = 6  # of attributes in attributes, in which memory is looked for

PROMPT_FORMS: Mapping[str, Callable[[list[int], torch.device], Any]] = {
    "list": lambda ids, device: list(ids),
    "tensor": lambda ids, device: torch.tensor(ids, device=device),
    "row": lambda ids, device: torch.tensor([ids], device=device),
}


@dataclass(frozen=True)
class _Style:
    """How an engine takes a prompt (a key of PROMPT_FORMS), and whether the tokens of a request begin with it."""

    form: str = "list"
    with_prompt: bool = False


_styles: dict[type, _Style] = {}
TRIAL = [1, 2, 3]  # a prompt; that a model answers it with itself is out of the question


def new_engine(found: EngineClass, model: Model, *, requests: int, positions: int, stop: int | None) -> AdaptedEngine:
    """Return an engine; see `Serves.new_engine`. How its prompts and tokens are given is found by a first request."""
    if found.kind not in _styles:
        _styles[found.kind] = _Style()  # if no form works, the checks report what the first one raises
        for form in PROMPT_FORMS:
            trial = AdaptedEngine(found, model, requests=1, positions=4 * PAGE, stop=None, style=_Style(form))
            with contextlib.suppress(Exception):
                number = trial.submit(TRIAL, 3, temperature=0.0)
                for _ in range(2 * len(TRIAL)):
                    trial.step()
                if tokens := trial.tokens(number):
                    _styles[found.kind] = _Style(form, tokens[: len(TRIAL)] == TRIAL)
                    break
    return AdaptedEngine(found, model, requests=requests, positions=positions, stop=stop, style=_styles[found.kind])


class AdaptedEngine:
    """A user's engine behind `ServingEngine`."""

    def __init__(
        self, found: EngineClass, model: Model, *, requests: int, positions: int, stop: int | None, style: _Style
    ) -> None:
        self.found = found
        self.model = model
        self.style = style
        self.stop = stop
        self.lines: dict[str, tuple[str, int]] = {}
        for role, method in (("submit", found.submit), ("step", found.step), ("cancel", found.cancel)):
            if method and (line := found.line(method)) is not None:
                self.lines[role] = line
        with model.precision():
            self.engine = found.kind(model.module, **self._sizes(requests, positions))
        self.handles: list[Any] = []
        self.prompts: list[list[int]] = []
        self.streamed: dict[int, list[int]] = {}

    @property
    def settings(self) -> frozenset[str]:
        """What a request may say; see `ServingEngine`."""
        names = {"temperature": SETTINGS["temperature"], "top_k": SETTINGS["top_k"], "top_p": SETTINGS["top_p"]}
        has = {word for word, own in {**names, "seed": serving.SEEDS}.items() if self.found.word(own)}
        has |= {"cancel"} if self.found.cancel else set()
        return frozenset(has | ({"stop"} if self._stop_word() else set()))

    def submit(self, ids: Sequence[int], new_tokens: int, **settings: Any) -> int:
        """Queue a prompt and return its number; see `ServingEngine.submit`. Raises MissingAbility for its settings."""
        number = len(self.handles)
        prompt = PROMPT_FORMS[self.style.form]([int(each) for each in ids], self.model.device)
        values = self._values(number, prompt, new_tokens, settings)
        parameters = parameters_of(self.found.kind, self.found.submit)
        if self.found.sampling is not None:
            word = first_of(serving.SAMPLING_OBJECTS, parameters)
            values[str(word)] = self.found.sampling(**_known(values, signature_of(self.found.sampling)))
        made = None
        if self.found.request is not None:
            made = self.found.request(**_known(values, signature_of(self.found.request)))
            values = {str(first_of(serving.REQUEST_OBJECTS, parameters)): made}
        with self.model.precision():
            answer = getattr(self.engine, self.found.submit)(**_known(values, parameters))
        own_number = first_of(serving.NUMBERS, parameters)
        handle = made if made is not None else values[own_number] if answer is None and own_number else answer
        self.handles.append(number if handle is None else handle)
        self.prompts.append([int(each) for each in ids])
        return number

    def step(self) -> None:
        """Do one step; an engine that says that it has no request is left alone."""
        if not self._has_work():
            return
        with self.model.precision():
            answer = getattr(self.engine, self.found.step)()
            if inspect.isgenerator(answer):  # it does its work while it is walked
                answer = list(answer)
        for key, tokens in _events(answer):
            number = self._number_of(key)
            if number is not None:
                self._stream(number, tokens)

    def cancel(self, number: int) -> None:
        """End a request. Raises MissingAbility if the engine has no method for it."""
        if not self.found.cancel:
            raise MissingAbility(f"{self.found.kind.__name__} has no method {' or '.join(serving.CANCEL[:3])}")
        getattr(self.engine, self.found.cancel)(self.handles[number])

    def tokens(self, number: int) -> list[int]:
        """Return the new tokens of a request so far: its own, those that steps returned, or the engine's results."""
        handle = self.handles[number]
        for name in TOKENS:
            said = handle.get(name) if isinstance(handle, dict) else getattr(handle, name, None)
            if (own := _ints(said)) is not None:
                return self._new(number, own)
        if number in self.streamed:
            return list(self.streamed[number])
        for name in RESULTS:
            kept = getattr(self.engine, name, None)
            if isinstance(kept, dict) and handle in kept:
                value = kept[handle]
                own = (
                    _ints(value)
                    if _ints(value) is not None
                    else next(
                        (found for name in TOKENS if (found := _ints(getattr(value, name, None))) is not None), None
                    )
                )
                if own is not None:
                    return self._new(number, own)
        return []

    def memory(self) -> list[Tensor]:
        """Return the float tensors that the engine and its model keep, without parameters and buffers."""
        fixed = {id(t) for t in (*self.model.module.parameters(), *self.model.module.buffers())}
        found = {id(t): t for t in _tensors_in(self.engine, DEPTH, set()) if t.is_floating_point()}
        return [tensor for key, tensor in found.items() if key not in fixed and not isinstance(tensor, nn.Parameter)]

    def _sizes(self, requests: int, positions: int) -> dict[str, Any]:
        """Return the arguments of the constructor after the model. Raises MissingAbility for one that is not known."""
        size, parameters = self.model.size, parameters_of(self.found.kind, "__init__")
        paged = first_of(serving.PAGES, parameters) is not None
        pages = -(-positions // PAGE)
        values: dict[str, Any] = {}
        for names, value in (
            (serving.PAGES, pages),
            (serving.PAGE_SIZES if paged else (), PAGE),
            (serving.POSITIONS, positions),
            (serving.SLOTS, requests),
            (serving.LENGTHS if paged else (*serving.LENGTHS, "block_size"), size.context),
            (("device",), self.model.device),
            (serving.STOPS if self.found.word(serving.STOPS) is None else (), self.stop),
        ):
            if (word := first_of(names, parameters)) is not None and value is not None:
                values[word] = value
        words = list(parameters)
        for word in words[1:]:
            if word not in values and parameters[word].default is inspect.Parameter.empty:
                raise MissingAbility(f"{self.found.kind.__name__} needs '{word}', of which nothing is known")
        return values

    def _stop_word(self) -> str | None:
        in_constructor = first_of(serving.STOPS, parameters_of(self.found.kind, "__init__"))
        return self.found.word(serving.STOPS) or in_constructor

    def _values(self, number: int, prompt: Any, new_tokens: int, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a request under the engine's own names."""
        word = self.found.word
        values = {str(word(serving.PROMPTS)): prompt, str(word(serving.NEW_TOKENS)): new_tokens}
        if (own := word(serving.NUMBERS)) is not None:
            said = self.found.parameters[own].annotation
            values[own] = str(number) if said in (str, "str") else number
        names = {**{key: SETTINGS[key] for key in ("temperature", "top_k", "top_p")}, "seed": serving.SEEDS}
        for setting, value in settings.items():
            own = word(names[setting])
            if own is None and value is not None and (setting, value) != ("temperature", 0.0):
                raise MissingAbility(f"{self.found.submit} of {self.found.kind.__name__} has no setting '{setting}'")
            if own is not None and value is not None:
                drawn_by = torch.Generator(self.model.device)
                values[own] = drawn_by.manual_seed(value) if own in ("generator", "rng") else value
        if self.stop is not None and (own := word(serving.STOPS)) is not None:
            values[own] = [self.stop] if own.endswith("s") else self.stop
        return values

    def _has_work(self) -> bool:
        for names, left in ((WORK, True), (NO_WORK, False)):
            for name in names:
                said = getattr(self.engine, name, None)
                said = said() if callable(said) else said
                if isinstance(said, bool):
                    return said is left
        return True

    def _number_of(self, key: Any) -> int | None:
        """Return the number of the request that a step names, by itself or by its id."""
        for number, handle in enumerate(self.handles):
            own = [handle, *(getattr(handle, name, None) for name in serving.NUMBERS)]
            if any(
                key is each or (type(key) is type(each) and isinstance(key, int | str) and key == each) for each in own
            ):
                return number
        return None

    def _stream(self, number: int, tokens: Any) -> None:
        """Add what a step returned of a request: one token, several new ones, or all so far."""
        so_far = self.streamed.setdefault(number, [])
        found = [tokens] if isinstance(tokens, int) else self._new(number, _ints(tokens) or [])
        if len(found) > len(so_far) and found[: len(so_far)] == so_far and not isinstance(tokens, int):
            so_far[:] = found
        else:
            so_far += found

    def _new(self, number: int, ids: list[int]) -> list[int]:
        """Return the ids without the prompt, if it is among them."""
        return ids[len(self.prompts[number]) :] if self.style.with_prompt else ids


def _known(values: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    return {word: value for word, value in values.items() if word in parameters}


def _ints(value: Any) -> list[int] | None:
    """Return a list of ids, from a list or a tensor (T) or (1, T); None if it is none."""
    if isinstance(value, Tensor):
        return [int(each) for each in value.flatten()] if not value.is_floating_point() else None
    if not isinstance(value, list | tuple) or not all(isinstance(each, int) or _is_scalar(each) for each in value):
        return None
    return [int(each) for each in value]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point()


def _events(answer: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a step returned, as pairs of a request or its id, and its tokens: one, or a list."""
    if isinstance(answer, tuple) and answer and isinstance(answer[0], list):
        answer = answer[0]  # and how many tokens it was
    items = answer.items() if isinstance(answer, dict) else answer if isinstance(answer, list | tuple) else ()
    for item in items:
        if isinstance(item, list | tuple) and len(item) >= 2:
            key, tokens = item[0], item[1]
        else:
            key = next((v for n in serving.NUMBERS if (v := getattr(item, n, None)) is not None), item)
            tokens = next(
                (v for n in ("token", "token_id", *TOKENS) if (v := getattr(item, n, None)) is not None), None
            )
        if isinstance(tokens, bool) or tokens is None:
            continue
        yield key, int(tokens) if isinstance(tokens, int) or _is_scalar(tokens) else tokens


def _attribute(owner: Any, names: tuple[str, ...], default: Any = None) -> Any:
    """Return the first attribute of these names that is not None."""
    return next((value for name in names if (value := getattr(owner, name, None)) is not None), default)


def _tensors_in(owner: Any, depth: int, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors in an object's attributes, and in those of its attributes."""
    if isinstance(owner, Tensor):
        yield owner
        return
    if id(owner) in seen or depth == 0 or isinstance(owner, str | bytes | int | float | type):
        return
    seen.add(id(owner))
    if isinstance(owner, dict):
        parts = list(owner.values())
    elif isinstance(owner, list | tuple | set | frozenset):
        parts = list(owner)
    else:
        slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [*getattr(owner, "__dict__", {}).values(), *(getattr(owner, name, None) for name in slots)]
    for part in parts:
        yield from _tensors_in(part, depth - 1, seen)
