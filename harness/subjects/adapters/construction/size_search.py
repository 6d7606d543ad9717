"""Find by behaviour which setting is which size: change each, and see which dimensions of the parameters follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from harness.core.captured_output import CapturedOutput, captured_output
from harness.core.global_state import isolated_global_state
from harness.core.sizes import SIZES as NAMED_SIZES
from harness.core.sizes import Size
from harness.subjects.adapters.construction.build_settings import unknown_setting
from harness.subjects.adapters.construction.constructor import Constructor
from harness.subjects.adapters.construction.shapes import Shapes, follows, lacking, only_buffers_are_longer, shapes_of
from harness.subjects.adapters.construction.stand_in import StandIn

SMALL = NAMED_SIZES["debug"]
WORDS = {
    "vocab_size": "the vocabulary", "context": "the context", "layers": "the number of blocks", "heads": "the number "
    "of heads", "width": "the width", "head_width": "the width of a head",
    "feed_forward_width": "the width of the feed-forward layer",
    "feed_forward_factor": "the factor of the feed-forward layer",
}  # fmt: skip
READS = 40  # settings that are discovered because the subject reads them, at most
TRIED = 40  # settings that are changed, at most
NOT_DIVISORS = (5, 7)  # of the debug size's width, and of most


def built_without_memory(constructor: Constructor, size: Size) -> nn.Module:
    """Return the module on the meta device, or on the CPU if it cannot be built there."""
    with isolated_global_state({}), captured_output(CapturedOutput()):
        try:
            with torch.device("meta"):
                return constructor.build(size)
        except Exception:
            return constructor.build(size)


class SizeSearch:
    """The search for the meanings of one constructor's settings. Nothing that it builds is kept."""

    def __init__(self, constructor: Constructor, size: Size = SMALL) -> None:
        self.constructor, self.size = constructor, size
        self.device = "meta"
        self.error: BaseException | None = None

    def run(self) -> Constructor:
        """Return the constructor with the meanings that were found.

        Raises the subject's own error if it cannot be built whatever the settings.
        """
        with isolated_global_state({}), captured_output(CapturedOutput()):
            base = self._base()
            if base is None:
                assert self.error is not None
                raise self.error
            # Of the names in a dict that has every name, those that it reads; and constants, which it need not read.
            if self.constructor.read:
                read = self.constructor.read | {*self.constructor.unknown, *self.constructor.defaults}
                self.constructor = dataclasses.replace(self.constructor, words=self.constructor.words & read)
            self._decide(*base)
        return self.constructor

    def _base(self) -> tuple[dict[str, Any], Shapes] | None:
        """Return settings with which the subject can be built, and its shapes: known sizes and its own defaults."""
        for _ in range(READS):
            first: BaseException | None = None
            for values in self._candidates():
                self.constructor = dataclasses.replace(self.constructor, values=values)
                arguments = self.constructor.arguments(self.size)
                shapes = self._shapes(arguments)
                if shapes is not None:
                    return arguments, shapes
                first = first or self.error
                if (name := unknown_setting(self.error)) is not None and name not in self.constructor.unknown:
                    break
            else:
                self.error = first
                return self._own_defaults()
            self.constructor = dataclasses.replace(
                self.constructor,
                unknown=(*self.constructor.unknown, name),
                words=self.constructor.words | {name},
            )
        return None

    def _candidates(self) -> Iterator[dict[str, Any]]:
        """Yield values for the settings whose names say nothing: a stand-in, then numbers that fit others' divisors."""
        names = self.constructor.unknown
        yield {name: StandIn(name) for name in names}
        for name in names:
            yield {other: StandIn(other, 48 if other == name else 4) for other in names}
        for value in (1, 48, 0.0, None, True):
            for name in names:
                yield {other: value if other == name else StandIn(other) for other in names}

    def _own_defaults(self) -> tuple[dict[str, Any], Shapes] | None:
        """Return the subject's own defaults in place of known sizes, which may not fit an unknown one's default."""
        known = self.constructor.arguments(self.size)
        needed = {word: value for word, value in known.items() if word not in self.constructor.defaults}
        error = self.error
        shapes = self._shapes(needed) if self.constructor.defaults else None
        self.error = self.error if shapes is not None else error
        return None if shapes is None else (needed, shapes)

    def _shapes(self, arguments: Mapping[str, Any]) -> Shapes | None:
        module = self._built(arguments)
        return None if module is None else shapes_of(module)

    def _built(self, arguments: Mapping[str, Any], device: str | None = None) -> nn.Module | None:
        """Return the module with these settings, without memory where it can be; None if it raises."""
        for where in dict.fromkeys((device or self.device, "cpu")):
            try:
                with torch.device(where):
                    module = self.constructor.build_with(dict(arguments), self.size)
            except Exception as error:
                self.error = error
            else:
                self.device = where if device is None else self.device
                return module
        return None

    def _decide(self, arguments: dict[str, Any], shapes: Shapes) -> None:
        """Change each setting whose name says nothing, note what follows it, and take the meanings that are lacking."""
        found: dict[str, str] = {}
        stated = {quantity for quantity in WORDS if self.constructor.takes(quantity)}
        tables: list[str] = []
        without: list[str] = []
        for word, old in self._numbers(arguments):
            quantity = self._effect(arguments, shapes, word, old)
            if quantity == "table":
                tables.append(word)
            elif quantity is None:
                without.append(word)
            elif quantity not in found.values() and quantity not in stated:
                found[word] = quantity
        found |= self._tables(tables, arguments, stated | set(found.values()))
        if "heads" not in stated | set(found.values()):
            heads = [word for word in without if self._divides(word, {**arguments, **self._at_size(found)}, shapes)]
            found |= dict.fromkeys(heads[:1], "heads")
        self._take(found)

    def _numbers(self, arguments: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Return the settings without a meaning that have a number, with it."""
        every = {**self.constructor.defaults, **arguments}
        numbers = [
            (word, value)
            for word, value in every.items()
            if self.constructor.meaning(word) is None
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and (value >= 1 and value == int(value))
            and not (isinstance(value, StandIn) and value.used_as - {"flag"})
        ]
        return numbers[:TRIED]

    def _effect(self, arguments: Mapping[str, Any], before: Shapes, word: str, old: float) -> str | None:
        vectors = [shape[0] for shape in before.parameters.values() if len(shape) == 1]
        width = max(set(vectors), key=vectors.count) if vectors else self.size.width
        for new in dict.fromkeys((2 * int(old), 3 * int(old), int(old) // 2, int(old) + 1)):
            after = self._shapes({**arguments, word: new}) if new > 0 else None
            if after is not None:
                return follows(before, after, old, new, width, self.size.head_width)
        return None

    def _tables(self, words: list[str], arguments: Mapping[str, Any], stated: set[str]) -> dict[str, str]:
        """Tell the vocabulary from the context: the logits have as many columns as the vocabulary has tokens."""
        open_ones = [quantity for quantity in ("vocab_size", "context") if quantity not in stated]
        if len(open_ones) < 2 or len(words) < 2:
            return dict(zip(words, open_ones, strict=False))
        every = {**self.constructor.defaults, **arguments}
        vocabulary = max(words, key=lambda word: (self._is_vocabulary(word, arguments), every[word]))
        return {vocabulary: "vocab_size", next(word for word in words if word != vocabulary): "context"}

    def _is_vocabulary(self, word: str, arguments: Mapping[str, Any]) -> bool:
        odd = 13
        for device in ("meta", "cpu"):  # without memory, the shape of the answer is known without computing it
            module = self._built({**arguments, word: odd}, device)
            try:
                assert module is not None
                with torch.no_grad():
                    answer = module.eval()(torch.zeros(1, 1, dtype=torch.int64, device=device))
            except Exception:
                continue
            answers = answer if isinstance(answer, tuple | list) else [getattr(answer, "logits", answer)]
            return any(isinstance(each, torch.Tensor) and each.ndim > 1 and each.shape[-1] == odd for each in answers)
        return False

    def _divides(self, word: str, arguments: Mapping[str, Any], shapes: Shapes) -> bool:
        """Return True if a setting has to divide the width, or if it changes the answer and no shape: the heads."""
        if self._shapes({**arguments, word: self.size.heads}) is None:
            return False
        if all(self._shapes({**arguments, word: wrong}) is None for wrong in NOT_DIVISORS):
            return True
        answers = []
        for number in (1, self.size.heads):
            module = self._built({**arguments, word: number}, "cpu")
            if module is None or not (parameters := list(module.parameters())):
                return False
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in parameters:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
                try:
                    answer = module.eval()(torch.arange(4)[None])
                except Exception:
                    return False
            answers.append(answer[0] if isinstance(answer, tuple | list) else getattr(answer, "logits", answer))
        first, second = answers
        return isinstance(first, torch.Tensor) and first.shape == second.shape and not torch.equal(first, second)

    def _at_size(self, meanings: Mapping[str, str]) -> dict[str, Any]:
        found = dataclasses.replace(self.constructor, meanings={**self.constructor.meanings, **meanings})
        return found.arguments(self.size)

    def _take(self, found: dict[str, str]) -> None:
        meanings = {**self.constructor.meanings, **found}
        values = {
            word: int(value) if isinstance(value, StandIn) and not value.used_as else value
            for word, value in self.constructor.values.items()
            if word not in meanings
        }
        notes = [f"`{word}` is {WORDS[quantity]}" for word, quantity in found.items()]
        sentences = [f"by behaviour, not by name: {'; '.join(notes)}"] if notes else []
        sentences += [_given(word, value) for word, value in values.items()]
        self.constructor = dataclasses.replace(
            self.constructor, meanings=meanings, values=values, notes=(*self.constructor.notes, *sentences)
        )


def _given(word: str, value: Any) -> str:
    """Return what a setting without a meaning is given, and why."""
    if isinstance(value, StandIn):
        for kind in ("tokenizer", "config"):
            if kind in value.used_as:
                return f"`{word}` is used as a {kind}: it is given one that has every size under every name"
        return f"`{word}` is only asked if it is set: it is not"
    return f"no size follows `{word}`, whose name says nothing: it is given {value!r}"


def problem(constructor: Constructor, shapes: Shapes, size: Size) -> str:
    """Return in one line which sizes the module lacks although no setting of that meaning was found; "" if none."""
    missing = [q for q in lacking(shapes, size) if q != "heads" and not constructor.takes(q)]
    if "context" in missing and only_buffers_are_longer(shapes, size):
        missing.remove("context")
    nothing = not shapes.parameters and bool(constructor.unknown)
    if not missing and not nothing:
        return ""
    known = [f"{word} ({WORDS[q]})" for word in sorted(constructor.words) if (q := constructor.meaning(word)) in WORDS]
    others = [
        f"{word}={constructor.defaults.get(word, '?')}"
        for word in sorted({*constructor.defaults, *constructor.unknown})
        if constructor.meaning(word) is None
    ]
    return (
        f"no setting was found for {' and '.join(WORDS[q] for q in missing) or 'its sizes'}; known: "
        f"{', '.join(known) or 'none'}; not known: {', '.join(others[:12]) or 'none'}"
    )
