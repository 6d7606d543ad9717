"""A subject is imported as its project would import it, and nothing of it is run that only trains, reads or waits."""

import sys
import textwrap

import pytest
import torch

from harness.core.errors import SubjectError
from harness.core.sizes import SIZES
from harness.subjects.adapters import adapt
from harness.tests.subjects.constructor_styles import PARTS

DEBUG = SIZES["debug"]
MODEL = PARTS + textwrap.dedent("""
    class GPT(Base):
        def __init__(self, vocab_size=90, block_size=40, n_embd=32, n_head=4, n_layer=2):
            super().__init__()
            self.make(vocab_size, block_size, n_embd, n_head, n_layer)
""")
LECTURE = PARTS + textwrap.dedent("""
    text = open("input.txt").read()
    characters = sorted(set(text))
    vocab_size = len(characters)
    block_size, n_embd = 40, 32
    n_head = 4
    n_layer = 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = {c: i for i, c in enumerate(characters)}
    encode = lambda s: [table[c] for c in s]
    data = torch.tensor(encode(text))


    def get_batch():
        starts = torch.randint(len(data) - block_size, (4,))
        return torch.stack([data[i : i + block_size] for i in starts]).to(device)


    class GPT(Base):
        def __init__(self):
            super().__init__()
            self.make(vocab_size, block_size, n_embd, n_head, n_layer)


    model = GPT().to(device)
    for step in range(10**9):
        model(get_batch()).sum().backward()
""")


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    """Work in an empty folder, and forget afterwards what was imported from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
    sys.modules.update(before)  # a file called gpt.py took the place of the shipped package


def write(folder, files):
    """Write files by their names without `.py`."""
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def notes_of(subject):
    return " ".join(subject.project.notes.lines())


def is_right(subject):
    """Return True if the subject is built at the debug size."""
    return tuple(subject.build(DEBUG).logits(torch.arange(8)[None]).shape) == (1, 8, 211)


def test_a_file_that_trains_is_read_by_its_definitions_and_what_was_not_run_is_listed(tmp_path):
    write(tmp_path, {"trains": MODEL + "data = open('none.txt').read()\nmodel = GPT()\nwhile True:\n    model(data)\n"})
    subject = adapt("trains.py:GPT")
    assert is_right(subject)
    assert "trains.py does more than define" in notes_of(subject)
    assert "data = open('none.txt').read()" in notes_of(subject)
    assert "while True:" in notes_of(subject)


def test_sizes_at_module_level_are_changed_and_the_data_that_the_vocabulary_is_counted_from_is_not_read(tmp_path):
    write(tmp_path, {"lecture": LECTURE})
    subject = adapt("lecture.py:GPT")
    assert is_right(subject)
    assert "constants of its module" in subject.constructor.description
    big = subject.build(SIZES["124M"], device="meta").module
    assert (big.tokens.weight.shape, len(big.layers)) == ((50257, 768), 12)
    assert is_right(subject), "each size has modules of its own"


def test_what_the_model_needs_of_an_acting_top_level_is_run(tmp_path):
    needed = "def make_mask():\n    return torch.ones(3)\nMASK = make_mask()\nunused = make_mask().backward()\n"
    model = MODEL.replace("self.make(vocab", "self.mask = MASK\n        self.make(vocab")
    write(tmp_path, {"needs": model + needed})
    subject = adapt("needs.py:GPT")
    assert is_right(subject)
    assert "unused = make_mask" in notes_of(subject)


def test_an_instance_is_built_and_not_trained(tmp_path):
    sizes = "vocab_size=211, block_size=32, n_embd=48, n_head=4, n_layer=3"
    write(tmp_path, {"made": MODEL + f"model = GPT({sizes})\nmodel.eval()\nfor _ in range(10**9):\n    model.step()\n"})
    assert is_right(adapt("made.py:model"))


def test_a_file_that_only_defines_is_imported_as_python_does(tmp_path):
    write(
        tmp_path,
        {"plain": "import torch\ntorch.manual_seed(3)\nSTATE = torch.get_rng_state()\n" + MODEL + "print(3)\n"},
    )
    subject = adapt("plain.py:GPT")
    assert not subject.project.notes.lines()
    assert torch.equal(subject.module.STATE, torch.Generator().manual_seed(3).get_state())


def test_arguments_are_parsed_from_an_empty_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--subject", "x"])
    parser = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--scale', type=int, default=1)\n"
    model = MODEL.replace("self.make(vocab", "self.scale = args.scale\n        self.make(vocab")
    write(tmp_path, {"parses": model + parser + "args = p.parse_args()\n"})
    assert is_right(adapt("parses.py:GPT"))
    assert sys.argv[0] == "pytest"


@pytest.mark.parametrize(
    ("where", "files"),
    [
        ("proj/models/gpt.py", {"proj/models/gpt": "from models.parts import *\n", "proj/models/parts": MODEL}),
        ("proj/models/gpt.py", {"proj/models/gpt": "from .parts import *\n", "proj/models/parts": MODEL}),
        ("p/a/b/gpt.py", {"p/a/b/gpt": "from ..c.parts import *\n", "p/a/c/parts": "from ...d import *", "p/d": MODEL}),
        ("src/l/gpt.py", {"src/l/gpt": "from l.parts import GPT\n", "src/l/__init__": "", "src/l/parts": MODEL}),
        ("scripts/gpt.py", {"scripts/gpt": "from lib.parts import GPT\n", "src/lib/parts": MODEL}),
        ("pkg/gpt.py", {"pkg/gpt": "from parts import GPT\n", "pkg/__init__": "", "pkg/parts": MODEL}),
    ],
)  # fmt: skip
def test_the_folder_that_a_project_is_imported_from_is_found(tmp_path, where, files):
    write(tmp_path, files)
    assert is_right(adapt(f"{where}:GPT"))


def test_a_package_that_imports_a_trainer_is_imported_without_what_the_trainer_needs(tmp_path):
    trainer = "import a_missing_tracker\n\n\nclass Trainer(a_missing_tracker.Base):\n    pass\n"
    package = "from .train import Trainer\nfrom .gpt import GPT\n"
    write(tmp_path, {"lib/__init__": package, "lib/train": trainer, "lib/gpt": MODEL})
    subject = adapt("lib/gpt.py:GPT")
    assert is_right(subject)
    assert "not installed: a_missing_tracker (lib/train.py:1)" in notes_of(subject)


def test_a_missing_package_that_the_model_uses_is_named_with_the_line_that_imports_it(tmp_path):
    model = MODEL.replace("self.make(vocab", "k.start()\n        self.make(vocab")
    write(tmp_path, {"uses": "import a_missing_kernel as k\n" + model})
    subject = adapt("uses.py:GPT")
    with pytest.raises(SubjectError, match=r"the package 'a_missing_kernel' is not installed; uses\.py:1 needs it"):
        subject.build(DEBUG)


@pytest.mark.parametrize(
    ("imported", "base"),
    [
        ("import lightning as L", "L.LightningModule"),
        ("import pytorch_lightning as pl", "pl.LightningModule"),
        ("from lightning.pytorch import LightningModule", "LightningModule"),
    ],
)
def test_a_lightning_module_is_read_without_lightning(tmp_path, imported, base):
    model = MODEL.replace("class GPT(Base)", f"class GPT(Base, {base})")
    model = model.replace(
        "self.make(vocab_size", "self.save_hyperparameters()\n        self.make(self.hparams.vocab_size"
    )
    model += "\n    def training_step(self, batch, _):\n        self.log('loss', 0.0)\n"
    write(tmp_path, {"lit": f"{imported}\n" + model})
    subject = adapt("lit.py:GPT")
    assert is_right(subject)
    assert f"not installed: {imported.split()[1].split('.')[0]}" in notes_of(subject)


def test_a_fallback_for_a_missing_package_is_the_users_own(tmp_path):
    fallback = "try:\n    import a_missing_kernel as k\nexcept ImportError:\n    k = None\nimport a_missing_tracker\n"
    write(tmp_path, {"falls": fallback + MODEL})
    assert adapt("falls.py:GPT").module.k is None


def test_constants_of_another_module_reach_the_model(tmp_path):
    model = MODEL.replace("vocab_size=90, block_size=40, n_embd=32, n_head=4, n_layer=2", "vocab_size=90, n_layer=2")
    imports = "from sizes import n_embd, block_size\nimport sizes as s\nn_head = s.n_head\n"
    write(tmp_path, {"sizes": "n_embd = 32\nblock_size = 40\nn_head = 4\n", "gpt_of_parts": imports + model})
    subject = adapt("gpt_of_parts.py:GPT")
    assert is_right(subject)
    assert subject.constructor.arguments(DEBUG)["n_embd"] == 48
    assert sys.modules["sizes"].n_embd == 32, "what is imported keeps its own values"


def test_a_module_whose_constants_change_keeps_its_own_kind_of_annotations(tmp_path):
    """Compiled as a part of the harness, they were strings, and a config that checks its types failed."""
    model = MODEL.replace("n_head=4, n_layer=2", "n_layer=2").replace(
        "self.make(", "assert KIND is int\n        self.make("
    )
    write(tmp_path, {"typed": "n_head: int = 4\nKIND = __annotations__['n_head']\n" + model})
    assert is_right(adapt("typed.py:GPT"))


def test_two_projects_with_modules_of_the_same_name_are_read_apart(tmp_path):
    write(tmp_path, {"a/gpt": "from parts import GPT\n", "a/parts": MODEL})
    write(tmp_path, {"b/gpt": "from parts import Other\n", "b/parts": MODEL.replace("class GPT", "class Other")})
    assert is_right(adapt("a/gpt.py:GPT"))
    assert is_right(adapt("b/gpt.py:Other"))


@pytest.mark.parametrize(
    "line", ["subject import Model", "adapters.calling import call", "weights import Row, WeightMap"]
)
def test_an_adapter_that_imports_by_earlier_names_is_read(tmp_path, line):
    write(tmp_path, {"older": f"from harness.{line}\n" + MODEL})
    assert is_right(adapt("older.py:GPT"))
    assert "harness.subject" not in sys.modules, "the earlier names are for subjects alone"


SCRIPT = LECTURE.split("text = open")[0] + textwrap.dedent("""
    class GPT(Base):
        def __init__(self):
            super().__init__()
            self.make(vocab_size, block_size, n_embd, n_head, n_layer)

        def forward(self, ids):
            return super().forward(ids.to(device)) * len(chosen)


    if __name__ == "__main__":
        table = dict(enumerate(open("vocabulary.txt").read()))
        vocab_size = len(table)
        n_head = n_layer = 2
        head_width = 16
        n_embd = n_head * head_width
        block_size, batch_size = 40, 8
        device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = ["one"]
        model = GPT()
        while True:
            model(torch.randint(vocab_size, (batch_size, block_size)))
""")


def test_the_constants_of_a_script_are_taken_and_nothing_else_of_it_is_run(tmp_path):
    write(tmp_path, {"script": SCRIPT})
    subject = adapt("script.py:GPT")
    assert is_right(subject)
    assert not hasattr(subject.module, "model")
    assert not hasattr(subject.module, "batch_size"), "no definition needs it"
    assert subject.module.n_embd == 32, "an expression of other constants is taken as it is"
    taken = "block_size, chosen, device, head_width, n_embd, n_head, n_layer, vocab_size"
    assert notes_of(subject) == f"script.py: line 49 and below: of the script, only {taken} are taken"


def test_a_name_that_the_module_assigns_is_not_taken_from_its_script(tmp_path):
    write(tmp_path, {"both": MODEL + 'LIMIT = 3\nread = lambda: LIMIT\nif __name__ == "__main__":\n    LIMIT = 5\n'})
    subject = adapt("both.py:GPT")
    assert subject.module.LIMIT == 3
    assert not subject.project.notes.lines()


@pytest.mark.parametrize(
    ("line", "is_said"),
    [
        ("    device = DEVICE", True),
        ("    device = torch.device('mps:0')", True),
        ("    device = 'mps' if ids.ndim else ids.device", True),
        ("    device = 'mps' if torch.backends.mps.is_available() else 'cpu'", False),
        ("    ids = ids.to('mps')", True),
        ("    ids = ids.mps()", True),
        ("    assert torch.zeros(1, device='mps').ndim", True),
        ("    if torch.backends.mps.is_available(): ids = ids.to('mps')", False),
        ("    assert ids.device.type != 'mps'", False),
        ("    assert ids.device != torch.device('mps')", False),
    ],
)
def test_a_device_that_this_machine_lacks_becomes_the_cpu_where_it_is_computed_on(tmp_path, line, is_said):
    """No machine of the harness has Apple's. A comparison with it stays: the answer is that it is another device."""
    constant = "DEVICE = 'mps'\n" if "DEVICE" in line else ""
    call = f"\n    def forward(self, ids):\n        device = ids.device\n    {line}\n"
    model = MODEL + call + "        return super().forward(ids.to(device))\n"
    write(tmp_path, {"devices": model.replace("class GPT", constant + "class GPT")})
    subject = adapt("devices.py:GPT")
    assert is_right(subject)
    assert ("this machine has no mps" in notes_of(subject)) == is_said
