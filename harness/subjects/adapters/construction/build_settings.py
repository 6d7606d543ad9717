"""A config for subjects without a config class: it answers to every name that a setting may have."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView
from typing import Any

from harness.subjects.adapters.construction.setting_names import (
    QUANTITIES,
    WIDTH_OR_FEED_FORWARD_WIDTH,
    normalised,
)
from harness.subjects.adapters.construction.stand_in import UNKNOWN


class BuildSettings(dict[str, Any]):
    """A config that supports cfg["n_embd"], cfg.n_embd and cfg.get("n_embd"), and records the names that are read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__dict__["_read"] = set()

    @property
    def names_read(self) -> set[str]:
        """The names that were read so far; every name if the settings were listed."""
        read: set[str] = self.__dict__["_read"]
        return read

    def __iter__(self) -> Iterator[str]:
        self.__dict__["_read"] |= set(super().keys())
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]  # dict_keys is no name to import
        """Return the names, as a dict does, and record that all were read."""
        self.__dict__["_read"] |= set(super().keys())
        return super().keys()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]  # likewise
        """Return names and values, as a dict does, and record that all were read."""
        self.__dict__["_read"] |= set(super().keys())
        return super().items()

    def __getitem__(self, name: str) -> Any:
        self.__dict__["_read"].add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting or the default, as a dict does, and record the name."""
        self.__dict__["_read"].add(name)
        return super().get(name, default)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no '{name}', {UNKNOWN}", name=name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def corrected(self) -> dict[str, Any] | None:
        """Return the settings with 'hidden_size' as the model's width, if nothing else was read as that.

        None if they were right. `hidden_size` is first given as the feed-forward layer's width.
        """
        read = self.names_read
        if len(read) == 0 or any(QUANTITIES.get(normalised(name)) == "width" for name in read):
            return None
        wrong = dict.fromkeys(read & set(WIDTH_OR_FEED_FORWARD_WIDTH), self.get("n_embd"))
        return {**dict(super().items()), **wrong} if wrong else None


def unknown_setting(error: BaseException | None) -> str | None:
    """Return the name of the setting that a subject read and that was not there; None for any other error."""
    while error is not None:
        if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
            return error.args[0]
        if isinstance(error, AttributeError) and error.name and UNKNOWN in str(error):
            return error.name
        error = error.__cause__
    return None
