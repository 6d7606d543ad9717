"""Speculation: the target's own tokens with every draft, one call of the target a round, and caches that follow."""

from dataclasses import replace

import pytest
import torch

from gpt import GPT, PRESETS, ContextError, GenerationError, TokenError
from gpt.generate import next_token_probabilities
from gpt.speculation import EarlyExit, ModelDraft, PromptLookup, Sampler, count_accepted, first_layers, residual
from gpt.tests.examples import debug, excited, ids

PROMPT = ids(1, 8)


def other(seed=5, **changes):
    """Return a model with other weights: a draft that is hardly ever accepted."""
    return excited(GPT(replace(PRESETS["debug"], **changes), seed=0).eval(), seed=seed)


def drafts(target):
    """Return drafts of every kind: equal to the target, close to it, and far from it."""
    return {
        "the target": target,
        "another": other(),
        "one layer": other(n_layer=1),
        "early exit": EarlyExit(target, 2),
        "prompt lookup": PromptLookup(),
    }


@pytest.mark.parametrize("lookahead", [1, 3, 8])
@pytest.mark.parametrize("draft", drafts(debug()))
def test_greedy_tokens_are_those_of_generate(draft, lookahead):
    target = debug().double()
    proposing = drafts(target)[draft]
    if isinstance(proposing, GPT):
        proposing.double()
    found = target.speculate(proposing, PROMPT, 20, lookahead=lookahead, temperature=0)
    assert torch.equal(found.ids, target.generate(PROMPT, 20, temperature=0))


def test_a_draft_with_the_targets_weights_gives_lookahead_and_one_tokens_for_each_call():
    target = debug()
    found = target.speculate(ModelDraft(target), PROMPT, 20, lookahead=4, seed=1)
    assert found.target_calls == 4
    assert found.tokens_per_call == 5.0
    assert found.acceptance == [1.0] * 4


def test_each_row_is_continued_and_counted():
    target, prompts = debug(), ids(3, 8)
    found = target.speculate(other(), prompts, 10, temperature=0)
    assert torch.equal(found.ids, target.generate(prompts, 10, temperature=0))
    assert found.new_tokens == 30
    assert found.target_calls + sum(found.accepted) == 30  # each call gives one token beside the accepted drafts


def test_after_each_round_the_caches_contain_the_accepted_text():
    """A rejected draft that stays in a cache moves every later position; the logits of all calls show it."""
    target, draft, calls = debug().double(), ModelDraft(other().double()), []
    hook = target.register_forward_hook(lambda module, inputs, output: calls.append(output[0][0]))
    text = target.speculate(draft, PROMPT, 20, lookahead=3, seed=2).ids
    hook.remove()
    rows = torch.cat(calls)
    expected = target(text[:, :-1])[0][0, PROMPT.size(1) - 1 :]
    nearest = (rows[None] - expected[:, None]).abs().amax(-1).amin(-1)
    assert float(nearest.max()) < 1e-12


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_k": 3}, {"top_p": 0.8}], ids=str)
def test_acceptance_and_residual_together_are_the_targets_distribution(settings):
    """By the formula: q(x) min(1, p/q) + P(rejection) · residual(x) = p(x)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    p, q = next_token_probabilities(logits, **settings)
    kept = torch.minimum(p, q)
    assert torch.allclose(kept + (1 - kept.sum()) * residual(p, q), p, atol=1e-15)


def test_a_draft_is_accepted_with_the_ratio_of_the_probabilities():
    sampler = Sampler(generator=torch.Generator().manual_seed(0))
    p, q = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.8, 0.2]])
    accepted = [count_accepted(torch.tensor([0]), p, q, sampler) for _ in range(4000)]
    assert abs(sum(accepted) / 4000 - 0.25) < 0.04  # 6 standard deviations
    assert all(count_accepted(torch.tensor([1]), p, q, sampler) for _ in range(100))


def test_nothing_behind_a_rejected_draft_is_accepted():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    q = torch.full((3, 2), 0.5)
    assert count_accepted(torch.tensor([0, 1, 0]), p, q, Sampler()) == 1


def test_the_residual_of_equal_distributions_is_the_distribution():
    """Rounding alone can reject a draft there, and 0/0 is no distribution."""
    p = torch.tensor([0.3, 0.7])
    assert torch.equal(residual(p, p), p)


def test_prompt_lookup_proposes_what_followed_the_latest_longest_match():
    lookup = PromptLookup(ngram=2)
    lookup.start(debug(), 32)
    tokens, q = lookup.propose(torch.tensor([[1, 2, 9, 1, 2, 7, 8, 3, 2, 5, 1, 2]]), 3, Sampler())
    assert tokens.tolist() == [7, 8, 3]  # after the latest "1 2", not after the later "2" alone
    assert q.argmax(-1).tolist() == [7, 8, 3]
    assert q.sum(-1).tolist() == [1.0] * 3
    nothing, q = lookup.propose(torch.tensor([[1, 2, 3]]), 3, Sampler())
    assert nothing.shape == (0,)
    assert q.shape == (0, 211)


def test_an_early_exit_shares_the_targets_tensors():
    target = debug()
    shallow = first_layers(target, 2)
    own = {id(parameter) for parameter in target.parameters()}
    assert {id(parameter) for parameter in shallow.parameters()} < own
    assert torch.equal(first_layers(target, 3)(PROMPT)[0], target(PROMPT)[0])


def test_a_seed_fixes_the_tokens_and_leaves_the_global_random_state_alone():
    target, draft = debug(), other()
    before = torch.get_rng_state()
    first, second, third = (target.speculate(draft, PROMPT, 15, seed=seed).ids for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_speculation_runs_in_eval_mode_and_restores_the_modes_of_both_models():
    target, draft = debug(dropout=0.5).train(), other(dropout=0.5).train()
    draft.lm_head.eval()
    found = target.speculate(draft, PROMPT, 8, temperature=0).ids
    assert (target.training, draft.training, draft.lm_head.training) == (True, True, False)
    assert torch.equal(found, target.generate(PROMPT, 8, temperature=0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lookahead": 0}, GenerationError, "lookahead=0; expected a count of 1 or more"),
        ({"temperature": -1}, GenerationError, "temperature=-1"),
        ({"max_new_tokens": 25}, ContextError, "prompt and new tokens are 33 and the context is 32"),
        ({"idx": torch.tensor([[500]])}, TokenError, "500"),
        ({"draft": other(vocab_size=97)}, GenerationError, "the draft's vocabulary is 97 and the target's 211"),
        ({"draft": other(block_size=16)}, ContextError, "the draft's context is 16 and the text will have 18 tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_users_mistake_is_a_named_error(arguments, error, message):
    given = {"draft": other(), "idx": PROMPT, "max_new_tokens": 10, **arguments}
    with pytest.raises(error, match=message):
        debug().speculate(**given)


@pytest.mark.parametrize("layers", [0, 4])
def test_an_early_exit_needs_layers_of_the_model(layers):
    with pytest.raises(GenerationError, match="expected 1 to 3"):
        EarlyExit(debug(), layers)


def test_prompt_lookup_needs_a_token_to_look_for():
    with pytest.raises(GenerationError, match="ngram=0"):
        PromptLookup(0)


def test_the_text_may_end_with_the_context_and_may_ask_for_nothing():
    target = debug()
    assert target.speculate(target, PROMPT, 24, lookahead=9, temperature=0).ids.shape == (1, 32)
    assert torch.equal(target.speculate(target, PROMPT, 0).ids, PROMPT)
