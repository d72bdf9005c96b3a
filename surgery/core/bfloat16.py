"""Where bfloat16 is fast: processors and devices with instructions of their own for it."""

import torch


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` does not merely emulate bfloat16, which is several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
