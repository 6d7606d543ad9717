"""A table of anybody's runs as CSV: N, D and L in columns of the names that people use."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.oracle.scaling_law.law import compute

# The words of a column, lower case, without spaces, hyphens and underscores; each column's own name comes first.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "parameters": ("parameters", "n", "params", "nparams", "nparameters", "numparams", "modelsize", "totalparams"),
    "tokens": ("tokens", "d", "ntokens", "numtokens", "trainingtokens", "traintokens", "data", "datasetsize"),
    "loss": ("loss", "l", "finalloss", "valloss", "validationloss", "testloss", "evalloss"),
    "flops": ("flops", "c", "compute", "trainingflops", "trainflops", "totalflops", "flop"),
    "budget": ("budget", "flopbudget", "isoflop", "computebudget"),
    "non_embedding": ("nonembedding", "nonembeddingparameters", "nonembeddingparams", "paramsnonembedding"),
    "seed": ("seed", "replicate"),
    "source": ("source", "dataset", "corpus"),
    "horizon": ("horizon", "horizontokens", "schedule", "scheduledtokens"),
    "run": ("run", "runname", "runid", "name"),
}  # fmt: skip
REQUIRED = ("parameters", "loss")
WORDS = ("run", "source")
DIVERGED = ("nan", "inf", "+inf", "infinity")  # a loss that was written so


def read_run_table(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a CSV file as rows with source, parameters, tokens, loss, and what else it has.

    Of N, D and C = 6·N·D two are needed. With a `horizon`, rows before the end of a run's own schedule are left out:
    the loss of a run in progress is that of a higher learning rate (Hoffmann et al. 2022, section 2).

    Raises HarnessError, with file and line, for a column that is missing or there twice, and for a value that is no
    positive number.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = _columns(path, reader.fieldnames or [])
        runs = [_run(path, number, row, columns) for number, row in enumerate(reader, start=2)]
    ended = [run for run in runs if run.get("horizon") is None or run["tokens"] >= run["horizon"] * (1 - 1e-9)]
    if not ended:
        raise HarnessError(f"{path}:2: no run is at the end of its schedule; expected rows with tokens = horizon")
    return ended


def _columns(path: Path, found: Sequence[str]) -> dict[str, str]:
    """Return the file's own name of each column that is known."""
    columns: dict[str, str] = {}
    for name in found:
        word = _word(name)
        for column, words in SYNONYMS.items():
            if word in words:
                if column in columns and _word(columns[column]) == words[0]:
                    continue  # the column's own name comes before the others
                if column in columns and word != words[0]:
                    raise HarnessError(
                        f"{path}:1: both '{columns[column]}' and '{name}' are the {column}; leave one out"
                    )
                columns[column] = name
    for column in REQUIRED:
        if column not in columns:
            raise HarnessError(
                f"{path}:1: no column of the {column}; found {', '.join(found) or 'none'}, expected one of "
                f"{', '.join(SYNONYMS[column])}"
            )
    if "tokens" not in columns and "flops" not in columns and "budget" not in columns:
        raise HarnessError(f"{path}:1: no column of the tokens or of the FLOPs; expected one, as C = 6·N·D")
    return columns


def _word(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _run(path: Path, number: int, row: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, Any]:
    run: dict[str, Any] = {"source": path.stem}
    for column, name in columns.items():
        text = (row.get(name) or "").strip()
        if column in WORDS:
            run[column] = text or run.get(column, "")
        elif text:
            run[column] = _number(path, number, name, text, column)
    if any(column not in run for column in REQUIRED):
        raise HarnessError(f"{path}:{number}: a value is missing; expected one for N and for the loss")
    flops = run.get("flops", run.get("budget"))
    if "tokens" not in run:
        if flops is None:
            raise HarnessError(f"{path}:{number}: neither tokens nor FLOPs; expected one, as C = 6·N·D")
        run["tokens"] = flops / compute(run["parameters"], 1)
    run.setdefault("flops", compute(run["parameters"], run["tokens"]))
    return run


def _number(path: Path, line: int, name: str, text: str, column: str) -> float:
    """Return a positive number; a seed may be 0, and the loss of a run that diverged NaN or infinite."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = math.nan
    if column == "loss" and text.strip().lower() in DIVERGED:
        return math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and column != "seed"):
        raise HarnessError(f"{path}:{line}: '{name}' is {text!r}; expected a positive number")
    return value
