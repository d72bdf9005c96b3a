import copy
import gc
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.optim.lookahead import Lookahead
from torch import nn

import surgery
from surgery.core.errors import ConversionWarning
from surgery.transforms.optimizers import is_stale, named_parameters, repair, stale_optimizers, warn_of_stale
from tests.small_models import Net

pytestmark = pytest.mark.filterwarnings("ignore::surgery.core.errors.ConversionWarning")
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "lookahead": lambda parameters: Lookahead(torch.optim.SGD(parameters, lr=0.1, momentum=0.9), k=2),
}
SURGERY = {  # what it does to a network: replaces and narrows; inserts; narrows alone
    "squeeze": {"zeta": 8},
    "insert": {"mode": "downscale", "zeta": 2, "insert": "*conv2"},
    "squeeze-conv": {"method": "squeeze-conv", "mode": "prune", "zeta": 1, "insert": "*conv2"},
}


def network():
    torch.manual_seed(0)
    return Net("module", "functional")


def step(model, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()


def in_place(model, **options):
    """What the model's parameters were, after surgery on it."""
    before = named_parameters(model)
    surgery.convert(model, inplace=True, input_size=(3, 8, 8), **options)
    return before


def held(optimizer):
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", SURGERY)
def test_a_step_moves_exactly_the_parameters_there_are(kind, name):
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, optimizer)
    before = in_place(model, **SURGERY[name])
    assert is_stale(optimizer, before, model)
    repair(optimizer, before, model)
    assert not is_stale(optimizer, before, model)
    live = dict(model.named_parameters())
    assert sorted(held(optimizer)) == sorted(map(id, live.values()))
    gone = [parameter for parameter in before.values() if id(parameter) not in held(optimizer)]
    values = {key: value.detach().clone() for key, value in live.items()}
    old = copy.deepcopy(gone)
    step(model, optimizer)
    step(model, optimizer)
    unmoved = [key for key, value in live.items() if torch.equal(value, values[key])]
    assert gone
    assert unmoved == []
    assert all(torch.equal(a, b) for a, b in zip(gone, old, strict=True))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)


def test_state_stays_where_values_stay_and_is_dropped_elsewhere():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.named_parameters())
    step(model, optimizer)
    momentum = optimizer.state[model.stem.weight]["momentum_buffer"]
    before = in_place(model, zeta=8)
    same = nn.Parameter(model.fc.weight.detach().clone())
    expected = optimizer.state[model.fc.weight]["momentum_buffer"]
    model.fc.weight = same
    repair(optimizer, before, model)
    assert optimizer.state[model.stem.weight]["momentum_buffer"] is momentum
    assert optimizer.state[same]["momentum_buffer"] is expected
    narrowed = model.blocks[0].conv2.weight
    assert narrowed.shape[0] < 4
    assert narrowed not in optimizer.state
    assert {id(parameter) for parameter in optimizer.state} <= {id(parameter) for parameter in model.parameters()}
    assert [name for group in optimizer.param_groups for name in group["param_names"]] == [
        name for name, _ in model.named_parameters()
    ]


def test_new_parameters_go_to_the_group_of_their_kind_and_layer():
    model = network()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=0.1, weight_decay=0.05)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    repair(optimizer, in_place(model, **SURGERY["insert"]), model)
    after = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    squeeze = model.blocks[0].conv2.squeeze
    assert after[id(squeeze.weight)] == 0.05
    assert after[id(squeeze.bias)] == 0.0
    assert after[id(model.blocks[0].conv2.weight)] == 0.05
    assert all(after[key] == decay for key, decay in decays.items() if key in after)

    model = network()
    groups = [{"params": model.blocks[0].parameters()}, {"params": model.blocks[1].parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD([*groups, {"params": model.fc.parameters()}], lr=0.1)
    repair(optimizer, in_place(model, **SURGERY["insert"]), model)
    for group, part in zip(optimizer.param_groups, (model.blocks[0], model.blocks[1], model.fc), strict=True):
        assert sorted(map(id, group["params"])) == sorted(map(id, part.parameters()))


def test_what_is_not_of_the_model_or_was_left_out_stays_so():
    model, loss = network(), nn.Linear(2, 2)
    head = torch.optim.SGD([*model.fc.parameters(), *loss.parameters()], lr=0.1)
    entries = held(head)
    before = in_place(model, **SURGERY["insert"])
    assert not is_stale(head, before, model)
    repair(head, before, model)
    assert held(head) == entries


def test_a_tied_parameter_that_is_untied_keeps_its_place_and_gets_company():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), named_parameters(model)
    model[1].weight = nn.Parameter(torch.randn(3, 3))
    repair(optimizer, before, model)
    assert sorted(held(optimizer)) == sorted(map(id, model.parameters()))


def test_a_flat_state_is_refused():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    before = in_place(model, zeta=8)
    entries = held(optimizer)
    with pytest.raises(ValueError, match="LBFGS keeps one state .* make a new one"):
        repair(optimizer, before, model)
    assert held(optimizer) == entries


def test_a_stale_optimizer_is_noticed():
    model, other = network(), network()
    optimizer = torch.optim.AdamW(model.parameters())
    unconcerned = torch.optim.SGD(other.parameters(), lr=0.1)
    before = in_place(model, zeta=8)
    assert stale_optimizers(before, model) == [optimizer]
    with pytest.warns(
        ConversionWarning, match=r"AdamW would go on .* Net no longer has.* optimizers=\(optimizer,\)"
    ) as w:
        warn_of_stale(before, model)
    assert [warning.filename for warning in w] == [__file__]
    repair(optimizer, before, model)
    del unconcerned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_stale(before, model)


def test_an_optimizer_that_nobody_holds_is_no_reason_to_warn():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.itself = optimizer  # only the collector of cycles clears it away
    before = in_place(model, zeta=8)
    gc.disable()
    try:
        del optimizer
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_stale(before, model)
    finally:
        gc.enable()


def test_hooks_that_went_with_their_parameters_are_noticed():
    model = timm.create_model("test_resnet", num_classes=5)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: None)
    before = named_parameters(model)
    surgery.convert(model, inplace=True, input_size=32, mode="downscale", zeta=2)
    with pytest.warns(ConversionWarning, match="parameters that ResNet no longer has had hooks .*conv2.weight"):
        warn_of_stale(before, model)
