"""The doctor on networks that are written as functions: torch.relu for nn.ReLU, F.dropout for nn.Dropout."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from strangers import fit
from test_doctor_callback import Learner, examined, pictures, table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics import Doctor
from makemore_pl.doctor.activation_graph import activation_functions, dropout_function, has_way_around
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.inspection import Inspection

Function = Callable[[Tensor], Tensor]


class Plain(nn.Module):
    """Three hidden layers and one function between all of them."""

    def __init__(self, f: Function, inputs: int = 36, outputs: int = 3, depth: int = 3, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = f
        self.layers = nn.ModuleList(nn.Linear(inputs if place == 0 else 24, 24) for place in range(depth))
        self.head = nn.Linear(24, outputs)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight *= scale  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = self.f(layer(x))
        y: Tensor = self.head(x)
        return y


def dead(net: Plain) -> Plain:
    nn.init.constant_(net.layers[1].bias, -50)  # type: ignore[arg-type]
    return net


ILL: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "a dead layer": ("dead_units", lambda: dead(Plain(functional.relu))),
    "a dead layer behind a module that is used three times": ("dead_units", lambda: dead(Plain(nn.ReLU()))),
    "large weights before tanh": ("saturation", lambda: Plain(torch.tanh, scale=10)),
    "large weights before relu": ("exploding_activations", lambda: Plain(functional.relu, scale=12)),
    "small weights before gelu": ("vanishing_activations", lambda: Plain(functional.gelu, scale=0.05)),
    "sigmoid layers": ("vanishing_gradients", lambda: Plain(torch.sigmoid, depth=5)),
    "most is dropped": ("overregularized", lambda: Plain(lambda x: functional.dropout(x.relu(), 0.85))),
}
WELL: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: Plain(functional.relu),
    "clamp": lambda: Plain(lambda x: x.clamp(min=0)),
    "tanh": lambda: Plain(torch.tanh),
    "swish by hand": lambda: Plain(lambda x: x * torch.sigmoid(x)),
    "a little dropout": lambda: Plain(lambda x: functional.dropout(x.relu(), 0.1)),
}


def found(doctor: Doctor) -> list[str]:
    return [each.id for each in doctor.diagnosis.roots]


@pytest.mark.parametrize("name", ILL)
def test_functions_are_judged_as_modules_are(name: str, tmp_path: Path) -> None:
    id, make = ILL[name]
    doctor = examined(tmp_path, Learner(make()), pictures(), max_steps=100)
    assert found(doctor)[0] == id
    if id == "dead_units":
        assert doctor.findings[0].where.startswith("layers.1")
        assert {each.id: each.because_of for each in doctor.findings}["no_gradient"] == "dead_units"


@pytest.mark.parametrize("name", WELL)
def test_healthy_functions_are_left_in_peace(name: str, tmp_path: Path) -> None:
    doctor = examined(tmp_path, Learner(WELL[name]()), pictures())
    assert not found(doctor)
    assert {"dead_units", "vanishing_activations"} <= {*doctor.checked, *(each.id for each in doctor.abstentions)}


class NormalisedRegression(Learner):
    def __init__(self, lr: float = 0.1) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(
                nn.Linear(6, 32),
                nn.LayerNorm(32),
                nn.ReLU(),
                nn.Linear(32, 32),
                nn.LayerNorm(32),
                nn.ReLU(),
                nn.Linear(32, 1),
            ),
            functional.mse_loss,
            lr,
        )


@pytest.mark.parametrize(("batch_size", "lr"), [(32, 0.1), (2, 0.01)])
def test_a_regression_may_overshoot_in_its_first_steps(batch_size: int, lr: float, tmp_path: Path) -> None:
    doctor = Doctor(announce=False)
    loader = DataLoader(TensorDataset(*table(2048)), batch_size=batch_size)
    fit(tmp_path, NormalisedRegression(lr), doctor, loaders=(loader,), max_steps=300, logger=False)
    assert not found(doctor)


@pytest.mark.parametrize("lr", [50.0, 0.1])
def test_steps_as_large_as_the_weights_are_the_cause_of_what_is_not_finite(lr: float, tmp_path: Path) -> None:
    doctor = examined(
        tmp_path, Learner(Plain(functional.relu, 6, 1), functional.mse_loss, lr), table(256), max_steps=40
    )
    assert found(doctor)[:1] == (["update_too_large"] if lr == 50 else [])


class Validated(Learner):
    """Its inputs are multiplied in validation."""

    factor = 1.0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(self(self.factor * batch[0]), batch[1]))


@pytest.mark.parametrize(("factor", "roots"), [(1.0, []), (6.0, ["train_val_mismatch"])])
def test_inputs_of_another_scale_in_validation(factor: float, roots: list[str], tmp_path: Path) -> None:
    module = Validated(Plain(functional.relu, 6, 1), functional.mse_loss, 0.05)
    module.factor = factor
    loader = DataLoader(TensorDataset(*table(2048)), batch_size=32)
    held = DataLoader(TensorDataset(*table(512)), batch_size=128)
    doctor = Doctor(announce=False)
    fit(tmp_path, module, doctor, loaders=(loader, held), max_steps=180, logger=False, val_check_interval=30)
    assert found(doctor) == roots


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_an_autoencoder_of_large_numbers_is_told_of_its_inputs(factor: float, tmp_path: Path) -> None:
    class Again(Learner):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            x = batch[0].flatten(1)
            return functional.mse_loss(self(x), x)

    doctor = examined(tmp_path, Again(Plain(torch.relu, outputs=36), lr=0.05 / factor**2), pictures(256, factor))
    assert found(doctor) == (["input_scale"] if factor > 1 else [])


def test_functions_are_watched_and_nothing_is_changed(tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [Doctor(announce=False, every_n_steps=1)]):
        module = Learner(Plain(lambda x: functional.dropout(torch.relu(x), 0.2)))
        loader = DataLoader(TensorDataset(*pictures()), batch_size=32)
        fit(tmp_path, module, *callbacks, loaders=(loader,), max_steps=20, logger=False)
        ends.append([*module.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


def test_the_doctor_lets_go_of_the_module(tmp_path: Path) -> None:
    module = Learner(Plain(torch.relu))
    doctor = examined(tmp_path, module, pictures(), max_steps=6)
    net = ref(module.net)
    del module
    gc.collect()
    assert net() is None
    assert isinstance(doctor.evidence, Evidence)
    assert doctor.evidence.of("activation_std").keys() == {"layers.0", "layers.1", "layers.2"}


class Branches(nn.Module):
    """Functions in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)


PLACES: dict[str, tuple[Callable[[Branches, Tensor], Tensor], list[tuple[str, str]]]] = {
    "between layers": (lambda n, x: n.b(n.a(x).relu()), [("relu", "a")]),
    "behind a sum": (lambda n, x: n.c((x + n.b(x)).tanh()), [("tanh", "b")]),
    "in place": (lambda n, x: n.b(functional.relu(n.a(x), inplace=True)), [("relu", "a")]),
    "at the output": (lambda n, x: n.b(n.a(x)).sigmoid(), []),
    "a gate": (lambda n, x: n.c(n.a(x) * n.b(x).sigmoid()), []),
    "gelu by hand": (lambda n, x: n.b(0.5 * n.a(x) * (1 + torch.tanh(n.a(x)))), []),
    "then dropped": (lambda n, x: n.b(functional.dropout(n.a(x).relu(), 0.5)), [("relu", "a")]),
}


@pytest.mark.parametrize("name", PLACES)
def test_functions_that_stand_in_front_of_a_layer_are_found(name: str) -> None:
    forward, expected = PLACES[name]
    net = Branches()
    inspection = Inspection(net)
    inspection.open()
    functions = activation_functions(forward(net, torch.randn(8, 6)).sum(), inspection.returned)
    assert [(each.kind, inspection.names[each.module]) for each in functions if each.module] == expected
    assert all(each.unit_axis == 1 for each in functions)
    inspection.close()


WAYS: dict[str, tuple[Callable[[Branches, Tensor], Tensor], bool]] = {
    "a chain": (lambda n, x: n.c(n.b(n.a(x).tanh()).tanh()), False),
    "added to what it was made of": (lambda n, x: n.c((h := n.a(x).tanh()) + n.b(h).tanh()), True),
    "kept beside it": (lambda n, x: n.c(torch.cat([h := n.a(x).tanh(), n.b(h).tanh()])), True),
    "two towers": (lambda n, x: n.c(torch.cat([n.a(x).tanh(), n.b(x).tanh()])), False),
    "behind the last layer": (lambda n, x: (h := n.a(x).tanh()) + n.b(h), False),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_way_around_a_layer_is_seen(name: str) -> None:
    forward, way_around = WAYS[name]
    assert has_way_around(forward(Branches(), torch.randn(8, 6)).sum()) == way_around


DROPS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "dropout": (lambda x: functional.dropout(x, 0.7), 0.7),
    "of channels": (lambda x: functional.dropout1d(x, 0.5), 0.5),
    "a mask of padding": (lambda x: x * (torch.arange(64) < 20), 0.0),
    "a constant": (lambda x: x * torch.full((64,), 3.0), 0.0),
}


@pytest.mark.parametrize("name", DROPS)
def test_dropout_is_known_by_its_mask(name: str) -> None:
    drop, share = DROPS[name]
    torch.manual_seed(0)
    x: Any = torch.randn(64, 64, requires_grad=True)
    assert dropout_function(drop(x).relu().sum()) == pytest.approx(share)
