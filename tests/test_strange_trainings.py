"""Trainings of all kinds: a diagnostic never ends one, and what it shows is right or absent.

Each number is held against the same computed by hand, where only the order of a few float32 sums can differ.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from strangers import Classifier, cnn, fit, hooks_on, images, lines, loader, values
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics import ActivationStats, BatchNormStats, Figures, GradientStats, Histograms, UpdateStats
from makemore_pl.diagnostics.callback import DiagnosticsCallback

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # advice for loaders that read files
)
HAND = 1e-5
STATS = (ActivationStats, GradientStats, UpdateStats, BatchNormStats)
ALL = (*STATS, Histograms, Figures)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("makemore_pl")]


def mlp(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3))


class Manual(LightningModule):
    """Manual optimization: `steps(module, batch, batch_idx)` does all of it."""

    def __init__(self, net: nn.Module, steps: Callable[[Any, Any, int], None], optimizers: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.steps, self.count = net, steps, optimizers

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.steps(self, batch, batch_idx)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        parts = [[*self.net.parameters()]] if self.count == 1 else [[*part.parameters()] for part in self.net]  # type: ignore[operator]
        return [torch.optim.SGD(part, lr=0.1) for part in parts]


class TestStepsThatNeedNotCoincide:
    def test_a_step_every_fourth_batch_is_as_automatic_accumulation(self, tmp_path: Path) -> None:
        def steps(module: Manual, batch: Any, batch_idx: int) -> None:
            module.manual_backward(module.loss(batch) / 4)
            if batch_idx % 4 == 3:
                module.optimizers().step()
                module.optimizers().zero_grad()

        x, y = images(48 * 8)
        batches = DataLoader(TensorDataset(x, y), batch_size=8)
        stats = [each() for each in STATS[:3]]
        found = values(fit(tmp_path / "m", Manual(mlp(), steps), *stats, loaders=(batches,), max_epochs=1, max_steps=-1))
        options: dict[str, Any] = {"accumulate_grad_batches": 4, "max_epochs": 1, "max_steps": -1}
        expected = values(fit(tmp_path / "a", Classifier(mlp()), *stats, loaders=(batches,), **options))
        assert list(found["grad_norm/before_clipping"]) == [0, 1, 2, 5, 10]
        assert list(expected["grad_norm/before_clipping"]) == [0, 1, 2, 5, 10, 11], "whose last step is known"
        for tag, by_step in found.items():
            for step, number in by_step.items():
                assert number == pytest.approx(expected[tag][step], rel=HAND), tag

    def test_optimizers_that_take_turns_are_all_seen(self, tmp_path: Path) -> None:
        def steps(module: Manual, batch: Any, batch_idx: int) -> None:
            optimizer = module.optimizers()[batch_idx == 2]  # of four
            optimizer.zero_grad()
            module.manual_backward(module.loss(batch))
            optimizer.step()

        torch.manual_seed(0)
        net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 8)), nn.Sequential(nn.Tanh(), nn.Linear(8, 3)))
        found = values(fit(tmp_path, Manual(net, steps, 2), UpdateStats(every_n_steps=10), max_steps=40))
        # due at 0, 1, 2, 5, 10, 20, 30 and the last; the second steps at 2, 6, 10, 14, ...
        assert list(found["update_data_ratio/0.1.weight"]) == [0, 1, 3, 5, 11, 20, 31, 39]
        assert list(found["update_data_ratio/1.1.weight"]) == [2, 6, 10, 22, 30]

    def test_one_that_never_steps_is_not_waited_for_for_ever(self, tmp_path: Path) -> None:
        looked = []

        def steps(module: Manual, batch: Any, batch_idx: int) -> None:
            looked.append(hooks_on(module) > 0)
            optimizer, _ = module.optimizers()
            optimizer.zero_grad()
            module.manual_backward(module.loss(batch))
            optimizer.step()

        torch.manual_seed(0)
        net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 8)), nn.Sequential(nn.Tanh(), nn.Linear(8, 3)))
        found = values(fit(tmp_path, Manual(net, steps, 2), ActivationStats(), max_steps=160))
        assert list(found["activation_mean/1.0"]) == [0, 1, 2, 5, 10, 20, 50, 100, 159]
        assert looked[:100] == [True] * 100
        assert looked[110:] == [False] * 49 + [True]

    def test_a_step_that_goes_past_lightning(self, tmp_path: Path) -> None:
        def steps(module: Manual, batch: Any, batch_idx: int) -> None:
            optimizer = module.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()

        found = values(fit(tmp_path, Manual(mlp(), steps), *(each() for each in STATS[:3]), max_epochs=1, max_steps=-1))
        for tag in ("grad_norm/before_clipping", "activation_grad_std/2", "update_data_ratio/1.weight"):
            assert list(found[tag]) == [0, 1, 2, 3]


class TestWhatCounts:
    def test_gradients_of_two_backwards_are_their_sum(self, tmp_path: Path) -> None:
        def steps(module: Manual, batch: Any, batch_idx: int) -> None:
            logits = module.net(batch[0])
            module.optimizers().zero_grad()
            module.manual_backward(cross_entropy(logits, batch[1]), retain_graph=True)
            module.manual_backward(1e-5 * logits.square().mean())
            module.optimizers().step()

        found = values(fit(tmp_path, Manual(mlp(), steps), GradientStats(), max_steps=1))
        net, (x, y) = mlp(), next(iter(loader()))
        a = net[:3](x)
        logits = net[3](a)
        (grad,) = torch.autograd.grad(cross_entropy(logits, y) + 1e-5 * logits.square().mean(), a)
        assert found["activation_grad_std/2"][0] == pytest.approx(grad.std().item(), rel=HAND)

    @pytest.mark.parametrize("order", ["before", "after"])
    def test_accuracy_without_gradient_displaces_nothing(self, tmp_path: Path, order: str) -> None:
        class Accurate(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                if order == "before":
                    self.accuracy(batch)
                loss = super().training_step(batch, batch_idx)
                if order == "after":
                    self.accuracy(batch)
                return loss

            def accuracy(self, batch: Any) -> None:
                with torch.no_grad():
                    self.net(100 * batch[0])

        net, stats = mlp(), [each() for each in STATS[:3]]
        found = values(fit(tmp_path / "1", Accurate(net), *stats))
        expected = values(fit(tmp_path / "2", Classifier(mlp()), *stats))
        assert found == expected

    @pytest.mark.parametrize("first", ["generator", "discriminator"])
    def test_both_halves_of_a_gan(self, tmp_path: Path, first: str) -> None:
        class Gan(nn.ModuleList):
            def __init__(self) -> None:
                torch.manual_seed(0)
                generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 36))
                super().__init__([generator, nn.Sequential(nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1))])

        z = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

        def steps(module: Manual, batch: Any, batch_idx: int) -> None:
            generator, discriminator = module.net  # type: ignore[misc]

            def train_discriminator() -> None:
                real, fake = discriminator(batch[0].flatten(1)), discriminator(generator(z).detach())
                module.optimizers()[1].zero_grad()
                module.manual_backward((fake - real).mean())
                module.optimizers()[1].step()

            def train_generator() -> None:
                module.optimizers()[0].zero_grad()
                module.manual_backward(-discriminator(generator(z)).mean())
                module.optimizers()[0].step()

            for train in (train_generator, train_discriminator)[:: 1 if first == "generator" else -1]:
                train()

        found = values(fit(tmp_path, Manual(Gan(), steps, 2), GradientStats(), ActivationStats(), max_steps=2))
        generator, discriminator = Gan()
        x = next(iter(loader()))[0].flatten(1)
        if first == "discriminator":
            sgd = torch.optim.SGD(discriminator.parameters(), lr=0.1)
            (discriminator(generator(z).detach()) - discriminator(x)).mean().backward()
            sgd.step()
        a = generator[:2](z)
        (grad,) = torch.autograd.grad(-discriminator(generator[2](a)).mean(), a)
        assert found["activation_grad_std/0.1"][0] == pytest.approx(grad.std().item(), rel=HAND)
        assert found["activation_mean/0.1"][0] == pytest.approx(a.mean().item(), rel=HAND)
        assert found["zero_share/0.1"][0] == pytest.approx((a == 0).float().mean().item())

    @pytest.mark.parametrize("spoil", ["zeroed", "scaled"])
    def test_norm_after_clipping_is_the_optimizer_s(self, tmp_path: Path, spoil: str) -> None:
        class Spoils(Classifier):
            def optimizer_step(self, epoch: Any, batch_idx: Any, optimizer: Any, optimizer_closure: Any = None) -> None:
                optimizer.step(closure=optimizer_closure)
                for p in self.parameters():
                    p.grad = None if spoil == "zeroed" else 1e6 * p.grad  # type: ignore[operator]

        found = values(fit(tmp_path, Spoils(mlp()), GradientStats(), gradient_clip_val=1e9))
        assert set(found["clipped/share"].values()) == {0.0}
        for step, norm in found["grad_norm/before_clipping"].items():
            assert found["grad_norm/after_clipping"][step] == pytest.approx(norm, rel=1e-6)

    def test_lbfgs_is_measured_at_its_first_evaluation(self, tmp_path: Path) -> None:
        module = Classifier(mlp(), optimizer=lambda parameters: torch.optim.LBFGS(parameters, max_iter=4))
        found = values(fit(tmp_path, module, GradientStats(), UpdateStats(), max_steps=1, gradient_clip_val=0.1))
        net, (x, y) = mlp(), next(iter(loader()))
        cross_entropy(net(x), y).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))  # type: ignore[union-attr]
        assert found["grad_norm/before_clipping"][0] == pytest.approx(norm, rel=HAND)
        assert found["grad_norm/after_clipping"][0] == pytest.approx(0.1, rel=1e-3)
        after, before = (each[1].weight.detach() for each in (module.net, net))  # type: ignore[index,union-attr]
        moved = torch.log10((after - before).std() / after.std()).item()
        assert found["update_data_ratio/1.weight"][0] == pytest.approx(moved, abs=HAND)

    def test_what_moves_parameters_after_the_step_is_no_update(self, tmp_path: Path) -> None:
        class Clamped(Classifier):
            def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                super().optimizer_step(*args, **kwargs)
                with torch.no_grad():
                    self.net[1].weight.mul_(100)  # type: ignore[index,union-attr]

        found = values(fit(tmp_path / "1", Clamped(mlp()), UpdateStats(), max_steps=1))
        expected = values(fit(tmp_path / "2", Classifier(mlp()), UpdateStats(), max_steps=1))
        assert found["update_data_ratio/1.weight"] == expected["update_data_ratio/1.weight"]

    def test_complex_parameters(self, tmp_path: Path) -> None:
        class Spectral(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.weight = nn.Parameter(torch.randn(36, 3, dtype=torch.complex64))

            def forward(self, x: Tensor) -> Tensor:
                return (x.flatten(1).to(torch.complex64) @ self.weight).abs()

        found = values(fit(tmp_path, Classifier(Spectral()), *(each() for each in ALL), max_steps=1))
        net, (x, y) = Spectral(), next(iter(loader()))
        cross_entropy(net(x), y).backward()
        assert net.weight.grad is not None
        norm = torch.nn.utils.get_total_norm([net.weight.grad])
        assert found["grad_norm/before_clipping"][0] == pytest.approx(float(norm.real), rel=HAND)
        assert found["grad_std/weight"][0] == pytest.approx(torch.view_as_real(net.weight.grad).std().item(), rel=HAND)
        assert found["update_data_ratio/weight"][0] is not None

    def test_dead_channels_of_a_sequence(self, tmp_path: Path) -> None:
        def net(activation: nn.Module) -> nn.Sequential:
            torch.manual_seed(0)
            conv = nn.Conv1d(6, 4, 3)
            with torch.no_grad():
                conv.bias[:2] = -1000  # type: ignore[index]
            return nn.Sequential(nn.Flatten(1, 2), conv, activation, nn.Flatten(), nn.Linear(16, 3))

        for activation in (nn.ReLU(), nn.Tanh()):
            module = Classifier(net(activation))
            found = values(fit(tmp_path / type(activation).__name__, module, ActivationStats(), max_steps=1))
            kind = "stuck_units/2" if isinstance(activation, nn.ReLU) else "dead_units/2"
            assert found[kind][0] == 0.5

    def test_units_nobody_can_tell_are_told_by_the_user(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        net = nn.Sequential(nn.Flatten(1, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
        found = values(fit(tmp_path / "1", Classifier(net), ActivationStats()))
        assert not any(tag.startswith("stuck_units") for tag in found)
        assert "activation_mean/1" in found
        assert told(caplog) == [
            "ActivationStats leaves out stuck and dead units of 1: no layer before it tells which dimension holds the "
            "units. Say so with unit_axis=."
        ]
        x, _ = next(iter(loader()))
        dead = (x.flatten(1, 2).relu().movedim(-1, 0).flatten(1) < 1e-5).sum(1) >= 8 * 6 - 2
        found = values(fit(tmp_path / "2", Classifier(net), ActivationStats(unit_axis=-1)))
        assert found["stuck_units/1"][0] == pytest.approx(dead.float().mean().item())

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_recomputed_segments_measure_as_others(self, tmp_path: Path, reentrant: bool) -> None:
        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = cnn()
                self.net[2] = nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                x = x.clone().requires_grad_()
                return checkpoint(self.net[:6], x, use_reentrant=reentrant), self.net[6]  # type: ignore[return-value]

        class Whole(Checkpointed):
            def forward(self, x: Tensor) -> Tensor:
                hidden, last = super().forward(x)
                return last(hidden)  # type: ignore[no-any-return]

        class Plain(Checkpointed):
            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)  # type: ignore[no-any-return]

        stats = [each(every_n_steps=1) for each in STATS]
        found = values(fit(tmp_path / "1", Classifier(Whole()), *stats))
        expected = values(fit(tmp_path / "2", Classifier(Plain()), *stats))
        assert found.keys() == expected.keys()
        for tag, by_step in expected.items():
            if 0 not in by_step:
                continue
            # recomputation moves running statistics twice, which the first step does not see yet
            assert found[tag][0] == pytest.approx(by_step[0], rel=HAND, abs=1e-7), tag

    def test_two_layers_never_share_a_name(self, tmp_path: Path) -> None:
        class Named(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(OrderedDict(flat=nn.Flatten(), linear=nn.Linear(36, 3), act=nn.Tanh()))
                self.act = nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return self.act(self.net(x))  # type: ignore[no-any-return]

        found = values(fit(tmp_path, Classifier(Named()), ActivationStats(), max_steps=1))
        assert {tag for tag in found if tag.startswith("activation_mean")} == {
            "activation_mean/net.act", "activation_mean/act"
        }  # fmt: skip
