import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt.linear import Linear
from gpt.tests.examples import debug, ids


class Calls(TorchDispatchMode):
    """The names of what runs."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def products(layer, x):
    """Which matrix products the layer ran."""
    with Calls() as calls:
        layer(x)
    return calls.names & {"mv", "addmv", "mm", "addmm", "bmm", "linear"}


def pair(dtype, *, bias=True, sizes=(48, 144)):
    """Ours and torch's own, with the same weights."""
    torch.manual_seed(0)
    ours, theirs = Linear(*sizes, bias=bias), nn.Linear(*sizes, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(768,), (1, 768), (1, 1, 768)])
@torch.no_grad()
def test_one_row_in_sixteen_bits_is_rounded_once(dtype, bias, shape):
    """Adding the bias to what is already rounded would cost half as much error again."""
    ours, theirs = pair(dtype, bias=bias, sizes=(768, 3072))
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=1.0 if parameter.dim() == 2 else 30.0)  # a bias as large as the product
    x = torch.randn(shape).to(dtype)
    truth = copy.deepcopy(ours).double()(x.double())
    theirs.load_state_dict(ours.state_dict())
    found, rounded = ours(x), truth.to(dtype)
    assert (found.shape, found.dtype) == (theirs(x).shape, dtype)
    assert (found - truth).norm() < 1.05 * (rounded - truth).norm()


@pytest.mark.parametrize("dtype", HALVES)
@torch.no_grad()
def test_one_row_in_sixteen_bits_is_a_matrix_and_a_vector(dtype):
    """As a product of matrices it would read the weight at half the speed."""
    row = torch.randn(1, 1, 48).to(dtype)
    assert products(pair(dtype)[0], row) == {"addmv"}
    assert products(pair(dtype, bias=False)[0], row) == {"mv"}


@pytest.mark.parametrize("rows", [2, 7])
def test_more_rows_are_torchs_own_product(rows):
    ours, theirs = pair(torch.bfloat16)
    x = torch.randn(1, rows, 48).bfloat16()
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        assert products(ours, x) == products(theirs, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_row_in_full_precision_is_torchs_own_product(dtype):
    ours, theirs = pair(dtype)
    x = torch.randn(1, 1, 48).to(dtype)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
        assert products(ours, x) == products(theirs, x)


def test_with_gradients_it_is_torchs_own_product():
    ours, theirs = pair(torch.bfloat16)
    x = torch.randn(1, 1, 48).bfloat16()
    assert products(ours, x) == products(theirs, x)
    ours(x).sum().backward()
    theirs(x).sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


@torch.no_grad()
def test_under_autocast_it_computes_in_the_type_asked_for():
    ours, theirs = pair(torch.bfloat16)
    x = torch.randn(1, 1, 48).bfloat16()
    with torch.autocast("cpu", dtype=torch.float16):
        assert ours(x).dtype == theirs(x).dtype == torch.float16


@torch.no_grad()
def test_what_does_not_fit_is_an_error_as_it_is_in_torchs_own():
    ours, theirs = pair(torch.bfloat16)
    for wrong in (torch.randn(1, 47).bfloat16(), torch.randn(1, 48), torch.randn(1, 48, dtype=torch.float16)):
        for layer in (ours, theirs):
            with pytest.raises(RuntimeError):
                layer(wrong)


@torch.no_grad()
def test_a_row_that_is_not_contiguous_is_a_row():
    ours, theirs = pair(torch.bfloat16)
    x = torch.randn(48, 3).bfloat16().T[1:2]
    torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_decoding_in_sixteen_bits_sees_a_weight_that_was_just_edited():
    """A copy kept aside would be stale: an edit of `.data` is one that torch itself does not count."""
    model, row = debug().bfloat16(), ids(1, 1)
    before, _ = model(row, cache=model.new_cache(1))
    model.lm_head.weight.data.mul_(-2)
    found, _ = model(row, cache=model.new_cache(1))
    fresh = debug().bfloat16()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(found, fresh(row, cache=fresh.new_cache(1))[0])
    assert not torch.equal(found, before)


def test_its_names_are_those_of_torchs_own():
    ours, theirs = pair(torch.bfloat16)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert isinstance(ours, nn.Linear)
