"""The seams of seeds: calls that seed are events, and a loader's own seed can be drawn without advancing training's."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import dataloader

from harness.tests.training.tiny import record, script
from harness.training.child import run as run_module
from harness.training.child.passes import Passes
from harness.training.child.recorder import Recorder
from harness.training.child.request import Request
from harness.training.child.seams.seeds import LoaderSeeds
from harness.training.recording_files import RecordingWriter

LOADER = """
from torch.utils.data import DataLoader
state = torch.get_rng_state()
for _ in DataLoader(range(3){options}): pass
print("unchanged" if torch.equal(state, torch.get_rng_state()) else "advanced")
"""


@pytest.mark.parametrize("call", ["torch.manual_seed(1)", "np.random.seed(1)", "random.seed(1)"])
def test_a_call_that_seeds_is_recorded_with_its_line_and_its_step(tmp_path, call):
    recording = record(tmp_path, "import random\n" + script(after_step=call))
    during = [each for each in recording.seeded if call in each.line]
    assert [each.step for each in during] == [1, 2, 3]
    assert all(each.line.startswith("train.py:") or "/train.py:" in each.line for each in during)


@pytest.mark.parametrize(
    ("apart", "options", "expected"),
    [
        (True, "", "unchanged"),
        (False, "", "advanced"),  # so PyTorch does: without this the rehearsal would show nothing
        (True, ", shuffle=True", "advanced"),  # the order of a set is the program's own draw
    ],
    ids=["apart", "as PyTorch does", "a shuffled set"],
)
def test_a_pass_over_a_loader_advances_the_generator_by_the_draws_of_the_program_alone(
    tmp_path, apart, options, expected
):
    text = script(after_step=LOADER.format(options=options).strip())
    recording = record(tmp_path, text, loader_seeds_apart=apart)
    assert [each.text for each in recording.printed] == [expected] * 3, recording.message


def test_what_the_seams_replace_is_restored(tmp_path):
    owners = (torch, random, np.random, dataloader._BaseDataLoaderIter)
    before = [dict(vars(owner)) for owner in owners]
    recorder = Recorder(Request(folder=str(tmp_path), program="none"), RecordingWriter(tmp_path))
    with run_module.recording(recorder, Passes(recorder), LoaderSeeds()):
        assert all(dict(vars(owner)) != each for owner, each in zip(owners, before, strict=True))
    assert [dict(vars(owner)) for owner in owners] == before
