"""Training programs as subjects: found by name, their settings set by synonym, rehearsed in processes under limits."""

from pathlib import Path

import pytest

from harness.core.errors import MissingAbility, SubjectError
from harness.core.limits import Limits
from harness.tests.training.tiny import HEAD, script
from harness.training.child.program_source import ProgramSource
from harness.training.program import TrainingProgram
from harness.training.protocols import Trains
from harness.training.rehearsals import REHEARSALS, words
from harness.training.settings import read_settings

ARGPARSE = """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--max-steps", "-n", type=int, default=3)
parser.add_argument("--lr", type=float, default=0.5)
parser.add_argument("--order", choices=["shuffled", "sequential"])
parser.add_argument("--compile", action="store_true")
parser.add_argument("--seed", type=int, required=True)
options = parser.parse_args()
print(options)
steps = options.max_steps
"""


# ---------------------------------------------------------------------------- names


@pytest.mark.usefixtures("many_descriptors")
def test_a_program_is_a_script_a_module_or_a_function_with_arguments(program):
    assert isinstance(program(script(), "--flag=1"), Trains)
    assert ProgramSource.parse("a/train.py:main") == ProgramSource("a/train.py", "main")
    assert ProgramSource.parse("package.train") == ProgramSource("package.train")
    Path("package").mkdir()
    Path("package/__init__.py").write_text("")
    Path("package/train.py").write_text("def main():\n" + "".join(f"    {line}\n" for line in script().split("\n")))
    recording = TrainingProgram("package.train:main").record("plain")
    assert len(recording.steps) == 12 == recording.settings["steps"], "literals in a function are set too"
    assert recording.steps[0].line.startswith("package/train.py:")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py", r"none.py: no such file in .*; give the path of a script"),
        ("no.such.module", r"no.such.module: no script, and no module in .*; give train.py, package.module or"),
        ("", "the name of the training program is empty"),
    ],
)
def test_a_program_that_does_not_exist_is_an_error_of_one_line(name, message):
    with pytest.raises(SubjectError, match=message):
        TrainingProgram(name)


# ---------------------------------------------------------------------------- settings


def test_settings_are_the_flags_of_the_programs_own_parser(program):
    made = program(ARGPARSE + script(replaced=[("steps = 3\n", "")]), "--seed=5 --lr 0.25")
    recording = made.record("plain")
    assert "Namespace(max_steps=12, lr=0.25, order=None, compile=False, seed=5)" in recording.printed[0].text
    assert recording.settings["steps"] == 12
    assert recording.settings["seed"] == 5, "the user's own argument stays"
    assert recording.settings["lr"] == 0.25
    assert "min_lr" not in recording.settings
    assert len(recording.steps) == 12
    other = made.settings.assign({"order": "epoch"})
    assert other.arguments == ("--order=sequential",), "a choice is given by the program's own word"


def test_settings_are_the_literals_of_a_script_replaced_in_memory(program):
    made = program("max_iters = 2\nbatch_size: int = 4\n" + script(replaced=[("steps = 3", "steps = max_iters")]))
    recording = made.record("plain")
    assert len(recording.steps) == 12 == recording.settings["steps"]
    lines = Path("train.py").read_text().splitlines()
    assert recording.steps[0].line == f"train.py:{lines.index('    optimizer.step()') + 1}: optimizer.step()"
    assert lines[0] == "max_iters = 2", "the file is not changed"


def test_a_setting_that_is_missing_is_named_with_all_that_was_looked_for(program):
    made = program(script())
    with pytest.raises(MissingAbility, match=r"no setting for the text \(text, data_file, .*'markov' needs"):
        made.record("markov")
    with pytest.raises(MissingAbility, match=r"did not call torch.distributed.init_process_group"):
        made.record("two-ranks")


def test_a_program_that_cannot_read_the_text_before_it_parses_its_arguments_is_asked_with_its_own(program, tmp_path):
    """It was an error of every check: "no pieces of the text", of 4,000 characters."""
    (tmp_path / "input.txt").write_text("some words\n\n" * 1000)
    made = program("assert open('input.txt').read().count('\\n\\n') > 900\n" + ARGPARSE + script())
    assert "lr" in made.settings
    assert len(made.record("plain").steps) > 0


def test_a_program_that_fails_before_it_parses_its_arguments_has_not_no_setting(program):
    made = program("import os\nos.environ['NO_SUCH_VARIABLE']\n" + ARGPARSE + script())
    for _ in range(2):
        with pytest.raises(
            SubjectError, match=r"fails before it parses its arguments: KeyError: 'NO_SUCH_VARIABLE' at"
        ):
            made.record("starts")


def test_a_script_of_constants_reads_its_text_while_its_options_are_looked_for(program):
    made = program("data_file = 'none.txt'\nopen(data_file)\n" + script())
    with pytest.raises(MissingAbility, match=r"no setting for resuming"):
        made.record("killed")


def test_a_program_without_a_module_is_not_run_to_its_end_for_its_options(program):
    head = "import torch\nw = torch.zeros(3, requires_grad=True)\noptimizer = torch.optim.SGD([w])\n"
    loop = "while True:\n    w.sum().backward()\n    optimizer.step()\n"
    with pytest.raises(MissingAbility, match=r"no setting for resuming"):
        program(head + loop, limits=Limits(5.0, 8.0)).record("killed")


@pytest.mark.parametrize(
    ("default", "argument"), [(1, "--compile=0"), (True, "--compile=False"), ("", "--compile=False")]
)
def test_a_truth_value_is_a_number_where_the_programs_own_is_one(default, argument):
    row = {"help": False, "flags": ["--compile"], "takes_value": True, "negated": None, "metavar": None}
    found = read_settings([{**row, "choices": None, "default": default}], {}, [])
    assert found.assign({"compile": False}).arguments == (argument,)


def test_what_the_users_own_arguments_set_is_not_rehearsed(program):
    """Two runs that are to differ in a setting that is given would be one run, and pass or fail for that."""
    has_text = ARGPARSE.replace("options =", 'parser.add_argument("--text")\noptions =')
    made = program(has_text + script(), "--seed=5 --text=my.txt")
    with pytest.raises(MissingAbility, match=r"train.py .* set the seed, which the rehearsal 'other-seed' needs to ch"):
        made.record("other-seed")
    with pytest.raises(MissingAbility, match=r"set the text, which the rehearsal 'markov' needs to choose; leave them"):
        made.record("markov")


def test_a_program_is_stopped_after_the_steps_of_the_rehearsal_if_the_user_gave_it_others(program):
    text = script(replaced=[("steps = 3\n", "import sys\ntext = ''\nsteps = int(sys.argv[1].split('=')[1])\n")])
    recording = program("max_iters = 3\n" + text, "--max_iters=40 --text=my.txt").record("plain")
    assert (recording.ended, len(recording.steps), recording.settings["steps"]) == ("stopped", 12, 40)
    assert (recording.source, recording.text) == (None, "")


# ---------------------------------------------------------------------------- rehearsals


def test_the_same_seed_gives_the_same_run_and_another_seed_another(specimen):
    plain, again, other = (specimen.record(name) for name in ("plain", "again", "other-seed"))
    assert plain is specimen.record("plain"), "it is recorded once"
    assert [step.hashes for step in plain.steps] == [step.hashes for step in again.steps]
    assert plain.steps[0].hashes["before"] != other.steps[0].hashes["before"]


def test_a_run_is_killed_after_a_checkpoint_and_resumed_from_it(specimen):
    straight, killed, resumed = (specimen.record(name) for name in ("straight", "killed", "resumed"))
    assert (killed.ended, killed.saves[-1].step, len(killed.steps)) == ("killed", 8, 10)
    assert resumed.loads
    assert [step.number for step in resumed.steps] == [8, 9, 10, 11]
    assert [step.hashes for step in straight.steps[8:]] == [step.hashes for step in resumed.steps]


def test_token_files_of_rehearsals_do_not_stay_in_the_users_cache(program):
    made = program("import os\nprint(os.environ['GPT_HARNESS_TOKENS'])\n" + script())
    folder = Path(made.record("plain").printed[0].text)
    assert folder.parent.is_dir()
    made.close()
    assert not folder.parent.exists()


EPOCHS = """\
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--save_every", type=int, default=100)
parser.add_argument("--resume", default="")
parser.add_argument("--out", default=".")
options = parser.parse_args()
"""
SAVES = """
if (step + 1) % options.save_every == 0:
    path = os.path.join(options.out, "last.pt")
    os.makedirs(options.out, exist_ok=True)
    torch.save([model.state_dict(), optimizer.state_dict(), step + 1, torch.get_rng_state()], path + ".part")
    os.replace(path + ".part", path)
"""
LOADS = """\
first = 0
if options.resume:
    loaded = torch.load(options.resume)
    model.load_state_dict(loaded[0])
    optimizer.load_state_dict(loaded[1])
    first = loaded[2]
    torch.set_rng_state(loaded[3])
steps = 10 * options.epochs
for step in range(first, steps):"""


def test_a_program_whose_steps_cannot_be_set_is_resumed_from_a_file_that_was_renamed(program):
    text = script(after_step=SAVES, replaced=[("steps = 3\n", ""), ("for step in range(steps):", LOADS)])
    made = program(EPOCHS + text)
    straight, resumed = made.record("straight"), made.record("resumed")
    assert [load.path.rsplit("/", 1)[-1] for load in resumed.loads] == ["last.pt"]
    assert [step.number for step in resumed.steps] == [8, 9, 10, 11]
    assert [step.hashes for step in resumed.steps] == [step.hashes for step in straight.steps[8:]]


def test_ranks_are_recorded_each_for_itself(specimen):
    first, second = specimen.record_ranks("two-ranks")
    assert [(each.rank, each.ranks) for each in (first, second)] == [(0, 2), (1, 2)]
    assert first.steps[4].hashes["after"] == second.steps[4].hashes["after"]
    assert first.forwards_of(0)[0].ids.tolist() != second.forwards_of(0)[0].ids.tolist()
    mean = (first.steps[0].replayed["wpe.weight"] + second.steps[0].replayed["wpe.weight"]) / 2
    assert float((first.steps[0].unclipped["wpe.weight"] - mean).norm() / mean.norm()) < 1e-5


@pytest.mark.parametrize("wrapper", ["torch.nn.parallel.DistributedDataParallel", "torch.compile"])
def test_the_names_of_parameters_are_those_of_the_model_inside_its_wrappers(program, wrapper):
    text = script(replaced=[("model = Model()", f"model = {wrapper}(Model())")])
    joins = "import os\nimport torch.distributed\ntorch.distributed.init_process_group('gloo')\n"
    text = joins + text.replace("randint(490, (2,))", "randint(490, (2,)).add(int(os.environ['RANK']))")
    for recording in program(text).record_ranks("two-ranks"):
        assert list(recording.parameters) == ["wte.weight", "hidden.weight", "hidden.bias", "head.weight"]
        assert recording.ranks == 2
        assert recording.steps[1].replayed


def test_windows_of_the_words_occur_once():
    text = words(4000)
    assert len({text[i : i + 16] for i in range(4000 - 15)}) == 4000 - 15


def test_the_tokens_of_a_step_set_its_micro_batches(program):
    tokens = HEAD.replace(
        "micro_batches = 1", "B, T = 2, 4\ntotal_batch_size = 8\nmicro_batches = total_batch_size // (B * T)"
    )
    made = program(script(head=tokens))
    assert "accumulation" not in made.settings
    assert made.why_not(REHEARSALS["accumulate"]) == ""
    assert "has no setting for the text" in made.why_not(REHEARSALS["markov"])


READS_TEXT = """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--text", default="own.txt")
parser.add_argument("--accum", type=int, default=1)
options = parser.parse_args()
"""


def test_a_text_that_is_too_short_in_one_rehearsal_is_no_reason_to_leave_it_out_of_another(program, tmp_path):
    (tmp_path / "own.txt").write_text("abcdefghij" * 500)
    reads = "data = torch.tensor([ord(c) % 11 for c in open(options.text).read()])\nassert len(data) > 1000"
    own = [("data = torch.randint(11, (500,))", reads), ("micro_batches = 1", "micro_batches = options.accum")]
    made = program(READS_TEXT + script(replaced=own))
    assert not made.record("accumulate").text
    assert made.record("plain").text
    assert made.record("again").text


def test_a_program_of_one_process_that_fails_when_two_start_does_not_train_on_ranks(program):
    fails = ("steps = 3", "import os\nsteps = 3\nassert os.environ.get('RANK', '0') == '0', 'the file is gone'")
    with pytest.raises(MissingAbility, match=r"does not train on several ranks.*the file is gone"):
        program(script(replaced=[fails])).record("two-ranks")
