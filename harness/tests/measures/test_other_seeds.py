"""Right programs pass with other weights, tokens and draws: no bound fits the seed of the suites alone.

GPT_HARNESS_SEEDS=20 pytest harness/tests/measures/test_other_seeds.py -s repeats it with twenty seeds, and prints what
was judged and flagged. By default it is one seed.
"""

import os

import pytest

from harness.faults.catalogue import SPECIMEN
from harness.judging.run_check import run
from harness.measures.generation import sampled_answer
from harness.oracle import model_cache, probe_weights, tokens
from harness.subjects.adapters import adapt

SEEDS = range(1, 1 + int(os.environ.get("GPT_HARNESS_SEEDS", "1")))
STYLES = "harness.tests.subjects.styles."
RIGHT = {
    "the reference": "gpt:GPT",
    "the specimen": f"{SPECIMEN}:GPT",
    "a sampler without multinomial": "harness.tests.measures.options.right_conventions:DrawsByInversion",
    "other names": f"{STYLES}greek:Phi",
    "a matrix for each head": f"{STYLES}per_head_matrices:Transformer",
}
SUITES = ("behaviour", "interface", "options", "generation", "dropout", "conditions", "loss", "attention", "loading")
# Long, or the same for every seed.
NOT_REPEATED = ("memory-does-not-grow", "damaged-checkpoint-is-rejected", "config-is-honoured")


@pytest.fixture
def with_seed(monkeypatch):
    """Draw other probe weights, other tokens and other random numbers inside the test."""

    def use(seed):
        monkeypatch.setattr(probe_weights, "SEED", seed)
        monkeypatch.setitem(tokens.batch.__kwdefaults__, "seed", seed)
        monkeypatch.setattr(sampled_answer, "OWN_SEED", 8_675_309 + seed)
        forget()

    yield use
    monkeypatch.undo()
    forget()


def forget():
    probe_weights._seeded.cache_clear()
    model_cache.clear()
    model_cache._small.clear()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("right", RIGHT if len(SEEDS) > 1 else ["the specimen"])
def test_a_right_program_is_flagged_with_no_seed(shipped, with_seed, right, seed):
    with_seed(seed)
    subject = adapt(RIGHT[right])
    records = [
        run(check, subject)
        for check in shipped.values()
        if check.suite in SUITES
        and check.name not in NOT_REPEATED
        and str(check.parameters.get("size")).startswith("debug")
    ]
    flagged = [
        f"{record.check.suite}::{record.check.id}: {record.message}"
        for record in records
        if record.verdict in ("fail", "error")
    ]
    print(f"{right}, seed {seed}: {sum(r.verdict == 'pass' for r in records)} passed, {len(flagged)} flagged")
    assert flagged == []
