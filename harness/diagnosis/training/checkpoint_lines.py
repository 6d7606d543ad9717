"""The line that loses a part of the state between a checkpoint and the run that resumes from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.diagnosis.training import event_lines
from harness.diagnosis.training.source_lines import line_like
from harness.training.recording import Recording

# Names of the keys that a part of the state is saved under, by the part as the measure calls it.
KEYS: Mapping[str, str] = {
    "weights": "model|weight|param",
    "moments": "optim|exp_avg|momentum",
    "learning rate": "iter|step|epoch|sched|lr",
    "batch": "rng|random|generator|sampler|loader|position",
    "random state": "rng|random|generator",
}


def checkpoint_line(files: Sequence[Path], recordings: Sequence[Recording], cause: str) -> str:
    """Return the line that saves or loads what is lost, as `train.py:118: source`; "" if no checkpoint was seen.

    A part that has no key in what was saved is lost there; one that has is lost where it is loaded. The count of the
    steps, by which the learning rate is known, is looked for where it is saved.
    """
    lost = next((part for part in KEYS if part in cause), "weights")
    saved = next((line for each in recordings if (line := event_lines.of_the_save(each, ""))), "")
    loaded = next((line for each in recordings if (line := event_lines.of_the_load(each, ""))), "")
    keys = {key for each in recordings for save in each.saves for key in save.keys}
    entry = rf"[\"\'][\w.]*({KEYS[lost]})\w*[\"\']"
    if not any(re.search(KEYS[lost], key) for key in keys):
        return line_like(files, r"state_dict\(\)", near=saved) or saved
    if lost == "learning rate":
        return line_like(files, rf"{entry}\s*:", near=saved) or saved
    patterns = (rf"\[{entry}\]|\.get\({entry}", r"load_state_dict\(")
    return next((line for each in patterns if (line := line_like(files, each, near=loaded))), loaded or saved)
