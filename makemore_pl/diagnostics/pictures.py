"""The lecture's pictures as a Lightning callback."""

import gc
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from makemore_pl.diagnostics import dashboard
from makemore_pl.diagnostics.callback import Arrays
from makemore_pl.diagnostics.dashboard import Histogram
from makemore_pl.diagnostics.histograms import Distributions, Raster
from makemore_pl.diagnostics.jsonl import JSONLinesLogger
from makemore_pl.figures import curves, lecture_pictures
from makemore_pl.files import write_atomically

log = logging.getLogger(__name__)

Drawing = Callable[[], Figure]
_drawing = threading.Lock()
"""What is set for a drawing is set for the whole process."""
EARLY = 1000
"""Up to this step a run is busy in the interpreter, with short strides and tracing: two would only take turns."""


class Figures(Distributions):
    """The lecture's four pictures and the raster of saturated units, as TensorBoard images and PNG files.

    | tag | meaning | shape, unit |
    |---|---|---|
    | pictures/activations | distribution of the activations, a line for each layer | image |
    | pictures/activation_gradients | of the gradient of the loss by them | image |
    | pictures/weight_gradients | of the gradient by the matrices of parameters | image |
    | pictures/update_data_ratio | the ratios of UpdateStats so far, the lecture's line at -3 | image |
    | pictures/saturation | examples by units of each tanh layer, white where abs(tanh) > 0.97 | image |
    | pictures/spread_over_depth | standard deviation of activations and gradients by layer, from three on | image |

    Drawn at `steps`, as far as they are watched, and at the last step: drawing costs more than measuring a hundred
    steps. A thread does it, because compiled steps release the interpreter lock; where there are strides, after step
    1,000 or at the end. TensorBoard gets each picture on a later watched step, under its own. The PNG files lie in
    `figures/` of the trainer's log directory.
    """

    def __init__(self, pattern: str | None = None, steps: Iterable[int] = (0, 1_000, 10_000)) -> None:
        super().__init__(pattern)
        self.steps = frozenset(steps)
        self._steps: list[int] = []
        self._ratios: dict[str, list[float]] = {}
        self._drawer: ThreadPoolExecutor | None = None
        self._planned: list[tuple[int, dict[str, Drawing], dict[str, Path]]] = []
        self._pending: list[tuple[int, Future[dict[str, bytes]]]] = []
        """Step and cards by tag, in the order of steps."""

    def due(self, step: int, last: bool, watched: bool) -> bool:
        return last or step in self.steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        # all processes must ask for it
        self._directory = Path(trainer.log_dir or trainer.default_root_dir) / "figures"
        self._drawer, self._planned, self._pending = ThreadPoolExecutor(1, "figures"), [], []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if trainer.global_step > EARLY or not self._strides:
            self._draw_planned()

    def measured(
        self, trainer: Trainer, pl_module: LightningModule, step: int, numbers: dict[str, float], arrays: Arrays
    ) -> None:
        self._log_drawn(trainer, wait=False)
        ratios = {tag: value for tag, value in numbers.items() if tag.startswith("update_data_ratio/")}
        if ratios:
            for tag in ratios:
                self._ratios.setdefault(tag, [math.nan] * len(self._steps))
            self._steps.append(step)
            for tag, series in self._ratios.items():
                series.append(ratios.get(tag, math.nan))
        if self.step is None or not trainer.is_global_zero:
            return
        super().measured(trainer, pl_module, step, numbers, arrays)
        so_far = {tag.partition("/")[2]: list(values) for tag, values in self._ratios.items()}
        drawings = plan(step, self.histograms, self.rasters, list(self._steps), so_far)
        paths = {tag: self._directory / f"{tag.partition('/')[2]}_{step}.png" for tag in drawings}
        self._directory.mkdir(parents=True, exist_ok=True)
        for logger in trainer.loggers:
            if isinstance(logger, JSONLinesLogger):
                logger.log_images(paths, step)
        self._planned.append((step, drawings, paths))
        if self.last:
            self._draw_planned()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        try:
            self._finish(trainer)
        except Exception as error:  # the run's own error is the one to be told
            log.warning("Pictures could not be drawn: %s", error)

    def _finish(self, trainer: Trainer) -> None:
        try:
            self._draw_planned()
            self._log_drawn(trainer, wait=True)
        finally:
            if self._drawer:
                self._drawer.shutdown(cancel_futures=True)
            self._drawer, self._planned, self._pending = None, [], []  # no thread can be pickled

    def _draw_planned(self) -> None:
        for step, drawings, paths in self._planned:
            assert self._drawer
            self._pending.append((step, self._drawer.submit(draw, drawings, paths)))
        self._planned = []

    def _log_drawn(self, trainer: Trainer, wait: bool) -> None:
        """Give TensorBoard what is drawn, or wait for all of it."""
        while self._pending and (wait or self._pending[0][1].done()):
            step, cards = self._pending.pop(0)
            for tag, card in cards.result().items():
                dashboard.log_card(trainer, tag, card, step)

    def reset(self) -> None:
        self._steps, self._ratios = [], {}

    @property
    def state_key(self) -> str:
        return self._generate_state_key(pattern=self.pattern)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "ratios": self._ratios}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._ratios = list(state_dict["steps"]), dict(state_dict["ratios"])


def plan(
    step: int,
    histograms: Mapping[str, Histogram],
    rasters: Mapping[str, Raster],
    steps: Sequence[int],
    ratios: Mapping[str, Sequence[float]],
) -> dict[str, Drawing]:
    """Every picture there are numbers for, by tag, still to be drawn.

    Args:
        steps, ratios: update:data ratios so far, by parameter.
    """
    drawings: dict[str, Drawing] = {}
    for name, quantity in (
        ("activations", "activations/"),
        ("activation_gradients", "activation_grads/"),
        ("weight_gradients", "weight_grads/"),
    ):
        title = name.replace("_", " ")
        group = {t.removeprefix(quantity): each for t, each in histograms.items() if t.startswith(quantity)}
        if group:
            drawings[f"pictures/{name}"] = partial(
                lecture_pictures.distributions,
                group,
                f"{title}, step {step:,}",
                title.removesuffix("s"),
                log=name != "activations",
                own_units=name == "weight_gradients",
            )
    if len(steps) > 1:
        drawings["pictures/update_data_ratio"] = partial(lecture_pictures.update_ratios, steps, ratios)
    activations, gradients = (
        {t.partition("/")[2]: each for t, each in histograms.items() if t.startswith(quantity)}
        for quantity in ("activations/", "activation_grads/")
    )
    if len(activations) > 2:
        drawings["pictures/spread_over_depth"] = partial(
            curves.spread_over_depth, activations, gradients, f"spread over depth, step {step:,}"
        )
    if rasters:
        drawings["pictures/saturation"] = partial(
            lecture_pictures.saturation_rasters,
            {tag.partition("/")[2]: raster for tag, raster in rasters.items()},
            f"saturated units, step {step:,}",
        )
    return drawings


def draw(drawings: Mapping[str, Drawing], paths: Mapping[str, Path]) -> dict[str, bytes]:
    """Draw each into its PNG file; returns PNGs as large as TensorBoard's cards."""
    cards = {}
    for tag, drawing in drawings.items():
        with _drawing, _short_turns(), _young_garbage():
            canvas = FigureCanvasAgg(drawing())
            canvas.draw()  # type: ignore[no-untyped-call]
            picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]
            write_atomically(paths[tag], dashboard.png(picture))
            cards[tag] = dashboard.png(dashboard.card(picture))
    return cards


@contextmanager
def _short_turns() -> Iterator[None]:
    # else each operation of torch, which lets go of the interpreter lock, may wait 5 ms to get it back
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, 5e-4))
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def _young_garbage() -> Iterator[None]:
    # a figure leaves thousands of objects in cycles: collected while young they cost 20 ms, else 200 ms, because
    # Python then goes through everything that torch and Lightning hold
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect(0)
