"""A tiny training script in pieces, and a function that records it."""

from pathlib import Path

from harness.core.limits import Limits
from harness.training.child.request import Request
from harness.training.child_processes import shared_processes
from harness.training.recording import Recording
from harness.training.recording_files import RecordingReader

LIMITS = Limits(60.0, 8.0)

HEAD = """\
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(0)
dropout = 0.0
steps = 3
micro_batches = 1


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(11, 8)
        self.drop = nn.Dropout(dropout)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.hidden(self.drop(self.wte(ids)))))


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
data = torch.randint(11, (500,))


def batch():
    starts = torch.randint(490, (2,)).tolist()
    return torch.stack([data[s : s + 4] for s in starts]), torch.stack([data[s + 1 : s + 5] for s in starts])


def loss_of(x, y):
    return F.cross_entropy(model(x).view(-1, 11), y.reshape(-1))


"""

LOOP = """\
for step in range(steps):
    for _ in range(micro_batches):
        loss = loss_of(*batch()) / micro_batches
        loss.backward()
    {before_step}
    optimizer.step()
    optimizer.zero_grad()
    {after_step}
"""


def script(before_step="pass", after_step="pass", *, head=HEAD, replaced=()):
    """Return the text of the script; `replaced` are pairs of texts."""
    text = head + LOOP.format(
        before_step=before_step.replace("\n", "\n    "), after_step=after_step.replace("\n", "\n    ")
    )
    for old, new in replaced:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def record(folder: Path, text: str, **request) -> Recording:
    """Record a script in a child process and return the recording."""
    file = folder / "train.py"
    file.write_text(text)
    files = folder / f"recording-{len(list(folder.iterdir()))}"
    files.mkdir()
    made = Request(folder=str(files), program=str(file), cwd=str(folder), **request)
    (outcome,) = shared_processes().run([made], LIMITS)
    reader = RecordingReader(files)
    end = reader.one("end")
    return Recording(
        program="train.py",
        rehearsal="by hand",
        ended=end["ended"] if end else "killed",
        message=end["message"] if end else str(outcome.status),
        events=reader.events(),
        parameters=reader.parameters(),
    )
