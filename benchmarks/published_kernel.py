"""The published CUDA kernel's algorithm against this package's kernels, on a CUDA device.

Written again from the description in the paper's supplement, in Triton: NCHW, float32, one thread per output value; the
pooling and the predictor are PyTorch's; the backward pass reads the input again to find each maximum, and writes
p's gradient as a map that is summed afterwards.

    python benchmarks/published_kernel.py                 # on a CUDA device: ratios of times, ours as one
    TRITON_INTERPRET=1 python benchmarks/published_kernel.py --check   # anywhere: does it compute what PiX is?
"""

import argparse

import torch
import triton
import triton.language as tl
from torch import Tensor

from surgery.bench import interleaved
from surgery.core.table import table
from surgery.methods.pix import ops
from surgery.methods.pix.operator_benchmark import SIZES

BLOCK = 256


@triton.jit
def _forward(x, p, y, total, channels, outs, pixels, tau, K: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    n, c, pixel = at // (outs * pixels), (at // pixels) % outs, at % pixels
    prob = tl.load(p + n * outs + c, mask=inside, other=0.0)
    first = (n * channels + c * K) * pixels + pixel
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    added = tl.zeros((BLOCK,), tl.float32)
    for j in range(K):
        value = tl.load(x + first + j * pixels, mask=inside, other=0.0)
        largest = tl.maximum(largest, value)
        added += value
    tl.store(y + at, prob * tl.where(prob <= tau, largest, added / K), mask=inside)


@triton.jit
def _backward(x, p, grad, dx, dp, total, channels, outs, pixels, tau, K: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    n, c, pixel = at // (outs * pixels), (at // pixels) % outs, at % pixels
    prob = tl.load(p + n * outs + c, mask=inside, other=0.0)
    dy = tl.load(grad + at, mask=inside, other=0.0)
    first = (n * channels + c * K) * pixels + pixel
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    largest_index = tl.zeros((BLOCK,), tl.int32)
    added = tl.zeros((BLOCK,), tl.float32)
    for j in range(K):
        value = tl.load(x + first + j * pixels, mask=inside, other=0.0)
        largest_index = tl.where(value > largest, j, largest_index)
        largest = tl.maximum(largest, value)
        added += value
    takes = prob <= tau
    for j in range(K):
        share = tl.where(takes, tl.where(largest_index == j, prob * dy, 0.0), prob * dy / K)
        tl.store(dx + first + j * pixels, share, mask=inside)
    tl.store(dp + at, dy * tl.where(takes, largest, added / K), mask=inside)


class Published(torch.autograd.Function):
    """y of x (N, C, H, W) and p (N, C_out), both float32 and contiguous, C divisible by C_out."""

    @staticmethod
    def forward(ctx, x: Tensor, p: Tensor, tau: float) -> Tensor:
        x, p = x.contiguous(), p.contiguous()
        y = torch.empty((len(x), p.shape[1], *x.shape[2:]), device=x.device)
        ctx.save_for_backward(x, p)
        ctx.tau = tau
        _forward[(triton.cdiv(y.numel(), BLOCK),)](x, p, y, *_sizes(x, p), tau, x.shape[1] // p.shape[1], BLOCK)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, p = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        dp = torch.empty_like(grad)
        sizes = _sizes(x, p)
        _backward[(triton.cdiv(grad.numel(), BLOCK),)](
            x, p, grad, dx, dp, *sizes, ctx.tau, x.shape[1] // p.shape[1], BLOCK
        )
        return dx, dp.sum((2, 3)), None


def _sizes(x: Tensor, p: Tensor) -> tuple[int, int, int, int]:
    pixels = x.shape[2] * x.shape[3]
    return p.numel() * pixels, x.shape[1], p.shape[1], pixels


def published(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A whole site as published."""
    p = torch.sigmoid(torch.nn.functional.linear(x.mean((2, 3)), weight, bias))
    return Published.apply(x, p, 0.5)


def compare(size: tuple[int, int, int], batch: int, seconds: float) -> tuple[str, ...]:
    """One row: milliseconds of the published algorithm and its ratio to ours, forward and with backward."""
    channels, out, pixels = size
    x = torch.randn(batch, channels, pixels, pixels, device="cuda", requires_grad=True)
    weight = (torch.randn(out, channels, device="cuda") / channels**0.5).requires_grad_()
    bias = torch.zeros(out, device="cuda", requires_grad=True)
    grad = torch.randn(batch, out, pixels, pixels, device="cuda")
    sites = {"published": lambda: published(x, weight, bias), "ours": lambda: ops.pix(x, weight, bias)[0]}

    def trained(site):  # type: ignore[no-untyped-def]
        def step() -> None:
            x.grad = None
            site().backward(grad)

        return step

    def inferred(site):  # type: ignore[no-untyped-def]
        def step() -> None:
            with torch.no_grad():
                site()

        return step

    cells = []
    for kind in (inferred, trained):
        timing = interleaved({k: kind(f) for k, f in sites.items()}, seconds=seconds, device="cuda")
        ratio = "{:.2f} [{:.2f} {:.2f}]".format(*timing.ratio("published", "ours"))
        cells += [f"{timing.median('published') * 1e3:.3f} ms", ratio]
    return ("{}→{} at {}²".format(*size), *cells)


def check() -> None:
    """The algorithm gives what surgery.ops.pix gives, forward and backward."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(2, 12, 3, 5, device=device)
    weight, bias = torch.randn(3, 12, device=device), torch.randn(3, device=device)
    results = []
    for site in (published, lambda *t: ops.pix(*t)[0]):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = site(*leaves)
        y.square().sum().backward()
        results.append((y.detach(), *(t.grad for t in leaves)))
    torch.testing.assert_close(*results)
    print("the published algorithm and surgery.ops.pix agree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="per site and direction")
    parser.add_argument("--check", action="store_true", help="compare results instead of times")
    args = parser.parse_args()
    if args.check:
        check()
        return
    if not torch.cuda.is_available():
        parser.error("timing needs a CUDA device; --check does not")
    head = ("site", "published forward", "published/ours", "published fwd+bwd", "published/ours")
    print(torch.cuda.get_device_name())
    print(table(head, [compare(size, args.batch, args.seconds) for size in SIZES], right=(1, 3)))


if __name__ == "__main__":
    main()
