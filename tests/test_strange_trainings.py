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
from conftest import Compose
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from strangers import Classifier, cnn, fit, hooks_on, images, lines, loader, values
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from makemore_pl.diagnostics import ActivationStats, BatchNormStats, Figures, GradientStats, Histograms, UpdateStats
from makemore_pl.diagnostics.callback import DiagnosticsCallback
from makemore_pl.train import build

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
        found = values(
            fit(tmp_path / "m", Manual(mlp(), steps), *stats, loaders=(batches,), max_epochs=1, max_steps=-1)
        )
        options: dict[str, Any] = {"accumulate_grad_batches": 4, "max_epochs": 1, "max_steps": -1}
        expected = values(fit(tmp_path / "a", Classifier(mlp()), *stats, loaders=(batches,), **options))
        assert list(found["grad_norm/before_clipping"]) == [0, 1, 2, 5, 10, 11]
        assert list(expected["grad_norm/before_clipping"]) == [0, 1, 2, 5, 10, 11]
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

    def test_units_nobody_can_tell_are_told_by_the_user(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


class Layers(nn.Module):
    """Linear, `middle`, linear; `middle` gets (B, 8) and returns (B, 8) after `unpack`."""

    def __init__(self, middle: nn.Module, unpack: Callable[[Any], Tensor] = lambda out: out) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last, self.unpack = nn.Linear(36, 8), middle, nn.Linear(8, 3), unpack

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.unpack(self.middle(self.first(x.flatten(1)))))  # type: ignore[no-any-return]


class NewGELUActivation(nn.Module):
    """As transformers has it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(x, approximate="tanh")


class GLU(nn.Module):
    """Named like an activation function, but its output has half the shape."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.glu(x)] * 2, -1).flatten(0).reshape(-1, 4)


class TestAbsentRatherThanWrong:
    @pytest.mark.parametrize("kind", ["tuple", "list", "dict", "nested"])
    def test_outputs_of_every_structure(self, tmp_path: Path, kind: str) -> None:
        class Structured(nn.Module):
            def forward(self, x: Tensor) -> Any:
                y = x.tanh()
                return {"tuple": (y, x), "list": [y], "dict": {"a": y}, "nested": {"a": (None, [y])}}[kind]

        def unpack(out: Any) -> Tensor:
            while not isinstance(out, Tensor):
                out = next(x for x in (out.values() if isinstance(out, dict) else out) if x is not None)
            return out

        stats = [each(pattern="middle") for each in (ActivationStats, GradientStats, Histograms)]
        found = values(fit(tmp_path, Classifier(Layers(Structured(), unpack)), *stats, max_steps=1))
        net, (x, y) = Layers(nn.Tanh()), next(iter(loader()))
        a = net.first(x.flatten(1)).tanh()
        (grad,) = torch.autograd.grad(cross_entropy(net.last(a), y), a)
        assert found["activation_std/middle"][0] == pytest.approx(a.std().item(), rel=HAND)
        assert found["activation_grad_std/middle"][0] == pytest.approx(grad.std().item(), rel=HAND)

    def test_transforms_of_torch_func(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        class PerSample(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                x, y = batch

                def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
                    return cross_entropy(torch.func.functional_call(self.net, parameters, (x[None],)), y[None])

                parameters = dict(self.net.named_parameters())
                grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
                torch.func.jacrev(self.net)(x)
                whole = sum(
                    ((grad.mean(0).detach() * parameters[name]).sum() for name, grad in grads.items()), x.new_zeros(())
                )
                return whole if batch_idx else whole + super().training_step(batch, batch_idx)

        found = values(fit(tmp_path, PerSample(mlp()), *(each() for each in ALL), max_steps=2))
        a = mlp()[:3](next(iter(loader()))[0])
        assert found["activation_std/2"] == {0: pytest.approx(a.std().item(), rel=HAND)}
        assert list(found["grad_std/1.weight"]) == [0, 1]
        assert told(caplog) == [], "a network without BatchNorm lacks nothing"

    def test_nested_tensors(self, tmp_path: Path) -> None:
        class Ragged(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.first, self.act, self.last = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)

            def rows(self, x: Tensor) -> list[Tensor]:
                return [image[: 2 + index % 3] for index, image in enumerate(x[:, 0])]

            def forward(self, x: Tensor) -> Tensor:
                nested = torch.nested.nested_tensor(self.rows(x), layout=torch.jagged)
                out = self.last(self.act(self.first(nested)))
                return torch.stack([each.mean(0) for each in out.unbind()])

        found = values(fit(tmp_path, Classifier(Ragged()), *(each() for each in STATS[:3]), Histograms(), max_steps=1))
        net, (x, y) = Ragged(), next(iter(loader()))
        rows = [net.first(row).relu() for row in net.rows(x)]
        grads = torch.autograd.grad(cross_entropy(torch.stack([net.last(row).mean(0) for row in rows]), y), rows)
        a, grad = torch.cat(rows), torch.cat(grads)
        assert found["activation_std/act"][0] == pytest.approx(a.std().item(), rel=HAND)
        assert found["activation_grad_std/act"][0] == pytest.approx(grad.std().item(), rel=HAND)
        assert found["stuck_units/act"][0] == ((a.abs() < 1e-5).sum(0) >= len(a) - len(a) // 20).float().mean().item()

    @pytest.mark.filterwarnings("ignore:The total number of parameters detected may be inaccurate")
    def test_lazy_layers(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        layers = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
        module = Classifier(nn.Sequential(*layers), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        found = values(fit(tmp_path, module, *(each() for each in ALL), max_steps=2))
        for tag in ("grad_std/0.weight", "update_data_ratio/4.weight", "stuck_units/2", "batchnorm_mean_lag/1"):
            assert list(found[tag]) == [0, 1], tag

    def test_modules_replaced_while_training(self, tmp_path: Path) -> None:
        class Grown(Classifier):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
                if batch_idx == 2:
                    head = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
                    self.net[3] = head  # type: ignore[index]
                    self.trainer.optimizers[0].add_param_group({"params": [*head.parameters()]})

        found = values(fit(tmp_path, Grown(mlp()), *(each(every_n_steps=1) for each in STATS[:3])))
        assert list(found["grad_std/3.weight"]) == [0, 1]
        assert list(found["grad_std/3.0.weight"]) == list(found["update_data_ratio/3.2.weight"]) == [2, 3]
        assert list(found["activation_mean/3.1"]) == [3], "modules are looked up before the batch that brings them"

    @pytest.mark.parametrize("kept", ["bias", "norm", "nothing"])
    def test_only_vectors_are_trained(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: str) -> None:
        net = cnn()
        for name, p in net.named_parameters():
            p.requires_grad_((kept == "bias" and name.endswith("bias")) or (kept == "norm" and name.startswith("1.")))
        if kept == "nothing":
            net[1].weight.requires_grad_()  # so that there is a loss to minimise; nothing of it is stepped
        module = Classifier(net, optimizer=lambda parameters: torch.optim.SGD(
            [p for p in parameters if p.requires_grad] if kept != "nothing" else [net[0].weight], lr=0.1))  # fmt: skip
        found = values(fit(tmp_path, module, *(each() for each in ALL), max_steps=1))
        assert not any(tag.startswith(("grad_std", "update_data_ratio")) for tag in found)
        assert "activation_mean/2" in found
        if kept != "nothing":
            net = cnn()
            x, y = next(iter(loader()))
            cross_entropy(net(x), y).backward()
            mine = [
                p.grad
                for (_, p), q in zip(net.named_parameters(), module.net.parameters(), strict=True)
                if q.requires_grad
            ]
            norm = torch.stack([grad.norm() for grad in mine if grad is not None]).norm()
            assert found["grad_norm/before_clipping"][0] == pytest.approx(norm.item(), rel=HAND)
        assert "UpdateStats leaves out everything: no parameter of two or more dimensions is trained." in told(caplog)

    def test_activation_classes_that_are_not_torch_s(self, tmp_path: Path) -> None:
        found = values(fit(tmp_path, Classifier(Layers(NewGELUActivation())), ActivationStats(), max_steps=1))
        net, (x, _) = Layers(NewGELUActivation()), next(iter(loader()))
        a = net.middle(net.first(x.flatten(1)))
        assert found["activation_std/middle"][0] == pytest.approx(a.std().item(), rel=HAND)
        assert "stuck_units/middle" in found

    def test_what_is_only_named_like_one(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        net = Layers(nn.Sequential(GLU(), nn.Flatten(0), nn.Unflatten(0, (8, 8))))
        net.middle[0].__class__ = type("SwiGELU", (GLU,), {})  # type: ignore[index]
        found = values(fit(tmp_path, Classifier(net), ActivationStats(), max_steps=1))
        assert set(found) == {"loss"}
        (said,) = told(caplog)
        assert "another shape than its input" in said

    def test_functional_activations(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = nn.Linear(36, 8), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(relu(self.first(x.flatten(1))))  # type: ignore[no-any-return]

        found = values(fit(tmp_path / "1", Classifier(Functional()), ActivationStats(), GradientStats(), max_steps=1))
        assert set(found) == {"loss", "not_finite/gradients", "grad_norm/before_clipping"} | {
            f"{quantity}/{layer}.weight" for quantity in ("grad_std", "grad_data_ratio") for layer in ("first", "last")
        }
        assert [each.partition(":")[0] for each in told(caplog)] == [
            "ActivationStats leaves out everything",
            "GradientStats leaves out activation gradients",
        ]
        assert all("Functional" in each or ("Classifier" in each and "pattern=" in each) for each in told(caplog))
        found = values(fit(tmp_path / "2", Classifier(Functional()), ActivationStats(pattern="first"), max_steps=1))
        assert "activation_std/first" in found

    @pytest.mark.parametrize("how", ["net", "method", "module"])
    def test_compiled(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
        net: Any = mlp()
        if how == "method":
            net.compile(backend="eager")

        class Silent(Classifier):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return cross_entropy(self.net(batch[0]), batch[1])  # torch can't compile Lightning's self.log

        module: Any = Silent(torch.compile(net, backend="eager") if how == "net" else net)  # type: ignore[arg-type]
        if how == "module":
            module = torch.compile(module, backend="eager")
        found = values(fit(tmp_path, module, *(each() for each in ALL), max_steps=2))
        plain = values(fit(tmp_path / "plain", Classifier(mlp()), *(each() for each in STATS[1:3]), max_steps=2))
        for tag in ("grad_std/1.weight", "update_data_ratio/3.weight", "grad_norm/before_clipping"):
            assert list(found[tag].values()) == pytest.approx(list(plain[tag].values()), rel=HAND), tag
        assert not any(tag.startswith("activation") or "_orig_mod" in tag for tag in found)
        assert sum("torch.compile has taken it over" in each for each in told(caplog)) == 4, "once a callback"

    def test_distributed_tensors(self, tmp_path: Path) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import distribute_tensor

        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            mesh = init_device_mesh("cpu", (1,))

            class Sharded(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    torch.manual_seed(0)
                    self.weight = nn.Parameter(distribute_tensor(torch.randn(36, 3), mesh))
                    self.act = nn.Tanh()

                def forward(self, x: Tensor) -> Tensor:
                    out = self.act(distribute_tensor(x.flatten(1), mesh) @ self.weight)
                    return out.full_tensor()  # type: ignore[no-any-return]

            found = values(fit(tmp_path, Classifier(Sharded()), *(each() for each in ALL), max_steps=1))
        finally:
            torch.distributed.destroy_process_group()
        torch.manual_seed(0)
        weight, (x, y) = torch.randn(36, 3).requires_grad_(), next(iter(loader()))
        a = (x.flatten(1) @ weight).tanh()
        cross_entropy(a, y).backward()
        assert weight.grad is not None
        for tag, number in {
            "grad_std/weight": weight.grad.std(),
            "grad_norm/before_clipping": weight.grad.norm(),
            "activation_std/act": a.std(),
            "update_data_ratio/weight": torch.log10((0.1 * weight.grad).std() / (weight - 0.1 * weight.grad).std()),
        }.items():
            assert found[tag][0] == pytest.approx(number.item(), rel=1e-4), tag
        assert found["not_finite/gradients"][0] == 0

    def test_what_a_module_calls_by_our_names(self, tmp_path: Path) -> None:
        class Crowded(Classifier):
            def __init__(self) -> None:
                super().__init__(cnn())
                self.probe, self.watched_step, self.mean_loss = nn.Linear(8, 3), nn.Identity(), nn.ReLU()

        found = values(fit(tmp_path, Crowded(), *(each() for each in ALL)))
        assert list(found["loss"]) == list(found["unmoved/share"]) == [0, 1, 2, 3]

    def test_whatever_the_watch_itself_raises(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError("no hooks here")

        monkeypatch.setattr(nn.Tanh, "register_forward_hook", fails, raising=False)
        found = values(fit(tmp_path, Classifier(), *(each() for each in STATS)))
        assert "activation_mean/2" in found
        assert "activation_mean/5" not in found
        said = told(caplog)
        assert said[:2] == [
            f"{name}Stats leaves out 5: RuntimeError: no hooks here." for name in ("Activation", "Gradient")
        ]

    def test_whatever_a_statistic_raises(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any, **__: Any) -> Tensor:
            raise RuntimeError("out of memory")

        from makemore_pl.diagnostics import statistics

        monkeypatch.setattr(statistics, "std", fails)
        monkeypatch.setattr(statistics, "global_norm", fails)
        found = values(fit(tmp_path, Classifier(), *(each() for each in ALL)))
        assert "activation_mean/2" in found
        assert not any("std/" in tag or "norm" in tag.partition("/")[0].split("_") for tag in found)
        said = told(caplog)
        assert len(said) == len(set(said)) == 4, "once a callback and reason"
        assert all(each.endswith("RuntimeError: out of memory.") for each in said)


class TestWhatIsSaid:
    @pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode")
    def test_reused_and_bypassed_modules_are_named_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = nn.Linear(36, 9), nn.Linear(9, 3)
                self.relu, self.unused, self.frozen = nn.ReLU(), nn.Tanh(), nn.Tanh().eval()

            def forward(self, x: Tensor) -> Tensor:
                self.frozen.eval()
                return self.last(self.frozen(self.relu(self.relu(self.first(x.flatten(1))))))  # type: ignore[no-any-return]

        stats = [each() for each in ALL if each is not BatchNormStats]
        found = values(fit(tmp_path, Classifier(Odd()), *stats))
        assert "activation_mean/relu" in found
        assert not {"activation_mean/unused", "activation_mean/frozen"} & found.keys()
        assert told(caplog) == [
            "Diagnostics: relu (2 times) ran more than once in a step: the first call is measured.",
            "Diagnostics: frozen ran in eval mode only: nothing is measured.",
            "Diagnostics: unused did not run in the first watched step: nothing is measured while that is so.",
        ]

    def test_batchnorm_without_running_statistics(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        net = cnn()
        net[1] = nn.BatchNorm2d(4, track_running_stats=False)
        found = values(fit(tmp_path, Classifier(net), BatchNormStats()))
        assert set(found) == {"loss"}
        assert told(caplog) == ["BatchNormStats leaves out 1: it keeps no running statistics to compare a batch with."]

    def test_many_of_them_are_one_line(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        class Deep(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.acts, self.last = nn.ModuleList(nn.ReLU() for _ in range(16)), nn.Linear(36, 3)

            def forward(self, x: Tensor) -> Tensor:
                x = x.flatten(1)
                for act in self.acts:
                    x = act(act(x))
                return self.last(x)  # type: ignore[no-any-return]

        fit(tmp_path, Classifier(Deep()), *(each() for each in ALL if each is not BatchNormStats))
        (said,) = told(caplog)
        assert "acts.3 (2 times) and 12 more" in said

    def test_loggers_that_show_no_histograms(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        fit(tmp_path, Classifier(), Histograms(), logger=CSVLogger(tmp_path))
        assert told(caplog) == [
            "Histograms leaves out everything: CSVLogger can't show histograms. Use TensorBoardLogger or "
            "JSONLinesLogger."
        ]

    @pytest.mark.filterwarnings("ignore:You are running in `Trainer.barebones=True.")
    @pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True, "logger": None}])
    def test_trial_runs_write_nothing(self, tmp_path: Path, options: dict[str, Any]) -> None:
        names = ("log_every_n_steps", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
        bare = dict.fromkeys(names) if "barebones" in options else {}
        trainer = Trainer(
            max_steps=2, accelerator="cpu", default_root_dir=tmp_path, callbacks=[each() for each in ALL],
            **({"enable_progress_bar": False} | bare | options),
        )  # fmt: skip
        module = Classifier()
        module.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        trainer.fit(module, loader())
        assert not list(tmp_path.rglob("*"))

    def test_a_prefix_is_on_all_tags(self, tmp_path: Path) -> None:
        boards = [TensorBoardLogger(tmp_path / name, name="", version="", prefix=name) for name in ("a", "b")]
        fit(tmp_path, Classifier(), *(each() for each in ALL), logger=boards, max_steps=2)
        for name in ("a", "b"):
            tags = EventAccumulator(str(tmp_path / name)).Reload().Tags()
            for kind in ("scalars", "histograms", "images"):
                assert tags[kind]
                assert all(tag.startswith(f"{name}-") and not tag[2:].startswith(("a-", "b-")) for tag in tags[kind])


class TestTheEndOfARun:
    def test_diagnostics_can_be_monitored(self, tmp_path: Path) -> None:
        checkpoint = ModelCheckpoint(tmp_path / "best", monitor="grad_norm/before_clipping", mode="max", save_top_k=1)
        stop = EarlyStopping("zero_share/2", mode="min", patience=0, min_delta=1.0, check_on_train_epoch_end=True)
        logger = fit(
            tmp_path, Classifier(), *(each() for each in STATS), stop, checkpoint, enable_checkpointing=True,
            max_steps=-1, max_epochs=5,
        )  # fmt: skip
        found = values(logger)
        assert list(found["loss"]) == list(range(8)), "it stopped after two epochs"
        assert checkpoint.best_model_score is not None
        # saved after steps 3 and 7, of which the numbers of steps 2 and 5 were the last
        norms = [found["grad_norm/before_clipping"][step] for step in (2, 5)]
        assert float(checkpoint.best_model_score) == pytest.approx(max(norms))  # type: ignore[type-var]
        epochs = [line for line in lines(logger) if "epoch" in line.get("values", {})]
        assert not any(tag.startswith(("grad", "activation")) for line in epochs for tag in line["values"])

    def test_early_stopping_on_our_own_module(self, small: Compose) -> None:
        config = small(
            "callbacks=diagnostics", "logger=jsonl", "trainer.max_steps=60", "trainer.watch_every=10",
            "trainer.val_check_interval=10",
        )  # fmt: skip
        config.callbacks = {"activation_stats": config.callbacks["activation_stats"]}
        config.callbacks["stop"] = {
            "_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "saturation/layers.0", "patience": 0,
            "min_delta": 1.0, "check_on_train_epoch_end": False,
        }  # fmt: skip
        trainer, module, datamodule = build(config)
        trainer.fit(module, datamodule=datamodule)
        assert trainer.global_step == 21, "at the second validation"

    def test_that_comes_early_shows_the_last_watched_step(self, tmp_path: Path) -> None:
        class Stops(Callback):
            """As EarlyStopping, Timer and max_time do it."""

            def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
                trainer.should_stop = trainer.global_step == 14

        stats = [each(every_n_steps=6) for each in (*STATS, Histograms, Figures)]
        logger = fit(tmp_path, Classifier(), *stats, Stops(), max_epochs=100, max_steps=-1)
        pictures = {path.stem for path in (tmp_path / "figures").iterdir()}
        names = {"activations", "activation_gradients", "weight_gradients", "saturation", "spread_over_depth"}
        assert pictures == {f"{name}_{step}" for name in names for step in (0, 12)} | {"update_data_ratio_12"}
        shown = {line["step"]: line["histograms"] for line in lines(logger) if "histograms" in line}
        assert list(shown) == [0, 1, 2, 5, 10, 12, 13]
        assert {tag.partition("/")[0] for tag in shown[12]} == {"activations", "activation_grads", "weight_grads"}
        assert set(shown[13]) == {f"weights/{layer}.weight" for layer in (0, 4, 6)}
        # the same run, of which step 12 is the last, shows the same
        other = fit(tmp_path / "other", Classifier(), *(each() for each in (*STATS, Histograms, Figures)), max_steps=13)
        expected = {line["step"]: line["histograms"] for line in lines(other) if "histograms" in line}
        assert shown[12] == {tag: each for tag, each in expected[12].items() if not tag.startswith("weights/")}

    def test_a_run_that_ends_where_it_should_shows_nothing_twice(self, tmp_path: Path) -> None:
        logger = fit(tmp_path, Classifier(), *(each() for each in ALL), max_steps=3)
        steps = [line["step"] for line in lines(logger) if "histograms" in line]
        assert steps == [0, 1, 2]
        assert len([path for path in (tmp_path / "figures").iterdir() if path.stem.startswith("activations")]) == 2

    def test_an_interrupted_run(self, tmp_path: Path) -> None:
        import signal

        def interrupt(module: Classifier, batch_idx: int) -> None:
            if module.global_step == 3:
                raise KeyboardInterrupt

        handler = signal.getsignal(signal.SIGINT)
        stats: list[DiagnosticsCallback] = [Figures(every_n_steps=2), Histograms(), UpdateStats()]
        try:
            with pytest.raises(SystemExit):
                fit(tmp_path, Classifier(before=interrupt), *stats, max_steps=8)
        finally:
            signal.signal(signal.SIGINT, handler)  # which Lightning leaves ignored
        assert (tmp_path / "figures" / "activations_2.png").exists()

    def test_resumed_manual_optimization_goes_on_counting(self, tmp_path: Path) -> None:
        def steps(module: Manual, batch: Any, batch_idx: int) -> None:
            module.manual_backward(module.loss(batch))
            if batch_idx % 2:
                module.optimizers().step()
                module.optimizers().zero_grad()

        saved = tmp_path / "saved.ckpt"

        class Saves(Callback):
            def on_train_end(self, trainer: Trainer, *_: Any) -> None:
                trainer.save_checkpoint(saved)

        whole = values(
            fit(tmp_path / "whole", Manual(mlp(), steps), UpdateStats(every_n_steps=1), max_epochs=4, max_steps=-1)
        )
        fit(tmp_path / "parts", Manual(mlp(), steps), UpdateStats(every_n_steps=1), Saves(), max_epochs=2, max_steps=-1)
        resumed = fit(
            tmp_path / "parts", Manual(mlp(), steps), UpdateStats(every_n_steps=1), max_epochs=4, max_steps=-1,
            ckpt_path=saved,
        )  # fmt: skip
        assert list(whole["unmoved/share"]) == list(range(8))
        assert values(resumed) == whole
