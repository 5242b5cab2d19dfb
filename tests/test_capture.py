"""What is seen of a forward: names, order, calls and nothing left behind."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from vizlog.batch import BatchDoesNotFit, FixedBatch
from vizlog.capture import AutocastSeen, Capture, Silent, _Functions, before_forwards, is_attention, replaced, unseen
from vizlog.channel import RanksApart
from vizlog.ranks import CommunicatesError
from vizlog.requests import AttentionCalls, Call, Outputs
from vizlog.survey import survey


def seen(model: nn.Module, *inputs: Any, matches: Any = lambda layer, module: True) -> dict[str, list[Tensor]]:
    """Layer -> outputs of one forward."""
    capture = Capture({"": model}, {"all": Outputs(matches, lambda call: call.tensor.clone())})  # type: ignore[union-attr]
    with torch.no_grad(), capture.forward():
        model(*inputs)
    assert not capture.errors
    return capture.results["all"]


class Course(nn.Module):
    """As taught: activations are functions, one layer runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = torch.tanh(self.conv2(x))
        x = self.conv2(x).relu()
        return F.softmax(self.fc(x.mean((2, 3))), dim=-1)


def test_functional_activations_are_seen_under_the_module_that_calls_them() -> None:
    model, x = Course(), torch.randn(2, 1, 5, 5)
    found = seen(model, x)
    assert list(found) == ["conv1", "relu", "conv2", "tanh", "conv2@2", "relu@2", "fc", "softmax"]
    conv1 = model.conv1(x)
    assert torch.equal(found["conv1"][0], conv1)
    assert torch.equal(found["relu"][0], conv1.relu())
    inner = seen(nn.Sequential(model), x)
    assert list(inner)[:3] == ["0.conv1", "0.relu", "0.conv2"]


def test_an_activation_module_is_seen_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.Softmax(-1))
    assert list(seen(model, torch.randn(3, 2))) == ["0", "1", "2", "3", "4"]


def test_a_module_of_ones_own_that_only_calls_a_function_is_seen_once() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.silu(x)

    assert list(seen(nn.Sequential(nn.Linear(2, 2), Swish()), torch.randn(3, 2))) == ["0", "1.silu"]


def test_an_output_is_seen_before_what_works_in_place_overwrites_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    x = torch.randn(8, 2)
    assert torch.equal(seen(model, x)["0"][0], model[0](x))


@dataclass
class Result:
    name: str
    hidden: Tensor


@pytest.mark.parametrize("wrap", [lambda x: (x, 1), lambda x: {"a": None, "b": [x]}, lambda x: Result("r", x)])
def test_the_first_tensor_of_nested_outputs_is_taken(wrap: Any) -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return wrap(x + 1)

    assert torch.equal(seen(nn.ModuleList([Nested()])[0], torch.ones(2)).get("", [torch.tensor(0)])[0], torch.tensor(0))
    model = nn.Sequential(nn.Identity(), Nested())
    assert torch.equal(seen(model, torch.ones(2))["1"][0], torch.full((2,), 2.0))


def test_a_call_tells_the_output_whole_and_no_input_where_there_is_none() -> None:
    class Makes(nn.Module):
        def forward(self) -> Any:
            return {"a": None, "b": [torch.ones(2)]}

    told: list[Call] = []
    model = nn.ModuleDict({"makes": Makes()})
    with Capture({"": model}, {"a": Outputs(lambda layer, module: True, told.append)}).forward():
        model["makes"]()
    (call,) = told
    assert list(call.output) == ["a", "b"]
    assert call.input is None


def test_keyword_arguments_are_told() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    told: list[Call] = []
    model, x = Keywords(), torch.ones(1, 2)
    with Capture({"": model}, {"a": Outputs(lambda layer, module: layer == "inner", told.append)}).forward():
        model(x)
    assert told[0].input is x
    assert (told[0].kind, told[0].module) == ("Linear", model.inner)


class Interruptible(nn.Module):
    """Ctrl-C comes where a value is NaN."""

    def forward(self, x: Tensor) -> Tensor:
        if x.isnan().any():
            raise KeyboardInterrupt
        return x


class Does(nn.Module):
    """A function as a module of one's own."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)


@pytest.mark.parametrize(
    ("layers", "dims"),
    [
        ([nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.ReLU()], [1, 1, -1, -1, -1]),
        ([nn.Conv1d(1, 4, 1), nn.BatchNorm1d(4), nn.Tanh()], [1, 1, 1]),
        ([nn.Linear(2, 5), nn.LayerNorm(5), nn.GELU()], [-1, -1, -1]),
        ([nn.Flatten(), nn.Linear(2, 4), nn.BatchNorm1d(4)], [-1, -1, -1]),
        ([nn.Unflatten(2, (2, 1)), nn.ReLU()], [1, 1]),
        ([nn.Conv2d(1, 1, 1), nn.Linear(2, 2), nn.ReLU()], [1, -1, -1]),
        ([nn.Conv1d(1, 4, 1), nn.Upsample(scale_factor=3), nn.ReLU()], [1, 1, 1]),
        ([nn.Conv1d(1, 4, 1), nn.AdaptiveMaxPool1d(1), nn.Tanh()], [1, 1, 1]),
        ([nn.Conv1d(1, 4, 1), Does(lambda x: F.relu(F.max_pool1d(x, 2)) + 1)], [1, 1, 1]),
        ([nn.Conv1d(1, 4, 1), Does(lambda x: x[..., :-1]), nn.ReLU()], [1, 1, 1]),
        ([nn.Conv1d(1, 4, 1), Does(lambda x: x.mT), nn.GELU()], [1, -1, -1]),
        ([nn.Linear(2, 4), Does(lambda x: x.repeat(1, 3, 1)), nn.GELU()], [-1, -1, -1]),
        ([nn.Conv2d(1, 4, 1), Does(lambda x: x.permute(0, 2, 3, 1)), nn.ReLU()], [1, -1, -1]),
        ([nn.Conv2d(1, 4, 1), Does(lambda x: F.relu(x.permute(0, 2, 3, 1)).mT)], [1, -1, 2]),
        ([nn.Conv2d(1, 4, 1), Does(lambda x: x.new_zeros(2, 4, 4, 3))], [1, 1]),
        ([nn.Conv2d(1, 4, 1), Does(lambda x: x.new_zeros(2, 3, 4, 4))], [1, -1]),
        ([nn.Conv2d(1, 4, 1), Does(lambda x: x.new_zeros(2, 3, 5, 6))], [1, 1]),
        ([nn.Linear(2, 5), Does(lambda x: F.relu(x.repeat(1, 3, 1).mT)), nn.Linear(3, 2)], [-1, 1, -1]),
        (
            [
                nn.Conv1d(1, 4, 1),
                Does(lambda x: x.mT),
                nn.LayerNorm(4),
                Does(lambda x: x.mT),
                nn.Conv1d(4, 4, 1),
                Does(lambda x: x.repeat(1, 1, 2)),
            ],
            [1, -1, -1, 1, 1, 1],
        ),
        (
            [
                nn.Upsample(scale_factor=2),
                nn.Conv1d(1, 4, 1),
                Does(lambda x: x[:, :2]),
                nn.LayerNorm(4),
                Does(lambda x: x.repeat(1, 2, 1)),
            ],
            [-1, 1, -1, -1, 1],
        ),
    ],
)
def test_units_lie_where_the_layer_before_put_them(layers: list[nn.Module], dims: list[int]) -> None:
    model = nn.Sequential(*layers).eval()
    x = torch.randn(2, 1, 2, 2) if isinstance(layers[0], nn.Conv2d) else torch.randn(2, 1, 2)
    told: list[Call] = []
    with Capture({"": model}, {"a": Outputs(lambda layer, module: True, told.append)}).forward():
        model(x)
    assert [call.channel_dim for call in told] == dims


def test_an_error_of_a_reducer_is_kept_from_the_forward_and_the_others_go_on() -> None:
    def fails(call: Call) -> Any:
        raise ValueError(f"no: {call.layer}")

    model, everything = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), lambda layer, module: True
    capture = Capture({"": model}, {"bad": Outputs(everything, fails), "good": Outputs(everything, lambda call: 1)})
    with capture.forward():
        model(torch.ones(1, 2))
    assert str(capture.errors["bad"]) == "no: 0"  # the first, and it is not asked again
    assert capture.results["good"] == {"0": [1], "1": [1]}


def test_what_a_reducer_computes_is_neither_seen_nor_derived_and_none_is_left_out() -> None:
    def computes(call: Call) -> Any:
        return None if call.layer == "1" else F.relu(call.output).requires_grad

    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2))
    capture = Capture({"": model}, {"a": Outputs(lambda layer, module: True, computes)})
    with capture.forward():
        model(torch.ones(1, 2))
    assert capture.results["a"] == {"0": [False], "2": [False]}


def test_a_model_that_is_one_layer_has_its_types_name() -> None:
    assert list(seen(nn.Linear(2, 2), torch.ones(1, 2))) == ["Linear"]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


def test_hooks_go_when_the_forward_raises() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 3))
    capture = Capture({"": model}, {"a": Outputs(lambda layer, module: True, lambda call: 1)})
    with pytest.raises(RuntimeError, match="shape"), capture.forward():
        model(torch.ones(1, 2))
    assert hooks(model) == 0
    assert capture.results["a"] == {"0": [1]}


def test_a_copy_or_pickle_of_a_hooked_model_does_not_fire_into_us() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    counted: list[str] = []
    capture = Capture({"": model}, {"a": Outputs(lambda layer, module: True, lambda call: counted.append(call.layer))})
    buffer = io.BytesIO()
    with ExitStack() as stack:
        capture.attach_live(stack)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        torch.save(model, buffer)
        torch.save(model.state_dict(), io.BytesIO())
    buffer.seek(0)
    for other in [*copies, torch.load(buffer, weights_only=False)]:
        other(torch.ones(1, 2)).sum().backward()
    assert counted == []


def live(model: nn.Module, known_by: Tensor | None = None) -> tuple[Capture, ExitStack]:
    """A look at the training forward; the second one where a tensor is given that the first is of."""
    silent = Silent()
    if known_by is not None:
        with attached(model, silent)[1]:
            model(known_by)
    return attached(model, silent)


def attached(model: nn.Module, silent: Silent) -> tuple[Capture, ExitStack]:
    outputs = Outputs(lambda layer, module: True, lambda call: call.output)
    capture, stack = Capture({"": model}, {"a": outputs}, silent), ExitStack()
    capture.attach_live(stack)
    return capture, stack


both_looks = pytest.mark.parametrize("known", [False, True], ids=["first look", "second look"])


@both_looks
def test_the_live_forward_is_seen_and_an_evaluation_is_not(*, known: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    capture, stack = live(model, torch.ones(1, 2) if known else None)
    with stack:
        model(torch.ones(1, 2)).sum().backward()
        with torch.no_grad():
            model.eval()(torch.ones(1, 2))
            with unseen():
                model.train()(torch.ones(1, 2))  # ours
        model.eval()(torch.ones(1, 2)).sum().backward()  # trained in eval mode
        with torch.no_grad():
            model.train()(torch.ones(1, 2))  # as for targets of its own
        model(torch.ones(1, 2)).sum().backward()
        F.relu(torch.ones(3))  # outside a forward
    assert {layer: len(calls) for layer, calls in capture.results["a"].items()} == {"0": 4, "1": 4}
    assert hooks(model) == 0


@both_looks
@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_computes_again_is_not_seen(*, reentrant: bool, known: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(2, 2), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(lambda y: F.relu(self.block(y)), x, use_reentrant=reentrant)

    model = Checkpointed()
    capture, stack = live(model, torch.ones(1, 2, requires_grad=True) if known else None)
    with stack:
        model(torch.ones(1, 2, requires_grad=True)).sum().backward()
    assert {layer: len(calls) for layer, calls in capture.results["a"].items()} == {
        "block.0": 1,
        "block.1": 1,
        "block": 1,
        "relu": 1,
    }
    assert model.block[0].weight.grad is not None


@both_looks
def test_a_live_forward_that_raises_does_not_spoil_the_next(*, known: bool) -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.fc(x))
            if x.isnan().any():
                raise ValueError("nan")
            return y

    model = nn.Sequential(Picky())
    capture, stack = live(model, torch.ones(1, 2) if known else None)
    with stack:
        with pytest.raises(ValueError, match="nan"):
            model(torch.tensor([[float("nan"), 0.0]]))
        assert torch.overrides._get_current_function_mode_stack() == []
        assert capture.results["a"] == {}
        model(torch.ones(1, 2))
        try:
            model(torch.tensor([[float("nan"), 0.0]]))
        except ValueError:
            model(torch.ones(1, 2))  # made again, while what was wrong with the first is dealt with
    assert {layer: len(calls) for layer, calls in capture.results["a"].items()} == {"0.fc": 2, "0.relu": 2, "0": 2}


@both_looks
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_live_forward_that_is_interrupted_does_not_spoil_the_next(*, evaluates: bool, known: bool) -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, depth: int = 0) -> Tensor:
            y = F.relu(self.fc(x))
            if x.isnan().any():
                raise KeyboardInterrupt
            return self(y, depth + 1) if depth < 2 else y

    model = Interrupted()
    capture, stack = live(model, torch.ones(1, 2) if known else None)
    with stack:
        model.train(not evaluates)
        with pytest.raises(KeyboardInterrupt), torch.set_grad_enabled(not evaluates):
            model(torch.tensor([[float("nan"), 0.0]]))
        model.train()
        model(torch.ones(1, 2))
        assert torch.overrides._get_current_function_mode_stack() == []
    calls = {f"{name}{call}": 1 for name in ("fc", "relu") for call in ("", "@2", "@3")}  # it calls itself
    assert {layer: len(found) for layer, found in capture.results["a"].items()} == calls


class Branches(nn.Module):
    """It calls an activation itself, and so does a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.part = nn.Linear(4, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.inner = Does(F.gelu)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.part(F.silu(self.act(self.first(x)))))


class Shares(nn.Module):
    """One activation runs in two places, of which it has the name of the one where nobody listens."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Tanh()
        self.first, self.second = nn.Sequential(nn.Linear(4, 4), act), Does(lambda x: F.relu(act(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)


LOOKED_AT: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "functions": lambda: (Course(), torch.ones(2, 1, 5, 5)),
    "modules": lambda: (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Tanh())), torch.ones(2, 4)),
    "both": lambda: (Branches(), torch.ones(2, 4)),
    "shared": lambda: (Shares(), torch.ones(2, 4)),
    "a transformer": lambda: (transformer(), torch.ones(2, 3, 4)),
    "its parts": lambda: (nn.Sequential(transformer(), Branches(), transformer()), torch.ones(2, 3, 4)),
}


def looked(
    model: nn.Module, x: Tensor, asked: dict[str, Outputs | AttentionCalls], silent: Silent, *, alive: bool
) -> dict[str, Any]:
    """What one more look at a forward finds."""
    capture = Capture({"": model}, asked, silent)
    with ExitStack() as stack:
        if alive:
            capture.attach_live(stack)
        else:
            stack.enter_context(capture.forward())
        model(x)
    assert not capture.errors
    assert hooks(model) == 0
    assert torch.overrides._get_current_function_mode_stack() == []
    return capture.results


@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.parametrize("alive", [False, True], ids=["fixed batch", "live"])
def test_later_looks_see_what_the_first_saw(name: str, *, alive: bool) -> None:
    """Though nobody listens where nothing was called."""
    model, x = LOOKED_AT[name]()
    asked = {
        "all": Outputs(lambda layer, module: True, lambda call: (call.kind, call.channel_dim, call.tensor.tolist())),
        "attention": AttentionCalls(lambda call: call.args[0].shape),
    }
    silent, looks = Silent(), []
    for look in range(Silent.WHOLE + 2):
        wanted = {key: asked[key] for key in asked if key == "all" or look % 2}  # attention is asked for later
        looks.append(looked(model, x, wanted, silent, alive=alive))
    for number, found in enumerate(looks):
        assert list(found["all"].items()) == list(looks[0]["all"].items())
        if number % 2:
            assert found["attention"] == looks[1]["attention"]


def functions_seen(capture: Capture, model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    sees = _Functions.__torch_function__

    def noting(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told.append(func.__name__)
        return sees(self, func, types, args, kwargs)

    with monkeypatch.context() as patch, capture.forward():
        patch.setattr(_Functions, "__torch_function__", noting)
        model(x)
    return told


def test_nobody_listens_where_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Does(lambda y: F.gelu(y + 1)), nn.Linear(4, 4)),
        torch.ones(2, 4),
    )
    silent, asked = Silent(), {"a": Outputs(lambda layer, module: True, lambda call: 1)}
    told = [functions_seen(Capture({"": model}, asked, silent), model, x, monkeypatch) for _ in range(Silent.WHOLE + 1)]
    assert told[0] == ["linear", "relu", "add", "gelu", "linear"]
    assert told[1 : Silent.WHOLE] == [["add", "gelu"]] * (Silent.WHOLE - 1)
    assert told[Silent.WHOLE] == told[0]


def test_what_is_called_for_the_first_time_is_seen_at_the_next_whole_look() -> None:
    model, x, silent = (
        nn.Sequential(nn.Linear(4, 4), Does(torch.neg), nn.ReLU(), Branches()),
        torch.ones(2, 4),
        Silent(),
    )
    model[3].inner = Does(torch.neg)
    seen_at = []
    for look in range(Silent.WHOLE + 1):
        capture, stack = attached(model, silent)
        with stack:
            model(x)
        seen_at.append(capture.results["a"].keys())
        if look == 0:
            model[1].does = F.gelu
            model[3].inner.does = F.gelu  # within a module that is listened to
        if look == 1:
            model[2] = Does(F.relu)  # made anew
    assert ["1.gelu" in seen for seen in seen_at] == [False] * Silent.WHOLE + [True]
    assert ["3.inner.gelu" in seen for seen in seen_at] == [False] + [True] * Silent.WHOLE
    assert ["2.relu" in seen for seen in seen_at] == [False] * 2 + [True] * (Silent.WHOLE - 1)


class Masked(nn.Module):
    """A frozen encoder, which takes torch's faster way where nobody listens, within a model in training."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, activation, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2).eval(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.encoder(x, src_key_padding_mask=torch.tensor([[False, False, True], [False, True, True]]))
        return self.head(x)


@pytest.mark.parametrize("activation", [F.relu, F.gelu, nn.GELU()], ids=["relu", "gelu", "a module"])
@pytest.mark.parametrize("alive", [False, True], ids=["fixed batch", "live"])
def test_what_chooses_its_way_by_who_listens_takes_the_same_at_each_look(activation: Any, *, alive: bool) -> None:
    model, x, silent, looks = Masked(activation), torch.randn(2, 3, 8), Silent(), []
    for _ in range(4):
        outputs = Outputs(lambda layer, module: True, lambda call: call.tensor)
        looks.append(looked(model, x, {"a": outputs}, silent, alive=alive)["a"])
    for found in looks:
        torch.testing.assert_close(found, looks[0], rtol=0, atol=0)


class Notes(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.told.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", [False, True], ids=["alone", "under a default device"])
def test_a_mode_that_one_module_enters_and_another_leaves_stays_a_persons_own(*, device: bool) -> None:
    model = nn.Sequential(Does(torch.neg), Does(F.relu), Does(lambda x: F.gelu(leave(x))), Does(torch.sigmoid))
    x, silent, notes = torch.ones(2), Silent(), []

    def enter(x: Tensor) -> Tensor:
        notes.append(Notes())
        notes[-1].__enter__()
        return x

    def leave(x: Tensor) -> Tensor:
        notes[-1].__exit__(None, None, None)
        return x

    model[0].does = enter
    for _ in range(3):
        capture, stack = attached(model, silent)
        with stack, torch.device("cpu") if device else nullcontext():
            model(x)
            assert len(torch.overrides._get_current_function_mode_stack()) == device
        assert torch.overrides._get_current_function_mode_stack() == []
        assert list(capture.results["a"]) == ["0", "1.relu", "2.gelu", "3.sigmoid"]
        assert notes[-1].told == ["relu"]


def test_a_device_that_is_set_within_a_forward_stays_lowest() -> None:
    def sets(x: Tensor) -> Tensor:
        torch.set_default_device("meta")
        assert torch.ones(1).is_meta
        torch.set_default_device(None)
        return F.relu(x)

    model, silent = nn.Sequential(nn.Linear(2, 2), Does(sets)), Silent()
    for _ in range(2):
        capture, stack = attached(model, silent)
        with stack:
            model(torch.ones(1, 2))
        assert "1.relu" in capture.results["a"]
        assert not capture.errors


def test_a_container_that_is_called_by_itself_is_one_forward() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l, self.act = nn.Linear(2, 2), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            if x.isnan().any():
                self.l(x)
                raise ValueError("nan")
            return self.act(self.l(self.act(self.l(x))))

    model, x = nn.Sequential(Twice()), torch.ones(1, 2)
    capture, stack = live(model, x)
    with stack:
        with pytest.raises(ValueError, match="nan"):
            model[0](x * math.nan)
        model[0](x)
    assert {layer: len(found) for layer, found in capture.results["a"].items()} == dict.fromkeys(
        ["0.l", "0.act", "0.l@2", "0.act@2", "0"], 1
    )


def test_of_an_interrupted_forward_nothing_is_kept_when_a_part_of_another_model_is_called() -> None:
    models = {"G": nn.Sequential(nn.Linear(1, 1), Interruptible()), "D": nn.Sequential(nn.Linear(1, 1), nn.ReLU())}
    asked, silent = {"a": Outputs(lambda layer, module: True, lambda call: 1)}, Silent()
    for _ in range(2):
        capture = Capture(models, asked, silent)
        with ExitStack() as stack:
            capture.attach_live(stack)
            if silent._looks == 1:
                models["D"](models["G"](torch.ones(1, 1)))
                continue
            with pytest.raises(KeyboardInterrupt):
                models["G"](torch.tensor([[math.nan]]))
            models["D"][0](torch.ones(1, 1))
    assert capture.results["a"] == {"D.0": [1]}


def test_what_is_called_around_the_models_is_not_known_before_a_look_has_come_to_its_end() -> None:
    model, silent = nn.Linear(4, 4), Silent()
    for fails in (True, False):
        capture = Capture({"": model}, {"a": Outputs(lambda layer, module: True, lambda call: 1)}, silent)
        with suppress(ValueError), capture.forward():
            y = model(torch.ones(2, 4))
            if fails:
                raise ValueError
            F.softmax(y, dim=-1)
    assert list(capture.results["a"]) == ["Linear", "softmax"]


def test_what_ran_while_a_graph_was_recorded_is_not_taken_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    model, silent = Branches(), Silent()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for records in (True, False):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda records=records: records)
        capture, stack = attached(model, silent)
        with stack:
            model(torch.ones(2, 4))
    assert {"silu", "inner.gelu"} <= capture.results["a"].keys()


def test_a_part_that_is_called_by_itself_for_the_first_time_is_seen() -> None:
    model, x = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)), torch.ones(2, 4)
    capture, stack = live(model, x)
    with stack:
        model[1](model[0](x))
        with torch.no_grad():
            model.eval()[0](x)
    assert {layer: len(calls) for layer, calls in capture.results["a"].items()} == {"0.0": 1, "0.1": 1, "0": 1, "1": 1}


def test_a_part_called_by_itself_after_an_evaluation_was_interrupted_is_seen() -> None:
    model = nn.Sequential(nn.Linear(1, 1), Interruptible())
    capture, stack = live(model, torch.ones(1, 1))
    with stack:
        with pytest.raises(KeyboardInterrupt), torch.no_grad():
            model.eval()(torch.tensor([[float("nan")]]))
        model.train()[0](torch.ones(1, 1))
    assert {layer: len(calls) for layer, calls in capture.results["a"].items()} == {"0": 1}


def test_functions_around_the_models_are_seen_at_each_look() -> None:
    model, silent = nn.Linear(4, 4), Silent()
    for _ in range(3):
        asked = {"a": Outputs(lambda layer, module: True, lambda call: 1)}
        capture = Capture({"": model}, asked, silent)
        with capture.forward():
            F.softmax(model(torch.ones(2, 4)), dim=-1)
        assert list(capture.results["a"]) == ["Linear", "softmax"]


def test_no_output_is_kept_once_the_live_forward_is_over() -> None:
    outputs = []

    def relu(x: Tensor) -> Tensor:
        y = F.relu(x)
        outputs.append(weakref.ref(y))
        return y.sum()

    model = nn.Sequential(nn.Linear(2, 2), Does(relu))
    capture = Capture({"": model}, {"a": Outputs(lambda layer, module: True, lambda call: 1)})
    with ExitStack() as stack:
        capture.attach_live(stack)
        model(torch.ones(1, 2)).backward()
        assert [output() for output in outputs] == [None]
        assert capture._frame is None
        with torch.no_grad():
            model.eval()(torch.ones(1, 2))
        assert capture._frame is None


def test_a_model_that_catches_what_ended_a_part_of_it_is_seen_to_its_end() -> None:
    class Ends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise SystemExit

    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ends = Ends()

        def forward(self, x: Tensor) -> Tensor:
            with suppress(SystemExit):
                self.ends(x)
            return x * 2

    model = nn.Sequential(Catches(), nn.ReLU())
    capture, stack = live(model)
    with stack:
        model(torch.ones(1, 2))
        assert torch.overrides._get_current_function_mode_stack() == []
    assert list(capture.results["a"]) == ["0", "1"]


def test_each_live_forward_is_read_as_the_first() -> None:
    model, dims = nn.Sequential(nn.Tanh(), nn.Conv1d(3, 3, 1)), []
    capture = Capture(
        {"": model}, {"a": Outputs(lambda layer, module: True, lambda call: dims.append(call.channel_dim))}
    )
    with ExitStack() as stack:
        capture.attach_live(stack)
        for _ in range(2):
            model(torch.ones(2, 3, 4))
    assert dims == [-1, 1] * 2


def test_a_forward_in_inference_mode_is_no_training_forward_whatever_the_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    capture, stack = live(model)
    with stack, torch.inference_mode():
        model(torch.ones(1, 2))
    assert capture.results["a"] == {}


@pytest.mark.parametrize("records", [True, False])
def test_what_is_recorded_into_a_cuda_graph_is_not_seen(*, records: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: records)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    capture, stack = live(model)
    with stack:
        model(torch.ones(1, 2)).sum().backward()
    assert list(capture.results["a"]) == ([] if records else ["0", "1"])


def test_a_part_that_a_forward_records_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = False

    class Records(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            nonlocal recording
            recording = True
            y = F.relu(self.part(x))
            recording = False
            return y

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recording)
    model = nn.Sequential(nn.Linear(2, 2), Records(), nn.Linear(2, 2))
    capture, stack = live(model)
    with stack:
        model(torch.ones(1, 2))
    assert list(capture.results["a"]) == ["0", "1", "2"]


def test_hooks_that_are_there_when_a_model_is_compiled_are_inert_in_its_graph() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    capture, stack = live(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with stack:
        for _ in range(3):
            compiled(torch.ones(1, 2)).sum().backward()
    assert capture.results["a"] == {}
    assert not capture.errors


def test_a_live_forward_that_is_interrupted_leaves_nothing_behind() -> None:
    class Interrupted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(2, 2), Interrupted())
    _, stack = live(model)
    with stack, pytest.raises(KeyboardInterrupt):
        model(torch.ones(1, 2))
    assert torch.overrides._get_current_function_mode_stack() == []
    assert hooks(model) == 0


def test_a_file_saved_while_hooks_are_there_opens_without_vizlog() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    file = io.BytesIO()
    _, stack = live(model)
    with stack:
        AutocastSeen("cpu").attach(stack, model)
        torch.save(model, file)
    assert b"vizlog" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(torch.ones(1, 2)), model(torch.ones(1, 2)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_a_model_that_cannot_be_scripted_while_hooks_are_there_says_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with ExitStack() as stack:
        AutocastSeen("cpu").attach(stack, model)
        with pytest.raises(
            AttributeError, match=r"call torch\.jit\.script before vizlog\.watch\(\), after that forward"
        ):
            torch.jit.script(model)
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_attention_is_told_by_the_layer_that_calls_it() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q = x[:, None]
            F.softmax(self.router(x), dim=-1)  # no attention
            F.scaled_dot_product_attention(q, q, q)
            return F.scaled_dot_product_attention(q, q, q)[:, 0]

    model = nn.Sequential(Block(), Block())
    asked = AttentionCalls(lambda call: tuple(call.output.shape))
    capture = Capture({"": model}, {"a": asked, "b": asked})
    with capture.forward():
        model(torch.randn(2, 5, 4))
    shape = (2, 1, 5, 4)
    expected = {"0": [shape], "0@2": [shape], "1": [shape], "1@2": [shape]}
    assert capture.results == {"a": expected, "b": expected}
    alone = Capture({"": model[0]}, {"a": asked})
    with alone.forward():
        model[0](torch.randn(2, 5, 4))
    assert list(alone.results["a"]) == ["attention", "attention@2"]


def test_the_autocast_of_the_training_forward_is_learnt() -> None:
    model = nn.Linear(2, 2)
    autocast = AutocastSeen("cpu")
    with ExitStack() as stack:
        autocast.attach(stack, model)
        with torch.no_grad():
            model(torch.ones(1, 2))  # an evaluation
        with unseen():
            model(torch.ones(1, 2))  # ours
        assert not autocast.known
        with torch.autocast("cpu", torch.float16):
            model(torch.ones(1, 2))
        with torch.no_grad():
            model(torch.ones(1, 2))
        assert autocast.known
    with autocast():
        assert model(torch.ones(1, 2)).dtype == torch.float16
    with ExitStack() as stack:
        autocast.attach(stack, model)
        model(torch.ones(1, 2))
    assert hooks(model) == 0
    with torch.autocast("cpu", torch.bfloat16), autocast():
        assert model(torch.ones(1, 2)).dtype == torch.float32


def test_each_forward_of_a_model_or_a_part_is_announced_and_none_within_another() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("from inside")

    model, order = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), list[str]()
    raises = nn.Sequential(nn.ReLU(), nn.Sequential(Raises()))
    theirs = model.register_forward_pre_hook(lambda *_: order.append("theirs"))
    with before_forwards({"a": model, "b": raises}, lambda: order.append("ours")):
        model(torch.ones(1, 2))
        assert order == ["ours", "theirs"]
        model[0](torch.ones(1, 2))
        assert order == ["ours", "theirs", "ours"]
        with pytest.raises(ValueError, match="inside"):
            raises(torch.ones(1))
        assert len(order) == 4
        raises[0](torch.ones(1))
        assert order[4:] == ["ours"]
    theirs.remove()
    assert hooks(model) == hooks(raises) == 0


def test_what_is_raised_before_a_forward_comes_out_of_it() -> None:
    def refuses() -> None:
        raise RanksApart("gone")

    model = nn.Sequential(nn.Linear(2, 2))
    with before_forwards({"": model}, refuses):
        for _ in range(2):
            with pytest.raises(RanksApart):
                model(torch.ones(1, 2))


@pytest.mark.filterwarnings("error")
def test_the_end_of_a_forward_that_was_not_announced_is_passed_over() -> None:
    def refuses(*_: Any) -> None:
        raise ValueError("before anybody else")

    model = nn.Sequential(nn.Linear(2, 2))
    refusing = nn.modules.module.register_module_forward_pre_hook(refuses)
    try:
        with before_forwards({"": model}, lambda: None), pytest.raises(ValueError, match="before anybody"):
            model(torch.ones(1, 2))
    finally:
        refusing.remove()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_is_attention() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return flex.flex_attention(x, x, x)

    model = nn.Sequential(Attends())
    capture = Capture({"": model}, {"a": AttentionCalls(lambda call: tuple(call.args[0].shape))})
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), capture.forward():
        model(torch.randn(1, 2, 3, 4))
    assert not capture.errors
    assert capture.results["a"] == {"0": [(1, 2, 3, 4)]}


def test_an_output_can_be_replaced_for_a_while() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with replaced(model[0], lambda output: output * 0 - 1):
        assert model(torch.ones(1, 2)).sum() == 0
    assert hooks(model) == 0
    pair = nn.LSTM(2, 3)
    with replaced(pair, lambda output: output * 0):
        output, (hidden, _) = pair(torch.ones(1, 1, 2))
    assert output.abs().sum() == 0
    assert hidden.abs().sum() > 0
    number = nn.Identity()
    with pytest.raises(TypeError, match="its first part must be a tensor"), replaced(number, lambda output: output):
        number(3)
    with pytest.raises(TypeError, match=r"its first part must be a tensor"), replaced(number, lambda output: output):
        number(("a", torch.ones(1)))
    assert hooks(number) == 0


def test_a_survey_tells_layers_in_the_order_they_ran() -> None:
    met = survey({"": Course()}, FixedBatch(torch.randn(6, 1, 5, 5), torch.arange(6) % 3))
    assert [layer.name for layer in met.layers] == [
        "conv1",
        "relu",
        "conv2",
        "tanh",
        "conv2@2",
        "relu@2",
        "fc",
        "softmax",
    ]
    assert met.layers[0].input_shape == (2, 1, 5, 5)
    assert met.layers[0].output_shape == (2, 4, 5, 5)
    assert (met.scored, met.classes, met.attention) == ("logits", 3, ())
    assert [layer.name for layer in met.of_type(nn.Conv2d)] == ["conv1", "conv2", "conv2@2"]


def test_a_pass_of_ours_that_raises_hides_no_training_forward_after_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    capture, stack = live(model)
    with stack:
        with pytest.raises(RuntimeError, match="shape"), unseen():
            model(torch.ones(1, 3))
        assert capture.results["a"] == {}
        model(torch.ones(1, 2))
    assert list(capture.results["a"]) == ["0"]


def test_a_layer_that_calls_attention_twice_is_named_once_by_a_survey() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, F.scaled_dot_product_attention(x, x, x), x)

    met = survey({"": nn.Sequential(Twice(), Twice())}, FixedBatch(torch.randn(2, 1, 3, 4)))
    assert met.attention == ("0", "1")


def test_a_call_tells_what_was_called_and_with_what() -> None:
    told: list[Call] = []
    model = nn.Sequential(nn.Linear(2, 2))
    with Capture({"": model}, {"a": Outputs(lambda layer, module: True, told.append)}).forward():
        made = F.relu(input=model(torch.ones(1, 2)))  # outside of any module
    assert [(call.layer, call.kind, call.module) for call in told] == [
        ("0", "Linear", model[0]),
        ("relu", "relu", None),
    ]
    assert torch.equal(told[1].input, told[0].tensor)  # type: ignore[arg-type]
    assert told[1].tensor is made
    assert Call("", None, None, (), {}, None).input is None


def test_outputs_are_those_that_were_asked_for_and_no_attention() -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x).exp()

    model, x = nn.Sequential(nn.Identity(), Attends()), torch.randn(1, 1, 3, 4)
    assert {layer: len(calls) for layer, calls in seen(model, x).items()} == {"0": 1, "1": 1}
    assert list(seen(model, x, matches=lambda layer, module: isinstance(module, Attends))) == ["1"]


def test_what_a_reduction_takes_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def takes(call: Call) -> None:
        now[0] += 2

    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    capture = Capture(
        {"": model},
        {"one": Outputs(lambda layer, _: layer == "1", takes), "none": Outputs(lambda *_: False, takes)},
    )
    with capture.forward():
        model(torch.ones(1, 2))
    assert capture.seconds == {"one": 2.0, "none": 0.0}


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_what_other_ranks_hold_parts_of_is_looked_at_whole(one_rank: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return DTensor.from_local(x, mesh, [Shard(0)]), "more"

    class Second(nn.Module):
        def forward(self, pair: Any) -> Tensor:
            return torch.tanh(pair[0]) + 1

    mesh = init_device_mesh("cpu", (1,))
    model, told = nn.Sequential(Parts(), Second(), nn.Sigmoid()), list[Call]()
    with Capture({"": model}, {"a": Outputs(lambda layer, module: True, told.append)}).forward():
        model(torch.ones(3, 2, requires_grad=True))
    assert [call.layer for call in told] == ["0", "1.tanh", "1", "2"]
    for call in told:
        assert call.output.grad_fn is None  # nobody derives by what was put together for us
        assert not isinstance(call.output, DTensor)
        assert call.tensor is call.output  # of a pair, what there is to look at
        assert not isinstance(call.input, DTensor)


def test_a_layer_that_is_given_nothing_has_no_input_shape() -> None:
    class Positions(nn.Module):
        def forward(self) -> Tensor:
            return torch.ones(3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = Positions()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.positions()

    met = survey({"": Net()}, FixedBatch(torch.randn(2, 3)))
    assert [(layer.name, layer.input_shape, layer.output_shape) for layer in met.layers] == [("positions", (), (3,))]


@pytest.mark.parametrize("error", [CommunicatesError("waits for other ranks"), RanksApart("gone")])
def test_what_is_no_fault_of_the_batch_passes_through_a_survey(error: Exception) -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(type(error)) as caught:
        survey({"": nn.Sequential(Raises())}, FixedBatch(torch.randn(2, 3)))
    assert caught.value is error


def test_a_survey_says_what_does_not_fit() -> None:
    with pytest.raises(BatchDoesNotFit, match=r"Linear could not be run .* float32 \(2, 3\).*RuntimeError.*forward=…"):
        survey({"": nn.Linear(4, 2)}, FixedBatch(torch.randn(5, 3)))
    with pytest.raises(BatchDoesNotFit, match=r"not initialised yet \(0\.weight\): run it once"):
        survey({"": nn.Sequential(nn.LazyLinear(2))}, FixedBatch(torch.randn(5, 3)))


def test_an_error_of_ours_in_a_survey_is_no_fault_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("vizlog.units.Units.dim", broken)
    with pytest.raises(ZeroDivisionError):
        survey({"": nn.Linear(3, 2)}, FixedBatch(torch.randn(5, 3)))


@pytest.mark.parametrize(
    ("output", "loss", "scored", "classes"),
    [
        (lambda x: x, None, "logits", 3),
        (lambda x: x.sum(), None, "", 0),
        (lambda x: {"loss": x.sum()}, None, "loss", 0),
        (lambda x: x.sum(), lambda output, targets: output, "loss", 0),
    ],
)
def test_a_survey_tells_what_examples_can_be_scored_by(output: Any, loss: Any, scored: str, classes: int) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            assert not torch.is_grad_enabled()
            return output(x)

    met = survey({"": Net()}, FixedBatch(torch.randn(4, 3), torch.arange(4) % 3, loss=loss))
    assert (met.scored, met.classes) == (scored, classes)


def test_a_nested_tensor_has_no_one_shape() -> None:
    class Nests(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nested.nested_tensor([x[:1], x])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: nested tensors are a prototype
        met = survey({"": nn.Sequential(nn.Linear(3, 3), Nests())}, FixedBatch(torch.randn(2, 3)))
        parts = torch.nested.nested_tensor([torch.zeros(2, 3, 3), torch.zeros(2, 4, 4)])
    assert [layer.output_shape for layer in met.layers] == [(2, 3), ()]
    assert (met.scored, met.classes) == ("", 0)
    assert is_attention(F.softmax, (torch.zeros(1, 2, 3, 3), -1), {}, torch.zeros(1, 2, 3, 3))
    assert not is_attention(F.softmax, (parts, -1), {}, parts)


@pytest.mark.parametrize(
    ("shape", "dim", "attention"),
    [
        ((1, 2, 3, 5), -1, True),
        ((1, 2, 3, 5), 3, True),
        ((1, 2, 3, 5), 1, False),
        ((2, 3, 3), -1, True),
        ((2, 3, 5), -1, False),  # (N, T, classes)
        ((3, 3), -1, False),  # (N, classes)
        ((3,), -1, False),
    ],
)
def test_attention_that_is_written_out_is_told_by_its_shape(
    shape: tuple[int, ...], dim: int, *, attention: bool
) -> None:
    output = torch.zeros(shape)
    assert is_attention(F.softmax, (output, dim), {}, output) is attention
    assert is_attention(torch.softmax, (output,), {"dim": dim}, output) is attention


def test_a_class_holds_no_tensor() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Result

    assert list(seen(nn.Sequential(nn.Identity(), Net()), torch.ones(1))) == ["0"]


@pytest.mark.parametrize(
    "pool", [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.LPPool1d(2, 2), nn.AdaptiveAvgPool1d(2), nn.AdaptiveMaxPool1d(2)]
)
def test_units_of_a_pool_that_comes_first_are_its_channels(pool: nn.Module) -> None:
    told: list[int] = []
    wanted = {"a": Outputs(lambda layer, module: True, lambda call: told.append(call.channel_dim))}
    model = nn.Sequential(pool)
    with Capture({"": model}, wanted).forward():
        model(torch.ones(2, 3, 4))
    assert set(told) == {1}


def test_forwards_of_another_thread_are_not_taken_for_the_trainings() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    inside, may_go_on = threading.Event(), threading.Event()

    def act(_module: nn.Module, _args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            may_go_on.wait()

    model[1].register_forward_pre_hook(act)
    capture = Capture({"": model}, {"a": Outputs(lambda layer, module: True, lambda call: call.layer)})
    with ExitStack() as stack:
        capture.attach_live(stack)
        actor = threading.Thread(target=lambda: model(torch.ones(1, 2)))
        actor.start()
        inside.wait()
        model(torch.ones(1, 2))
        may_go_on.set()
        actor.join()
        assert torch.overrides._get_current_function_mode_stack() == []
    assert capture.results["a"] == {"0": ["0"], "1": ["1"]}
