"""A spatial convolution with a channel squeeze of its own in front, under the convolution's own parameter names."""

from torch import Tensor, nn


class SqueezedConv2d(nn.Conv2d):
    """``conv(squeeze(x))``, with ``weight`` and ``bias`` where the plain convolution had them.

    ``squeeze`` maps (N, C, H, W) to (N, in_channels, H, W); ``in_channels`` is what the convolution itself reads.
    """

    squeeze: nn.Module

    @classmethod
    def wrap(cls, conv: nn.Conv2d, squeeze: nn.Module, weight: nn.Parameter) -> "SqueezedConv2d":
        """``conv`` with ``squeeze`` in front and ``weight`` (C_out, squeezed / groups, kh, kw) in place of its own."""
        layer = cls.__new__(cls)
        layer.__dict__ = {**conv.__dict__, "_parameters": dict(conv._parameters), "_modules": dict(conv._modules)}
        layer.in_channels = weight.shape[1] * conv.groups
        layer.weight = weight
        layer.squeeze = squeeze.train(conv.training)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.squeeze(x))
