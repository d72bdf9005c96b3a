"""gOctConv by loops over pixels, from equation (1) alone; slow, and independent of the package."""

import numpy as np


def convolved(x: np.ndarray, weight: np.ndarray, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """(C, H, W) with (O, C, k, k), zeros around that keep the size at stride 1."""
    out, channels, kernel, _ = weight.shape
    reach = dilation * (kernel // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    y = np.zeros((out, height, width))
    for o in range(out):
        for row in range(height):
            for column in range(width):
                for c in range(channels):
                    for dy in range(kernel):
                        for dx in range(kernel):
                            value = padded[c, row * stride + dy * dilation, column * stride + dx * dilation]
                            y[o, row, column] += weight[o, c, dy, dx] * value
    return y


def pooled(x: np.ndarray, side: int, pooling: str) -> np.ndarray:
    """Windows of ``side`` × ``side``; those at the edges have what there is."""
    height, width = -(-x.shape[1] // side), -(-x.shape[2] // side)
    y = np.zeros((x.shape[0], height, width))
    for c in range(x.shape[0]):
        for row in range(height):
            for column in range(width):
                window = x[c, row * side : (row + 1) * side, column * side : (column + 1) * side]
                y[c, row, column] = window.max() if pooling == "max" else window.mean()
    return y


def enlarged(x: np.ndarray, factor: int, size: tuple[int, int], upsampling: str) -> np.ndarray:
    """Each output pixel's centre is looked up in the small map; beyond its outermost centres the edge goes on."""
    y = np.zeros((x.shape[0], *size))
    for row in range(size[0]):
        for column in range(size[1]):
            if upsampling == "nearest":
                y[:, row, column] = x[:, row // factor, column // factor]
                continue
            at = [max(0.0, (place + 0.5) / factor - 0.5) for place in (row, column)]
            low = [min(int(a), side - 1) for a, side in zip(at, x.shape[1:], strict=True)]
            high = [min(n + 1, side - 1) for n, side in zip(low, x.shape[1:], strict=True)]
            part = [a - n for a, n in zip(at, low, strict=True)]
            for r, share_r in ((low[0], 1 - part[0]), (high[0], part[0])):
                for k, share_k in ((low[1], 1 - part[1]), (high[1], part[1])):
                    y[:, row, column] += share_r * share_k * x[:, r, k]
    return y


def goctconv(maps, weight, in_scales, out_channels, out_scales, *, links, pooling, upsampling, dilation=1, stride=1):
    """Equation (1) of one image: maps (C_i, H_i, W_i) in, a list of maps out. With a stride maps are averaged first."""
    if stride > 1:
        maps = [pooled(x, stride, "average") for x in maps]
    finest = maps[int(np.argmin(in_scales))].shape[1:]
    results = []
    for j, (channels, scale) in enumerate(zip(out_channels, out_scales, strict=True)):
        shift = scale - min(in_scales)
        size = tuple(side << -shift if shift < 0 else -(-side >> shift) for side in finest)
        rows = slice(sum(out_channels[:j]), sum(out_channels[: j + 1]))
        y = np.zeros((channels, *size))
        start = 0
        for i, x in enumerate(maps):
            own = weight[rows, start : start + x.shape[0]]
            start += x.shape[0]
            if (i, j) not in links:
                continue
            if in_scales[i] < scale:
                y += convolved(pooled(x, 1 << (scale - in_scales[i]), pooling), own, dilation=dilation)
            elif in_scales[i] == scale:
                y += convolved(x, own, dilation=dilation)
            else:
                y += enlarged(convolved(x, own, dilation=dilation), 1 << (in_scales[i] - scale), size, upsampling)
        results.append(y)
    return results
