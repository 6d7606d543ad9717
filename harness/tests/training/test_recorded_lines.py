"""The user's lines that a recording has: of batches, losses, modes, optimizers, schedulers and prints."""

import pytest

from harness.diagnosis.training.event_lines import of_the_zeroing
from harness.tests.training.tiny import HEAD, record, script

LINES_OF_A_BATCH = {
    "windows that are stacked": (
        "def batch():\n    x = torch.stack([data[s : s + 4] for s in (1, 9)])\n"
        "    y = torch.stack([data[s + 1 : s + 5] for s in (1, 9)])\n    return x, y.long()\n",
        ("x = torch.stack", "y = torch.stack"),
    ),
    "views of one buffer": (
        "def batch():\n    buf = data[0:9]\n    x = buf[:-1].view(2, 4)\n    y = buf[1:].view(2, 4)\n    return x, y\n",
        ("x = buf[:-1]", "y = buf[1:]"),
    ),
    "rows that are written": (
        "def batch():\n    x = torch.zeros(2, 4, dtype=torch.long)\n    y = torch.zeros(2, 4, dtype=torch.long)\n"
        "    for row, s in enumerate((1, 9)):\n        x[row] = data[s : s + 4]\n        y[row] = data[s + 1 : s + 5]\n"
        "    return x, y\n",
        ("x[row] = data", "y[row] = data"),
    ),
    "a loader of torch": (
        "class Pairs(torch.utils.data.Dataset):\n    def __len__(self):\n        return 2\n"
        "    def __getitem__(self, i):\n        x = data[i : i + 4]\n        y = data[i + 1 : i + 5]\n"
        "        return x, y\n"
        "loader = torch.utils.data.DataLoader(Pairs(), batch_size=2)\ndef batch():\n    return next(iter(loader))\n",
        ("x = data[i", "y = data[i + 1"),
    ),
}


@pytest.mark.parametrize(("batch", "lines"), LINES_OF_A_BATCH.values(), ids=LINES_OF_A_BATCH)
def test_the_lines_that_choose_the_tokens_of_a_batch_are_known(tmp_path, batch, lines):
    old = HEAD[HEAD.index("def batch():") : HEAD.index("def loss_of")]
    recording = record(tmp_path, script(head=HEAD.replace(old, batch + "\n\n")))
    for forward in recording.trained:
        assert lines[0] in forward.ids_line
        assert lines[1] in forward.targets_line
        assert "F.cross_entropy" in forward.loss_line


def test_the_lines_of_modes_optimizers_schedulers_and_prints_are_known(tmp_path):
    built = "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.0)\n"
    recording = record(
        tmp_path,
        script("model.train()", "print('loss', loss.item())", replaced=[("data = torch", built + "data = torch")]),
    )
    step = recording.steps[1]
    assert ": optimizer = torch.optim.AdamW(" in step.built_line
    assert ": scheduler = torch.optim.lr_scheduler.LambdaLR(" in step.rate_line
    assert step.rule_line == "", "torch's own class"
    assert ": model.train()" in recording.trained[1].mode_line
    assert [": print('loss'" in line.line for line in recording.printed] == [True] * 3


def test_the_line_of_an_optimizer_of_the_users_own_is_that_of_its_step(tmp_path):
    own = (
        "class Own(torch.optim.SGD):\n    @torch.no_grad()\n    def step(self, closure=None):\n"
        "        return super().step()\n\n\noptimizer = Own(model.parameters(), lr=0.01)"
    )
    recording = record(tmp_path, script(replaced=[("optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)", own)]))
    assert recording.steps[0].rule_line.endswith(": @torch.no_grad()")


def test_the_line_that_zeroes_the_gradients_between_two_micro_batches_is_known(tmp_path):
    twice = ("micro_batches = 1", "micro_batches = 2")
    within = ("        loss.backward()\n", "        optimizer.zero_grad()\n        loss.backward()\n")
    wrong = record(tmp_path, script(replaced=[twice, within]))
    right = record(tmp_path, script(replaced=[twice]))
    assert "optimizer.zero_grad()" in of_the_zeroing(wrong, "")
    assert "loss.backward()" in of_the_zeroing(right, "")


def test_parameters_of_modules_in_a_plain_list_are_known_with_the_line_that_makes_them(tmp_path):
    listed = ("self.hidden = nn.Linear(8, 8)", "self.layers = [nn.Linear(8, 8)]")
    used = ("self.hidden(self", "self.layers[0](self")
    recording = record(tmp_path, script(replaced=[listed, used]))
    outside = [each for each in recording.parameters.values() if not each.registered]
    assert [each.shape for each in outside] == [(8, 8), (8,)]
    assert all("self.layers = [nn.Linear(8, 8)]" in each.line for each in outside)
    assert all(each.registered for each in record(tmp_path, script()).parameters.values())
