"""Where a GPT is not read, a few lines of its user's are: a function build(size), or an adapter."""

import pytest

from harness.core.sizes import SIZES
from harness.diagnosis import diagnose
from harness.judging.run_check import run
from harness.subjects.adapters import adapt
from harness.subjects.protocols import Generates
from harness.tests.subjects.constructor_styles import PARTS

DEBUG = SIZES["debug"]
BLOCKS = "parity::debug,weights=probe,compare=blocks"
SIZES_OF = "size.vocab_size, size.context, size.width, size.heads, size.layers"
OWN = (
    PARTS
    + f"""
from harness.subjects.model import Model


class Odd(Base):
    def forward(self, ids, router):
        return router, super().forward(ids)

    def generate(self, ids, new_tokens):
        return ids


def build(size):
    model = Odd()
    model.make({SIZES_OF})
    model.forward = super(Odd, model).forward
    return model


class Mine:
    def build(self, size):
        model = Odd()
        model.make({SIZES_OF})
        return Model(model, size, lambda model, ids, targets: (model(ids, router=3)[1], None))


class Older(Mine):
    name = "older"

    def build(self, size, *, seed=0, dtype="float32", device="cpu", **options):
        return super().build(size)
"""
)


def written(folder, text=OWN):
    (folder / "own_lines.py").write_text(text)
    return f"{folder}/own_lines.py"


@pytest.mark.parametrize("name", ["build", "Mine", "Older"])
def test_the_map_and_the_call_of_a_few_lines_are_found(shipped, tmp_path, name):
    subject = adapt(f"{written(tmp_path)}:{name}")
    assert run(shipped[BLOCKS], subject).verdict == "pass"
    assert run(shipped["structure::parameters-by-component,size=debug"], subject).verdict == "pass"
    assert subject.build(SIZES["124M"], device="meta").weights.gaps == ""


@pytest.mark.parametrize("name", ["build", "Mine"])
def test_what_is_wrong_behind_a_few_lines_is_diagnosed_under_the_name_that_the_user_typed(shipped, tmp_path, name):
    file = written(tmp_path, OWN.replace('approximate="tanh"', 'approximate="none"'))
    subject = adapt(f"{file}:{name}")
    record = run(shipped[BLOCKS], subject)
    assert (record.subject, record.verdict, record.where[0]) == (f"{file}:{name}", "fail", "block 0")
    finding = diagnose(subject, [record]).findings[0]
    assert (finding.fault, finding.where) == ("gelu-erf-for-tanh", "h.*.mlp.activation")


@pytest.mark.parametrize("name", ["Mine", "Older"])
def test_an_option_that_an_adapter_does_not_name_is_a_missing_ability_and_not_ignored(shipped, tmp_path, name):
    subject = adapt(f"{written(tmp_path)}:{name}")
    record = run(shipped["structure::parameter-count,size=debug,tied=false"], subject)
    assert (record.verdict, record.message) == ("skip", f"{subject.name}.build has no option 'tied'")


def test_a_builder_has_the_abilities_of_what_it_builds(tmp_path):
    assert isinstance(adapt(f"{written(tmp_path)}:build"), Generates)
