"""A value for a setting that the harness has no word for, whatever it turns out to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNKNOWN = "which the harness does not know"  # in the message of an unknown setting


# The settings of stand-ins that have none of their own, as one in place of a value of a module: those of the build that
# runs, by every name that people use.
current: dict[str, Any] = {}


class StandIn(int):
    """A number that is also a config and a tokenizer, and that is unset if it is asked for its truth.

    Which of them a subject takes it for is seen from what it does with it: `used_as` has the names.
    """

    name: str
    values: dict[str, Any]
    used_as: set[str]

    def __new__(cls, name: str, number: int = 4, values: Mapping[str, Any] | None = None) -> StandIn:
        """Return a stand-in with this value as a number. `values` are the settings that it has as a config."""
        made = super().__new__(cls, number)
        made.name, made.values, made.used_as = name, dict(values or {}), set()
        return made

    def __reduce__(self) -> Any:
        return StandIn, (self.name, int(self), self.values)

    def __bool__(self) -> bool:
        self.used_as.add("flag")
        return False

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Raise TypeError: what is called is no setting."""
        raise TypeError(f"'{self.name}' is called as a function")

    def __len__(self) -> int:
        self.used_as.add("tokenizer")
        return int({**current, **self.values}.get("vocab_size", 50257))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("encode", "decode", "tokenize"):
            self.used_as.add("tokenizer")
            return _without_text
        found = self._read(name)
        if found is None:
            raise AttributeError(f"'{self.name}' has no '{name}', {UNKNOWN}", name=f"{self.name}.{name}")
        return found

    def __getitem__(self, name: Any) -> Any:
        found = self._read(str(name))
        if found is None:
            raise KeyError(f"{self.name}.{name}")
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting or the default, as a dict does."""
        found = self._read(name)
        return default if found is None else found

    def _read(self, name: str) -> Any:
        self.used_as.add("config")
        return {**current, **self.values}.get(name)


def _without_text(*arguments: Any, **keywords: Any) -> Any:
    raise ValueError("the harness gives no tokenizer, only one's size: ids go in and logits come out")
