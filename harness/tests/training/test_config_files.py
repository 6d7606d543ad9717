"""The settings in configuration files, and defaults that nothing uses."""

import json
from pathlib import Path

import pytest

from harness.tests.training.test_literals import found_in
from harness.tests.training.tiny import script
from harness.training.config_files import entries, with_values
from harness.training.literals import project_files
from harness.training.program import TrainingProgram
from harness.training.rehearsals import SMALL

YAML = """\
# batch_size: 1
model:
  n_layer: 12   # not block_size: 9
  "d_model": 768
  name: 'a: n_head'
  layers: [1, 2]
data: {train_file: input.txt, block_size: 256}
eps: 1.0e-5
compile: true
"""


def test_an_entry_is_a_name_with_one_plain_value(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML)
    assert [(name, value) for name, value, _ in entries(tmp_path / "a.yaml")] == [
        ("n_layer", 12),
        ("d_model", 768),
        ("name", "a: n_head"),
        ("train_file", "input.txt"),
        ("block_size", 256),
        ("eps", 1e-5),
        ("compile", True),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (YAML, YAML.replace("12 ", "2 ").replace("768", "2").replace("256", "2").replace("1.0e-5", "2")),
        ('{"n_layer": 12, "lr": 0.1,\n "name": "x"}', '{"n_layer": 2, "lr": 2,\n "name": "x"}'),
        ("[model]\nn_layer = 12\n", "[model]\nn_layer = 2\n"),
    ],
)
def test_values_are_replaced_where_they_are_and_all_else_stays(tmp_path, text, expected):
    (tmp_path / "a").write_text(text)
    numbers = [(place, 2) for _, value, place in entries(tmp_path / "a") if type(value) in (int, float)]
    assert with_values(text, dict(numbers)) == expected


@pytest.mark.parametrize(
    ("value", "written"), [(1e-8, "1.0e-08"), (True, "true"), ("fp32", '"fp32"'), (0.001, "0.001")]
)
def test_a_value_is_written_as_each_format_reads_it(value, written):
    """YAML 1.1 reads `1e-08` as a text."""
    assert with_values("a: b\n", {(1, 3): value}) == f"a: {written}\n"


SIZES = "import json\nfrom pathlib import Path\nsizes = {}\nprint(sizes['n_layer'], sizes['lr'])\n"


@pytest.mark.parametrize("opened", ["json.load(open('sizes.json'))", "json.loads(Path('sizes.json').read_text())"])
def test_a_program_reads_the_values_of_the_rehearsal_and_the_file_stays(tmp_path, monkeypatch, opened):
    """The sizes of many programs are in a file: they were trained in full, and took minutes or ran out of time."""
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SIZES.format(opened) + script())
    Path("sizes.json").write_text(json.dumps({"n_layer": 12, "lr": 0.5}))
    program = TrainingProgram("train.py")
    try:
        recording = program.record("plain")
    finally:
        program.close()
    assert recording.printed[0].text == f"{SMALL['n_layer']} {SMALL['lr']}"
    assert json.loads(Path("sizes.json").read_text()) == {"n_layer": 12, "lr": 0.5}


def test_a_configuration_file_of_the_users_arguments_is_one_of_the_programs(tmp_path):
    (tmp_path / "small.yaml").write_text("n_layer: 12\n")
    (tmp_path / "train.py").write_text("")
    for arguments in (["--config=small.yaml"], ["--config", "small.yaml"]):
        files = project_files(tmp_path / "train.py", [tmp_path], arguments=arguments)
        assert files == [tmp_path / "train.py", tmp_path / "small.yaml"]


def test_of_several_files_in_a_folder_only_sizes_are_set(tmp_path):
    """A program reads one of them, such as the schedule of a name: a warm-up in another one is not its own."""
    for name, text in (("cosine", "warmup: 100\nn_layer: 6\n"), ("constant", "n_layer: 12\n")):
        (tmp_path / "conf").mkdir(exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    assert found_in(tmp_path, "@hydra.main(config_path='conf')\ndef main(cfg): ...") == {
        "n_layer": [("n_layer", 12), ("n_layer", 6)]
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def rate(step, warmup=100): ...\nrate(3)", True),
        ("def rate(step, warmup=100): ...\nrate(3, 20)", False),
        ("def rate(step, warmup=100): ...\nrate(3, warmup=own)", False),
        ("def rate(step, warmup=100): ...\nrate(3, 20)\nrate(4)", True),
        ("def rate(step, warmup=100): ...\nrate(3, 20)\nLambdaLR(optimizer, rate)", True),
        ("def rate(step, warmup=100): ...\nrate(*steps, 5)", True),
        ("class Rate:\n    def __init__(self, peak, warmup=100): ...\nRate(1.0, 20)", False),
        ("class Rate:\n    def __init__(self, peak, warmup=100): ...\nRate(1.0)", True),
    ],
)
def test_a_default_that_each_call_overrides_sets_nothing(tmp_path, text, found):
    """It was taken to be declared: a constant rate was said to lack a warm-up that the program does not have."""
    assert ("warmup" in found_in(tmp_path, text)) is found
