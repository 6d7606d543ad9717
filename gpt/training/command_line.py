"""The command line of `python -m gpt.train`: flags, presets and configuration files become one configuration."""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from gpt.errors import CheckpointMismatch, CheckpointMissing, ConfigError, did_you_mean
from gpt.training.config import CHANGEABLE, CHANGES_NUMBERS, TrainConfig, differences
from gpt.training.config_file import preset_file, preset_summary, presets, read_config, read_settings, toml_value
from gpt.training.field_docs import FieldDoc, field_docs

CONFIG = "config.toml"
"""The resolved configuration of a run, in its folder."""

USAGE = """python -m gpt.train [--preset NAME] [--config FILE.toml] [--out FOLDER] [flags]
       python -m gpt.train --resume FOLDER [flags]
       torchrun --nproc_per_node 2 -m gpt.train [the same]"""

DESCRIPTION = """Train a GPT on a text. The run's folder then has

  config.toml       the configuration, with everything that was resolved
  environment.json  the preset, the versions, the device and the revision
  vocabulary.json   the tokens
  log.jsonl         a line for each step, validation, sample of text and checkpoint
  checkpoints/      step-00000100 and so on, the last ones; best, the one with the lowest validation loss

A value comes from the first of these that sets it: a flag, the file of --config, the preset, the default."""


def _flags(names: Iterable[str]) -> str:
    """Return the flags of some settings, as a paragraph of the help."""
    flags = ", ".join(_flag(name) for name in sorted(names)) + "."
    return textwrap.fill(flags, width=110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


EPILOG = f"""resuming:
  A resumed run ends in the same weights, bit for bit, as one that was never stopped: on a CPU of the same kind, with
  the same number of threads and the same version of torch. Elsewhere, and on CUDA, the rounding may differ: the log
  and the checkpoints have the environment of each part. These flags may change, and the weights stay the same:
{_flags(CHANGEABLE - CHANGES_NUMBERS)}
  These may change too, and with them the numbers (the schedule, the rounding):
{_flags(CHANGES_NUMBERS)}
  With other --steps the learning rate keeps its schedule, unless --horizon changes it.

stopping:
  Ctrl-C and SIGTERM let the current step finish, save a checkpoint and say how to resume; a second Ctrl-C ends at once.

exit status:
  0  all steps are done
  1  the run failed: the loss is not finite, the disk is full, the text or a checkpoint is damaged
  2  the command or the configuration is wrong; nothing was started
  3  the budget is used up: everything is saved, steps remain
  130, 143  stopped by Ctrl-C or SIGTERM: everything is saved, steps remain"""


@dataclass(frozen=True)
class Command:
    """What a command line asks for: a configuration and the run's folder."""

    config: TrainConfig
    out: Path
    preset: str | None = None
    resume: bool = False
    checkpoint: str | None = None
    """The checkpoint to resume from, by its name; None for the newest."""


def parse(arguments: Sequence[str]) -> Command:
    """Return what the arguments ask for. `--help` prints the documentation and exits.

    Raises `ConfigError` for a flag, preset, file or value that is wrong; `CheckpointMissing` if there is no run to
    resume, and `CheckpointMismatch` for a flag that would make it another run.
    """
    found, rest = _parser().parse_known_args([_normalised(argument) for argument in arguments])
    if rest:
        raise ConfigError(_unknown(rest[0]))
    options = vars(found)
    flags = {doc.name: options[doc.name] for doc in field_docs() if doc.name in options}
    preset, file, out, resume = (options.get(name) for name in ("preset", "config", "out", "resume"))
    if resume is not None:
        for name, value in (("preset", preset), ("config", file), ("out", out)):
            if value is not None:
                raise ConfigError(f"--resume {resume} has its folder and configuration; leave out --{name}")
        return _resumed(Path(resume), flags)
    settings = read_settings(preset_file(preset)) if preset is not None else {}
    if file:
        settings |= read_settings(Path(file))
    return Command(TrainConfig(**(settings | flags)), Path(out or Path("runs", preset or "default")), preset)


def _resumed(path: Path, flags: dict[str, Any]) -> Command:
    """Return the command that resumes a run: `path` is its folder, or one of its checkpoints."""
    out, checkpoint = path, None
    if not (path / CONFIG).is_file() and path.parent.name == "checkpoints":
        out, checkpoint = path.parent.parent, path.name
    if not (out / CONFIG).is_file():
        raise CheckpointMissing(
            f"{path}: has no run to resume ({CONFIG} is missing); expected the folder that --out named, "
            "or one in its checkpoints/"
        )
    saved = read_config(out / CONFIG)
    config = replace(saved, **flags)
    changed = differences(saved, config)
    if fixed := changed.keys() - CHANGEABLE:
        texts = [f"{name} from {changed[name][0]!r} to {changed[name][1]!r}" for name in sorted(fixed)]
        raise CheckpointMismatch(
            f"{out}: a resumed run cannot change {', '.join(texts)}; leave out the flag, or start a run with "
            "another --out"
        )
    if "steps" in changed and not config.horizon:  # a schedule that changes half-way is neither the one nor the other
        config = replace(config, horizon=saved.steps)
    return Command(config, out, resume=True, checkpoint=checkpoint)


# ---------------------------------------------------------------------------- the parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are this package's."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gpt.train",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = parser.add_argument_group("Run")
    run.add_argument("--preset", metavar="NAME", help="start from one of the presets below, instead of the defaults")
    run.add_argument("--config", metavar="FILE.toml", help="read settings from a TOML file: lines like steps = 500")
    run.add_argument("--out", metavar="FOLDER", help="the new run's folder (default: runs/ and the preset's name)")
    run.add_argument(
        "--resume",
        metavar="FOLDER",
        help="continue the run in a folder, or from one of its checkpoints; later checkpoints, best too, are removed",
    )
    summaries = [f"{name:<18}{preset_summary(path)}" for name, path in presets().items()]
    parser.add_argument_group("Presets", "\n".join(summaries))
    groups: dict[str, Any] = {}
    for doc in field_docs():
        if doc.heading not in groups:
            groups[doc.heading] = parser.add_argument_group(doc.heading)
        groups[doc.heading].add_argument(_flag(doc.name), dest=doc.name, **_settings(doc))
    return parser


def _settings(doc: FieldDoc) -> dict[str, Any]:
    text = f"{doc.text} (default: {toml_value(doc.default)})".replace("%", "%%")
    if doc.type is bool:
        return {"action": argparse.BooleanOptionalAction, "help": text}
    kinds: dict[type, Any] = {int: _integer, float: _number, str: str}
    return {"type": kinds[doc.type], "metavar": {int: "N", float: "X", str: "TEXT"}[doc.type], "help": text}


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _normalised(argument: str) -> str:
    """Return an argument with a flag's underscores as hyphens, and `--bias=false` as `--no-bias`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-")
    switches = {_flag(doc.name) for doc in field_docs() if doc.type is bool}
    if name in switches and value.lower() in ("true", "false"):
        return name if value.lower() == "true" else f"--no-{name.removeprefix('--')}"
    return f"{name}{equals}{value}"


def _unknown(argument: str) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument {argument!r}; settings are flags, for instance --steps 500 (see --help)"
    known = [_flag(doc.name) for doc in field_docs()]
    known += [f"--no-{doc.name.replace('_', '-')}" for doc in field_docs() if doc.type is bool]
    known += ["--preset", "--config", "--out", "--resume", "--help"]
    found = did_you_mean(argument.partition("=")[0], known)
    return f"unknown flag {argument.partition('=')[0]}; {found if 'did you mean' in found else 'see --help'}"
