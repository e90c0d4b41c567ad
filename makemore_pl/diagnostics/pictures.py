"""The lecture's pictures as a Lightning callback."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.dashboard import Histogram
from makemore_pl.diagnostics.histograms import HistogramCallback, Raster
from makemore_pl.diagnostics.host import LightningModule, Trainer
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.diagnostics.watch import Arrays
from makemore_pl.doctor import updates
from makemore_pl.figures import curves, lecture_pictures
from makemore_pl.files import write_atomically


class Figures(HistogramCallback):
    """The lecture's four pictures and the raster of saturated units, as TensorBoard images and PNG files.

    | tag | meaning | shape, unit |
    |---|---|---|
    | pictures/activations | distribution of the activations, a line for each layer | image |
    | pictures/activation_gradients | of the gradient of the loss by them | image |
    | pictures/weight_gradients | of the gradient by the matrices of parameters | image |
    | pictures/update_data_ratio | the ratios of UpdateStats so far, the lecture's line at -3 | image |
    | pictures/saturation | examples by units of each tanh layer, white where abs(tanh) > 0.97 | image |
    | pictures/spread_over_depth | standard deviation of activations and gradients by layer, from two on | image |

    Pictures are drawn at those of `steps` that are watched, and at the last step. They are few, because drawing takes
    as long as measuring many steps. If a run ends early, the last step that was due (see `every_n_steps`) is drawn. The
    PNG files lie in `figures/` of the trainer's log directory. Trial runs (fast_dev_run) draw nothing.

        from makemore_pl.diagnostics import Figures, UpdateStats
        trainer = Trainer(callbacks=[Figures(), UpdateStats()], logger=TensorBoardLogger("logs"))
        trainer.fit(module, loader)  # the tab Images of TensorBoard
    """

    def __init__(
        self,
        pattern: str | None = None,
        steps: Iterable[int] = (0, 1_000),
        every_n_steps: int = 100,
        unit_axis: int | None = None,
    ) -> None:
        super().__init__(pattern, every_n_steps, unit_axis)
        self.steps = frozenset(steps)
        self._steps: list[int] = []
        self._ratios: dict[str, list[float]] = {}

    def due(self, step: int, last: bool, watched: bool) -> bool:
        return step in self.steps or super().due(step, last, watched)

    def shows(self, step: int, last: bool) -> bool:
        return last or step in self.steps

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().start(trainer, pl_module)
        # asked for in every process, because log_dir is broadcast between processes
        self._directory = Path(trainer.log_dir or trainer.default_root_dir) / "figures"

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        ratios = {tag: value for tag, value in numbers.items() if tag.startswith("update_data_ratio/")}
        if ratios:
            for tag in ratios:
                self._ratios.setdefault(tag, [math.nan] * len(self._steps))
            self._steps.append(step)
            for tag, series in self._ratios.items():
                series.append(ratios.get(tag, math.nan))
        super().measured(trainer, pl_module, step, numbers, arrays)

    def show(self, trainer: Trainer, step: int) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        ratios = {tag.partition("/")[2]: values for tag, values in self._ratios.items()}
        paths = {}
        self._directory.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures(step, self.histograms, self.rasters, self._steps, ratios):
            picture = draw(figure)
            card = dashboard.card(picture)
            tag, path, encoded = f"pictures/{name}", self._directory / f"{name}_{step}.png", dashboard.png(card)
            write_atomically(path, encoded if picture.width <= card.width else dashboard.png(picture))
            dashboard.log_card(trainer, tag, encoded, card.size, step)
            paths[tag] = path
        for logger in trainer.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.log_images(paths, step)

    def reset(self) -> None:
        self._steps, self._ratios = [], {}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "ratios": self._ratios}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._ratios = list(state_dict["steps"]), dict(state_dict["ratios"])


def pictures(
    step: int,
    histograms: Mapping[str, Histogram],
    rasters: Mapping[str, Raster],
    steps: Sequence[int],
    ratios: Mapping[str, Sequence[float]],
) -> Iterator[tuple[str, Figure]]:
    """Name and figure of every picture that has numbers to show, one after the other because figures are large.

    Args:
        steps, ratios: update:data ratios so far, by parameter.
    """
    for name, quantity in (
        ("activations", "activations/"),
        ("activation_gradients", "activation_grads/"),
        ("weight_gradients", "weight_grads/"),
    ):
        title = name.replace("_", " ")
        group = {t.removeprefix(quantity): each for t, each in histograms.items() if t.startswith(quantity)}
        if group:
            yield (
                name,
                lecture_pictures.distributions(
                    group,
                    f"{title}, step {step:,}",
                    title.removesuffix("s"),
                    log=name != "activations",
                    own_units=name == "weight_gradients",
                ),
            )
    if len(steps) > 1:
        yield "update_data_ratio", lecture_pictures.update_ratios(steps, ratios, updates.BAND)
    activations, gradients = (
        {t.partition("/")[2]: each for t, each in histograms.items() if t.startswith(quantity)}
        for quantity in ("activations/", "activation_grads/")
    )
    if len(activations) > 1:
        title = f"spread over depth, step {step:,}"
        yield "spread_over_depth", curves.spread_over_depth(activations, gradients, title)
    if rasters:
        layers = {tag.partition("/")[2]: raster for tag, raster in rasters.items()}
        yield "saturation", lecture_pictures.saturation_rasters(layers, f"saturated units, step {step:,}")


def draw(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
