"""What kernels share, on the device: tiles, subsets of channels, the running extreme and sum, p.

A tile is BLOCK_O subsets of one image by BLOCK_P of its pixels, whatever the layout; the compiler gives neighbouring
threads the dimension that is contiguous in memory. Tensors indexed by o have BLOCK_O elements, by q BLOCK_P.
"""

# mypy: allow-untyped-defs, allow-untyped-calls
import triton
import triton.language as tl


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """The size itself, in a form from which the compiler knows that ALIGN divides it, so that loads are vectors."""
    return size // ALIGN * ALIGN


@triton.jit
def tile(subsets, pixels, BLOCK_O: tl.constexpr, BLOCK_P: tl.constexpr, O_FIRST: tl.constexpr, REVERSED: tl.constexpr):
    """This program's image (int64), first subset and first pixel; O_FIRST: neighbours differ in their subsets.

    REVERSED starts at the end of x, which a pass that has just read x has left in the L2 cache.
    """
    program = tl.program_id(0)
    if REVERSED:
        program = tl.num_programs(0) - 1 - program
    across_o, across_p = tl.cdiv(subsets, BLOCK_O), tl.cdiv(pixels, BLOCK_P)
    within = program % (across_o * across_p)
    if O_FIRST:
        o, q = within % across_o, within // across_o
    else:
        o, q = within // across_p, within % across_p
    return (program // (across_o * across_p)).to(tl.int64), o * BLOCK_O, q * BLOCK_P


@triton.jit
def members(o, channels, subsets, K: tl.constexpr, EVEN: tl.constexpr, STRIDED: tl.constexpr):
    """First channel and size of subsets o, which are balanced runs, or o, o + subsets, … (STRIDED)."""
    if EVEN:
        size = o * 0 + K
        first = o if STRIDED else o * K
    elif STRIDED:
        size = tl.maximum((channels - o + subsets - 1) // subsets, 1)  # beyond the last subset there is no size
        first = o
    else:
        first = (o.to(tl.int64) * channels // subsets).to(tl.int32)
        size = ((o.to(tl.int64) + 1) * channels // subsets).to(tl.int32) - first
    return first, size


@triton.jit
def source(q, width, out_width, stride_h, stride_w, UNIT_STRIDE: tl.constexpr):
    """The pixel of x that pixel q of y reads."""
    pixel = q
    if not UNIT_STRIDE:
        pixel = q // out_width * stride_h * width + q % out_width * stride_w
    return pixel


@triton.jit
def target(q, width, out_width, stride_h, stride_w, UNIT_STRIDE: tl.constexpr):
    """The pixel of y that reads pixel q of x, and whether there is one."""
    pixel, read = q, q >= 0
    if not UNIT_STRIDE:
        row, column = q // width, q % width
        pixel = row // stride_h * out_width + column // stride_w
        read = (row % stride_h == 0) & (column % stride_w == 0)
    return pixel, read


@triton.jit
def larger(value, best, MINIMUM: tl.constexpr):
    """Whether a later value takes over from the extreme: it is beyond it, or the first NaN."""
    beyond = ~(value >= best) if MINIMUM else ~(value <= best)  # also where either is NaN
    return beyond & (best == best)  # noqa: PLR0124


@triton.jit
def extreme_of(a, b, MINIMUM: tl.constexpr):
    """The larger (smaller) of two, NaN where either is."""
    if MINIMUM:
        best = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    else:
        best = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    return best


@triton.jit
def largest(a, b):
    return extreme_of(a, b, False)


@triton.jit
def smallest(a, b):
    return extreme_of(a, b, True)


@triton.jit
def activated(logits, ACTIVATION: tl.constexpr):
    """p of logits. 0.5 · (1 + tanh l) is the sigmoid of 2 l."""
    if ACTIVATION == "tanh":
        logits = 2 * logits
    if logits.dtype == tl.float64:
        p = 1 / (1 + tl.exp(-logits))
    else:
        p = tl.math.div_rn(tl.full(logits.shape, 1, tl.float32), 1 + tl.exp(-logits))
    return p


@triton.jit
def probabilities(predicted, p, o, inside, writes, ACTIVATION: tl.constexpr, ACC: tl.constexpr):
    """p at offsets o: as predicted; or of predicted logits, rounded as p is, and stored if this program writes."""
    values = tl.load(predicted + o, mask=inside, other=0).to(ACC)
    if p is not None:
        rounded = activated(values, ACTIVATION).to(p.dtype.element_ty)
        if writes:
            tl.store(p + o, rounded, mask=inside)
        values = rounded.to(ACC)
    return values


@triton.jit
def takes_extreme(p, tau, MODE: tl.constexpr):
    """Which subsets give their extreme; the others give their mean."""
    takes = p <= tau
    if MODE == "extreme":
        takes = tl.full(p.shape, 1, tl.int1)
    elif MODE == "mean":
        takes = tl.full(p.shape, 0, tl.int1)
    return takes


@triton.jit
def fused(best, total, size, p, tau, MODE: tl.constexpr):
    """y of extreme and sum; size and p broadcast against them. A choice is a select: p · ∞ of the other is no 0."""
    if MODE == "extreme":
        y = best * p
    elif MODE == "mean":
        y = total * (p / size)
    elif MODE == "weighted":
        y = best * p + total * ((1 - p) / size)
    else:
        takes = p <= tau
        y = tl.where(takes, best, total) * tl.where(takes, p, p / size)
    return y


@triton.jit
def reduced(
    x,
    first,
    size,
    step,
    inside,
    K: tl.constexpr,
    EVEN: tl.constexpr,
    MODE: tl.constexpr,
    MINIMUM: tl.constexpr,
    INDEXED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Extreme, its first position and sum of subsets, one channel after the other, in tiles of the shape of first.

    first, inside: offset of each subset's first channel at each pixel, and whether it is in x; size: (BLOCK_O, 1);
    step: from one channel of a subset to the next.
    """
    total = tl.load(x + first, mask=inside, other=0).to(ACC)
    best, position = total, tl.zeros(first.shape, tl.int32)
    if K <= 16:
        for k in tl.static_range(1, K):
            best, position, total = _joined(
                x, first, size, step, inside, k, best, position, total, EVEN, MODE, MINIMUM, INDEXED, ACC
            )
    else:
        for k in range(1, K):
            best, position, total = _joined(
                x, first, size, step, inside, k, best, position, total, EVEN, MODE, MINIMUM, INDEXED, ACC
            )
    return best, position, total


@triton.jit
def _joined(
    x,
    first,
    size,
    step,
    inside,
    k,
    best,
    position,
    total,
    EVEN: tl.constexpr,
    MODE: tl.constexpr,
    MINIMUM: tl.constexpr,
    INDEXED: tl.constexpr,
    ACC: tl.constexpr,
):
    """Extreme, position and sum with channel k of each subset, where it has one."""
    if not EVEN:
        inside = inside & (k < size)
    value = tl.load(x + first + step * k, mask=inside, other=0).to(ACC)
    if MODE != "extreme":
        total += value
    if INDEXED:
        better = larger(value, best, MINIMUM) & inside
        position = tl.where(better, k, position)
        best = tl.where(better, value, best)
    elif MODE != "mean":
        beyond = extreme_of(value, best, MINIMUM)
        best = beyond if EVEN else tl.where(inside, beyond, best)
    return best, position, total
