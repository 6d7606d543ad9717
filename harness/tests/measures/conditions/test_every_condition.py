"""Right programs pass under every condition; those that are wrong under one fail, and the message names it."""

import itertools

import pytest
import torch

from harness.core.sizes import SIZES
from harness.faults.catalogue import SPECIMEN, read_catalogue
from harness.judging.run_check import run
from harness.measures.behaviour import _lasting_growth
from harness.measures.conditions.condition import FACTORS, SHAPES, Condition, long_conditions, short_conditions
from harness.measures.conditions.separation import separate
from harness.measures.conditions.uninitialised_memory import uninitialised_memory_filled
from harness.subjects.adapters import adapt

SWEEP = "conditions::right-under-every-condition,size=debug,over=shapes and modes"
TABLE = short_conditions(0, context=32)
FAULTS = {fault.id: fault for fault in read_catalogue().faults}
# A fault, the check that must kill it, and what its message must say.
KILLED = [
    ("tile-tail-dropped", SWEEP, "wrong only for lengths beyond 16 that are not a multiple of 16 (wrong: 17, 19"),
    ("mask-missing-in-inference-mode", SWEEP, "wrong only for torch.inference_mode()"),
    ("int32-ids-cut-to-a-byte", SWEEP, "wrong only for int32 ids"),
    ("error-shifts-positions", SWEEP, "wrong only for calls after an error (ids too long)"),
    ("rows-beyond-16-cut", SWEEP, "row 0 of the batch agrees"),
    ("positions-made-in-inference-mode", SWEEP, "right in a new model, wrong after other calls"),
    ("layers-beyond-12-skipped", "conditions::right-for-every-number-of-heads-and-layers", "of more than 3 layers"),
    ("heads-beyond-16-dropped", "conditions::right-for-every-number-of-heads-and-layers", "of more than 16 heads"),
    ("gradient-missing-for-17-tokens", "conditions::gradients-under-every-condition", "3 rows of 17 tokens"),
    (
        "qkv-packed-once",
        "conditions::newest-weights-are-used",
        "after optimizer.step() answers are stale: eval, no_grad",
    ),
    ("cached-steps-use-old-norm", "conditions::newest-weights-are-used", "stale: decoding with the cache"),
    ("logits-in-a-kept-buffer", "conditions::answers-stay-what-they-were", "overwritten by the next call"),
    ("backward-overwrites-the-logits", "conditions::answers-stay-what-they-were", "overwritten by the backward pass"),
    ("decoding-adds-to-the-table", "conditions::calls-change-no-weights", "one row: wte.weight changed at ["),
    ("generate-clears-gradients", "conditions::calls-change-no-weights", "generate, one row: wte.weight.grad changed"),
    ("loss-gradient-ignores-its-factor", "conditions::backward-is-linear", "0.25 · loss: 3 relative"),
    ("gradient-assumes-a-softmax", "conditions::gradients-match-finite-differences", "a weighted sum of logits"),
    ("copy-shares-the-head", "conditions::copies-answer-alike", "the deepcopy, after its weights were changed"),
    ("load-state-dict-skips-positions", "conditions::copies-answer-alike", "a new model with load_state_dict"),
    ("heads-of-the-last-model", "conditions::models-are-independent", "Attention.n_head was 4 and is 6"),
    ("mask-of-the-last-model", "conditions::models-are-independent", "other sizes: RuntimeError"),
    ("load-mask-uninitialised", "loading::loaded-model-has-parity,layout=saved", "block 0: different"),
]


def specimen(tmp_path, *changes):
    text = SPECIMEN.read_text(encoding="utf-8")
    for find, put in changes:
        assert text.count(find) == 1, find
        text = text.replace(find, put)
    path = tmp_path / "changed.py"
    path.write_text(text, encoding="utf-8")
    return adapt(f"{path}:GPT")


@pytest.mark.parametrize(("fault", "check", "said"), KILLED, ids=[row[0] for row in KILLED])
def test_a_fault_is_killed_by_its_check_and_the_message_names_the_condition(tmp_path, shipped, fault, check, said):
    record = run(shipped[check], specimen(tmp_path, *FAULTS[fault].change))
    assert record.verdict == "fail", record.message
    assert said in f"{record.message} {record.details.get('hint', '')}"


def test_a_refusal_of_int32_is_no_failure_and_is_listed(tmp_path, shipped):
    refusal = (
        'if idx.dtype != torch.int64:\n            raise TypeError("ids must be int64")\n        B, T = idx.shape\n'
    )
    record = run(shipped[SWEEP], specimen(tmp_path, ("B, T = idx.shape\n", refusal)))
    assert record.verdict == "pass", record.message
    refused = record.details["not judged"]
    assert refused
    assert all("int32 ids" in condition and "ids must be int64" in why for condition, why in refused.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('F.gelu(hidden, approximate="tanh")', "F.gelu(hidden)"), "wrong under each of the 8 conditions"),
        # The softmax of one score is 1, whatever the scale.
        (("scores = scores / math.sqrt(self.head_width)", "pass"), "wrong only for sequences of more than 1 tokens"),
    ],
)
def test_what_is_wrong_under_the_plain_condition_too_is_described_as_it_is(tmp_path, shipped, change, said):
    record = run(shipped[SWEEP], specimen(tmp_path, change))
    assert said in record.message


def test_every_pair_of_values_is_in_the_table_but_for_lengths():
    """A length comes twice only: with all other values it would take a hundred rows."""
    others = [name for name in FACTORS if name != "length"]
    for one, other in itertools.combinations(others, 2):
        seen = {(getattr(row, one), getattr(row, other)) for row in TABLE}
        missing = set(itertools.product(FACTORS[one], FACTORS[other])) - seen
        assert len(missing) <= 0.3 * len(FACTORS[one]) * len(FACTORS[other]), (one, other, missing)
    for name in FACTORS:
        assert {getattr(row, name) for row in TABLE} >= set(FACTORS[name])


def test_the_tables_fit_their_contexts():
    assert max(row.length for row in TABLE) == SIZES["debug"].context
    assert max(row.length for row in long_conditions(0, context=519)) == SIZES["debug-long"].context
    assert {63, 64, 65, 127, 128, 129} <= {row.length for row in long_conditions(3, context=519)}


@pytest.mark.parametrize(
    ("is_wrong", "said"),
    [
        (lambda c: c.mode == "train", "wrong only for training mode"),
        (lambda c: c.length > 16 and c.length % 16, "wrong only for lengths beyond 16 that are not a multiple of 16"),
        (lambda c: c.rows > 9, "wrong only for batches of more than 9 rows (wrong: 17, 64; right: 1, 2, 3, 5, 9)"),
        (lambda c: c.length == 1, "wrong only for sequences of at most 1 tokens (wrong: 1; right: 2, 3"),
        (lambda c: c.mode == "train" and c.rows > 2, "training mode and batches of more than 2 rows"),
    ],
)
def test_the_statement_is_that_which_fits_the_wrong_and_the_right_conditions(is_wrong, said):
    (found,) = separate(TABLE, [each for each in TABLE if is_wrong(each)])
    assert said in found


def test_a_limit_of_heads_is_not_taken_for_a_limit_of_layers():
    shapes = [Condition(heads=heads, layers=layers) for heads, layers in SHAPES]
    assert {1, 12, 16, 20, 25} <= {each.heads for each in shapes}
    assert {1, 3, 13, 24, 48} <= {each.layers for each in shapes}
    for factor, other in (("heads", "layers"), ("layers", "heads")):
        for limit in sorted({getattr(each, factor) for each in shapes})[1:]:
            (found,) = separate(shapes, [each for each in shapes if getattr(each, factor) >= limit])
            assert factor in found.partition("(")[0], (found, other)


def test_two_mistakes_are_two_statements():
    def is_wrong(each):
        return each.ids == "int32" or each.length > 29

    found = separate(TABLE, [each for each in TABLE if is_wrong(each)])
    assert any("int32 ids" in said for said in found)
    assert any("sequences of more than 29 tokens" in said for said in found)


def test_no_statement_is_made_that_does_not_fit():
    alike = [Condition(rows=2, length=length, after=after) for length in (3, 5, 7) for after in FACTORS["after"][:3]]
    diagonal = [alike[0], alike[4], alike[8]]
    assert separate(alike, diagonal) == []


def test_memory_that_nobody_has_written_is_filled_inside_the_block_alone():
    with uninitialised_memory_filled():
        assert torch.empty(100).isnan().all()
        assert torch.empty(100, dtype=torch.bool).all()
        assert torch.nn.Linear(3, 3, device="meta").to_empty(device="cpu").weight.isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("growth", "found"),
    [
        (lambda block: 800.0, 100.0),  # a leak
        (lambda block: 8000.0 / 2**block, 0.0),  # a cache that fills
        (lambda block: 0.0 if block % 3 else 4000.0, 0.0),  # bursts
    ],
    ids=["a leak", "a cache that fills", "bursts"],
)
def test_only_growth_that_lasts_is_a_leak(monkeypatch, growth, found):
    blocks = itertools.count()
    total = [0.0]

    def allocated(of):
        total[0] += growth(next(blocks))
        return total[0]

    monkeypatch.setattr("harness.measures.behaviour._allocated", allocated)
    assert _lasting_growth(lambda: None, "tensors") == pytest.approx(found, abs=1.0)


def test_a_table_that_is_dropped_when_the_mode_is_set_and_at_no_other_time_is_stale(tmp_path, shipped):
    """The check set the mode before each call, and so emptied what it was looking for."""
    subject = specimen(
        tmp_path,
        (
            "        positions_embedded = self.wpe(positions)",
            "        table = self.wpe.weight\n"
            "        if not self.training and not torch.is_grad_enabled():\n"
            "            table = self.kept = table.clone() if getattr(self, 'kept', None) is None else self.kept\n"
            "        positions_embedded = table[positions]",
        ),
        (
            "    def new_cache(self",
            "    def train(self, mode=True):\n        self.kept = None\n        return super().train(mode)\n\n"
            "    def new_cache(self",
        ),
    )
    record = run(shipped["conditions::newest-weights-are-used"], subject)
    assert record.verdict == "fail", record.message
    assert "answers are stale: eval, no_grad" in record.details["hint"]


def test_a_subject_that_writes_into_its_ids_leaves_the_next_one_a_right_oracle(tmp_path, shipped):
    """The ids of the expected answers, which are cached, were given to it: every later subject was misjudged."""
    writes = (
        "        B, T = idx.shape\n",
        "        B, T = idx.shape\n        idx[:, 0] = 0 if idx.is_contiguous() else idx[:, 0]\n",
    )
    run(shipped[SWEEP], specimen(tmp_path, writes))
    assert run(shipped[SWEEP], adapt(f"{SPECIMEN}:GPT")).verdict == "pass"
