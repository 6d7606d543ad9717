"""The bytes of weights and caches, as they lie in memory."""

import torch
from torch import nn

from harness.bench.arms.stored_linears import store_linears
from harness.bench.tensor_bytes import tensor_bytes, weight_figures


def test_a_storage_that_is_seen_twice_is_counted_once():
    storage = torch.zeros(100)

    class Holder:
        def __init__(self):
            self.parts = {"keys": [storage, storage[:50]], "other": (torch.zeros(25),)}
            self.again = self

    assert tensor_bytes(Holder()) == 500


def test_a_tensor_without_memory_is_not_counted():
    """The reference's growing cache has one for its sizes: 36 MiB were counted that it never had."""
    assert tensor_bytes([torch.zeros(25), torch.empty(1000, device="meta")]) == 100


def tied_model():
    model = nn.Sequential(nn.Embedding(32, 64), nn.Linear(64, 128, bias=False), nn.Linear(64, 32, bias=False))
    model[2].weight = model[0].weight
    model.register_buffer("mask", torch.ones(5, dtype=torch.bool), persistent=False)
    return model


def test_parameters_and_buffers_are_counted_once():
    assert weight_figures(tied_model()) == {"weights_bytes": 4 * (32 * 64 + 64 * 128) + 5}


def test_weights_in_another_form_are_counted_beside_the_embedding_that_stays():
    found = {}
    for form in ("packed", "int8", "int4"):
        model = tied_model().bfloat16() if form != "packed" else tied_model()
        store_linears(model, form, "model")
        found[form] = weight_figures(model)["weights_bytes"] - model[0].weight.nbytes - 5
    linears = 64 * 128 + 32 * 64
    assert found["packed"] >= 4 * linears, "oneDNN may add unused elements"
    assert found["int8"] == linears + 2 * (128 + 32), "a scale in 16 bits for each output channel"
    assert found["int4"] == linears / 2 + 4 * linears / 32, "a scale and a zero point for 32 weights"


def test_a_model_without_tensors_has_no_figure():
    assert weight_figures(nn.Identity()) == {}
