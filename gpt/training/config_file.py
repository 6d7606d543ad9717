"""Configurations as TOML files: the presets, a user's own, and the one that is saved with a run."""

import json
import re
import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from gpt.config import check_type
from gpt.errors import ConfigError, did_you_mean
from gpt.training.config import TrainConfig
from gpt.training.field_docs import field_docs

FIELDS = {field.name: field for field in fields(TrainConfig)}


def read_config(path: Path) -> TrainConfig:
    """Return the configuration in a TOML file; fields that it leaves out have their defaults.

    Raises `ConfigError`.
    """
    settings = read_settings(path)
    try:
        return TrainConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """Return the fields that a TOML file sets, each of the right type.

    Raises `ConfigError`, with the file and the line, for a file that is not TOML, an unknown field or a wrong type.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a TOML file of settings") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); TOML files are") from error
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}; expected lines like `steps = 500`") from error
    for name, value in settings.items():
        where = f"{path}:{_line(text, name)}"
        if name not in FIELDS:
            raise ConfigError(f"{where}: unknown setting {name!r}; {did_you_mean(name, FIELDS)}")
        try:
            check_type(name, value, FIELDS[name].type)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return settings


def _line(text: str, name: str) -> int:
    """Return the number of the line that sets a field, or opens a table of its name."""
    found = re.search(rf"""^\s*\[*\s*["']?{re.escape(name)}["']?\s*[=.\]]""", text, re.MULTILINE)
    return 1 + text.count("\n", 0, found.end()) if found else 1


def to_toml(config: TrainConfig) -> str:
    """Return a configuration as TOML text, every field under its heading; `read_config` reads it back."""
    lines = []
    heading = None
    for doc in field_docs():
        if doc.heading != heading:
            heading = doc.heading
            lines += ["", f"# {heading}"]
        lines.append(f"{doc.name} = {toml_value(getattr(config, doc.name))}")
    return "\n".join(lines[1:]) + "\n"


def toml_value(value: bool | int | float | str) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, str):
        # JSON's string is TOML's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


# ---------------------------------------------------------------------------- presets


def presets() -> dict[str, Path]:
    """Return the presets that ship with this package, by name, with the files that contain them."""
    folder = Path(str(resources.files("gpt.training") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def preset_file(name: str) -> Path:
    """Return the file of a preset. Raises `ConfigError` for an unknown one."""
    known = presets()
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, known)}")
    return known[name]


def preset_summary(path: Path) -> str:
    """Return the comment at the top of a preset, which says what it is for."""
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").strip())
    return " ".join(comments)
