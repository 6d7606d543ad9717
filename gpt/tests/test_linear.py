"""The linear layer: torch's own results, by other products for the few rows of a decoding step."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.linear import Linear
from gpt.tests.examples import debug, ids


class Calls(TorchDispatchMode):
    """Records the name of every operation that runs."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def products(layer, x):
    """Return the names of the matrix products that the layer runs."""
    with Calls() as calls:
        layer(x)
    return calls.names & {"mv", "addmv", "mm", "addmm", "bmm", "baddbmm", "linear"}


def pair(dtype, *, bias=True, sizes=(48, 144)):
    """Return our layer and torch's, with the same weights."""
    torch.manual_seed(0)
    ours, theirs = Linear(*sizes, bias=bias), nn.Linear(*sizes, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=[True, False], ids=["with products in bfloat16", "without"])
def cpu(request, monkeypatch):
    """A CPU that has products in bfloat16 of its own, and one that has not."""
    monkeypatch.setattr("gpt.linear._has_products_in_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(768,), (1, 768), (1, 1, 768)])
@torch.no_grad()
def test_one_row_in_sixteen_bits_is_rounded_once(cpu, dtype, bias, shape):
    """Adding the bias to a product that is already rounded would increase the error by half."""
    ours, theirs = pair(dtype, bias=bias, sizes=(768, 3072))
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=1.0 if parameter.dim() == 2 else 30.0)  # a bias as large as the product
    x = torch.randn(shape).to(dtype)
    expected = copy.deepcopy(ours).double()(x.double())
    theirs.load_state_dict(ours.state_dict())
    found, rounded = ours(x), expected.to(dtype)
    assert (found.shape, found.dtype) == (theirs(x).shape, dtype)
    assert (found - expected).norm() < 1.05 * (rounded - expected).norm()


@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_one_row_in_sixteen_bits_is_the_product_that_reads_the_weight_faster(cpu, dtype):
    """Without products in bfloat16, a matrix-vector product: 10.9 GB/s against 7.2; with them torch's own."""
    row = torch.randn(1, 1, 48).to(dtype)
    if cpu and dtype == torch.bfloat16:
        ours, theirs = pair(dtype)
        assert products(ours, row) == products(theirs, row)
        return
    assert products(pair(dtype)[0], row) == {"addmv"}
    assert products(pair(dtype, bias=False)[0], row) == {"mv"}


@pytest.mark.parametrize(("dtype", "rows"), [(torch.bfloat16, 2), (torch.bfloat16, 7), (torch.float32, 5)])
@torch.no_grad()
def test_more_rows_use_torchs_own_product(dtype, rows):
    ours, theirs = pair(dtype)
    x = torch.randn(1, rows, 48).to(dtype)
    assert torch.equal(ours(x), theirs(x))
    assert products(ours, x) == products(theirs, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (1, 1, 48), (2, 1, 48), (1, 3, 48), (2, 2, 48)], ids=str)
@torch.no_grad()
def test_few_rows_in_full_precision_are_multiplied_by_slices_of_the_weight(dtype, bias, shape):
    ours, theirs = pair(dtype, bias=bias)
    x = torch.randn(shape).to(dtype)
    found = ours(x)
    assert (found.shape, found.dtype, found.is_contiguous()) == (theirs(x).shape, dtype, True)
    torch.testing.assert_close(found, theirs(x))
    assert products(ours, x) == {"baddbmm" if bias else "bmm"}


@torch.no_grad()
def test_a_prime_number_of_outputs_has_no_slices():
    ours, theirs = pair(torch.float32, sizes=(48, 37))
    assert products(ours, torch.randn(1, 48)) == products(theirs, torch.randn(1, 48))


@torch.no_grad()
def test_few_rows_are_multiplied_by_a_weight_that_is_stored_transposed():
    """As a checkpoint's (in, out) that was assigned, not copied."""
    ours, theirs = pair(torch.float32)
    for layer in (ours, theirs):
        layer.weight = nn.Parameter(layer.weight.t().contiguous().t())
    x = torch.randn(2, 48)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_with_gradients_the_layer_uses_torchs_own_product(dtype):
    ours, theirs = pair(dtype)
    x = torch.randn(1, 1, 48).to(dtype)
    assert products(ours, x) == products(theirs, x)
    ours(x).sum().backward()
    theirs(x).sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


@torch.no_grad()
def test_under_autocast_the_layer_computes_in_autocasts_dtype():
    ours, theirs = pair(torch.bfloat16)
    x = torch.randn(1, 1, 48).bfloat16()
    with torch.autocast("cpu", dtype=torch.float16):
        assert ours(x).dtype == theirs(x).dtype == torch.float16


@torch.no_grad()
def test_inputs_that_do_not_fit_are_errors_as_in_torchs_own_layer():
    for dtype in (torch.bfloat16, torch.float32):
        other = torch.float64 if dtype == torch.float32 else torch.float32
        for wrong in (torch.randn(1, 47).to(dtype), torch.randn(48, 1).to(dtype), torch.randn(1, 48).to(other)):
            for layer in pair(dtype):
                with pytest.raises(RuntimeError):
                    layer(wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_a_row_may_be_non_contiguous(dtype):
    ours, theirs = pair(dtype)
    x = torch.randn(48, 3).to(dtype).T[1:2]
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_decoding_sees_a_weight_that_was_just_edited(dtype):
    """A copy of the weight would be stale: torch's version counter does not count an edit of `.data`."""
    model, row = debug().to(dtype), ids(1, 1)
    before, _ = model(row, cache=model.new_cache(1))
    model.lm_head.weight.data.mul_(-2)
    found, _ = model(row, cache=model.new_cache(1))
    fresh = debug().to(dtype)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(found, fresh(row, cache=fresh.new_cache(1))[0])
    assert not torch.equal(found, before)


def test_the_parameters_have_the_names_of_torchs_own_layer():
    ours, theirs = pair(torch.bfloat16)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert isinstance(ours, nn.Linear)
