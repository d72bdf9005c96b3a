"""The precision that a recipe asks for, as it is on this machine."""

import warnings

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from surgery.core.bfloat16 import computes_in_bfloat16


def precision_here(requested: str) -> str:
    """Accelerate's name (no, fp16, bf16) of what ``requested``, a recipe's ``precision``, is here.

    Warns where bf16 was asked for by name and is only emulated.
    """
    # as Accelerate itself begins: without the flag, processes on CPUs would be none of one job
    device: torch.device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    if requested == "auto":
        if computes_in_bfloat16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "no"
    if requested == "bf16" and device.type in ("cpu", "cuda") and not computes_in_bfloat16(device):
        warnings.warn(
            f"precision=bf16: as far as torch knows, this {device.type} device only emulates bfloat16, which is slow; "
            "precision=auto takes what is fast here",
            stacklevel=2,
        )
    return requested
