"""A GPT that is compiled by torch.compile: its mistakes are found eagerly, and those of compiling itself as such."""

import pytest
import torch

from harness.core.sizes import SIZES
from harness.diagnosis.diagnose import diagnose
from harness.diagnosis.searches import compiled
from harness.subjects.adapters import adapt
from harness.subjects.protocols import Generates
from harness.tests.diagnosis.combined_deviations import GPT

GELU = 'F.gelu(self.wide(x), approximate="tanh")'
GENERATE = """
    def generate(self, ids, max_new_tokens):
        for _ in range(max_new_tokens):
            ids = torch.cat((ids, self(ids)[0][:, -1:].argmax(-1)), 1)
        return ids
"""
BUILD = """

def same(graph, inputs):
    return graph.forward


def doubling(graph, inputs):
    return lambda *given: [2 * each if torch.is_tensor(each) else each for each in graph(*given)]


def failing(graph, inputs):
    raise RuntimeError("no such machine")


def build(settings: Settings):
    return torch.compile(GPT(settings), backend=BACKEND)
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a function that writes a GPT, compiled by that backend, and returns it as a subject."""
    monkeypatch.chdir(tmp_path)

    def write(backend, text=GPT):
        (tmp_path / "compiles.py").write_text(text + BUILD.replace("BACKEND", backend))
        return adapt("compiles.py:build")

    return write


def test_a_mistake_of_a_compiled_gpt_is_found_where_it_is(build):
    """The diagnosis said that the GPT fails in float64, by an error of torch.compile's about its own observers."""
    assert GPT.count(GELU) == 1
    found = diagnose(build("same", GPT.replace(GELU, "F.gelu(self.wide(x))")))
    assert (found.findings[0].where, found.findings[0].fault) == ("h.*.mlp.activation", "gelu-erf-for-tanh")
    assert (found.reproduction != "", found.trouble) == (True, "")


def test_of_a_right_compiled_gpt_nothing_is_said(build):
    assert compiled.search(build("same")) == []


def test_what_computes_each_time_anew_is_no_fault_of_compiling(build):
    head = "self.head(self.last_norm(x))"
    counting = GPT.replace(head, f"{head} * next(CALLS)").replace("import math\n", "import itertools, math\n", 1)
    build("same", f"{counting}\n\nCALLS = itertools.count(1)\n")
    torch.compiler.reset()  # imports what makes a GPT one that may be compiled
    assert compiled.may_be_compiled()
    assert compiled.search(adapt("compiles.py:GPT")) == []


def test_what_the_class_of_a_compiled_gpt_offers_is_judged(build):
    """Its generation was skipped: torch.compile returns a module of another class."""
    subject = build("same", GPT + GENERATE)
    assert isinstance(subject, Generates)
    assert subject.generate(subject.build(SIZES["debug"]), torch.tensor([[1, 2]]), 3, temperature=0.0).shape == (1, 5)


def test_the_blocks_of_a_compiled_gpt_are_read_after_its_first_call(build):
    """A compiled graph does not call the hooks that are registered after it was made: nothing was read."""
    model = build("same").build(SIZES["debug"])
    ids, read = torch.tensor([[1, 2, 3]]), {}
    with torch.no_grad():
        model.logits(ids)
        with model.watched({"block 0": "transformer.h.0"}, answered=read):
            model.logits(ids)
    assert read["block 0"].shape == (1, 3, SIZES["debug"].width)


def test_what_compiling_alone_changes_is_said_with_the_line_that_compiles(build):
    (finding, *_) = diagnose(build("doubling")).findings
    assert (finding.fault, finding.cause) == (compiled.FAULT, "torch.compile changes what it computes")
    assert finding.text == "return torch.compile(GPT(settings), backend=doubling)"


def test_what_fails_when_it_is_compiled_alone_is_said(build):
    (finding,) = compiled.search(build("failing"))
    assert "as it is compiled by torch.compile it fails" in finding.cause
    assert "no such machine" in finding.cause
