"""How a GPT is called: what it needs beside the ids, where its targets go, and where its answer has logits and loss."""

import pytest
import torch
from torch.nn import functional as F

from harness.cli import main
from harness.core.errors import SubjectError
from harness.core.sizes import SIZES
from harness.judging.run_check import run
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.subjects.build import build_with_weights
from harness.subjects.forward_answer import unpack
from harness.subjects.forward_call import targets_keyword
from harness.subjects.forward_style import style_of
from harness.tests.subjects.altered_styles import STYLES as HERE
from harness.tests.subjects.altered_styles import altered
from harness.tests.subjects.styles.calls import Base

DEBUG = SIZES["debug"]
STYLES = {
    # style: the parameter for targets, and what a call is given
    "calls:ListOfCaches": ("targets", {"caches": "[None] * layers"}),
    "calls:RequiredPast": ("", {"past": "[None] * layers"}),
    "calls:PastIsADict": ("", {"memory": "{}"}),
    "calls:PairsOfNone": ("", {"kv": "{}"}),
    "calls:MaskOfPadding": ("", {"attention_mask": "ones (B, T)"}),
    "calls:MaskOfTheFuture": ("", {"mask": "tril (T, T), True where it may attend"}),
    "calls:MaskOfWhatIsHidden": ("", {"mask": "triu (T, T), True where it may not attend"}),
    "calls:AddedMask": ("", {"mask": "(T, T), -inf where it may not attend"}),
    "calls:Flags": ("", {"start_pos": "0", "use_cache": "False", "is_training": "False"}),
    "calls:CausalFlag": ("", {"causal": "True"}),
    "calls:OneSequence": ("targets", {}),
    "calls:WantedTokens": ("wanted", {}),
    "calls:TargetsFirst": ("targets", {}),
    "calls:LossAlone": ("targets", {}),
    "calls:UnshiftedLabels": ("labels", {}),
    "calls:ShiftedLabels": ("", {}),
    "calls:NamedAnswer": ("", {}),
    "calls:NestedAnswer": ("targets", {}),
    "calls_with_targets:IdsCalledTgt": ("", {}),
    "calls_with_targets:IdsCalledY": ("", {}),
    "calls_with_targets:RaisesWithoutTargets": ("targets", {}),
    "calls_with_targets:RaisesWithoutWanted": ("wanted", {}),
    "plain_python:over_params": ("", {}),
    "plain_python:entry_by_entry": ("", {}),
    "plain_python:FromScratch": ("targets", {}),
}


@pytest.fixture(scope="module")
def expected():
    """Ids, targets, and the logits and the loss of GPT-2 with probe weights in float64."""
    ids, targets = batch(DEBUG, "random", rows=2, length=24)
    with torch.no_grad():
        logits = oracle(DEBUG, state("debug", "probe"), "float64").logits(ids)
    return ids, targets, logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("style", STYLES)
def test_a_correct_gpt_is_called_whatever_it_needs(style, expected):
    ids, targets, logits, loss = expected
    model = build_with_weights(adapt(f"{HERE}.{style}"), DEBUG, state("debug", "probe"), "float64")
    assert sum(parameter.numel() for parameter in model.module.parameters()) == 96_576  # tied, and each once
    found = style_of(model.module)
    assert (found.targets, {name: argument.text for name, argument in found.arguments.items()}) == STYLES[style]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids), logits)
        torch.testing.assert_close(model.logits_alone(ids), logits)
        torch.testing.assert_close(model.loss(ids, targets), loss)
        own = model.calling(model.module, ids, targets)[1]
    assert (own is not None) == bool(found.targets)


@pytest.mark.parametrize("style", ["calls:ListOfCaches", "calls:OneSequence", "plain_python:FromScratch"])
def test_a_gpt_that_is_called_in_another_way_raises_no_alarm(shipped, style):
    subject = adapt(f"{HERE}.{style}")
    names = [
        name
        for name, check in shipped.items()
        if check.suite in ("interface", "loss", "structure", "behaviour") and check.parameters.get("size") == "debug"
    ]
    records = {name: run(shipped[name], subject) for name in names}
    # The styles start as PyTorch's layers do, and do not refuse too long a sequence: no matter of how they are called.
    assert not {name: r.message for name, r in records.items() if r.verdict not in ("pass", "skip")}


def test_a_wrong_gpt_with_a_mask_that_hides_nothing_is_still_wrong(shipped):
    """A value for the mask is found by what it hides; where none hides the future, the model is judged without."""
    record = run(shipped["attention::no-future-leak,weights=probe"], adapt(f"{HERE}.calls:NoMask"))
    assert (record.verdict, record.where[0]) == ("fail", "block 0")


@pytest.mark.parametrize(("style", "needed"), [("calls:WeightedLoss", "weight"), ("calls:MaskedLoss", "loss_mask")])
def test_a_loss_that_needs_more_than_targets_is_skipped_by_name(shipped, style, needed):
    subject = adapt(f"{HERE}.{style}")
    assert targets_keyword(subject.build(DEBUG).module) is None
    record = run(shipped["loss::loss-by-definition,case=plain"], subject)
    assert record.verdict == "skip"
    assert f"takes 'targets' only together with '{needed}'" in record.message
    assert run(shipped["parity::debug,weights=probe,compare=gradients"], subject).verdict == "pass"
    assert f"together with '{needed}'" in run(shipped["interface::answer-without-targets,length=24"], subject).message


def test_a_loss_that_raises_in_any_case_is_an_error(shipped):
    record = run(shipped["loss::loss-by-definition,case=plain"], adapt(f"{HERE}.calls:BrokenLoss"))
    assert record.verdict == "error"
    assert "Expected target size" in record.message


def test_a_wrong_loss_of_one_sequence_is_found(shipped, tmp_path):
    wrong = "cross_entropy(logits, targets) + 0.01) if targets is not None else logits"
    spec = altered(
        tmp_path, "calls:OneSequence", "cross_entropy(logits, targets)) if targets is not None else logits", wrong
    )
    assert run(shipped["loss::loss-by-definition,case=plain"], adapt(spec)).verdict == "fail"


def test_an_argument_without_any_value_is_named_with_what_was_tried(tmp_path):
    spec = altered(
        tmp_path, "calls:PastIsADict", "def forward(self, ids, memory):", "def forward(self, ids, memory, lexicon):"
    )
    path = tmp_path / "calls_altered.py"
    path.write_text(path.read_text().replace('memory["length"] =', 'memory["length"] = lexicon.words and'))
    model = adapt(spec).build(DEBUG)
    with pytest.raises(SubjectError, match=r"forward\(ids, memory, lexicon\) needs 'memory' and 'lexicon'.*tried None"):
        model.logits(torch.zeros(1, 2, dtype=torch.int64))


def test_an_error_of_the_forward_pass_itself_is_not_replaced_by_another():
    class Raises(Base):
        def forward(self, ids, mask=None):
            raise ValueError("the author's own words")

    from harness.subjects.forward_call import call

    with pytest.raises(ValueError, match="the author's own words"):
        call(Raises(211, 32, 3, 4, 48), torch.zeros(2, 3, dtype=torch.int64), None)


def test_hidden_states_beside_the_logits_are_not_taken_for_them():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    hidden, logits, loss = torch.zeros(2, 3, 48), torch.zeros(2, 3, 211), torch.tensor(1.5)
    for answer in ((hidden, logits, loss), {"x": hidden, "loss": loss, "y": (logits,)}, [loss, [hidden, [logits]]]):
        found, own = unpack(answer, ids)
        assert found is logits
        assert float(own) == 1.5


def test_a_flag_that_replaces_the_targets_is_given_only_without_them(expected, capsys):
    ids, _, logits, _ = expected
    style = f"{HERE}.calls_with_targets:RaisesUnlessSampling"
    model = build_with_weights(adapt(style), DEBUG, state("debug", "probe"), "float64")
    whole = torch.arange(2 * DEBUG.context).reshape(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids), logits)
        assert model.calling(model.module, whole, whole)[1] is not None
    main(["inspect", style])
    printed = " ".join(capsys.readouterr().out.split())
    assert "without targets it is given sampling: True" in printed
    assert "with targets, it raises AssertionError: whole windows only at " in printed


def test_of_two_norms_before_one_matrix_the_last_is_mapped_and_the_first_is_the_models_own():
    model = adapt(f"{HERE}.calls_with_targets:NormedEmbeddings").build(DEBUG)
    assert model.weights.gaps == "parameters of the subject without a published name: first.weight, first.bias"
