"""The line that loses a part of the state between a checkpoint and the run that resumes from it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from harness.diagnosis.training import event_lines
from harness.diagnosis.training.looks import Seen

# Names of the keys that a part of the state is saved under, by the part as the measure calls it.
KEYS: Mapping[str, str] = {
    "weights": "model|weight|param",
    "moments": "optim|exp_avg|momentum",
    "learning rate": "iter|step|epoch|sched|lr",
    "batch": "rng|random|generator|sampler|loader|position",
    "random state": "rng|random|generator",
}
POSITION = r"position|offset|cursor|consumed|seen|batch|index"
LOADED = r"=\s*\w+\[[\"\']\w+[\"\']\]"
POSITION_LOADED = r"=.*\[[\"\']\w*position\w*[\"\']\]"
POSITION_COUNTED = r"\bposition\b.*\+="


def _is_not_loaded(key: str, seen: Seen) -> bool:
    """Return True for a key of a position in the data that the source has once only: where it is saved."""
    name = key.partition(".")[0]
    return re.search(POSITION, name) is not None and seen.source.mentions(rf"[\"\']{re.escape(name)}[\"\']") == 1


def of_the_lost_state(seen: Seen) -> str:
    """Look for the line that saves or loads what is lost.

    A part that has no key in what was saved is lost there; one that has is lost where it is loaded; a position that is
    loaded, where it is counted. The count of the steps, by which the learning rate is known, is looked for where it is
    saved.
    """
    lost = next((part for part in KEYS if part in seen.cause), "weights")
    saved = next((line for each in seen.recordings if (line := event_lines.of_the_save(each, ""))), "")
    loaded = next((line for each in seen.recordings if (line := event_lines.of_the_load(each, ""))), "")
    keys = {key for each in seen.recordings for save in each.saves for key in save.keys}
    if lost == "batch" and any(_is_not_loaded(key, seen) for key in keys):
        return seen.source.like(LOADED, near=loaded) or loaded
    entry = rf"[\"\'][\w.]*({KEYS[lost]})\w*[\"\']"
    if not any(re.search(KEYS[lost], key) for key in keys):
        return seen.source.like(r"state_dict\(\)", near=saved) or saved
    if lost == "learning rate":
        return seen.source.like(rf"{entry}\s*:", near=saved) or saved
    if lost == "batch" and seen.source.like(POSITION_LOADED) and (line := seen.source.like(POSITION_COUNTED)):
        return line
    patterns = (rf"\b\w*({KEYS[lost]})\w*\.load_state_dict\(", rf"\[{entry}\]|\.get\({entry}", r"load_state_dict\(")
    return next((line for each in patterns if (line := seen.source.like(each, near=loaded))), loaded or saved)
