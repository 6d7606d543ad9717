"""The constructor of a subject: which settings it takes, what they mean, and the call that builds the module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from harness.core.errors import MissingAbility
from harness.core.sizes import Size
from harness.subjects.adapters.construction import stand_in
from harness.subjects.adapters.construction.choices import ATTENTIONS
from harness.subjects.adapters.construction.setting_names import SYNONYMS, quantity_of
from harness.subjects.adapters.construction.stand_in import StandIn

BY_SIZE = "its own build(size)"  # the description of a function that takes the size itself


@dataclasses.dataclass(frozen=True)
class Constructor:
    """The names of the settings that a subject takes, the call that builds it, and the choices that it states.

    `defaults` are its own numbers. `unknown` are settings that have to be given, and whose names say nothing.
    `meanings` and `values` are what was decided by behaviour, and `notes` say so. `read` are the names that were
    read from a dict that is made of every name. `direct` is the constructor without constants of modules.
    """

    words: frozenset[str]
    call: Callable[[dict[str, Any]], nn.Module]
    description: str
    choices: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    read: set[str] = dataclasses.field(default_factory=set)
    direct: Constructor | None = None

    def meaning(self, word: str) -> str | None:
        """Return the quantity (a key of SYNONYMS) that a setting is: as seen by behaviour, else by its name."""
        return self.meanings.get(word) or quantity_of(word, self.words)

    def unexplained(self) -> list[str]:
        """Return the settings whose names say nothing, and that have to be given or have a number."""
        return [*self.unknown, *(w for w, value in self.defaults.items() if value >= 1 and self.meaning(w) is None)]

    def takes(self, quantity: str) -> bool:
        """Return True if the subject has a setting for `quantity` (a key of SYNONYMS)."""
        return any(self.meaning(word) == quantity for word in self.words)

    def arguments(self, size: Size, **options: Any) -> dict[str, Any]:
        """Return the value of each of the subject's settings at `size`."""
        quantities = {**quantities_of(size), **options}
        by_word = {word: self.meaning(word) for word in self.words}
        found = {word: quantities[q] for word, q in by_word.items() if q in quantities}
        return {**found, **{word: value for word, value in self.values.items() if word not in self.meanings}}

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
        return self.build_with(self.arguments(size, **options), size)

    def build_with(self, arguments: dict[str, Any], size: Size) -> nn.Module:
        """Return the module built with these settings. A stand-in among them knows every size."""
        named = {name: value for q, value in quantities_of(size).items() for name in SYNONYMS[q]}
        for word, value in arguments.items():
            if isinstance(value, StandIn):
                inside = {w.removeprefix(f"{word}."): v for w, v in arguments.items() if w.startswith(f"{word}.")}
                value.values = {**named, **{w: v for w, v in arguments.items() if w != word}, **inside}
        stand_in.current.clear()
        stand_in.current.update(named, **{w.rpartition(".")[2]: v for w, v in arguments.items() if "." in w})
        return self.call({**arguments, "size": size} if self.description == BY_SIZE else arguments)

    def _choice(self, quantity: str, value: str) -> str:
        """Return the subject's own word for a value. Raises MissingAbility if it has none."""
        known = self.choices[quantity]
        for word in (value, *ATTENTIONS.get(value, ())):
            if word in known:
                return word
        raise MissingAbility(f"the subject has no {quantity} '{value}'; it has {', '.join(known)}")


def quantities_of(size: Size) -> dict[str, Any]:
    """Return the value of every quantity at `size`, GPT-2's where the size does not say."""
    return {
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
    }
