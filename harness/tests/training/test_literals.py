"""The literals that set something, in a script and in the modules of its project."""

from pathlib import Path

import pytest

from harness.core.errors import SubjectError
from harness.tests.training.tiny import script
from harness.training.child.program_source import compiled
from harness.training.literals import project_files, settable_literals
from harness.training.program import TrainingProgram
from harness.training.rehearsals import SMALL
from harness.training.settings import Settings


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Return a function that records the plain rehearsal of a script, with files beside it."""
    monkeypatch.chdir(tmp_path)

    def recording(text, *, chosen=(), **modules):
        for name, module in {"train": text, **modules}.items():
            Path(f"{name}.py").write_text(module)
        program = TrainingProgram("train.py", chosen=chosen)
        try:
            return program.record("plain")
        finally:
            program.close()

    return recording


def found_in(tmp_path, text, **modules):
    for name, module in modules.items():
        (tmp_path / f"{name}.py").write_text(module)
    (tmp_path / "train.py").write_text(text)
    literals = settable_literals(project_files(tmp_path / "train.py", [tmp_path]))
    return {word: [(each.name, each.default) for each in found] for word, found in literals.items()}


@pytest.mark.parametrize(
    ("text", "word", "name", "default"),
    [
        ("batch_size = 64", "batch_size", "batch_size", 64),
        ("def main():\n    B, T = 4, 1024", "block_size", "T", 1024),
        ("total_batch_size = 2**19", "tokens_per_step", "total_batch_size", 524288),
        ("config = {'n_layers': 12}", "n_layer", "n_layers", 12),
        ("from model import GPT\nGPT(n_layer=12)", "n_layer", "n_layer", 12),
        ("class Config:\n    n_embd: int = 768", "n_embd", "n_embd", 768),
        ("def train(model, eval_freq=5): ...", "eval_every", "eval_freq", 5),
        ("context_len = 32", "block_size", "context_len", 32),
        ("embd_size = 768", "n_embd", "embd_size", 768),
        ("mini_batch_size = 8", "batch_size", "mini_batch_size", 8),
        ("config.max_iters = 100", "steps", "max_iters", 100),
        ("import torch\ntorch.manual_seed(1337)", "seed", "manual_seed", 1337),
        ("text = open('input.txt').read()", "text", "text", "input.txt"),
        ("path = os.path.join(here, 'the-verdict.txt')", "text", "text", "the-verdict.txt"),
        ("def train(**options):\n    n = options.get('n_layer', 4)", "n_layer", "n_layer", 4),
        ("depth = getattr(config, 'n_layers', 6)", "n_layer", "n_layers", 6),
        ("wd = 0.1\ngroups = [{'weight_decay': 0.0}]", "weight_decay", "wd", 0.1),
    ],
)
def test_a_literal_is_found_wherever_people_write_settings(tmp_path, text, word, name, default):
    assert found_in(tmp_path, text)[word] == [(name, default)]


@pytest.mark.parametrize(
    "text",
    [
        "x.softmax(dim=-1)",  # not the width
        "import torch\ntorch.cat(parts, dim=1)",
        "def scores(x, dim=1): ...",
        "B, T = idx.shape",
        "n_layer = config.n_layer",
        "url = 'https://example.org/input.txt'",
        "open('a.txt')\nopen('b.txt')",  # which is the text?
        "open('log.txt', 'a')",
        "parser.add_argument('--merges', default='merges.txt')",  # of a tokenizer
        "print('see input.txt')\nprint(f'in {folder}/input.txt')",
        "learning_rate = 1e-3\nlearning_rate = 1e-4",
        "groups = [{'params': a, 'weight_decay': wd}, {'params': b, 'weight_decay': 0.0}]",  # what sets it apart
    ],
)
def test_what_only_looks_like_a_setting_is_none(tmp_path, text):
    assert found_in(tmp_path, text) == {}


@pytest.mark.parametrize(
    ("text", "word", "set_here"),
    [
        ("seed = 1\ntorch.manual_seed(1234)", "seed", [("seed", 1)]),
        ("warmup_steps = 100\ndef rate(step, warmup_iters=2000): ...", "warmup", [("warmup_steps", 100)]),
        ("config = {'grad_accum': 8}\nmodel.accumulation_steps = steps", "accumulation", [("grad_accum", 8)]),
    ],
)
def test_a_number_stays_where_the_script_assigns_the_setting_once_elsewhere(tmp_path, text, word, set_here):
    """It may be the mistake: a setting that is there, and not used."""
    assert found_in(tmp_path, text)[word] == set_here


def test_sizes_are_found_in_the_modules_that_a_script_imports_and_rates_in_the_script_only(tmp_path):
    model = "class Config:\n    n_layer: int = 12\n    learning_rate: float = 1.0"
    assert found_in(tmp_path, "from model import Config\nlr = 1e-3", model=model) == {
        "n_layer": [("n_layer", 12)],
        "lr": [("lr", 1e-3)],
    }


def test_a_replaced_literal_leaves_the_lines_where_they_are(tmp_path):
    (tmp_path / "train.py").write_text("sizes = dict(\n    n_layer=6 * 2,\n    n_head=12,\n)\nraise SystemExit\n")
    found = settable_literals([tmp_path / "train.py"])
    values = [(*each.place, 2) for word in ("n_layer", "n_head") for each in found[word]]
    names = {}
    with pytest.raises(SystemExit) as raised:
        exec(compiled(tmp_path / "train.py", values), names)  # the test's own script
    assert names["sizes"] == {"n_layer": 2, "n_head": 2}
    assert raised.traceback[-1].lineno == 4


def test_a_model_in_a_module_of_its_own_is_made_small_and_its_files_stay(recorded):
    text = "from sizes import Config\nprint(Config.n_layer, Config.n_embd)\n" + script()
    recording = recorded(text, sizes="class Config:\n    n_layer = 12\n    n_embd = 768\n")
    assert recording.printed[0].text == f"{SMALL['n_layer']} {SMALL['n_embd']}"
    assert recording.settings["n_layer"] == SMALL["n_layer"]
    assert Path("sizes.py").read_text().startswith("class Config:\n    n_layer = 12")


CONFIGURATOR = """\
import ast, sys
for argument in sys.argv[1:]:
    name, value = argument.removeprefix("--").split("=")
    if name not in globals():
        raise ValueError(f"Unknown config key: {name}")
    globals()[name] = ast.literal_eval(value)
"""


def test_a_script_that_reads_its_arguments_itself_is_set_by_name(recorded):
    """nanoGPT: a literal that is replaced is overridden by the configuration that the script executes afterwards."""
    text = f"steps = 3\nweight_decay = 0.1\n{CONFIGURATOR}\nprint(sys.argv)\nweight_decay = 0.3 if sys.argv else 0.0\n"
    recording = recorded(script(replaced=[("steps = 3\n", text)]))
    assert "'--steps=12'" in recording.printed[0].text
    assert len(recording.steps) == 12
    assert recording.settings["weight_decay"] == 0.3, "what the program was seen with, not what was set"


def test_an_argument_that_nothing_reads_sets_nothing(recorded):
    recording = recorded("import sys\nprint(sys.argv)\n" + script())
    assert recording.printed[0].text == "['train.py']"
    assert len(recording.steps) == 12


def test_what_the_user_sets_is_replaced_and_not_rehearsed(recorded):
    recording = recorded("beam = 7\nprint(beam)\n" + script(), chosen=["beam=9", "steps=4"])
    assert recording.printed[0].text == "9"
    assert len(recording.steps) == 4 == recording.settings["steps"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("stepz=4", r"--set stepz=4: no literal is called stepz; did you mean 'steps'"),
        ("steps", r"--set steps: expected NAME=VALUE, such as"),
    ],
)
def test_a_name_that_no_literal_has_is_an_error_of_one_line(tmp_path, monkeypatch, choice, message):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(script())
    with pytest.raises(SubjectError, match=message):
        TrainingProgram("train.py", chosen=[choice])


def test_the_batch_size_of_a_loader_alone_is_set_and_declares_nothing(tmp_path):
    """It may be that of the validation's loader: "rows: 24, declared 12" was said of a right program."""
    (tmp_path / "train.py").write_text("val = DataLoader(val_set, batch_size=64)\n")
    files = [tmp_path / "train.py"]
    assignment = Settings(literals=settable_literals(files)).assign({"batch_size": 4})
    assert list(assignment.replaced[str(files[0])].values()) == [4]
    assert "batch_size" not in assignment.values
    (tmp_path / "train.py").write_text("batch_size = 16\nval = DataLoader(val_set, batch_size=64)\n")
    assert Settings(literals=settable_literals(files)).assign({"batch_size": 4}).values == {"batch_size": 4}
