"""The options of the command line, and what they say: which subjects, with which declared deviations."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.core.error_text import describe_refusal
from harness.core.forked import can_fork
from harness.core.limits import MEMORY_SHARE, SECONDS

if TYPE_CHECKING:
    from harness.oracle.deviations import Deviation

# A name, not an import: the harness knows no particular GPT, but a run without --subject judges the reference.
DEFAULT_SUBJECT = "gpt:GPT"
DEFAULT_TRAINER = "gpt.train"
DEFAULT_DEVICE = "cpu"


LONGEST_LIMIT = 30 * 24 * 3600.0  # seconds: an alarm takes no more than the system's clock can count
MOST_MEMORY = 2.0**20  # GiB


def number_between(least: float, most: float, unit: str) -> Callable[[str], float]:
    """Return a type of an option: a finite number in a range. Anything else is a usage error that says so."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {unit} between {least:g} and {most:g}")
        return value

    return parse


def usage_error(error: OSError) -> pytest.UsageError:
    """Return the usage error for a path that the system refuses, or for what else it does not give."""
    return pytest.UsageError(describe_refusal(error))


def add_options(parser: pytest.Parser) -> None:
    """Add the options that the suites and the benchmarks share."""
    group = parser.getgroup("gpt-harness", "judging a GPT (gpt-harness)")
    group.addoption(
        "--subject",
        metavar="FILE.py:NAME",
        action="append",
        help=f"the GPT to judge: FILE.py:NAME or package.module:NAME (default: {DEFAULT_SUBJECT}, the reference); "
        "given several times, they are judged side by side",
    )
    group.addoption(
        "--trainer",
        metavar="PROGRAM",
        action="append",
        help='the training program to judge: train.py, "train.py --flags", package.module or package.module:function '
        f"(default: {DEFAULT_TRAINER}, the reference, unless --subject is given); several are judged side by side",
    )
    group.addoption(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        help="replace a literal of the training program, such as `batch_size = 64`, in memory; several are possible",
    )
    group.addoption(
        "--device",
        metavar="DEVICE",
        default=DEFAULT_DEVICE,
        help="where the GPT runs: cpu (default), cuda, cuda:1, mps ...; the oracle stays on the CPU, in float64",
    )
    group.addoption(
        "--text",
        metavar="NAME|FILE",
        help="where real tokens are taken from: tinyshakespeare (default) or a UTF-8 file of yours",
    )
    group.addoption(
        "--pretrained",
        metavar="NAME|DIR",
        help="the released GPT-2 weights: a directory, or a name in the local cache or on the hub (default: gpt2)",
    )
    group.addoption(
        "--reports",
        metavar="DIR",
        help="where records, tables, plots and the page go (default: reports/ in the rootdir)",
    )
    group.addoption(
        "--deviations",
        metavar="FILE.toml",
        help="where the subject differs on purpose (default: my_gpt.deviations.toml beside my_gpt.py)",
    )
    group.addoption(
        "--isolate",
        action=argparse.BooleanOptionalAction,
        help="run the subject in a process of its own, which may exit, crash, hang or grow without ending the run "
        "(default on Linux, on the CPU; not with -s, --pdb and --trace, so that a debugger works)",
    )
    group.addoption(
        "--time-limit",
        metavar="SECONDS",
        type=number_between(0, LONGEST_LIMIT, "seconds"),
        default=SECONDS,
        help="for one check, and for one rehearsal of a training program; 0 is none (default: %(default)g)",
    )
    group.addoption(
        "--memory-limit",
        metavar="GIB",
        type=number_between(0.01, MOST_MEMORY, "GiB"),
        help=f"for an isolated subject's process (default: {MEMORY_SHARE:g} of the machine's memory)",
    )
    group.addoption("--full-failures", action="store_true", help="tell every failure in full, not the first few")
    group.addoption("--no-diagnosis", action="store_true", help="do not look for the cause of what failed")


def is_isolated(config: pytest.Config) -> bool:
    """Return True if the subject runs in a process of its own: as --isolate says, or where that costs no time.

    A debugger, and what asks for input, works in this process alone. Benchmarks always run in it.
    """
    if (chosen := config.getoption("--isolate")) is not None:
        return bool(chosen)
    debugs = config.getoption("capture") == "no" or config.getoption("usepdb") or config.getoption("trace")
    return not debugs and config.getoption("--device") == DEFAULT_DEVICE and can_fork()


def subject_names(config: pytest.Config) -> list[str]:
    """Return the GPTs that the user named; the reference if neither a GPT nor a training program is named.

    An empty name (`--subject "$UNSET"`) is kept.
    """
    return _named(config, "--subject", DEFAULT_SUBJECT)


def trainer_names(config: pytest.Config) -> list[str]:
    """Return the training programs that the user named; the reference if neither one nor a GPT is named."""
    return _named(config, "--trainer", DEFAULT_TRAINER)


def _named(config: pytest.Config, option: str, default: str) -> list[str]:
    if (named := config.getoption(option)) is not None:
        return list(dict.fromkeys(map(str, named)))
    neither = config.getoption("--subject") is None and config.getoption("--trainer") is None
    return [default] if neither else []


def as_typed(path: Path, config: pytest.Config) -> str:
    """Return a path relative to the folder where pytest was started, if it is inside."""
    folder = config.invocation_params.dir
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def reports_folder(config: pytest.Config) -> Path:
    """Return the folder of the reports: --reports, or reports/ in the rootdir."""
    if (named := config.getoption("--reports")) is not None:
        return Path(named)
    # Without a configuration file the rootdir depends on the arguments; the user is in the current folder.
    home = config.rootpath if config.inipath else config.invocation_params.dir
    return home / "reports"


def deviations_of(config: pytest.Config, name: str) -> tuple[Deviation, ...]:
    """Return what a subject declares, from --deviations or from the file beside it. Raises DeviationError."""
    from harness.oracle.deviations import beside, read  # imports torch, which other projects' runs must not pay for

    named = config.getoption("--deviations")
    path = Path(named) if named else beside(name)
    return read(path) if path else ()


def trainer_deviations_of(config: pytest.Config, name: str) -> tuple[Deviation, ...]:
    """Return what a training program declares in train.deviations.toml beside train.py. Raises DeviationError."""
    from harness.oracle.deviations import SUFFIX, DeviationError, read  # see above

    words = shlex.split(name) if config.getoption("--trainer") is not None else []
    path = Path(words[0].partition(":")[0]).with_suffix(SUFFIX) if words else Path()
    if not path.is_file():
        return ()
    found = read(path)
    for each in found:
        if each.what:
            raise DeviationError(
                f"{each.place}: a training program declares checks = ['suite::check', ...]; what = '{each.what}' "
                "is a deviation of a GPT"
            )
    return found
