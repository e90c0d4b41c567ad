"""The callbacks, in real runs, on our module and on others: what they leave alone, when they look, what they measure.

Numbers are checked against the same training written by hand. Both run the same kernels on the same tensors, so only
the order of a few float32 sums can differ: 1e-5 relative is fifty times that, and any wrong definition misses it.
"""

import math
import random
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from probes import HaltedError
from strangers import Classifier, TwoOptimizers, Validated, cnn, fit, hooks_on, images, lines, loader, values
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from makemore_pl.callbacks import Baselines, Samples
from makemore_pl.config import Config
from makemore_pl.diagnostics import ActivationStats, BatchNormStats, GradientStats, Histograms, UpdateStats
from makemore_pl.diagnostics.callback import DiagnosticsCallback, log_spaced
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.diagnostics.offers import (
    Averaged,
    Configured,
    Probed,
    Strided,
    configuration_of,
    mean_loss_of,
    watch_every_of,
)
from makemore_pl.diagnostics.pictures import Figures
from makemore_pl.diagnostics.watch import fetch
from makemore_pl.stride.watched_steps import next_watched
from makemore_pl.train import build

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",  # advice for loaders that read files
)
HAND = 1e-5
STATS = (ActivationStats, GradientStats, UpdateStats, BatchNormStats)
ALL = (*STATS, Baselines, Histograms, Figures, Samples)


def train(config: Config, *more: Callback) -> tuple[Trainer, LightningModule, Any]:
    """Train as makemore_pl.train.run does, without evaluation."""
    torch.manual_seed(0)
    trainer, module, datamodule = build(config)
    trainer.callbacks[:0] = more  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=datamodule, ckpt_path=config.ckpt_path, weights_only=True)
    return trainer, module, datamodule


def diagnosed(small: Compose, *overrides: str, only: tuple[str, ...] = (), **options: Any) -> Config:
    """A small run with diagnostics, by default all but the pictures, which take most of the time."""
    config = small("callbacks=diagnostics", "logger=jsonl", *overrides, **options)
    kept = only or tuple(name for name in config.callbacks if name != "figures")
    config.callbacks = {name: config.callbacks[name] for name in kept}
    return config


def measured(trainer: Trainer) -> dict[str, dict[int, float | None]]:
    (logger,) = (each for each in trainer.loggers if isinstance(each, JSONLinesLogger))
    return values(logger)


class Before(Callback):
    """The parameters before and after each optimizer step, and the gradients that the optimizer got."""

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.unclipped: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []

    @staticmethod
    def copies(module: LightningModule, grad: bool = False) -> dict[str, Tensor]:
        named = {name.partition(".")[2]: p for name, p in module.named_parameters()}
        return {n: (p.grad if grad else p).detach().clone() for n, p in named.items() if not grad or p.grad is not None}  # type: ignore[union-attr]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.before.append(self.copies(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.unclipped.append(self.copies(pl_module, grad=True))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after.append(self.copies(pl_module))
        self.gradients.append(self.copies(pl_module, grad=True))


class TestWatchingChangesNothing:
    @pytest.mark.parametrize(
        "variant",
        [
            ("model.batchnorm=none",),
            ("model.batchnorm=pre", "model.n_layers=2"),
            ("model.batchnorm=post",),
            ("model.batchnorm=output",),
            ("model.batchnorm=pre_output", "model.dropout=0.3"),
            ("optim=adam", "trainer.gradient_clip_val=0.3", "model.batchnorm=pre"),
            ("trainer.watch_every=1", "trainer.max_steps=25", "model.batchnorm=pre", "optim.momentum=0.9"),
        ],
        ids=lambda variant: " ".join(variant),
    )
    def test_bit_by_bit(self, small: Compose, tmp_path: Path, variant: tuple[str, ...]) -> None:
        states = []
        length = ("trainer.max_steps=45", "trainer.watch_every=20", "trainer.val_check_interval=20")
        for callbacks, logger in (("none", "none"), ("diagnostics", "tensorboard")):
            random.seed(0)
            np.random.seed(0)
            config = small(
                f"callbacks={callbacks}", f"logger={logger}", *length, *variant, run_dir=tmp_path / callbacks
            )
            if "model.batchnorm=pre_output" not in variant:  # once with pictures, which take most of the time
                config.callbacks.pop("figures", None)
            trainer, module, datamodule = train(config)
            watching = sum(isinstance(each, DiagnosticsCallback) for each in trainer.callbacks)  # type: ignore[attr-defined]
            assert watching == len(config.callbacks)
            assert watching == (0 if callbacks == "none" else 8 + ("model.batchnorm=pre_output" in variant))
            optimizer = trainer.optimizers[0].state_dict()
            tensors = [*module.state_dict().values(), datamodule.generator.get_state(), torch.get_rng_state()]
            tensors += [x for state in optimizer["state"].values() for x in state.values() if isinstance(x, Tensor)]
            states.append((tensors, optimizer["param_groups"], random.getstate(), repr(np.random.get_state())))
        (bare, *rest), (watched, *others) = states
        assert len(bare) == len(watched)
        assert all(torch.equal(one, other) for one, other in zip(bare, watched, strict=True))
        assert rest == others


class TestWhenItLooks:
    @pytest.mark.parametrize(
        "overrides",
        [
            ("trainer.watch_every=20", "trainer.max_steps=50", "trainer.val_check_interval=21"),
            ("trainer.watch_every=7", "trainer.max_steps=23", "trainer.val_check_interval=10"),
        ],
    )
    def test_points_lie_at_the_watched_steps(self, small: Compose, overrides: tuple[str, ...]) -> None:
        config = diagnosed(small, "logger=tensorboard", "model.batchnorm=pre", *overrides)
        trainer, _, _ = train(config)
        steps, first = [], 0
        while first < config.trainer.max_steps:
            steps.append(next_watched(first, config.trainer))
            first = steps[-1] + 1
        assert (steps[0], steps[-1]) == (0, config.trainer.max_steps - 1)
        found = measured(trainer)
        ours = "train/loss", "lr"
        theirs = "saturation/layers.0", "grad_norm/before_clipping", "update_data_ratio/embedding.weight"
        for tag in (*ours, *theirs, "batchnorm_mean_lag/layers.0"):
            assert list(found[tag]) == steps, tag
        every = config.trainer.val_check_interval
        assert list(found["val/loss"]) == [s for s in steps if (s > 0 and s % every == 0) or s == steps[-1]]
        assert list(found["batchnorm_gap/loss"]) == [s for s in steps if log_spaced(s) or s == steps[-1]]

    def test_plain_lightning_is_sampled(self, small: Compose) -> None:
        config = diagnosed(small, "trainer.watch_every=1", "trainer.max_steps=45", only=("gradient_stats",))
        config.callbacks["gradient_stats"]["every_n_steps"] = 15
        trainer, _, _ = train(config)
        assert list(measured(trainer)["grad_norm/before_clipping"]) == [0, 1, 2, 5, 10, 15, 20, 30, 44]

    def test_generic_module(self, tmp_path: Path) -> None:
        # 4 batches an epoch; by epochs, so that the last step follows from them
        found = values(fit(tmp_path, Classifier(), UpdateStats(every_n_steps=8), max_epochs=4, max_steps=-1))
        assert list(found["unmoved/share"]) == [0, 1, 2, 5, 8, 10, 15]
        assert list(found["loss"]) == list(range(16)), "the axis is that of self.log"

    def test_of_accumulated_gradients_the_batch_with_the_step(self, tmp_path: Path) -> None:
        stats = [each(every_n_steps=1) for each in STATS]
        found = values(fit(tmp_path, Classifier(), *stats, max_steps=5, accumulate_grad_batches=3))
        assert list(found["activation_mean/2"]) == list(found["unmoved/share"]) == [0, 1, 2, 3, 4]

    def test_two_optimizers(self, tmp_path: Path) -> None:
        # max_steps counts the steps of both: 13 batches
        module = TwoOptimizers()
        stats = GradientStats(), UpdateStats(), ActivationStats(), Histograms()
        logger = fit(tmp_path, module, *stats, max_steps=26)
        found = values(logger)
        assert list(found["unmoved/share"]) == [0, 1, 2, 5, 10, 12]
        assert list(found["loss"]) == list(range(13))
        for half in ("one.1.weight", "two.0.weight", "two.2.weight"):
            assert list(found[f"grad_std/{half}"]) == list(found[f"update_data_ratio/{half}"]) == [0, 1, 2, 5, 10, 12]
        histograms = [line["histograms"] for line in lines(logger) if "histograms" in line]
        assert all(len(each) == 2 * 3 + 2 * 2 for each in histograms), (
            "of each matrix and each activation, and gradients"
        )
        for step, norm in found["grad_norm/before_clipping"].items():
            assert norm == pytest.approx(module.norms[step], rel=HAND), "each optimizer's own gradients, together"

    def test_every_n_steps_must_be_a_step(self) -> None:
        with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
            UpdateStats(every_n_steps=0)


class Syncs(TorchFunctionMode):
    """Counts what brings numbers from the device to Python."""

    NAMES = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "nonzero"}

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := getattr(func, "__name__", "")) in self.NAMES:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class DeviceSyncs(TorchDispatchMode):
    """Counts the operators that wait for the device: sizes that depend on values, and single numbers."""

    OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_unique2", "equal"}
    DECOMPOSITIONS = ("linalg_svd", "linalg_eig", "linalg_lstsq", "linalg_cholesky")
    """Their errors are looked for in a number that comes from the device."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").removeprefix("_")
        by_mask = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if (
            func._schema.name.removeprefix("aten::") in self.OPERATORS
            or by_mask
            or name.startswith(self.DECOMPOSITIONS)
        ):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x[x > 0], lambda x: torch.linalg.svdvals(x), lambda x: x.nonzero(), lambda x: x.unique(),
        lambda x: torch.equal(x, x), lambda x: torch.linalg.eigh(x), lambda x: bool(x.sum() > 0),
        lambda x: x.sum().item(),
    ],
)  # fmt: skip
def test_the_guard_below_sees_what_waits_for_the_device(waits: Callable[[Tensor], Any]) -> None:
    functions, operators = Syncs(), DeviceSyncs()
    with functions, operators:
        waits(torch.eye(3))
    assert functions.seen + operators.seen


@pytest.mark.parametrize("n_layers", [1, 5])
def test_one_transfer_a_watched_step_however_many_tags(small: Compose, n_layers: int) -> None:
    config = diagnosed(
        small, "trainer.max_steps=6", "model.batchnorm=pre_output", f"model.n_layers={n_layers}",
        "trainer.gradient_clip_val=0.5",
    )  # fmt: skip
    config.callbacks.pop("samples")  # which spells, at six steps of a run
    config.callbacks.pop("doctor")  # which looks closely at the first steps, once
    trainer, module, datamodule = build(config)
    functions, operators = Syncs(), DeviceSyncs()
    hooks = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
    others = ("see_input", "see_output", "after_clipping", "after_update")  # which run inside forward and step

    def counted(hook: Callable[..., None]) -> Callable[..., None]:
        def wrapper(*args: Any) -> None:
            with functions, operators:
                hook(*args)

        return wrapper

    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, DiagnosticsCallback):
            for hook in (*hooks, *others):
                setattr(callback, hook, counted(getattr(callback, hook)))
    trainer.fit(module, datamodule=datamodule)
    found = measured(trainer)
    steps = len(found["train/loss"])
    assert steps == 4
    assert len(found) > 20 + 15 * n_layers
    assert functions.seen == ["cpu", "numpy"] * steps
    assert operators.seen == []


def test_fetch() -> None:
    numbers, arrays = fetch({
        "a": torch.tensor(1.5), "b": torch.tensor([[1, 2], [3, 4]]), "c": torch.tensor(float("nan")),
        "d": torch.tensor([True, False, True]), "e": torch.tensor(2, dtype=torch.int64),
    })  # fmt: skip
    assert math.isnan(numbers.pop("c"))
    assert numbers == {"a": 1.5, "e": 2.0}
    assert {tag: array.tolist() for tag, array in arrays.items()} == {"b": [1, 2, 3, 4], "d": [1, 0, 1]}
    assert fetch({}) == ({}, {})
    assert fetch({"b": torch.ones(2)})[1]["b"].tolist() == [1, 1]


class TestHooksAreGone:
    @pytest.fixture(autouse=True)
    def keyboard(self) -> Iterator[None]:
        handler = signal.getsignal(signal.SIGINT)  # which Lightning leaves ignored
        yield
        signal.signal(signal.SIGINT, handler)

    @pytest.mark.parametrize(
        ("end", "raised"), [(None, None), (RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)]
    )
    def test_generic_module(self, tmp_path: Path, end: type[BaseException] | None, raised: Any) -> None:
        during: list[int] = []

        def before(module: Classifier, batch_idx: int) -> None:
            during.append(hooks_on(module))
            module.seen = module.trainer.optimizers
            if end and batch_idx == 2:
                raise end

        module, stats = Classifier(before=before), [each() for each in ALL if each is not Figures]
        if raised:
            with pytest.raises(raised):
                fit(tmp_path, module, *stats)
        else:
            fit(tmp_path, module, *stats)
        # at step 0 two activations and the BatchNorm have a hook before and one after, however many callbacks look;
        # one more tells of each layer where its units lie
        assert during[0] == 3 * 2 + 4
        assert hooks_on(module) == 0
        assert not any(optimizer._optimizer_step_pre_hooks for optimizer in module.seen)
        assert not any(each.watch or each.values for each in stats), "nor do they hold on to tensors"

    @pytest.mark.parametrize(("end", "raised"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, SystemExit)])
    def test_our_module(self, small: Compose, end: type[BaseException], raised: Any) -> None:
        trainer, module, datamodule = build(diagnosed(small, "model.batchnorm=pre"))
        handles = module.model.output.register_forward_hook(lambda *_: (_ for _ in ()).throw(end))
        with pytest.raises(raised):
            trainer.fit(module, datamodule=datamodule)
        assert hooks_on(module) == 1, "only the one that ended the run"
        handles.remove()


class TestGenericModule:
    """A CNN with BatchNorm2d and ReLU; accumulation, validation on the way, sanity check, EarlyStopping."""

    def test_against_the_same_training_by_hand(self, tmp_path: Path) -> None:
        stats = [each(every_n_steps=1) for each in STATS]
        stopper = EarlyStopping("val_loss", patience=100)
        logger = fit(
            tmp_path, Validated(), *stats, stopper, max_steps=4, accumulate_grad_batches=2, val_check_interval=2,
            num_sanity_val_steps=2, loaders=(loader(), loader()), check_val_every_n_epoch=None,
        )  # fmt: skip
        found, net, step = values(logger), cnn(), 3
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        x, y = images()
        xs, ys = [*x.split(8)] * 2, [*y.split(8)] * 2
        for now in range(step + 1):
            sgd.zero_grad()
            for micro in (2 * now, 2 * now + 1):
                mean, var = net[1].running_mean.clone(), net[1].running_var.clone()
                convolved = net[0](xs[micro])
                z = net[1](convolved)
                relu = z.relu()
                relu.retain_grad()
                pre = net[4](relu.flatten(1))
                tanh = pre.tanh()
                loss = cross_entropy(net[6](tanh), ys[micro]) / 2
                loss.backward()
            before = {name: p.detach().clone() for name, p in net.named_parameters()}
            sgd.step()
        relu, tanh = relu.detach(), tanh.detach()
        expected = {
            "activation_mean/2": relu.mean(),
            "activation_std/2": relu.std(),
            "preactivation_std/2": z.std(),
            "zero_share/2": (relu == 0).float().mean(),
            "saturation/5": (tanh.abs() > 0.97).float().mean(),
            "activation_std/5": tanh.std(),
            "linear_share/5": (pre.abs() < 0.8).float().mean(),
            "grad_norm/before_clipping": torch.stack([p.grad.square().sum() for p in net.parameters()]).sum().sqrt(),  # type: ignore[union-attr]
            "not_finite/gradients": torch.tensor(0.0),
            "unmoved/share": torch.tensor(0.0),
            "batchnorm_weight_std/1": net[1].weight.std(),
        }
        for name in ("0.weight", "4.weight", "6.weight"):
            p = net.get_parameter(name)
            assert p.grad is not None
            expected[f"grad_std/{name}"] = p.grad.std()
            expected[f"grad_data_ratio/{name}"] = p.grad.std() / before[name].std()
            expected[f"update_data_ratio/{name}"] = torch.log10((p - before[name]).std() / p.std())
        # images are the sample: 8 of them, with means that differ by what the mean of all may be off
        image_means = convolved.mean((2, 3))
        share = (image_means.var(0) / convolved.var((0, 2, 3), correction=0)).mean()
        lag = ((image_means.mean(0) - mean) / var.sqrt()).square().mean().sqrt() * (8 / share).sqrt()
        expected["batchnorm_mean_lag/1"] = lag
        for tag, number in expected.items():
            assert found[tag][step] == pytest.approx(number.item(), rel=HAND, abs=1e-7), tag
        assert len(found["val_loss"]) > 1
        weights = {tag for tag in found if tag.startswith("grad_std/")}
        assert weights == {"grad_std/0.weight", "grad_std/4.weight", "grad_std/6.weight"}, "matrices and filters only"

    def test_activation_gradient(self, tmp_path: Path) -> None:
        found, net = values(fit(tmp_path, Classifier(), GradientStats(), max_steps=1)), cnn()
        x, y = next(iter(loader()))
        relu = net[:3](x)
        relu.retain_grad()
        cross_entropy(net[3:](relu), y).backward()
        assert found["activation_grad_std/2"][0] == pytest.approx(relu.grad.std().item(), rel=HAND)

    def test_bf16(self, tmp_path: Path) -> None:
        # bfloat16 has 8 bits: what is near one half is right to some 1/256
        exact = values(fit(tmp_path / "32", Classifier(), *(each() for each in STATS)))
        found = values(fit(tmp_path / "16", Classifier(), *(each() for each in STATS), precision="bf16-mixed"))
        assert exact.keys() == found.keys()
        for tag in ("activation_mean/2", "activation_std/2", "zero_share/2", "grad_norm/before_clipping"):
            assert found[tag][0] == pytest.approx(exact[tag][0], rel=0.03), tag
        assert found["activation_std/2"][0] != exact["activation_std/2"][0], "it must have been bfloat16"

    @pytest.mark.parametrize("fused", [False, True])
    def test_gradient_scaler(self, tmp_path: Path, fused: bool) -> None:
        def linear() -> nn.Sequential:
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3))

        def module() -> Classifier:
            return Classifier(linear(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=fused))

        # the first steps overflow: the scaler skips them and halves its scale until they don't
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)  # type: ignore[attr-defined]
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        found, exact = (
            values(
                fit(tmp_path / name, module(), *(each(every_n_steps=1) for each in STATS[:3]), max_steps=8, **options)
            )
            for name, options in (("16", {"plugins": [plugin]}), ("32", {}))
        )
        skipped = [step for step, share in found["unmoved/share"].items() if share == 1]
        assert skipped == list(range(len(skipped)))
        assert 0 < len(skipped) < 8
        assert not any(tag.startswith("activation_grad_std/") for tag in found)
        assert found["activation_std/2"][0] == pytest.approx(exact["activation_std/2"][0], rel=1e-2)
        if fused:
            assert not any(tag.startswith(("grad_", "not_finite")) for tag in found)
        else:
            norms, counts = found["grad_norm/before_clipping"], found["not_finite/gradients"]
            assert [step for step, number in norms.items() if number is None] == skipped, "infinite, as null"
            assert [step for step, number in counts.items() if number] == skipped
            net = linear()  # as it still is at the first step that is not skipped
            x, y = [*loader()][len(skipped)]
            cross_entropy(net(x), y).backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))  # type: ignore[union-attr]
            assert norms[len(skipped)] == pytest.approx(norm, rel=1e-2), "without the scale; half precision has 11 bits"

    @pytest.mark.parametrize(
        "net",
        [
            nn.Sequential(nn.Flatten(), nn.TransformerEncoderLayer(36, 2, 16, batch_first=True), nn.Linear(36, 3)),
            nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.PReLU(), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 3)),
            nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
        ],
        ids=["transformer", "mixed", "linear"],
    )
    def test_constructed_without_arguments_on_any_network(self, tmp_path: Path, net: nn.Sequential) -> None:
        linear = len(net) == 2  # without any activation: pictures of weights only
        stats = [each() for each in ALL if each is not ActivationStats and (linear or each is not Figures)]
        found = values(fit(tmp_path, Classifier(net), *stats))
        assert all(number is not None for number in found["grad_norm/before_clipping"].values())
        assert any(tag.startswith("update_data_ratio/") for tag in found)

    def test_no_logger(self, tmp_path: Path) -> None:
        fit(tmp_path, Classifier(), *(each() for each in ALL), logger=False)
        assert (tmp_path / "figures" / "activations_0.png").is_file()

    def test_sparse_gradients(self, tmp_path: Path) -> None:
        class Embedder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(7, 3, sparse=True)
                self.relu = nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return self.relu(self.embedding(x.flatten(1)[:, 0].abs().long().clamp(max=6)))  # type: ignore[no-any-return]

        found = values(fit(tmp_path, Classifier(Embedder()), *(each() for each in STATS), Histograms()))
        assert found["grad_std/embedding.weight"][0] is not None

    def test_gradients_that_are_not_finite_are_counted(self, tmp_path: Path) -> None:
        module = Classifier(spoil=lambda loss, batch_idx: loss * (math.nan if batch_idx == 2 else 1))
        found = values(fit(tmp_path, module, GradientStats(), ActivationStats(), Histograms()))
        elements = sum(p.numel() for p in module.parameters())
        assert found["not_finite/gradients"] == {0: 0, 1: 0, 2: elements, 3: elements}
        assert found["grad_norm/before_clipping"][2] is None, "NaN, as null"
        assert found["activation_mean/2"][2] is not None

    @pytest.mark.parametrize("names", [("nothing", "Tanh"), ("two.0", "one")])
    def test_callback_objects_used_again_start_anew(self, tmp_path: Path, names: tuple[str, str]) -> None:
        stats = [each() for each in STATS]
        first, second = (
            fit(tmp_path / name, Classifier(), *stats, gradient_clip_val=0.5).path.read_text() for name in names
        )
        assert first == second


class TestRefusals:
    """The only errors: a pattern that matches nothing, at the start."""

    def test_nothing_matched(self, tmp_path: Path) -> None:
        said = r"pattern 'nosuch' matches nothing .* in Classifier, which has net \(Sequential\), net.0 \(Conv2d\)"
        with pytest.raises(ValueError, match=said):
            fit(tmp_path, Classifier(), GradientStats(pattern="nosuch"))
        with pytest.raises(ValueError, match="pattern '\\(' is not a regular expression: missing \\)"):
            fit(tmp_path, Classifier(), ActivationStats(pattern="("))

    def test_not_a_batchnorm(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="matches nothing that can be watched"):
            fit(tmp_path, Classifier(), BatchNormStats(pattern=r"^net\.4$"))


class TestUpdates:
    @pytest.mark.parametrize(
        "overrides",
        [
            (),
            ("optim.momentum=0.9", "optim.lr=0.02"),
            ("optim=adam", "optim.weight_decay=0.1", "optim.lr=0.01"),
            ("optim=adamw", "optim.weight_decay=0.1", "trainer.gradient_clip_val=0.1"),
            ("trainer.gradient_clip_val=0.05",),
        ],
        ids=lambda overrides: " ".join(overrides) or "sgd",
    )
    def test_ratio_is_that_of_the_parameters_before_and_after(self, small: Compose, overrides: tuple[str, ...]) -> None:
        length = ("trainer.watch_every=1", "trainer.max_steps=8")
        config = diagnosed(small, *length, *overrides, only=("update_stats",))
        config.callbacks["update_stats"]["every_n_steps"] = 1
        probe = Before()
        trainer, _, _ = train(config, probe)
        found = measured(trainer)
        for name in ("embedding.weight", "layers.0.linear.weight", "output.linear.weight"):
            for step, (before, after) in enumerate(zip(probe.before, probe.after, strict=True)):
                ratio = torch.log10((after[name] - before[name]).std() / after[name].std()).item()
                assert found[f"update_data_ratio/{name}"][step] == pytest.approx(ratio, abs=HAND)
                if not overrides:  # plain SGD: the lecture's formula, up to the rounding of the parameter
                    lecture = torch.log10((0.1 * probe.gradients[step][name]).std() / after[name].std()).item()
                    rate = 0.1 if step < 4 else 0.01
                    assert ratio == pytest.approx(lecture + math.log10(rate / 0.1), abs=1e-3)
        assert len(probe.before) == 8
        assert set(found["unmoved/share"].values()) == {0.0}

    def test_skipped_step(self, tmp_path: Path) -> None:
        class Skipping(torch.optim.SGD):
            """Evaluates, but steps only every other time, as under a gradient scaler that met an overflow."""

            calls = 0

            def step(self, closure: Any = None) -> Any:
                self.calls += 1
                return super().step(closure) if self.calls % 2 else closure()

        module = Classifier(optimizer=lambda parameters: Skipping(parameters, lr=0.1))
        found = values(fit(tmp_path, module, UpdateStats()))
        assert found["unmoved/share"] == {0: 0, 1: 1, 2: 0, 3: 1}
        assert [number is None for number in found["update_data_ratio/0.weight"].values()] == [False, True, False, True]

    def test_frozen_parameters_are_not_watched(self, tmp_path: Path) -> None:
        module = Classifier()
        module.net[0].weight.requires_grad_(False)  # type: ignore[index]

        class Thaw(Callback):
            def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
                module.net[0].weight.requires_grad_(trainer.global_step >= 2)  # type: ignore[index]

        found = values(fit(tmp_path, module, Thaw(), UpdateStats(), GradientStats()))
        for tag in ("update_data_ratio/0.weight", "grad_std/0.weight"):
            assert list(found[tag]) == [2, 3]
        assert set(found["unmoved/share"].values()) == {0.0}


class TestClipping:
    def test_norms_and_share(self, small: Compose) -> None:
        length = ("trainer.watch_every=1", "trainer.max_steps=30")
        config = diagnosed(small, *length, "trainer.gradient_clip_val=0.9", only=("gradient_stats",))
        config.callbacks["gradient_stats"]["every_n_steps"] = 1
        probe = Before()
        trainer, _, _ = train(config, probe)
        found = measured(trainer)
        norms = {
            kind: [math.sqrt(sum(float(g.double().square().sum()) for g in each.values())) for each in gradients]
            for kind, gradients in (("before", probe.unclipped), ("after", probe.gradients))
        }
        for kind, expected in norms.items():
            assert list(found[f"grad_norm/{kind}_clipping"].values()) == pytest.approx(expected, rel=HAND)
        clipped = [norm > 0.9 for norm in norms["before"]]
        assert 0 < sum(clipped) < 30, "else it shows nothing"
        assert found["clipped/share"][29] == pytest.approx(sum(clipped) / 30)

    def test_by_value_and_none(self, tmp_path: Path) -> None:
        clipped = values(
            fit(tmp_path / "a", Classifier(), GradientStats(), gradient_clip_val=1e-3, gradient_clip_algorithm="value")
        )
        assert set(clipped["clipped/share"].values()) == {1.0}
        assert (
            not {"clipped/share", "grad_norm/after_clipping"}
            & values(fit(tmp_path / "b", Classifier(), GradientStats())).keys()
        )


class TestBatchNorm:
    def test_drift_and_gap(self, small: Compose) -> None:
        length = ("trainer.watch_every=10", "trainer.max_steps=21")
        config = diagnosed(small, *length, "model.batchnorm=pre", only=("batchnorm_stats",))

        class Means(Callback):
            def __init__(self) -> None:
                self.seen: list[tuple[Tensor, Tensor]] = []

            def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
                norm = pl_module.get_submodule("model.layers.0.batchnorm")
                self.seen.append((norm.running_mean.clone(), norm.running_var.clone()))

        probe = Means()
        trainer, module, datamodule = train(config, probe)
        found = measured(trainer)
        assert list(found["batchnorm_drift/layers.0"]) == [1, 2, 5, 10, 20], "from the second watched step on"
        # a watched step sees the running statistics that the step before has left
        (older, _), (newer, var) = probe.seen[:2]
        drift = ((newer - older) / var.sqrt()).square().mean().sqrt().item()
        assert found["batchnorm_drift/layers.0"][2] == pytest.approx(drift, rel=HAND)
        x, y = (each[:1024] for each in datamodule.examples["train"])
        with torch.no_grad():
            running = cross_entropy(module.model.eval()(x), y)
            batch = cross_entropy(module.model.train()(x), y)
        # a difference of losses near 3, each right to 1e-6
        assert found["batchnorm_gap/loss"][20] == pytest.approx((running - batch).item(), abs=1e-5)
        assert abs(found["batchnorm_gap/loss"][20]) > 1e-3

    def test_all_placements_have_a_layer_of_their_own(self, small: Compose) -> None:
        network = ("model.batchnorm=pre_output", "model.n_layers=2", "trainer.max_steps=2")
        config = diagnosed(small, *network, only=("batchnorm_stats",))
        found = measured(train(config)[0])
        layers = {tag.partition("/")[2] for tag in found if tag.startswith("batchnorm_mean_lag/")}
        assert layers == {"layers.0", "layers.1", "output"}


def test_tensorboard_and_json_lines_get_the_same(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board, json_lines = TensorBoardLogger(tmp_path, name="", version=""), JSONLinesLogger(str(tmp_path))
    module = Classifier(spoil=lambda loss, batch_idx: loss * (math.nan if batch_idx == 2 else 1))
    fit(tmp_path, module, *(each() for each in STATS), logger=[board, json_lines])
    events = EventAccumulator(str(tmp_path)).Reload()
    found = values(json_lines)
    assert set(events.Tags()["scalars"]) == found.keys() | {"epoch"}
    for tag, by_step in found.items():
        shown = {event.step: event.value for event in events.Scalars(tag)}
        numbers = {step: math.nan if number is None else number for step, number in by_step.items()}
        assert [*shown] == [*numbers], tag
        for step, number in numbers.items():
            if math.isnan(number):  # null in JSON, for NaN and infinity
                assert not math.isfinite(shown[step]), tag
            else:
                assert shown[step] == pytest.approx(number, rel=1e-6), tag


class SaveAndHalt(Callback):
    """Saves after a validation, and ends the run when the stride after the next begins."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step > self.step:
            raise HaltedError


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # that is what resuming means
def test_resumed_run_measures_the_same(small: Compose, tmp_path: Path) -> None:
    overrides = (
        "callbacks=diagnostics", "logger=jsonl", "trainer.max_steps=160", "trainer.watch_every=10", "model.dropout=0.2",
        "trainer.val_check_interval=20", "model.batchnorm=pre", "trainer.gradient_clip_val=0.9",
    )  # fmt: skip
    whole, parts = (small(*overrides, run_dir=tmp_path / name) for name in ("whole", "parts"))
    train(whole)
    checkpoint = tmp_path / "halted.ckpt"
    with pytest.raises(HaltedError):
        train(parts, SaveAndHalt(checkpoint, 121))
    expected, got = ((tmp_path / name / "diagnostics.jsonl") for name in ("whole", "parts"))
    assert '"step": 130' in got.read_text(), "steps that will come again"
    parts.ckpt_path = str(checkpoint)
    train(parts)
    assert got.read_text() == expected.read_text()
    found = values(JSONLinesLogger(str(tmp_path / "whole")))
    assert 0 < (found["clipped/share"][159] or 0) < 1, "else a lost history shows nothing"
    assert min(found["baseline_passed/uniform"]) < 121
    pictures = [(tmp_path / name / "figures" / "update_data_ratio_159.png").read_bytes() for name in ("whole", "parts")]
    assert pictures[0] == pictures[1]
    steps = [line["step"] for line in lines(JSONLinesLogger(str(tmp_path / "parts")))]
    assert all(one <= other for one, other in pairwise(steps))


def test_our_module_offers_everything(small: Compose) -> None:
    trainer, module, datamodule = build(small("trainer.watch_every=7"))
    strided, probed, averaged, configured = module, module, module, module
    offered: tuple[Strided, Probed, Averaged, Configured] = (strided, probed, averaged, configured)  # mypy compares
    trainer.fit(module, datamodule)
    assert (watch_every_of(module), mean_loss_of(module)) == (7, offered[2].mean_loss)
    network, loss = offered[1].probe()
    assert loss(network).isfinite()
    found = configuration_of(module)
    assert found == offered[3].configuration()
    assert found is not None
    assert found["trainer"]["watch_every"] == 7


def test_a_layer_called_watch_every_is_no_offer() -> None:
    module = torch.nn.Module()
    module.watch_every = torch.nn.Linear(1, 1)
    assert (watch_every_of(module), mean_loss_of(module), configuration_of(module)) == (1, None, None)
