import pytest
import timm
import torchvision

from surgery.checkpoint.build_budget import Limits
from surgery.checkpoint.builder_arguments import (
    check_known,
    check_numbers,
    check_timm_name,
    check_torchvision_name,
    plain_arguments,
)
from surgery.core.errors import SourceError


def test_every_model_that_is_listed_is_accepted():
    for name in (*timm.list_models(), *timm.list_models(pretrained=True)):
        check_timm_name(name)
    for name in torchvision.models.list_models():
        check_torchvision_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18", "local-dir:/tmp", "timm/resnet18", "../resnet18"),
        *("resnet18.", "resnet18.unheard", "", "resnet18 ", 5, None, ["resnet18"], "RESNET18"),
    ],
)
def test_other_names_are_not(name):
    for check in (check_timm_name, check_torchvision_name):
        with pytest.raises(SourceError, match="name="):
            check(name)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"checkpoint_path": "w"},
        {"pretrained": True},
        {"pretrained_backbone": True},
        {"pretrained_cfg": {}},
        {"pretrained_cfg_overlay": {"url": "x"}},
        {"pretrained_strict": True},
        {"cache_dir": "x"},
        {"weights": "DEFAULT"},
        {"weights_backbone": "DEFAULT"},
        {"block_args": {"deep": [{"checkpoint_path": None}]}},
        {"save_path": "x"},
        {"url": "x"},
    ],
)
def test_what_names_weights_or_files_is_refused_at_every_depth(kwargs):
    with pytest.raises(SourceError, match="names weights, a file or an address"):
        plain_arguments(kwargs)


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", "hf-hub:x", "https://x", "a\\b", "~root", "w.pth", "x.SafeTensors", "x" * 201, float("inf"), 1e9],
)
def test_values_that_are_not_plain(value):
    with pytest.raises(SourceError, match="is needed"):
        plain_arguments({"a": [{"b": value}]})


@pytest.mark.parametrize("value", [object(), {1: 2}, {1}, b"x", print])
def test_values_that_json_does_not_hold(value):
    with pytest.raises(SourceError, match="cannot be written as JSON"):
        plain_arguments({"a": value})


def test_size_is_bounded():
    deep = 1
    for _ in range(9):
        deep = [deep]
    for value in (deep, [1] * 1001):
        with pytest.raises(SourceError, match="at most 1000 values, nested at most 8 deep"):
            plain_arguments({"a": value})


def test_whole_numbers_are_bounded_together():
    check_numbers({"a": [30_000] * 4, "b": {"c": -10_000}})
    with pytest.raises(SourceError, match="whole numbers add up to 140000; at most 131072"):
        check_numbers({"a": [30_000] * 4, "b": {"c": -20_000}})
    check_numbers({"num_classes": 10**6}, Limits(total=10**7, number=10**6))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 40_000}, "num_classes=40000; at most 32768"),
        ({"window_sizes": [1, 30_000, 1, 1]}, "window_sizes=30000; at most 256"),
        ({"deep": [{"window_size": [[-300]]}]}, "window_size=300; at most 256"),
        ({"img_size": 20_000}, "img_size=20000; at most 1024"),
    ],
)
def test_each_whole_number_is_bounded_by_what_it_stands_for(kwargs, message):
    with pytest.raises(SourceError, match=message):
        check_numbers(kwargs)
    check_numbers(kwargs, Limits(10**6, 10**6, 10**6, 10**6))


def test_plain_ones_stay_and_tuples_become_lists():
    kwargs = {"a": (1, (2.5, None)), "drop_path": 0.1, "drop_path_rate": 0.1, "act_layer": "silu", "b": {"c": True}}
    assert plain_arguments(kwargs) == kwargs | {"a": [1, [2.5, None]]}


def test_asking_for_no_weights_is_no_argument():
    assert plain_arguments({"weights": None, "weights_backbone": None, "pretrained": False, "a": None}) == {"a": None}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("resnet50", {"layers": [1] * 4, "channels": [8] * 4, "output_stride": 8, "block_args": {}, "cardinality": 2}),
        ("vit_tiny_patch16_224", {"img_size": 96, "depth": 2, "global_pool": "avg", "drop_path_rate": 0.1}),
        ("efficientnet_b0", {"features_only": True, "out_indices": [1], "in_chans": 1, "norm_layer": "batchnorm2d"}),
        ("deit_tiny_distilled_patch16_224", {"embed_dim": 64}),
        ("swinv2_tiny_window8_256", {"window_size": 4, "pretrained_window_sizes": [0] * 4}),
        ("convnext_tiny", {"depths": [1] * 4, "dims": [8] * 4}),
        ("regnety_002", {"stem_width": 16}),
        ("mobilenetv3_small_100", {"fix_stem": True, "head_bias": False}),
    ],
)
def test_timm_s_arguments_are_known_by_their_signatures(name, kwargs):
    check_known(timm.model_entrypoint(name), plain_arguments(kwargs), shared=True)


@pytest.mark.parametrize("kwargs", [{"colour": "red"}, {"kwargs_filter": []}, {"model_cls": "x"}, {"self": 1}])
def test_others_are_not(kwargs):
    with pytest.raises(SourceError, match="unexpected keyword argument"):
        check_known(timm.model_entrypoint("resnet50"), kwargs, shared=True)


def test_a_function_that_takes_anything_is_asked_itself():
    check_known(lambda **kwargs: None, {"colour": "red"}, shared=False)
    with pytest.raises(SourceError, match="unexpected keyword argument 'colour'"):
        check_known(lambda width=3: None, {"colour": "red"}, shared=False)
