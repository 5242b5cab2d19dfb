"""Names, patterns and types to modules and parameters."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric.wrappers import _FabricModule
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import vizlog
from vizlog.selection import (
    check_select,
    float_type,
    given_models,
    matcher,
    named_models,
    named_modules,
    named_once,
    named_parameters,
    parts_of,
    spread,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean((2, 3)))


NAMES = ["", "encoder", "encoder.0", "encoder.1", "encoder.2", "head"]
PARAMETERS = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias", "head.weight", "head.bias"]


def chosen(select: Any) -> list[str]:
    models = named_models(Net())
    return [name for name, module in named_modules(models).items() if matcher(select)(name, module)]


@pytest.fixture
def process_group(tmp_path: Any) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def checkpointed(model: nn.Module) -> nn.Module:
    model.encoder = checkpoint_wrapper(model.encoder)  # type: ignore[arg-type]
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eager": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "ddp": nn.parallel.DistributedDataParallel,
    "data parallel": nn.DataParallel,
    "checkpointed": checkpointed,
    "compiled ddp": lambda model: torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager"),
    "ddp of compiled": lambda model: nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager")),
    "fabric": lambda model: _FabricModule(model, strategy=None),
    "fabric of ddp": lambda m: _FabricModule(nn.parallel.DistributedDataParallel(m), strategy=None, original_module=m),
    "compiled fabric": lambda model: torch.compile(_FabricModule(model, strategy=None), backend="eager"),
    "all": lambda m: torch.compile(nn.parallel.DistributedDataParallel(checkpointed(m)), backend="eager"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_the_same_however_the_model_is_wrapped(wrapper: str, process_group: None) -> None:
    model = Net()
    models = named_models(WRAPPERS[wrapper](model))
    assert models[""] is model
    assert list(named_modules(models)) == NAMES
    assert list(named_parameters(models)) == PARAMETERS


def test_a_model_as_the_training_calls_it_has_its_wrappers_but_fabrics() -> None:
    model = Net()
    inside = nn.DataParallel(model)
    assert given_models(_FabricModule(inside, strategy=None, original_module=model))[""] is inside
    assert given_models(inside)[""] is inside
    assert given_models({"a": _FabricModule(inside, strategy=None, original_module=model)}) == {"a": inside}


def test_a_block_compiled_by_itself_keeps_its_name() -> None:
    model = Net()
    model.encoder = torch.compile(model.encoder, backend="eager")  # type: ignore[assignment]
    assert list(named_modules(named_models(model))) == NAMES


def test_a_users_own_module_called_module_is_no_wrapper() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.other = nn.Linear(2, 2)

    assert list(named_modules(named_models(Holder()))) == ["", "module", "other"]


def test_names_inside_a_users_own_wrapper_are_those_of_its_state_dict() -> None:
    class Residual(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.module(x)

    model = nn.Sequential(Residual(nn.Linear(2, 2)), nn.ReLU())
    models = named_models(nn.DataParallel(model))
    assert list(named_parameters(models)) == list(model.state_dict())
    assert list(named_modules(models)) == ["", "0", "0.module", "1"]


def test_a_shared_module_comes_once_under_its_first_name() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert list(named_modules(named_models(model))) == ["", "0", "1"]
    assert list(named_parameters(named_models(model))) == ["0.weight", "0.bias"]


def test_tied_weights_come_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    assert list(named_parameters({"": model})) == ["embed.weight"]


def test_several_models_are_told_apart_by_their_names() -> None:
    by_name = named_models({"G": nn.Linear(1, 1), "D": nn.Linear(1, 1)})
    assert list(named_parameters(by_name)) == ["G.weight", "G.bias", "D.weight", "D.bias"]
    assert list(named_models([nn.Linear(1, 1), nn.ReLU()])) == ["0", "1"]
    assert list(named_models(nn.ModuleList([nn.ReLU()]))) == ["0"]
    assert list(named_models([nn.ReLU()])) == [""]


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("encoder.*", ["encoder.0", "encoder.1", "encoder.2"]),
        ("head", ["head"]),
        (r"re:encoder\.[01]", ["encoder.0", "encoder.1"]),
        (re.compile(r".*\.2"), ["encoder.2"]),
        ("re:encoder", ["encoder"]),
        (nn.Conv2d, ["encoder.0"]),
        (nn.modules.batchnorm._BatchNorm, ["encoder.1"]),
        (lambda name, module: isinstance(module, nn.ReLU), ["encoder.2"]),
        (["head", nn.Conv2d], ["encoder.0", "head"]),
        (None, NAMES),
    ],
)
def test_what_may_be_selected_by(select: Any, names: list[str]) -> None:
    assert chosen(select) == names


def test_a_parameter_is_meant_by_its_own_name_or_its_modules() -> None:
    parameters = named_parameters(named_models(Net()))
    for select in ("encoder.0", "encoder.0.*", r"re:encoder\.0(\..*)?"):
        found = [name for name, parameter in parameters.items() if matcher(select)(name, parameter)]
        assert found == ["encoder.0.weight", "encoder.0.bias"]
    assert [n for n, p in parameters.items() if matcher("*.bias")(n, p)] == [n for n in PARAMETERS if "bias" in n]


@pytest.mark.parametrize("select", [nn.Conv2d, [nn.Conv2d, "nothing"], ("nothing", nn.Conv2d)])
def test_parameters_are_meant_by_the_type_of_their_module(select: Any) -> None:
    memory = vizlog.Memory()
    with vizlog.Monitor(Net(), [vizlog.WeightHistograms(select)], to=memory) as monitor, monitor.step():
        pass
    tags = {record.tag for _, record in memory.records if record.tag.startswith("weights/")}
    assert tags == {"weights/encoder.0.weight", "weights/encoder.0.bias"}


@pytest.mark.parametrize("select", ["encoder.*", r"re:enc.*", re.compile("head"), nn.Conv2d, ["head", nn.Conv2d], None])
def test_selections_pickle(select: Any) -> None:
    match = pickle.loads(pickle.dumps(matcher(select)))
    model = Net()
    assert [match(n, m) for n, m in model.named_modules()] == [matcher(select)(n, m) for n, m in model.named_modules()]


def test_probes_pickle() -> None:
    for probe in vizlog.standard(Net(), (torch.randn(4, 1, 8, 8), torch.arange(4) % 2)):
        assert pickle.loads(pickle.dumps(probe)).schedule == probe.schedule


def test_what_matches_nothing_shows_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"no module matches 'encodr\.\*'; the nearest names are 'encoder'"):
        check_select("encodr.*", NAMES, [], "module")
    with pytest.raises(ValueError, match=r"no parameter matches Conv2d; the nearest names are 'encoder\.0\.weight', "):
        check_select(nn.Conv2d, PARAMETERS, [], "parameter")
    with pytest.raises(ValueError, match="there is none"):
        check_select("head", [], [], "layer with attention")
    check_select("head", NAMES, ["head"], "module")


@pytest.mark.parametrize(
    ("select", "error", "message"),
    [
        (3, TypeError, "select takes a glob"),
        (int, TypeError, "select takes a glob"),
        ("re:(", ValueError, "is not a regular expression"),
        (["head", 3], TypeError, "got 3"),
    ],
)
def test_what_is_no_selection_says_so(select: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        matcher(select)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet", r"nn\.Module, a list or a dict of them, got str"),
        (3, r"nn\.Module, a list or a dict of them, got int"),
        ([], "got none at all"),
        ({"G": 3}, r"nn\.Module, got G: int"),
        ([nn.ReLU(), None], r"nn\.Module, got 1: NoneType"),
    ],
)
def test_what_is_no_model_says_so(model: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        named_models(model)


def test_models_may_come_in_torchs_own_containers() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    assert named_models(nn.ModuleDict({"G": first, "D": second})) == {"G": first, "D": second}
    assert named_models(nn.ModuleList([first, second])) == {"0": first, "1": second}
    assert named_models([first]) == {"": first}


def test_a_module_of_one_part_is_a_wrapper_by_name_alone_and_a_part_may_be_none() -> None:
    one = nn.Sequential(nn.ReLU())
    one[0].register_module("nothing", None)
    assert list(named_modules({"": one})) == ["", "0"]
    scaled = nn.Module()
    scaled.module = nn.ReLU()
    scaled.scale = nn.Parameter(torch.ones(1))
    assert list(named_modules({"": scaled})) == ["", "module"]


def test_a_wrapper_with_a_parameter_of_its_own_is_no_wrapper() -> None:
    class Scaled(AveragedModel):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.scale = nn.Parameter(torch.ones(1))

    model = nn.Sequential(Scaled(nn.Linear(1, 1)))
    assert list(named_parameters({"": model})) == ["0.scale", "0.module.weight", "0.module.bias"]


def test_the_type_of_a_model_is_that_of_its_first_numbers_with_a_point() -> None:
    quantised = nn.Module()
    quantised.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    assert float_type({"": nn.Sequential(quantised, nn.Linear(1, 1).double(), nn.Linear(1, 1))}) is torch.float64
    assert float_type({"": quantised}) is None


def test_names_are_looked_for_once_where_that_is_asked_for_and_else_each_time() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    models = {"": model}
    with named_once():
        before = named_parameters(models)
        before.pop("0.bias")  # it is the caller's own
        model.append(nn.Linear(1, 1))
        with named_once():
            assert list(named_parameters(models)) == ["0.weight", "0.bias"]
            assert list(named_modules(models)) == ["", "0"]
            assert list(named_modules({"other": model})) == ["other", "other.0", "other.1"]
        assert list(named_modules(models)) == ["", "0"]
    assert list(named_modules(models)) == ["", "0", "1"]


def test_parts_are_those_that_torch_finds() -> None:
    shared = nn.Linear(1, 1)
    model = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared), nn.Sequential())
    model[1].register_module("nothing", None)
    assert parts_of([model]) == list(model.modules())
    found = {id(shared)}
    assert parts_of([model], found) == [module for module in model.modules() if module is not shared]
    assert found == set(map(id, model.modules()))


def test_what_is_meant_by_its_name_is_not_meant_by_what_it_is_in() -> None:
    assert chosen("encoder") == ["encoder"]


def test_where_there_is_nothing_to_select_everything_is_nothing() -> None:
    check_select(None, [""], [], "module")
    with pytest.raises(ValueError, match="no module matches 'a'; there is none"):
        check_select("a", [""], [], "module")


def test_spread_keeps_the_ends() -> None:
    assert spread(range(100), 5) == [0, 25, 50, 74, 99]
    assert spread("ab", 5) == ["a", "b"]
    assert spread("abc", 1) == ["a"]
