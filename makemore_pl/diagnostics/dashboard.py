"""What is written to TensorBoard: numbers, histograms, image cards, text, custom scalars, and hparams with metrics."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image, ImageFilter
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import hparams, text

from makemore_pl.diagnostics.host import Trainer
from makemore_pl.diagnostics.jsonl import JSONLinesLogger

Histogram = tuple[list[float], list[int]]
"""Edges (n + 1) and counts (n)."""

ROOM = 302
"""Pixels in width that the narrowest cards of the Time Series page have for an image."""
CARD = ROOM / 204
"""Width divided by height of that area."""
FAST = 1
"""Level of PNG's compression: it takes half the time of the default level and makes files a quarter larger."""

FIRST_HPARAMS = ("experiment", "data.batch_size", "model.batchnorm", "model.gain", "optim.lr")
"""TensorBoard shows five columns at first. These are the settings that the sweeps vary."""

LAYOUT = {
    "training": {
        "loss": ["Multiline", ["train/loss_mean", "val/loss", "baseline/.*"]],
        "learning rate": ["Multiline", ["^lr$"]],
        "gradient norm": ["Multiline", ["grad_norm/.*"]],
    },
    "activations": {
        "saturation": ["Multiline", ["^saturation/.*"]],
        "standard deviation": ["Multiline", ["^activation_std/.*"]],
        "gradient by activation, standard deviation": ["Multiline", ["activation_grad_std/.*"]],
    },
    "parameters": {
        "update:data ratio, log10": ["Multiline", ["update_data_ratio/.*"]],
        "grad:data ratio": ["Multiline", ["grad_data_ratio/.*"]],
    },
    "BatchNorm": {
        "lag of the running mean": ["Multiline", ["batchnorm_mean_lag/.*"]],
        "lag of the running variance": ["Multiline", ["batchnorm_var_lag/.*"]],
        "loss gap, running - batch statistics": ["Multiline", ["batchnorm_gap/.*"]],
    },
}
"""Custom scalars: a few charts, each with all layers in it. Entries are regular expressions of tags.

TensorBoard gives a run its colour and a tag its symbol, so the layers of one run can't have colours of their own here.
"""


def add_layout(trainer: Trainer) -> None:
    """Write the custom-scalars layout to every TensorBoard logger."""
    for logger in _tensorboards(trainer):
        logger.experiment.add_custom_scalars(LAYOUT)


def start_session(trainer: Trainer, step: int) -> None:
    """Make TensorBoard drop what an earlier process wrote from `step` on, because these steps are measured again."""
    for logger in _tensorboards(trainer):
        session = SessionLog(status=SessionLog.START)
        logger.experiment._get_file_writer().add_event(Event(session_log=session), step)


def log_hparams(trainer: Trainer, config: dict[str, Any], metrics: dict[str, float]) -> None:
    """The config as flat hparams, those of FIRST_HPARAMS first, and the final losses as their metrics (`final/...`).

    A setting that is null is left out. The validation loss is the first of the metrics' columns, because a window may
    not hold more.
    """
    flat = {
        f"{section}.{key}" if isinstance(content, dict) else section: value
        for section, content in config.items()
        if content is not None and section != "run_dir"
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    }
    flat = {key: value for key, value in flat.items() if value is not None}  # TensorBoard would show "None" as text
    ordered = sorted(metrics.items(), key=lambda item: item[0] != "val/loss")
    finals = {f"final/{tag.replace('/', '_')}": value for tag, value in ordered}
    experiment, start, end = hparams(flat, finals)
    # TensorBoard sorts columns by name, but those that differ between runs come before the others
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in FIRST_HPARAMS
    plugin.content = content.SerializeToString()
    numbers = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in finals.items()])
    for logger in _tensorboards(trainer):
        for summary in (experiment, start, end, numbers):
            _write(logger, summary, trainer.global_step)
        logger.experiment.flush()


def log_numbers(trainer: Trainer, numbers: Mapping[str, float], step: int) -> None:
    """Log numbers by tag with every logger. TensorBoard gets all of them in one event, which is much faster."""
    if not numbers:
        return
    boards = _tensorboards(trainer)
    for logger in trainer.loggers:
        if logger in boards:
            _write(logger, Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()]), step)
        else:
            logger.log_metrics(dict(numbers), step)


def shows_histograms(trainer: Trainer) -> bool:
    return bool(_tensorboards(trainer)) or any(isinstance(logger, JSONLinesLogger) for logger in trainer.loggers)


def log_histograms(trainer: Trainer, histograms: Mapping[str, Histogram], step: int) -> None:
    """Write histograms to TensorBoard. Their sums are computed from the centers of the bins."""
    values = []
    for tag, (edges, counts) in histograms.items():
        centers, total = np.convolve(edges, [0.5, 0.5], "valid"), np.array(counts)
        proto = HistogramProto(
            min=edges[0],
            max=edges[-1],
            num=total.sum(),
            sum=(centers * total).sum(),
            sum_squares=(centers**2 * total).sum(),
            bucket_limit=edges[1:],
            bucket=counts,
        )
        values.append(Summary.Value(tag=tag, histo=proto))
    for logger in _tensorboards(trainer):
        _write(logger, Summary(value=values), step)


def card(picture: Image.Image) -> Image.Image:
    """The picture padded with white to the shape of TensorBoard's cards, which stretch other shapes.

    It is at most twice as wide as a card. TensorBoard shows every n-th pixel of a larger picture and leaves out the
    others, so of a thin stroke nothing may be left. A slight blur spreads each stroke over the pixels beside it.
    """
    width = max(picture.width, round(picture.height * CARD))
    whole = Image.new("RGB", (width, round(width / CARD)), "white")
    whole.paste(picture, ((width - picture.width) // 2, 0))
    if width > 2 * ROOM:
        whole = whole.resize((2 * ROOM, round(2 * ROOM / CARD)), Image.Resampling.LANCZOS)
    return whole.filter(ImageFilter.BoxBlur(0.5))


def png(picture: Image.Image) -> bytes:
    """The picture as PNG with 256 colours, a third of the size of one with all colours.

    Size costs time: TensorBoard's writer computes a checksum of every byte in Python.
    """
    file = io.BytesIO()
    picture.quantize(method=Image.Quantize.FASTOCTREE).save(file, "PNG", compress_level=FAST)
    return file.getvalue()


def log_card(trainer: Trainer, tag: str, encoded: bytes, size: tuple[int, int], step: int) -> None:
    """Write the PNG of a `card` of this width and height to TensorBoard."""
    image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=encoded)
    for logger in _tensorboards(trainer):
        _write(logger, Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def log_text(trainer: Trainer, tag: str, lines: Iterable[str], step: int) -> None:
    """Write lines of text to TensorBoard without Markdown. An empty line is shown as (empty)."""
    # Markdown shows lines that are indented by four as they are
    summary = text(tag, "\n".join(f"    {line or '(empty)'}" for line in lines))
    summary.value[0].tag = tag  # without the /text_summary that torch adds
    for logger in _tensorboards(trainer):
        _write(logger, summary, step)


def _tensorboards(trainer: Trainer) -> list[Any]:
    # by class name, because Lightning exists under two names, see host.py
    return [each for each in trainer.loggers if "TensorBoardLogger" in (kind.__name__ for kind in type(each).__mro__)]


@rank_zero_only
def _write(logger: Any, summary: Any, step: int) -> None:
    if logger._prefix and not summary.value[0].tag.startswith("_hparams_"):
        # add the logger's prefix as log_metrics does; to a copy, because each logger has its own prefix
        summary = Summary.FromString(summary.SerializeToString())
        for value in summary.value:
            value.tag = f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}{value.tag}"
    logger.experiment._get_file_writer().add_summary(summary, step)
