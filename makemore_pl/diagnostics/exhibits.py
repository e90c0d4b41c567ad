"""Lightning callbacks that show more than a number: baselines, histograms, the lecture's pictures, sampled names."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from makemore_pl.diagnostics import statistics
from makemore_pl.diagnostics.callbacks import DiagnosticsCallback, TapCallback, log_spaced, matrices
from makemore_pl.diagnostics.taps import ActivationTap
from makemore_pl.jsonl import JSONLinesLogger
from makemore_pl.module import MakemoreModule
from makemore_pl.report import figures
from makemore_pl.sample import sample

log = logging.getLogger(__name__)

BINS = 50
Histogram = tuple[list[float], list[float]]
"""Edges (n + 1) and counts (n)."""
Raster = np.ndarray[Any, np.dtype[np.bool_]]


def ngram_losses(x: Tensor, y: Tensor, classes: int) -> dict[str, float]:
    """Cross-entropy in nats of predictors that only count: uniform, unigram and bigram frequencies of this very data.

    Args:
        x: contexts (N, block_size), the last column the character before.
        y: targets (N,).
        classes: vocab_size.
    """
    pairs = torch.bincount(x[:, -1] * classes + y, minlength=classes * classes).reshape(classes, classes).double()
    unigram = pairs.sum(0)
    joint, before = pairs[pairs > 0] / len(y), pairs.sum(1)
    conditional = (pairs / before[:, None])[pairs > 0]
    frequencies = unigram[unigram > 0] / len(y)
    return {
        "uniform": math.log(classes),
        "unigram": -(frequencies * frequencies.log()).sum().item(),
        "bigram": -(joint * conditional.log()).sum().item(),
    }


class Baselines(DiagnosticsCallback):
    """Losses that need no network, and when the network passes them.

    | tag | meaning | shape, unit |
    |---|---|---|
    | baseline/uniform | ln V: all characters equally likely | nats |
    | baseline/unigram | each character by its frequency in the training split | nats |
    | baseline/bigram | each character by its frequency after the character before | nats |
    | baseline_passed/uniform | watched step at which the mean training loss fell below | step |
    | baseline_passed/unigram | the same for unigram | step |
    | baseline_passed/bigram | the same for bigram | step |

    For data modules with `examples["train"]`, contexts and targets; it abstains from others.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        super().__init__(every_n_steps)
        self._losses: dict[str, float] = {}
        self._passed: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        examples = getattr(getattr(trainer, "datamodule", None), "examples", None)
        if examples is None:
            log.info("Baselines abstains: the data module has no examples to count.")
            return
        x, y = examples["train"]
        self._losses = ngram_losses(x.cpu(), y.cpu(), len(trainer.datamodule.vocabulary))  # type: ignore[attr-defined]

    def measured(self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float]) -> None:
        loss = getattr(pl_module, "mean_loss", None)
        if self._losses and (log_spaced(step) or step == trainer.max_steps - 1):
            numbers |= {f"baseline/{name}": value for name, value in self._losses.items()}
        for name, value in self._losses.items():
            if loss is not None and name not in self._passed and loss < value:
                self._passed.append(name)
                numbers[f"baseline_passed/{name}"] = float(step)

    def state_dict(self) -> dict[str, Any]:
        return {"passed": self._passed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._passed = list(state_dict["passed"])


def histogram(x: Tensor, low: float | None = None, high: float | None = None) -> Histogram:
    """BINS equal bins over [low, high], by default symmetric around 0 to the largest finite absolute value.

    What is not finite is left out; GradientStats counts it.
    """
    x = x.detach().float().flatten().cpu()
    x = x[x.isfinite()]
    if low is None or high is None:
        high = x.abs().max().item() if len(x) else 0.0
        high = high or 1.0
        low = -high
    counts, edges = torch.histogram(x, BINS, range=(low, high))
    return edges.tolist(), counts.tolist()


class Distributions(TapCallback):
    """Collects histograms and rasters of saturated units on the steps that are due; shows nothing itself."""

    def due(self, step: int, trainer: Trainer, stride: int) -> bool:
        return log_spaced(step) or step == trainer.max_steps - 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._matrices = matrices(pl_module)
        self.histograms: dict[str, Histogram] = {}
        self.rasters: dict[str, Raster] = {}

    def begin(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().begin(trainer, pl_module, batch)
        self.histograms, self.rasters = {}, {}

    def before_update(self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in self._matrices.items():
            if parameter.grad is not None:
                self.histograms[f"weight_grads/{name}"] = histogram(parameter.grad)

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        tap = self._tap
        assert isinstance(tap, ActivationTap)
        tap.close()
        for layer, activation in tap.activation.items():
            tanh = isinstance(tap.modules[layer], nn.Tanh)
            self.histograms[f"activations/{layer}"] = histogram(activation, *((-1.0, 1.0) if tanh else ()))
            if tanh:
                saturated = statistics.units_first(activation).abs() > statistics.SATURATED
                self.rasters[f"saturation/{layer}"] = saturated[:200, :64].T.cpu().numpy()
        for layer, grad in tap.activation_grad.items():
            self.histograms[f"activation_grads/{layer}"] = histogram(grad)
        for name, parameter in self._matrices.items():
            self.histograms[f"weights/{name}"] = histogram(parameter)
        tap.clear()


class Histograms(Distributions):
    """The lecture's distributions, at steps 0, 1, 2, 5, 10, 20, 50, ... and the last.

    | tag | meaning | shape, unit |
    |---|---|---|
    | activations/<layer> | activations of the watched minibatch | 50 bins, count |
    | activation_grads/<layer> | gradient of the loss by them | 50 bins, count |
    | weights/<parameter> | matrices of parameters, after the step | 50 bins, count |
    | weight_grads/<parameter> | their gradient, before clipping | 50 bins, count |

    They go to TensorBoard and to diagnostics.jsonl, there with the rasters of saturated units.
    """

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        super().end(trainer, pl_module, batch)
        assert self.step is not None
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for tag, (edges, counts) in self.histograms.items():
                    _add_histogram(logger, tag, edges, counts, self.step)
            elif isinstance(logger, JSONLinesLogger):
                logger.log_histograms(self.histograms, self.step)
                logger.log_rasters(self.rasters, self.step)


def _add_histogram(logger: TensorBoardLogger, tag: str, edges: list[float], counts: list[float], step: int) -> None:
    centers = (np.array(edges[:-1]) + np.array(edges[1:])) / 2
    total = np.array(counts)
    logger.experiment.add_histogram_raw(
        tag,
        min=edges[0],
        max=edges[-1],
        num=total.sum(),
        sum=(centers * total).sum(),
        sum_squares=(centers**2 * total).sum(),
        bucket_limits=edges[1:],
        bucket_counts=counts,
        global_step=step,
    )


class Figures(Distributions):
    """The lecture's four pictures and the raster of saturated units, as TensorBoard images and PNG files.

    | tag | meaning | shape, unit |
    |---|---|---|
    | pictures/lecture | activations, their gradients, weight gradients, update:data ratios so far | image |
    | pictures/saturation | examples by units of the first tanh layer, white where abs(tanh) > 0.97 | image |

    Drawn at steps 0, 100, 10,000 and the last; the PNG files lie in `figures/` of the run directory. The update:data
    ratios are those of UpdateStats.
    """

    def __init__(self, pattern: str | None = None, every_n_steps: int = 100) -> None:
        super().__init__(pattern, every_n_steps)
        self._ratios: dict[str, list[float]] = {}
        self._steps: list[int] = []

    def due(self, step: int, trainer: Trainer, stride: int) -> bool:
        return step in (0, 100, 10_000) or step == trainer.max_steps - 1

    def measured(self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float]) -> None:
        ratios = {tag: value for tag, value in numbers.items() if tag.startswith("update_data_ratio/")}
        if ratios:
            self._steps.append(step)
            for tag, value in ratios.items():
                self._ratios.setdefault(tag.partition("/")[2], []).append(value)
        if self.step is None or not trainer.is_global_zero:
            return
        groups: dict[str, dict[str, Histogram]] = {}
        for tag, each in self.histograms.items():
            quantity, _, name = tag.partition("/")
            groups.setdefault(quantity, {})[name] = each
        drawn = {
            "pictures/lecture": figures.four_pictures(
                groups.get("activations", {}),
                groups.get("activation_grads", {}),
                groups.get("weight_grads", {}),
                self._steps,
                self._ratios,
                title=f"step {step}",
            )
        }
        if self.rasters:
            tag, raster = next(iter(self.rasters.items()))
            drawn["pictures/saturation"] = figures.saturation_raster(raster, title=f"{tag}, step {step}")
        directory = Path(trainer.log_dir or trainer.default_root_dir) / "figures"
        directory.mkdir(parents=True, exist_ok=True)
        for tag, figure in drawn.items():
            path = directory / f"{tag.partition('/')[2]}_{step}.png"
            figure.savefig(path)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(tag, _pixels(figure), step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "ratios": self._ratios}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._ratios = state_dict["steps"], state_dict["ratios"]


def _pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


class Samples(DiagnosticsCallback):
    """A handful of names, spelt by the network with BatchNorm's running statistics.

    | tag | meaning | shape, unit |
    |---|---|---|
    | samples | generated names, those that are in the word list marked with * | text |

    At steps 0, 10, 100, 1,000, ... and the last, on modules with a vocabulary; it abstains from others.
    """

    def __init__(self, count: int = 10) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        self.count = count

    def due(self, step: int, trainer: Trainer, stride: int) -> bool:
        return step == 0 or (step > 1 and str(step).rstrip("0") == "1") or step == trainer.max_steps - 1

    def end(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        if not isinstance(pl_module, MakemoreModule):
            return
        assert self.step is not None
        known = set(trainer.datamodule.words)  # type: ignore[attr-defined]
        words = [
            name.word
            for name in sample(pl_module.model, pl_module.vocabulary, self.count, block_size=pl_module.block_size)
        ]
        marked = [word + "*" * (word in known) for word in words]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", "  \n".join(marked), self.step)
            elif isinstance(logger, JSONLinesLogger):
                logger.log_texts({"samples": marked}, self.step)
