"""The error of a feature map as a share of its target's variance."""

import pytest
import torch

from surgery.mimicry.map_error import share_of_variance

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("output_dtype", DTYPES)
@pytest.mark.parametrize("target_dtype", DTYPES)
def test_value_and_gradient_are_those_of_the_plain_formula(output_dtype, target_dtype):
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(2, 4, 3, 5, 5, generator=generator)).relu()
    output, target = output.to(output_dtype).requires_grad_(), target.to(target_dtype).requires_grad_()
    share = share_of_variance(output, target)
    expected = (output.double() - target.double()).square().mean() / target.detach().double().var()
    (grad,), (expected_grad,) = torch.autograd.grad(share, output), torch.autograd.grad(expected, output)
    coarse = torch.bfloat16 in (output_dtype, target_dtype)
    assert share.item() == pytest.approx(expected.item(), rel=1e-2 if coarse else 1e-5)
    assert grad.dtype == output_dtype
    torch.testing.assert_close(
        grad.double(), expected_grad.double(), rtol=2e-2 if coarse else 1e-5, atol=1e-3 if coarse else 1e-7
    )


def test_a_constant_target_gives_no_infinity():
    output = torch.ones(2, 3).requires_grad_()
    share = share_of_variance(output, torch.ones(2, 3))
    share.backward()
    assert share.item() == 0
    assert torch.equal(output.grad, torch.zeros(2, 3))
