"""`gpt-harness loss-compare`: the same bits, rounding or a change, in two revisions of a training program."""

import subprocess
from pathlib import Path

import pytest

from harness.cli import main
from harness.tests.training.tiny import script

TANH = "return self.head(torch.tanh(self.hidden(self.drop(self.wte(ids)))))"
# The same function, other roundings.
OTHER_ROUNDING = """h = self.hidden(self.drop(self.wte(ids)))
        return self.head((h.exp() - (-h).exp()) / (h.exp() + (-h).exp()))"""
RIGHT = script()
REVISIONS = {
    "renamed": script(replaced=[("def batch():", "def batch():  # renamed")]),
    "rounding": script(replaced=[(TANH, OTHER_ROUNDING)]),
    "another activation": script(replaced=[("torch.tanh(", "torch.sin(")]),
    "another scale": script(replaced=[("torch.tanh(", "(1 + 2e-6) * torch.tanh(")]),
    "another rate": script(replaced=[("lr=0.01", "lr=0.02")]),
    "another batch": script(replaced=[("randint(490", "randint(480")]),
    "another start": script(
        replaced=[("self.hidden = nn.Linear(8, 8)", "torch.rand(1)\n        self.hidden = nn.Linear(8, 8)")]
    ),
    "not divided": script(replaced=[("loss = loss_of(*batch()) / micro_batches", "loss = 2 * loss_of(*batch())")]),
}


def git(*arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with the right program, and a function that commits another one."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")

    def commit(text, message="a change"):
        Path("train.py").write_text(text)
        git("add", "train.py")
        git("commit", "-qm", message, "--allow-empty")

    commit(RIGHT, "the start")
    return commit


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ("renamed", 0, ["plain: the same bits at every step"]),
        ("rounding", 0, ["plain: rounding only", "in float64 the gradients of this step agree to"]),
        ("another activation", 1, ["plain: CHANGED", "step 0: the loss differs", "because  the loss of step 0 is"]),
        ("another scale", 1, ["plain: CHANGED", "in float64 the gradients of this step differ by"]),
        ("another rate", 1, ["plain: CHANGED", "the learning rate of step 0 is another: 0.01 before, 0.02 after"]),
        ("another batch", 1, ["plain: CHANGED", "the batch of step", "look at  train.py:32:"]),
        ("another start", 1, ["plain: CHANGED", "the weights before it differ"]),
        ("not divided", 1, ["plain: CHANGED", "step 0: the gradient differs, first in", "look at  train.py:42:"]),
    ],
)
def test_a_change_of_the_working_tree_is_told_from_rounding(repository, capsys, change, status, says):
    Path("train.py").write_text(REVISIONS[change])
    assert main(["loss-compare", "--trainer", "train.py"]) == status, capsys.readouterr().out
    out = " ".join(capsys.readouterr().out.split())
    for words in says:
        assert " ".join(words.split()) in out


def test_rounding_is_a_change_where_bits_are_asked_for(repository, capsys):
    Path("train.py").write_text(REVISIONS["rounding"])
    assert main(["loss-compare", "--trainer", "train.py", "--exact"]) == 1


def test_two_sets_of_flags_of_one_revision_are_compared(repository, capsys):
    repository("import sys\n" + RIGHT.replace("lr=0.01", "lr=0.02 if '--fast' in sys.argv else 0.01"))
    assert main(["loss-compare", "HEAD", "HEAD", "--trainer", "train.py"]) == 0
    assert main(["loss-compare", "HEAD", "HEAD", "--trainer", "train.py", "--new-flags=--fast"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("new  ") and line.endswith(" --fast")]
    assert "  because  the learning rate of step 0 is another: 0.01 before, 0.02 after" in out


def test_the_commit_that_brought_a_change_is_found(repository, capsys):
    for number in range(3):
        repository(RIGHT + f"# {number}\n", f"comment {number}")
    repository(REVISIONS["another activation"], "sine for tanh")
    repository(REVISIONS["another activation"] + "# end\n", "a comment")
    assert main(["loss-compare", "HEAD~5", "HEAD", "--trainer", "train.py", "--bisect"]) == 1
    assert "sine for tanh" in capsys.readouterr().out.splitlines()[-1]


def test_files_that_git_ignores_are_there_in_both_revisions(repository, capsys):
    Path(".gitignore").write_text("*.bin\n")
    Path("tokens.bin").write_bytes(bytes(range(11)) * 50)
    text = RIGHT.replace(
        "torch.randint(11, (500,))", "torch.from_numpy(np.fromfile('tokens.bin', np.uint8)[:500]).long()"
    )
    repository(text)
    assert main(["loss-compare", "HEAD", "HEAD", "--trainer", "train.py"]) == 0
    assert Path("tokens.bin").read_bytes() == bytes(range(11)) * 50


def test_a_program_that_fails_in_a_revision_is_not_compared(repository, capsys):
    Path("train.py").write_text("raise RuntimeError('broken')\n")
    assert main(["loss-compare", "--trainer", "train.py"]) == 2
    assert "plain: not compared: .: train.py" in capsys.readouterr().out


def test_a_setting_that_changed_is_left_to_the_programs_and_one_of_the_size_is_said_not_to_be_compared(
    repository, capsys
):
    constants = "weight_decay = {}\nn_layer = {}\n"
    text = RIGHT.replace("lr=0.01", "lr=0.01, weight_decay=weight_decay")
    repository(constants.format(0.01, 3) + text)
    Path("train.py").write_text(constants.format(0.02, 4) + text)
    assert main(["loss-compare", "--trainer", "train.py"]) == 1
    out = capsys.readouterr().out
    assert "0.01 before, 0.02 after: left as it is" in out
    assert "3 before, 4 after: 2 in both here, and so not compared" in out
    assert "the optimizer's settings of step 0 are others" in out


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (0.0, 0, "not worse by more than 1%: +0.0000 nats"),
        (0.1, 1, "WORSE by more than 1%: +0.1000 nats"),
        (-0.1, 0, "not worse by more than 1%: -0.1000 nats"),
        (None, 3, "NOT DECIDED if it is worse by more than 1%"),
    ],
)
def test_losses_in_pairs_end_in_a_verdict_and_its_status(repository, capsys, monkeypatch, change, status, says):
    """The runs are stood in for: test_paired_losses.py makes them."""

    def pair(programs, number, steps):
        assert steps == 7
        after = 0.04 * (number % 2) if change is None and number >= 5 else (change or 0.0)
        return 2.0, 2.0 + after + number * 1e-6

    monkeypatch.setattr("harness.history.paired_losses.pair_of", pair)
    assert main(["loss-compare", "--trainer", "train.py", "--statistical", "--steps", "7"]) == status
    out = capsys.readouterr().out
    assert "plan   8 pairs: if the two are equal, 100% likely to show" in out
    assert says in out


def test_a_number_of_pairs_that_decides_nothing_is_refused(repository, capsys):
    assert main(["loss-compare", "--trainer", "train.py", "--statistical", "--pairs", "2"]) == 2
    assert "at least 8 pairs" in capsys.readouterr().err
