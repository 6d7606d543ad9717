"""Memory: the estimate against what a forward pass stores, and advice that would fit."""

import mmap
from dataclasses import replace

import pytest
import torch

from gpt import GPT
from gpt.errors import DoesNotFit
from gpt.training import memory
from gpt.training.config import TrainConfig
from gpt.training.config_file import preset_file, read_config
from gpt.training.gradient_checkpointing import recompute_blocks
from gpt.training.memory import (
    available_memory,
    check_fit,
    estimate,
    flops_per_token,
    gigabytes,
    parameter_count,
    used_memory,
    what_fits,
)
from gpt.training.precision import Precision

SMALL = TrainConfig(n_layer=3, n_head=4, n_embd=64, block_size=64, batch_size=4, attention="naive", vocabulary="bytes")
VOCAB = 256


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"n_layer": 5, "block_size": 16}])
def test_the_number_of_parameters_is_that_of_the_model(changes):
    config = replace(SMALL, **changes)
    model = GPT(config.model(vocab_size=VOCAB), device="meta")
    assert parameter_count(config, VOCAB) == sum(parameter.numel() for parameter in model.parameters())


def test_the_work_of_a_token_of_gpt2_small_is_855_mflop():
    """FACTS.md derives it: 6 (N - wpe) + 12 L C T at T = 1024."""
    assert flops_per_token(TrainConfig(), 50257) == 6 * (124_439_808 - 786_432) + 12 * 12 * 768 * 1024
    assert round(flops_per_token(TrainConfig(), 50257) / 1e6) == 855


def stored_bytes(config):
    """Return the bytes that autograd stores in a forward pass of a micro-batch, parameters left out."""
    model = GPT(config.model(vocab_size=VOCAB), seed=0)
    precision = Precision(config.precision, torch.device("cpu"))
    model.to(precision.weights)
    if config.gradient_checkpointing:
        recompute_blocks(model)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor: its memory must not be used again
        return tensor

    ids = torch.randint(VOCAB, (config.batch_size, config.block_size), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), precision.autocast():
        loss = model(ids, ids)[1]
    assert loss.requires_grad
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": "flash"},
        {"attention": "looped"},
        {"dropout": 0.1},
        {"dropout": 0.1, "attention": "flash"},
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "attention": "flash"},
        {"precision": "pure-bfloat16"},
        {"batch_size": 8},
        {"n_layer": 6},
    ],
    ids=str,
)
def test_the_estimate_of_activations_is_within_a_quarter_of_what_is_stored(changes):
    config = replace(SMALL, **changes)
    found = stored_bytes(config)
    log_probabilities = config.batch_size * config.block_size * VOCAB * 4  # of the logits' bytes: what is stored
    weight_copies = 2 * parameter_count(config, VOCAB) if config.precision == "bfloat16" else 0
    expected = estimate(config, VOCAB).activations + log_probabilities + weight_copies
    assert 0.8 * found <= expected <= 1.25 * found


def test_gradient_checkpointing_stores_the_inputs_of_blocks():
    few = replace(SMALL, gradient_checkpointing=True, n_layer=3)
    more = replace(few, n_layer=7)
    grown = estimate(more, VOCAB).activations - estimate(few, VOCAB).activations
    assert grown == 4 * few.batch_size * few.block_size * few.n_embd * 4
    assert estimate(few, VOCAB).activations < estimate(SMALL, VOCAB).activations / 2


def test_weights_gradients_and_moments_follow_the_precision():
    N = parameter_count(SMALL, VOCAB)
    full, mixed, pure = (
        estimate(replace(SMALL, precision=precision), VOCAB) for precision in ("float32", "bfloat16", "pure-bfloat16")
    )
    assert (full.weights, full.gradients, full.moments) == (4 * N, 4 * N, 8 * N)
    assert (mixed.weights, mixed.gradients, mixed.moments) == (6 * N, 4 * N, 8 * N)
    assert (pure.weights, pure.gradients, pure.moments) == (2 * N, 2 * N, 4 * N)
    assert full.total == 16 * N + full.activations + full.logits


def test_gpt2_small_needs_10_gigabytes_at_the_recipe_of_the_lessons():
    config = read_config(preset_file("gpt2-124m"))
    assert (config.batch_size, config.block_size, config.precision) == (8, 1024, "bfloat16")
    tokens, N = 8 * 1024, 124_439_808
    layer = 2 * 768 * 4 + 15 * 768 * 2  # float32 into two LayerNorms, bfloat16 for the products
    assert estimate(config, 50257).total == 18 * N + tokens * (12 * layer + 12 * 50257) == 10_049_284_608


def test_a_run_that_does_not_fit_is_an_error_with_flags_that_would():
    config = replace(TrainConfig(), batch_size=12, accumulation=2)
    with pytest.raises(DoesNotFit, match=r"needs about 17.1 GB .*, and 16.0 GB are available; the same steps fit"):
        check_fit(config, 50257, 16 * 10**9)
    for available in (4, 5, 8, 12, 16):
        advice = what_fits(config, 50257, available * 10**9)
        found = advice.split("fit with ")[1].split(" (")[0].split()
        changes = {"batch_size": int(found[1]), "accumulation": int(found[3])}
        smaller = replace(config, **changes, gradient_checkpointing="--gradient-checkpointing" in found)
        assert smaller.batch_size * smaller.accumulation == config.batch_size * config.accumulation
        assert check_fit(smaller, 50257, available * 10**9).total < available * 10**9
    assert "--gradient-checkpointing" not in what_fits(config, 50257, 16 * 10**9)
    with pytest.raises(DoesNotFit, match="not even one window at a time with --gradient-checkpointing fits"):
        check_fit(config, 50257, 10**9)


def test_an_unknown_amount_of_memory_stops_no_run():
    assert check_fit(SMALL, VOCAB, None) == estimate(SMALL, VOCAB)


def test_what_this_machine_has_and_uses_is_plausible():
    available = available_memory(torch.device("cpu"))
    assert available is None or 10**7 < available < 10**14
    if available is not None:
        shared = available_memory(torch.device("cpu"), 4)
        assert shared is not None
        assert shared < available / 2
    before = used_memory(torch.device("cpu"))
    # Pages of its own: the allocator may have 120 MB left over from other tests, and a tensor would need no more.
    with mmap.mmap(-1, 120_000_000) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        assert used_memory(torch.device("cpu")) - before > 100e6


@pytest.mark.parametrize(
    ("limit", "expected"), [("1000", 1000 - 900 + 500), ("max", None), (None, None)], ids=["limit", "max", "none"]
)
def test_the_page_cache_of_a_container_is_memory_that_a_run_may_use(tmp_path, monkeypatch, limit, expected):
    if limit:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nfile 600\nactive_file 100\ninactive_file 500\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_meminfo", lambda name: None)
    assert available_memory(torch.device("cpu")) == expected


def test_bytes_are_readable():
    assert [gigabytes(count) for count in (20_000_000, 1_500_000_000)] == ["20 MB", "1.5 GB"]
