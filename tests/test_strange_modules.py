"""Other people's modules and trainers: whatever they do, watching changes no bit of what is trained."""

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from strangers import Classifier, Validated, cnn, fit, hooks_on, images, loader, values
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from makemore_pl.diagnostics import (
    ActivationStats,
    BatchNormStats,
    Doctor,
    Figures,
    GradientStats,
    Histograms,
    UpdateStats,
)
from makemore_pl.diagnostics.callback import DiagnosticsCallback

pytestmark = pytest.mark.filterwarnings("ignore")

Case = tuple[LightningModule, dict[str, Any]]
"""A module, and options of `fit`."""


def instruments() -> list[DiagnosticsCallback]:
    stats = [ActivationStats(), GradientStats(), UpdateStats(), BatchNormStats()]
    return [*stats, Histograms(), Figures(steps=[]), Doctor(announce=False)]


def net(seed: int = 0) -> nn.Sequential:
    """Everything whose state watching could disturb: BatchNorm's statistics and dropout's random numbers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


class Manual(LightningModule):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.parts]


def spectral() -> Case:
    """Reading such a weight in training mode moves its buffers."""
    torch.manual_seed(0)

    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = parametrizations.spectral_norm(nn.Embedding(10, 8))
            self.hidden = parametrizations.spectral_norm(nn.Linear(36 * 8, 8))
            self.norm, self.act = nn.BatchNorm1d(8), nn.Tanh()
            self.out = parametrizations.weight_norm(nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            tokens = (x.flatten(1) * 2).long().clamp(0, 9)
            return self.out(self.act(self.norm(self.hidden(self.embedding(tokens).flatten(1)))))  # type: ignore[no-any-return]

    return Classifier(Spectral()), {}


def orthogonal() -> Case:
    torch.manual_seed(0)
    layer = parametrizations.orthogonal(nn.Linear(8, 8))
    return Classifier(nn.Sequential(net()[:4], layer, nn.Tanh(), nn.Linear(8, 3))), {}


def tied() -> Case:
    """One matrix for the embedding and the output, and one block used three times."""
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.out = nn.Embedding(5, 8), nn.Linear(8, 5, bias=False)
            self.out.weight = self.embedding.weight
            self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embedding(x.flatten(1)[:, :4].long().clamp(0, 4)).mean(1)
            for _ in range(3):
                x = x + self.block(x)
            return self.out(x)  # type: ignore[no-any-return]

    return Classifier(Tied()), {}


def odd_names() -> Case:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a/b": nn.Linear(36, 8), "a b": nn.Tanh(), "weights/": nn.BatchNorm1d(8)})
            self.parts["ü//x"] = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            for part in self.parts.values():
                x = part(x)
            return x

    torch.manual_seed(0)
    return Classifier(Named()), {}


@dataclass
class Hidden:
    state: Tensor
    mask: Tensor | None = None


def dataclasses_between() -> Case:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()[:4]

        def forward(self, x: Tensor) -> Hidden:
            return Hidden(self.body(x))

    class Tanh(nn.Module):
        def forward(self, hidden: Hidden) -> Hidden:
            return Hidden(hidden.state.tanh())

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(8, 3)

        def forward(self, *, hidden: Hidden) -> Tensor:
            return self.out(hidden.state)  # type: ignore[no-any-return]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.act, self.head = Encoder(), Tanh(), Head()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(hidden=self.act(self.encoder(x)))  # type: ignore[no-any-return]

    return Classifier(Whole()), {}


def changed_in_place() -> Case:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.act, self.drop = net()[:3], nn.SiLU(), nn.Dropout(0.3, inplace=True)
            self.out = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.body(x))
            x += 1
            return self.out(self.drop(x).mul_(2))  # type: ignore[no-any-return]

    return Classifier(InPlace()), {}


def checkpointed_loss() -> Case:
    """Reading what the loss's graph has saved would run the network again."""

    class Checkpointed(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return checkpoint(lambda x, y: cross_entropy(self.net(x), y), *batch, use_reentrant=False)  # type: ignore[no-any-return]

    return Checkpointed(net()), {}


def saved_elsewhere() -> Case:
    class Packed(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(lambda x: x.numpy(force=True), torch.from_numpy):
                return super().training_step(batch, batch_idx)

    return Packed(net()), {}


def inference_mode_inside() -> Case:
    class Teacher(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.inference_mode():
                target = self.net(batch[0]).softmax(-1)
            return cross_entropy(self.net(batch[0]), target.clone())

    return Teacher(net()), {}


def teacher() -> Case:
    """A frozen encoder, whose layers run as one fused call as long as no hook is on them."""

    class Distilled(Classifier):
        def __init__(self) -> None:
            super().__init__(net())
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.teacher = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 3))
            self.teacher.eval().requires_grad_(False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert all(hooks_on(layer) == 0 for layer in self.teacher[1].layers)
            return cross_entropy(self.net(batch[0]), self.teacher(batch[0][:, 0]).mean(1).softmax(-1))

    return Distilled(), {}


def bfloat16() -> Case:
    return Classifier(net()), {"precision": "bf16-true"}


def float64() -> Case:
    return Classifier(net()), {"precision": "64-true"}


def scaled() -> Case:
    """A gradient scaler whose first steps overflow and are skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
    return Classifier(net()), {"plugins": MixedPrecision("16-mixed", "cpu", scaler), "max_steps": 8, "max_epochs": 4}


def traced() -> Case:
    return Classifier(torch.fx.symbolic_trace(net())), {}


def sparse() -> Case:
    class Sparse(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            tokens = (x.flatten(1) * 2).long().clamp(0, 9)
            self.manual_backward(cross_entropy(self(tokens), y))
            for optimizer in self.optimizers():
                optimizer.step()

        def configure_optimizers(self) -> Any:
            bag, head = self.parts
            return [torch.optim.SparseAdam([*bag.parameters()]), torch.optim.SGD(head.parameters(), lr=0.1)]

    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    return Sparse(nn.EmbeddingBag(10, 8, sparse=True), head), {}


def toggled() -> Case:
    """Two optimizers that are toggled, gradients accumulated over two batches, and a scheduler of one's own."""

    class Toggled(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer, weight in zip(self.optimizers(), (1.0, 0.5), strict=True):
                with optimizer.toggle_model(sync_grad=batch_idx % 2 == 1):
                    self.manual_backward(weight * cross_entropy(self(batch[0]), batch[1]))
                    if batch_idx % 2:
                        optimizer.step()
                        optimizer.zero_grad()
            for group in self.optimizers()[0].param_groups:
                group["lr"] *= 0.9

    whole = net()
    return Toggled(whole[:4], whole[4:]), {"max_epochs": 2, "max_steps": -1}


def frozen_and_thawed() -> Case:
    class Thawing(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.net[1].requires_grad_(batch_idx % 2 == 1)  # type: ignore[index]

    return Thawing(net()), {}


def finetuned() -> Case:
    class Finetuned(Classifier):
        def __init__(self) -> None:
            super().__init__(net())
            self.backbone = self.net[:4]  # type: ignore[index]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.net[4:].parameters() if p.requires_grad], lr=0.1)  # type: ignore[index]

    return Finetuned(), {"callbacks": lambda: [BackboneFinetuning(1)], "max_epochs": 2, "max_steps": -1}


def averaged() -> Case:
    options = {"max_epochs": 4, "max_steps": -1}
    return Classifier(net()), {"callbacks": lambda: [StochasticWeightAveraging(0.05, 1)], **options}


def moving_average() -> Case:
    return Validated(net()), {"callbacks": lambda: [EMAWeightAveraging()], "loaders": (loader(), loader())}


def accumulated() -> Case:
    scheduler = lambda: [GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})]  # noqa: E731
    return Classifier(net()), {"callbacks": scheduler, "max_epochs": 3, "max_steps": -1}


def batches_without_tensors() -> Case:
    class Text(Classifier):
        def training_step(self, batch: list[str], batch_idx: int) -> Tensor:
            x = torch.tensor([[float(len(word)), *map(float, map(ord, word[:3]))] for word in batch])
            return self.net(x).square().mean()  # type: ignore[no-any-return]

    torch.manual_seed(0)
    words = DataLoader(["emma", "olivia", "ava", "isabella", "sophia", "mia"], batch_size=3, collate_fn=list)  # type: ignore[arg-type]
    return Text(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))), {"loaders": (words,)}


def endless() -> Case:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            while True:
                x, y = images(1)
                yield x[0] + torch.randn(1), y[0]

    return Classifier(net()), {"loaders": (DataLoader(Stream(), batch_size=8),)}


def no_loss_at_times() -> Case:
    return Classifier(net(), spoil=lambda loss, batch_idx: None if batch_idx % 2 else loss), {"max_epochs": 3}  # type: ignore[arg-type,return-value]


def copied_with_difficulty() -> Case:
    """A module that can't be copied, and one that remembers its calls."""
    import threading

    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.body = threading.Lock(), net()

        def forward(self, x: Tensor) -> Tensor:
            with self.lock:
                return self.body(x)  # type: ignore[no-any-return]

    return Classifier(Locked()), {}


def draws_by_itself() -> Case:
    """Noise from a generator that all copies of a module share, in eval mode too."""
    generator = torch.Generator().manual_seed(3)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn(x.shape, generator=generator)

    whole = net()
    return Classifier(nn.Sequential(whole[:3], Noisy(), whole[3:])), {}


def anomalies() -> Case:
    return Classifier(net()), {"detect_anomaly": True, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}


def one_batch() -> Case:
    return Validated(net()), {"overfit_batches": 1, "max_epochs": 3, "loaders": (loader(), loader())}


def no_batch() -> Case:
    return Classifier(net()), {"limit_train_batches": 0}


def trial() -> Case:
    return Validated(net()), {"fast_dev_run": 2, "loaders": (loader(), loader())}


CASES: list[Callable[[], Case]] = [
    spectral, orthogonal, tied, odd_names, dataclasses_between, changed_in_place, checkpointed_loss, saved_elsewhere,
    inference_mode_inside, teacher, bfloat16, float64, scaled, traced, sparse, toggled, frozen_and_thawed, finetuned,
    averaged, moving_average, accumulated, batches_without_tensors, endless, no_loss_at_times, copied_with_difficulty,
    draws_by_itself, anomalies, one_batch, no_batch, trial,
]  # fmt: skip


def outcome(case: Callable[[], Case], directory: Path, watch: list[DiagnosticsCallback]) -> dict[str, Tensor]:
    """All that a training leaves: parameters, buffers, optimizers, and where the random numbers are."""
    module, options = case()
    callbacks = [*watch, *options.pop("callbacks", list)()]
    torch.manual_seed(1)
    fit(directory, module, *callbacks, **options)
    assert hooks_on(module) == 0
    states = [optimizer.state_dict()["state"] for optimizer in module.trainer.optimizers]
    flat = {f"{n} {i} {key}": x for n, state in enumerate(states) for i, s in state.items() for key, x in s.items()}
    tensors = {key: x.clone() for key, x in {**module.state_dict(), **flat}.items() if isinstance(x, Tensor)}
    return {**tensors, "random": torch.get_rng_state()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_watching_changes_no_bit(case: Callable[[], Case], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = outcome(case, tmp_path / "watched", instruments())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("makemore_pl")]
    plain = outcome(case, tmp_path / "plain", [])
    assert watched.keys() == plain.keys()
    for name, tensor in plain.items():
        assert torch.equal(watched[name].nan_to_num(), tensor.nan_to_num()), name
    assert not [each for each in said if "Error" in each]


def scripted() -> nn.Sequential:
    body = net()
    body[3] = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    body[5] = torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.zeros(2, 8))
    return body


def test_what_is_not_scripted_is_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    doctor, stats = Doctor(announce=False), [ActivationStats(), BatchNormStats(), GradientStats(r"5|6")]
    found = values(fit(tmp_path, Classifier(scripted()), doctor, *stats))
    assert {"zero_share/6", "batchnorm_mean_lag/2", "activation_grad_std/6"} <= found.keys()
    assert "bias_before_batchnorm" in [finding.id for finding in doctor.findings]
    (said,) = (each.getMessage() for each in caplog.records if each.name.startswith("makemore_pl"))
    assert said.startswith(
        "GradientStats leaves out net.5, net.5.0, net.5.1: torch.compile has taken it over, or Torch"
    )


def unspoilt(loss: Tensor, _: int) -> Tensor:
    return loss


class TestOneCallbackInManyHands:
    def test_the_same_objects_in_two_trainers(self, tmp_path: Path) -> None:
        watch = instruments()
        first = values(fit(tmp_path / "1", Classifier(net()), *watch))
        torch.manual_seed(5)
        fit(tmp_path / "2", Classifier(cnn(3)), *reversed(watch), max_steps=7)
        assert values(fit(tmp_path / "3", Classifier(net()), *watch)) != {}
        again = values(fit(tmp_path / "4", Classifier(net()), *instruments()))
        assert first.keys() == again.keys()

    @pytest.mark.parametrize("how", ["copied", "pickled"])
    def test_copies_of_used_ones(self, tmp_path: Path, how: str) -> None:
        module, watch = Classifier(net(), optimizer=torch.optim.Adam), instruments()
        module.spoil = unspoilt
        torch.manual_seed(1)
        first = values(fit(tmp_path / "1", module, *watch))
        copies = copy.deepcopy(watch) if how == "copied" else pickle.loads(pickle.dumps(watch))
        again = Classifier(net(), optimizer=torch.optim.Adam)
        torch.manual_seed(1)
        assert values(fit(tmp_path / "2", again, *copies)) == first

    def test_copied_while_it_looks(self, tmp_path: Path) -> None:
        class Copies(Callback):
            def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
                self.copy = copy.deepcopy(pl_module)

        watch, copies = instruments(), Copies()
        fit(tmp_path / "1", Classifier(net()), *watch, copies, max_steps=3)
        assert pickle.loads(pickle.dumps(copies.copy.net)).state_dict().keys() == copies.copy.net.state_dict().keys()
        copied = copies.copy.net.get_submodule("3")
        assert hooks_on(copied) > 0, "which are the copies of hooks"
        assert copied(torch.ones(2)).tolist() == torch.ones(2).tanh().tolist()
        assert list(values(fit(tmp_path / "2", copies.copy, *instruments()))["unmoved/share"]) == [0, 1, 2, 3]

    def test_fit_again_after_an_exception_in_a_step(self, tmp_path: Path) -> None:
        def fails(module: Classifier, batch_idx: int) -> None:
            if module.global_step == 2 and armed.pop():
                raise ArithmeticError("on purpose")

        armed = [False, True]
        watch, module = instruments(), Classifier(net(), before=fails)
        with pytest.raises(ArithmeticError, match="on purpose"):
            fit(tmp_path / "1", module, *watch)
        assert hooks_on(module) == 0
        assert all(each.watch is None for each in watch)
        found = values(fit(tmp_path / "2", module, *watch))
        assert list(found["unmoved/share"]) == [0, 1, 2, 3]

    def test_without_fit_they_do_nothing(self, tmp_path: Path) -> None:
        class Predicts(Validated):
            test_step = Validated.validation_step

            def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
                return self.net(batch[0])  # type: ignore[no-any-return]

        trainer = Trainer(
            callbacks=instruments(), logger=False, default_root_dir=tmp_path, accelerator="cpu",  # type: ignore[arg-type]
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        module = Predicts(net())
        before = copy.deepcopy(module.state_dict())
        trainer.validate(module, loader(), verbose=False)
        trainer.test(module, loader(), verbose=False)
        trainer.predict(module, loader())
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
        assert not list(tmp_path.iterdir())
