import warnings

import pytest
import torch

from surgery.training.precision import precision_here

CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="for processors; a job with a GPU computes there")


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request, monkeypatch):
    """Processors of both kinds, whichever this one is."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": request.param}, raising=False)
    return request.param


@CPU
def test_auto_is_what_the_processor_computes_in(native):
    assert precision_here("auto") == ("bf16" if native else "no")


@CPU
def test_bf16_by_name_is_obeyed_with_a_warning_where_it_is_slow(native):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert precision_here("bf16") == "bf16"
    assert [str(w.message).startswith("precision=bf16: as far as torch knows") for w in caught] == [True] * (not native)


def test_this_machine():
    precisions = [precision_here(name) for name in ("no", "fp16", "auto")]
    assert precisions[:2] == ["no", "fp16"]
    assert precisions[2] in ("no", "fp16", "bf16")
