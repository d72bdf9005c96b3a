"""What code of unknown kind computes, found out by running copies of it on small random maps.

Parameters and buffers of the copies are random, positive ones, so the answer does not hang on how a model was
initialised, and a model on the meta device is probed like any other.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from surgery.graph.skeleton import copy_with, tensors

SAMPLES, HEIGHT, WIDTH = 2, 5, 7
MOST_CHANNELS = 65_536
LOUD, LOUDER = 1e3, 1e5  # scales of an input at which what divides by the input's own statistics no longer changes


def is_elementwise(module: nn.Module) -> bool:
    """Whether a childless, weightless module of unknown class acts on each element alone."""
    if any(True for _ in (*module.children(), *module.parameters(), *module.buffers())):
        return False
    return acts_elementwise(copy.deepcopy(module).eval())


def acts_elementwise(function: Callable[[Tensor], object]) -> bool:
    """Whether a function of one map acts on each element alone, in the same way.

    Such a function commutes with any permutation of the elements; a channel shuffle, a softmax or a pooling does not.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(1, 8, 4, 4, generator=generator, device="cpu")
    order = torch.randperm(x.numel(), generator=generator, device="cpu")
    straight, shuffled = _output(function, x), _output(function, x.flatten()[order].reshape(x.shape))
    if straight is None or shuffled is None:
        return False
    return torch.allclose(straight.flatten()[order], shuffled.flatten(), rtol=1e-4, atol=1e-6)


def probed_kind(module: nn.Module) -> str:
    """Kind of a module of unknown class.

    Returns:
        ``act``: each element is mapped alone (also with parameters per channel, as PReLU does); ``scale``: each channel
        is multiplied and shifted by parameters (LayerScale); ``norm``: shape and channels stay, and each channel is
        divided by statistics, the map's own or held in buffers (with or without an activation); else ``other``.
    """
    if is_elementwise(module):
        return "act"
    channels = _channels(module)
    return "other" if channels is None else _Probe(module, channels).kind()


def bends(module: nn.Module) -> bool:
    """Whether a normalisation of unknown class also applies an activation: f(x) + f(−x) is then no constant."""
    channels = _channels(module)
    if channels is None:
        return False
    probe = _Probe(module, channels)
    straight, turned = probe.output(probe.x), probe.output(-probe.x)
    if straight is None or turned is None:
        return False
    return bool(((straight + turned).std(dim=(0, 2, 3)) > 1e-2 * straight.std(dim=(0, 2, 3))).any())


def _channels(module: nn.Module) -> int | None:
    """The number of channels of all that a module holds, where it holds one number per channel and no weights else.

    Its children, if any, hold nothing and have no children (an activation, a dropout).
    """
    for child in module.children():
        if any(True for _ in (*child.children(), *child.parameters(), *child.buffers())):
            return None
    held = [t for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)) if t.is_floating_point()]
    counts = {t.numel() for t in held} - {1}
    if len(counts) != 1 or any(max(t.shape, default=1) != t.numel() for t in held):
        return None
    (count,) = counts
    return count if 2 <= count <= MOST_CHANNELS else None


def _output(function: Callable[[Tensor], object], x: Tensor) -> Tensor | None:
    with torch.no_grad():
        try:
            output = function(x.clone())
        except Exception:  # what does not take one map, whatever it raises, is none of the kinds asked for
            return None
    return output if isinstance(output, Tensor) and output.shape == x.shape and output.device == x.device else None


class _Probe:
    """A module with one number per channel, and a random map for it."""

    def __init__(self, module: nn.Module, channels: int) -> None:
        self.module = module
        self.buffers = sum(t.numel() == channels for t in module.buffers())
        self.generator = torch.Generator("cpu").manual_seed(0)
        shape = SAMPLES, channels, HEIGHT, WIDTH
        self.x = torch.randn(shape, generator=self.generator, device="cpu")

    def kind(self) -> str:
        straight = self.output(self.x)
        if straight is None or not straight.isfinite().all() or not self._keeps_places(straight):
            return "other"
        if not self._keeps_channels(straight):
            return "other"
        if not self._reads_each_alone(straight):
            return "norm" if self._levels(False) or self._levels(True) else "other"
        if self._is_affine(straight):
            return "norm" if self.buffers else "scale"
        if self.buffers == 0:
            return "act"
        return "norm" if self.buffers > 1 or self._levels(True) else "other"  # a mean and a variance

    def output(self, x: Tensor, training: bool = False) -> Tensor | None:
        """What a fresh copy gives; the copies hold the same numbers."""
        probe = copy_with(self.module, lambda t: torch.zeros(t.shape, dtype=_plain(t.dtype), device="cpu"))
        numbers = torch.Generator("cpu").manual_seed(1)
        gain = next(probe.parameters(), None)
        with torch.no_grad():
            for tensor in dict.fromkeys(tensors(probe)):
                if tensor.is_floating_point() and not tensor.is_meta:  # a scripted module's stay where they are
                    tensor.copy_(torch.rand(tensor.shape, generator=numbers, device="cpu") / 2 + 0.5)
                    if isinstance(tensor, nn.Parameter) and tensor is not gain:
                        tensor.mul_(0.1)  # a large shift or threshold would hide what else there is
        return _output(probe.train(training), x)

    def _keeps_places(self, straight: Tensor) -> bool:
        """Whether permuted places of the input are permuted places of the output (a convolution's are not)."""
        order = torch.randperm(HEIGHT * WIDTH, generator=self.generator, device="cpu")
        shuffled = self.output(self.x.flatten(2)[..., order].reshape(self.x.shape))
        return shuffled is not None and torch.allclose(
            shuffled.flatten(2), straight.flatten(2)[..., order], rtol=1e-3, atol=1e-4
        )

    def _keeps_channels(self, straight: Tensor) -> bool:
        """Whether each output channel follows the input channel of the same number (a shuffled one does not)."""
        rows = [t.transpose(0, 1).flatten(1) for t in (self.x, straight)]
        one, two = (row - row.mean(1, keepdim=True) for row in rows)
        likeness = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1)).clamp_min(1e-12)
        return bool((likeness > 0.4).all())

    def _reads_each_alone(self, straight: Tensor) -> bool:
        """Whether an element of the output stays as it is when all other elements of the input change."""
        other = torch.randn(self.x.shape, generator=self.generator, device="cpu")
        largest = self.x.argmax()
        other.view(-1)[largest] = self.x.view(-1)[largest]
        output = self.output(other)
        return output is not None and torch.allclose(
            output.flatten()[largest], straight.flatten()[largest], rtol=1e-4, atol=1e-5
        )

    def _is_affine(self, straight: Tensor) -> bool:
        nothing = self.output(torch.zeros_like(self.x))
        others = [(factor, self.output(factor * self.x)) for factor in (-1, 2)]
        return nothing is not None and all(
            output is not None and torch.allclose(output - nothing, factor * (straight - nothing), rtol=1e-3, atol=1e-4)
            for factor, output in others
        )

    def _levels(self, training: bool) -> bool:
        """Whether the output stops growing with the input (a gate's goes on) and still varies (a softmax is flat)."""
        loud, louder = self.output(LOUD * self.x, training), self.output(LOUDER * self.x, training)
        if loud is None or louder is None or not torch.allclose(loud, louder, rtol=1e-2, atol=1e-2):
            return False
        rows = louder.transpose(0, 1).flatten(1)
        steps = rows.sort(dim=1).values.diff(dim=1)
        return bool(((steps > 1e-3 * rows.std(dim=1, keepdim=True)).sum(1) > HEIGHT).all())


def _plain(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else dtype
