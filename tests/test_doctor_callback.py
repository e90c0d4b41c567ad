"""The doctor on LightningModules that are not ours: classic slips are named, healthy trainings left in peace."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from strangers import Classifier, TwoOptimizers, fit
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics import ActivationStats, Doctor
from makemore_pl.doctor.inspection import Inspection
from makemore_pl.doctor.mixed_examples import mixed_examples

Net = Callable[[], nn.Module]


def pictures(count: int = 256, scale: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randn(3, 1, 6, 6, generator=generator)
    y = torch.randint(3, (count,), generator=generator)
    return (patterns[y] + torch.randn(count, 1, 6, 6, generator=generator)) * scale + shift, y


def cnn(*after: nn.Module, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=bias),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
        *after,
    )


def mlp(*after: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1), *after)


def table(count: int = 256, scale: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, :1] + x[:, 1:2].tanh()) * scale + shift


class Learner(LightningModule):
    """Any network and loss; `slip` is called at the start of each training step."""

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        lr: float = 0.05,
        slip: Callable[["Learner"], Any] = lambda module: None,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.lr, self.slip = net, loss, lr, slip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.slip(self)
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class NeverZeroed(Learner):
    def optimizer_zero_grad(self, *_: Any) -> None:
        pass


class HeadOnly(Learner):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert isinstance(self.net, nn.Sequential)
        return torch.optim.SGD(self.net[-1].parameters(), lr=self.lr)


class Detached(Learner):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.net, nn.Sequential)
        y: Tensor = self.net[-1](self.net[:-1](x).detach())
        return y


class Recurrent(Learner):
    """Sequences (B, T, 5) for an LSTM that wants (T, B, 5)."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        torch.manual_seed(0)
        super().__init__(nn.LSTM(5, 8))
        self.head, self.turn = nn.Linear(8, 3), turn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.net(self.turn(x))[0][-1])
        return y


def sequences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(256, 7, 5, generator=generator)
    return x, (x[:, :, 0].sum(1) > 0).long() + (x[:, :, 1].sum(1) > 0).long()


class Graph(nn.Module):
    """One layer of a graph network: nodes (N, F) and their adjacency matrix (N, N), given or kept."""

    kept: Tensor | None

    def __init__(self, kept: Tensor | None = None) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 3)
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Tensor:
        y: Tensor = self.lin(torch.matmul(self.kept if adjacency is None else adjacency, x))  # type: ignore[arg-type]
        return y


class Pairs(nn.Module):
    """Similarity of each example with each other one."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.T


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class SoftmaxOverExamples(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


class Projected(nn.Module):
    """A projection (N, T, 6) -> (N, T, 16) that a second layer reads, and something else."""

    def __init__(self, between: Callable[[Tensor, nn.Linear, nn.Linear], Tensor]) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.between(self.stem(x), self.a, self.b).relu())
        return y


def constant(net: nn.Sequential) -> nn.Sequential:
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    return net


def examined(directory: Path, module: LightningModule, data: tuple[Tensor, Tensor], **options: Any) -> Doctor:
    doctor = Doctor(announce=False)
    loader = DataLoader(TensorDataset(*data), batch_size=32)
    fit(directory, module, doctor, loaders=(loader,), **({"max_steps": 120, "logger": False} | options))
    return doctor


HEALTHY: dict[str, Callable[[], tuple[LightningModule, tuple[Tensor, Tensor]]]] = {
    "cnn": lambda: (Learner(cnn()), pictures()),
    "mlp": lambda: (Learner(mlp(), functional.mse_loss), table()),
    "sigmoid for targets in range": lambda: (
        Learner(mlp(nn.Sigmoid()), functional.mse_loss, lr=0.5),
        (table()[0], (table()[1] > 0).float()),
    ),
    "recurrent": lambda: (Recurrent(lambda x: x.permute(1, 0, 2)), sequences()),
    "two optimizers": lambda: (TwoOptimizers(), (pictures()[0], pictures()[1])),
    "log-softmax twice": lambda: (Learner(cnn(nn.LogSoftmax(1))), pictures()),
    "log-softmax by hand": lambda: (
        Learner(cnn(), lambda z, y: functional.nll_loss(z - z.logsumexp(1, keepdim=True), y)),
        pictures(),
    ),
    "logarithm by hand": lambda: (
        Learner(cnn(nn.Softmax(1)), lambda p, y: functional.nll_loss(p.log(), y)),
        pictures(),
    ),
}
SLIPS: dict[str, tuple[str, Callable[[], tuple[LightningModule, tuple[Tensor, Tensor]]]]] = {
    "zero_grad forgotten": ("gradients_accumulate", lambda: (NeverZeroed(cnn()), pictures())),
    "eval left on": ("batchnorm_eval", lambda: (Learner(cnn(), slip=lambda module: module.eval()), pictures())),
    "softmax module": ("softmax_before_cross_entropy", lambda: (Learner(cnn(nn.Softmax(1))), pictures())),
    "softmax function": (
        "softmax_before_cross_entropy",
        lambda: (Learner(cnn(), lambda logits, y: functional.cross_entropy(logits.softmax(1), y)), pictures()),
    ),
    "logits as log-likelihoods": ("activation_before_loss", lambda: (Learner(cnn(), functional.nll_loss), pictures())),
    "relu on logits": ("activation_before_loss", lambda: (Learner(cnn(nn.ReLU())), pictures())),
    "sigmoid for wide targets": (
        "activation_before_loss",
        lambda: (Learner(mlp(nn.Sigmoid()), functional.mse_loss), table()),
    ),
    "left out of the optimizer": ("frozen_parameters", lambda: (HeadOnly(cnn()), pictures())),
    "detached": ("no_gradient", lambda: (Detached(cnn()), pictures())),
    "view for permute": ("examples_mixed", lambda: (Recurrent(lambda x: x.view(7, -1, 5)), sequences())),
    "bytes": ("input_scale", lambda: (Learner(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))), pictures(256, 60, 128))),
    "prices": ("target_scale", lambda: (Learner(mlp(), functional.mse_loss, 1e-6), table(256, 100, 500))),
    "sum for mean": (
        "update_too_large",
        lambda: (Learner(mlp(), lambda p, y: functional.mse_loss(p, y, reduction="sum")), table()),
    ),
    "constant weights": ("symmetric_units", lambda: (Learner(constant(cnn())), pictures())),
    "one example for all": ("constant_input", lambda: (Learner(cnn()), pictures(256, 0.0, 1.0))),
    "rate too high": ("update_too_large", lambda: (Learner(cnn(), lr=100.0), pictures())),
    "rate too low": ("update_too_small", lambda: (Learner(cnn(), lr=1e-6), pictures())),
    "shuffled labels": (
        "no_learning",
        lambda: (Learner(cnn(), lr=0.01), (pictures(4096)[0], pictures(4096)[1].roll(7))),
    ),
}  # fmt: skip


NOBODY_KNOWS: dict[str, tuple[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]]] = {
    "adjacency matrix": ("as long as", lambda: (Graph(), (torch.randn(8, 6), torch.rand(8, 8)))),
    "adjacency in a buffer": ("as long as", lambda: (Graph(torch.rand(8, 8)), (torch.randn(8, 6),))),
    "as many steps as sequences": ("as long as", lambda: (nn.LSTM(3, 4), (torch.randn(8, 8, 3),))),
    "each with each": ("no output", lambda: (Pairs(), (torch.randn(8, 6),))),
    "statistics of the minibatch": (
        "BatchNorm",
        lambda: (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)), (torch.randn(8, 6),)),
    ),
    "random": ("random", lambda: (Noisy(), (torch.randn(8, 6),))),
}


@pytest.mark.parametrize("name", NOBODY_KNOWS)
def test_where_examples_may_see_each_other_nothing_is_said(name: str) -> None:
    why, make = NOBODY_KNOWS[name]
    net, given = make()
    inspection = Inspection(net)
    inspection.open()
    net(*given)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=why):
        mixed_examples(inspection, given, 8)
    assert torch.equal(torch.get_rng_state(), state)


BETWEEN: dict[str, tuple[Callable[[Tensor, nn.Linear, nn.Linear], Tensor], list[tuple[str, str]]]] = {
    "nothing": (lambda x, a, b: b(a(x)), [("stem", "a"), ("a", "b")]),
    "activation in place": (lambda x, a, b: b(functional.relu(a(x.relu_()), inplace=True)), []),
    "activation": (lambda x, a, b: b(a(x.relu()).relu()), []),
    "query and key": (lambda x, a, b: a(x) * b(x), []),
    "residual": (lambda x, a, b: x + b(a(x).relu()), []),
    "one of two": (lambda x, a, b: x + b(a(x)), [("a", "b")]),
    "a matrix of constants": (lambda x, a, b: b(torch.ones(4, 5, 5).bmm(a(x.relu()))), [("a", "b")]),
    "a sum": (lambda x, a, b: b(a(x.relu()) + a(x.tanh())), [("a", "b")]),
    "relu by hand": (lambda x, a, b: b((h := a(x.relu())) * (h > 0)), []),
    "attention": (lambda x, a, b: b(x.relu().bmm(x.mT).bmm(a(x.relu()))), []),
    "a sum with an activation": (lambda x, a, b: b(a(x.relu()) + a(x.relu()).relu()), []),
    "a residual stream": (lambda x, a, b: b(x + a(x.relu())), []),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_follow_each_other_where_nothing_else_reads_between(name: str) -> None:
    between, pairs = BETWEEN[name]
    net = Projected(between)
    inspection = Inspection(net)
    inspection.open()
    net(torch.randn(4, 5, 6)).sum().backward()
    inspection.close()
    assert inspection.linear_pairs == pairs


def separable(a: int, b: int) -> list[nn.Module]:
    return [nn.Conv2d(a, a, 3, groups=a), nn.Conv2d(a, b, 1)]


ROWS: dict[str, tuple[Callable[[], list[nn.Module]], list[tuple[str, str]]]] = {
    "a block of MobileNet without activations": (
        lambda: [nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Identity(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8),
                 nn.Conv2d(8, 4, 1)],
        [("0", "5")],
    ),
    "the same with them": (
        lambda: [nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8),
                 nn.ReLU6(), nn.Conv2d(8, 4, 1)],
        [],
    ),
    "separable convolutions": (lambda: [*separable(4, 8), nn.ReLU(), *separable(8, 8)], []),
    "a linear bottleneck": (lambda: [nn.Conv2d(4, 2, 1), nn.Conv2d(2, 8, 1), nn.ReLU()], []),
    "a large kernel taken apart": (lambda: [nn.Conv2d(4, 4, 3, groups=4), *separable(4, 4)], []),
    "fewer channels, then a separable one": (lambda: [nn.Conv2d(4, 2, 1), *separable(2, 2)], []),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_depthwise_convolution_between_is_linear_too(name: str) -> None:
    layers, pairs = ROWS[name]
    net = nn.Sequential(*layers())
    inspection = Inspection(net)
    inspection.open()
    net(torch.randn(4, 4, 9, 9)).sum().backward()
    inspection.close()
    assert inspection.linear_pairs == pairs


def test_what_is_read_beside_a_depthwise_convolution_has_its_own_use() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.depthwise = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.project = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.expand(x)
            y: Tensor = h + self.project(self.depthwise(h))
            return y

    net = Beside()
    inspection = Inspection(net)
    inspection.open()
    net(torch.randn(4, 4, 5, 5)).sum().backward()
    inspection.close()
    assert not inspection.linear_pairs


def test_scales_and_normalisations_are_no_units(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.norm = nn.Parameter(torch.ones(6, 1, 1) / 10), nn.LayerNorm((4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.scale * self.norm(x)
            return y

    net = cnn()
    doctor = examined(tmp_path, Learner(nn.Sequential(*net[:3], Scaled(), *net[3:])), pictures(), max_steps=12)
    assert "symmetric_units" in doctor.checked
    assert "symmetric_units" not in {each.id for each in doctor.findings}


class Forgetful(nn.Module):
    """Takes steps for examples where it turns; of a state a tenth is left at the next step."""

    def __init__(self, turns: bool) -> None:
        super().__init__()
        self.turns = turns

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for step in (x.transpose(0, 1) if self.turns else x).unbind(1):
            h = 0.1 * h + step
        return h


@pytest.mark.parametrize("turns", [False, True])
def test_as_many_steps_as_examples_are_told_apart_in_what_a_loader_has_collated(turns: bool) -> None:
    net, x = Forgetful(turns), torch.randn(8, 8, 3)
    inspection = Inspection(net)
    inspection.open()
    net(x)
    assert bool(mixed_examples(inspection, (x, torch.zeros(8)), 8, collated=True)) is turns
    inspection.outer = [(net, (x.transpose(0, 1),), {})]  # turned by its caller
    with pytest.raises(ValueError, match="as long as"):
        mixed_examples(inspection, (x, torch.zeros(8)), 8, collated=True)


def test_softmax_over_the_examples_mixes_them() -> None:
    net, x = nn.Sequential(nn.Linear(6, 4), nn.Dropout(), SoftmaxOverExamples()), torch.randn(8, 6)
    inspection = Inspection(net)
    inspection.open()
    net(x)
    assert mixed_examples(inspection, (x,), 8)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_trainings_are_left_in_peace(name: str, tmp_path: Path) -> None:
    doctor = examined(tmp_path, *HEALTHY[name]())
    assert not [each for each in doctor.findings if each.severity != "info"]
    assert len(doctor.checked) > 15


@pytest.mark.parametrize("name", SLIPS)
def test_slips_are_named_first(name: str, tmp_path: Path) -> None:
    id, make = SLIPS[name]
    doctor = examined(tmp_path, *make())
    assert doctor.diagnosis.roots[0].id == id
    assert doctor.prescriptions[0].finding == id
    assert doctor.prescriptions[0].rationale


def test_frozen_on_purpose_and_a_needless_bias_are_information(tmp_path: Path) -> None:
    module = Learner(cnn(bias=True))
    module.net[4].requires_grad_(False)  # type: ignore[index,union-attr]
    doctor = examined(tmp_path, module, pictures())
    assert {each.id: each.severity for each in doctor.findings} == {
        "bias_before_batchnorm": "info",
        "frozen_parameters": "info",
    }


def test_findings_are_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = DataLoader(TensorDataset(*pictures()), batch_size=32)
    fit(tmp_path, Learner(cnn(nn.Softmax(1))), Doctor(), loaders=(loader,), max_steps=12)
    content = json.loads((tmp_path / "findings.json").read_text())
    assert content["version"] == 1
    assert content["findings"][0]["id"] == "softmax_before_cross_entropy"
    assert set(content["findings"][0]) == {
        "id", "severity", "where", "step", "value", "bound", "source", "message", "because_of"
    }  # fmt: skip
    assert "no_learning" in {each["id"] for each in content["abstentions"]}  # 12 steps say nothing
    assert "softmax_before_cross_entropy" in content["checked"]
    assert "softmax_before_cross_entropy" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cnn", "recurrent", "two optimizers"])
def test_it_changes_nothing(name: str, tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [Doctor(announce=False)], [ActivationStats(), Doctor(announce=False)]):
        torch.manual_seed(5)
        module, data = HEALTHY[name]()
        loader = DataLoader(TensorDataset(*data), batch_size=32, shuffle=True)
        fit(tmp_path, module, *callbacks, loaders=(loader,), max_steps=24, logger=False)
        ends.append([*module.state_dict().values(), torch.rand(3)])
    for other in ends[1:]:
        assert all(torch.equal(one, two) for one, two in zip(ends[0], other, strict=True))


def test_accumulated_gradients_are_no_forgotten_zero_grad(tmp_path: Path) -> None:
    doctor = examined(tmp_path, Classifier(cnn()), pictures(), accumulate_grad_batches=4, max_steps=20)
    assert "gradients_accumulate" in doctor.checked
    assert not [each for each in doctor.findings if each.severity != "info"]


def test_a_loss_that_is_not_finite_ends_in_a_verdict(tmp_path: Path) -> None:
    module = Classifier(cnn(), spoil=lambda loss, batch_idx: loss * float("nan") if batch_idx > 4 else loss)
    doctor = examined(tmp_path, module, pictures(), max_steps=8)
    assert doctor.diagnosis.roots[0].id == "not_finite"
    assert doctor.diagnosis.roots[0].step == 5


def test_it_can_be_used_again_for_another_training(tmp_path: Path) -> None:
    doctor = Doctor(announce=False)
    for net, expected in ((cnn(nn.Softmax(1)), ["softmax_before_cross_entropy"]), (cnn(), [])):
        loader = DataLoader(TensorDataset(*pictures()), batch_size=32)
        Trainer(
            max_steps=40, callbacks=[doctor], logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        ).fit(Learner(net), loader)  # fmt: skip
        assert [each.id for each in doctor.diagnosis.roots][:1] == expected


def test_a_generator_of_the_network_s_own_is_not_drawn_from() -> None:
    generator = torch.Generator().manual_seed(3)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape, generator=generator)

    network, x = Noisy(), torch.randn(8, 4)
    inspection = Inspection(network)
    inspection.open()
    network(x)
    before = generator.get_state()
    with pytest.raises(ValueError, match="the network draws from a generator of its own"):
        mixed_examples(inspection, (x,), 8)
    assert torch.equal(generator.get_state(), before)
