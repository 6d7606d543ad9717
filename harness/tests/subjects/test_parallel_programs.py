"""The functions for several ranks are found by the names that people give them."""

import sys

import pytest

from harness.core.errors import MissingAbility, SubjectError
from harness.subjects.adapters import adapt
from harness.subjects.protocols import Parallelizes
from harness.subjects.ranks.program import RankFunction

MODEL = "from harness.faults.specimen import GPT\n"


@pytest.fixture
def program(tmp_path):
    def made(text, name="mine.py"):
        (tmp_path / name).write_text(MODEL + text)
        return adapt(f"{tmp_path / name}:GPT")

    return made


def test_the_reference_has_every_function():
    functions = adapt("gpt:GPT").parallel_program.functions
    assert set(functions) == {
        *("data", "sharded", "tensor", "gradients", "clip", "state", "save", "load", "seed", "share")
    }


def test_a_gpt_without_a_wrapper_has_no_ability(program):
    assert not isinstance(program(""), Parallelizes)
    assert not isinstance(program("def save_checkpoint(model, path): ...\n"), Parallelizes)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("def to_ddp(model): ...", "data"),
        ("def apply_fsdp(model, device_mesh): ...", "sharded"),
        ("def apply_tp(net, tp_mesh): ...", "tensor"),
        ("def parallelize(model, mesh):\n    fully_shard(model)", "sharded"),
        ("def wrap(model, rank):\n    return DDP(model)", "data"),
        (
            "def parallelize_model(model, mesh):\n    parallelize_module(model, mesh, {'c_fc': ColwiseParallel()})",
            "tensor",
        ),
    ],
)
def test_a_wrapper_is_known_by_its_name_or_by_what_its_source_names(program, text, kind):
    assert program(text + "\n").parallel_program.kinds == (kind,)


def test_a_function_of_torch_that_is_imported_is_none(program):
    subject = program(
        "from torch.distributed.fsdp import fully_shard\nfrom torch.distributed.tensor.parallel import *\n"
    )
    assert not isinstance(subject, Parallelizes)


def test_a_function_that_needs_more_than_a_check_has_is_not_used(program):
    assert not isinstance(program("def to_ddp(model, cluster): ...\n"), Parallelizes)
    assert isinstance(program("def to_ddp(model, cluster=None): ...\n"), Parallelizes)


def test_functions_in_a_module_beside_the_model_are_found(tmp_path, monkeypatch):
    package = tmp_path / "beside_the_model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(MODEL)
    (package / "distributed.py").write_text("def wrap_fsdp(model, mesh):\n    return model\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert adapt("beside_the_model.model:GPT").parallel_program.kinds == ("sharded",)
    finally:
        for name in [name for name in sys.modules if name.startswith("beside_the_model")]:
            del sys.modules[name]


def test_arguments_are_given_by_what_their_names_mean():
    def save(net, optim=None, *, ckpt_dir, compress=True):
        return net, optim, ckpt_dir, compress

    function = RankFunction.of(save)
    assert function({"model": 1, "path": "p", "seed": 3}) == (1, None, "p", True)
    assert function({"model": 1, "path": "p", "optimizer": 2}) == (1, 2, "p", True)
    with pytest.raises(SubjectError, match="needs ckpt_dir"):
        function({"model": 1})


def test_a_missing_function_says_what_was_looked_for(program):
    with pytest.raises(MissingAbility, match="fully_sharded, apply_fsdp"):
        program("def to_ddp(model): ...\n").parallel_program.function("sharded")
