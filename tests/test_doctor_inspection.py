"""The doctor on modules that resist inspection: what can't be looked at costs one fact and no other."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from strangers import fit, hooks_on
from test_doctor_callback import Learner, cnn, examined, pictures, sequences
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics import Doctor
from makemore_pl.diagnostics.loss_record import unscaled
from makemore_pl.doctor.copied_units import copies_of_units

Data = tuple[Tensor, Tensor]


def scripted() -> nn.Sequential:
    net = cnn()
    net[4] = torch.jit.script(net[4])
    return net


class Mapped(nn.Module):
    """A layer that runs inside vmap, one image at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.inner)(x)


def mapped() -> nn.Sequential:
    net = cnn()
    net[4] = Mapped(nn.Sequential(net[4], nn.ReLU()))
    return net


def lazy() -> nn.Sequential:
    net = cnn()
    net[4] = nn.LazyLinear(16)
    return net


class Replaced(Learner):
    """Its activation is another module from the fourth step on."""

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        if self.global_step == 3:
            assert isinstance(self.net, nn.Sequential)
            self.net[5] = nn.GELU()
        return super().training_step(batch, batch_idx)


STRANGE: dict[str, Callable[[], Learner]] = {
    "TorchScript": lambda: Learner(scripted()),
    "vmap": lambda: Learner(mapped()),
    "a lazy layer": lambda: Learner(lazy()),
    "a module that is replaced": lambda: Replaced(cnn()),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("name", STRANGE)
def test_one_thing_that_resists_costs_no_other(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = STRANGE[name]()
    doctor = examined(tmp_path, module, pictures(), max_steps=12)
    assert not [each.id for each in doctor.findings if each.severity != "info"]
    wanted = {"input_scale", "constant_input", "gradients_accumulate", "softmax_before_cross_entropy",
              "symmetric_units", "no_gradient", "frozen_parameters", "confident_start"}  # fmt: skip
    assert wanted <= set(doctor.checked), doctor.abstentions
    assert not [each for each in caplog.messages if "Doctor leaves out" in each]
    assert not hooks_on(module)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_reason_is_told_where_something_was_not_seen(tmp_path: Path) -> None:
    doctor = examined(tmp_path, Learner(scripted()), pictures(), max_steps=12)
    told = {each.id: each.reason for each in doctor.abstentions}
    assert told["linear_network"].startswith("net.4 could not be looked at: ")


class WithoutGradient(Learner):
    """The first layers run under no_grad, though the optimizer has them."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.net, nn.Sequential)
        with torch.no_grad():
            x = self.net[:4](x)
        y: Tensor = self.net[4:](x)
        return y


class Compared(Learner):
    """A target network under no_grad, whose output is only compared with, as a self-supervised one's."""

    def __init__(self) -> None:
        super().__init__(cnn())
        self.target = cnn()

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        with torch.no_grad():
            goal = self.target(batch[0])
        return functional.mse_loss(self(batch[0]), goal + 1)


def test_layers_under_no_grad_are_not_reached(tmp_path: Path) -> None:
    doctor = examined(tmp_path, WithoutGradient(cnn()), pictures(), max_steps=12)
    assert [(each.id, each.where.partition(",")[0]) for each in doctor.diagnosis.roots] == [
        ("no_gradient", "net.0.weight")
    ]
    doctor = examined(tmp_path, Compared(), pictures(), max_steps=12)
    assert {each.id: each.severity for each in doctor.findings if each.id == "no_gradient"} == {"no_gradient": "info"}


class Sequence(Learner):
    """Time comes first in what its layer gets, so that examples lie along the second dimension."""

    def __init__(self) -> None:
        super().__init__(nn.GRU(5, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.net(x.transpose(0, 1))[0][-1])
        return y


class Spelling(Learner):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 3)))


CONSTANT: dict[str, tuple[Callable[[], Learner], Tensor]] = {
    "sequences": (Sequence, sequences()[0][:1].expand(256, -1, -1)),
    "words": (Spelling, torch.arange(5).expand(256, 5)),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_one_example_for_all_is_seen_whatever_its_dimensions(name: str, tmp_path: Path) -> None:
    make, x = CONSTANT[name]
    doctor = examined(tmp_path, make(), (x, pictures()[1]), max_steps=12)
    assert doctor.diagnosis.roots[0].id == "constant_input"
    different = torch.randint(9, x.shape) if name == "words" else sequences()[0]
    doctor = examined(tmp_path, make(), (different, pictures()[1]), max_steps=12)
    assert "constant_input" in doctor.checked
    assert not doctor.diagnosis.roots


def test_what_is_critical_is_said_once_while_it_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def train(net: nn.Module, **options: Any) -> list[str]:
        caplog.clear()
        loader = DataLoader(TensorDataset(*pictures()), batch_size=32)
        with caplog.at_level(logging.WARNING):
            fit(
                tmp_path, Learner(net, **options), Doctor(announce=False), loaders=(loader,), max_steps=30, logger=False
            )
        return [each for each in caplog.messages if each.startswith("The doctor, at step ")]

    assert train(cnn()) == []
    (said,) = train(cnn(nn.Softmax(1)))
    assert said.startswith(
        "The doctor, at step 2: Softmax before a cross-entropy (softmax_before_cross_entropy, critical)"
    )
    said_later = train(cnn(), lr=100.0)
    assert [each for each in said_later if "update_too_large" in each] == said_later[:1]
    assert not said_later[0].startswith("The doctor, at step 2:"), "what only later steps show has to be there twice"


def test_a_gradient_scaler_s_factor_is_taken_off_the_loss() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = torch.tensor(2.5, requires_grad=True)
    assert unscaled(scaler.scale(loss).detach(), scaler).item() == 2.5
    assert unscaled(loss.detach(), None).item() == 2.5


@pytest.mark.parametrize("factor", [0.5, 8.0])
def test_a_factor_on_the_loss_changes_no_finding(factor: float, tmp_path: Path) -> None:
    loss = lambda z, y: functional.cross_entropy(z, y) * factor  # noqa: E731
    doctor = examined(tmp_path, Learner(cnn(), loss, lr=0.05 / factor), pictures(), max_steps=12)
    assert not doctor.diagnosis.roots
    assert "confident_start" in doctor.checked
    assert doctor.evidence is not None
    assert doctor.evidence.facts.loss_scale == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        ([[1, 2], [1, 3], [4, 2]], 0.0),  # two agree in their first number only
        ([[1, 2], [1, 2], [1, 3], [4, 5]], 1 / 3),  # one of three possible copies
        ([[1, 2], [1, 2], [1, 2]], 1.0),
        ([[0, 0], [0, 0], [1, 2]], 0.0),  # rows of zeros are left out
    ],
)
def test_copies_of_units_are_whole_rows_that_agree(rows: list[list[float]], share: float) -> None:
    found = copies_of_units({"weight": nn.Parameter(torch.tensor(rows, dtype=torch.float32))})
    assert found.get("weight", 0.0) == pytest.approx(share)
