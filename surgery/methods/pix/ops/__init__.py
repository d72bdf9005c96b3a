"""Operators. ``pix`` and ``pix_fuse`` dispatch through torch.library; ``reference`` is what they mean."""

from surgery.methods.pix.ops.pix import pix, pix_fuse

__all__ = ["pix", "pix_fuse"]
