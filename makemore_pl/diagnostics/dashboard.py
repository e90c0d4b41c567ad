"""A TensorBoard that is good at first sight: custom scalars, a URL with pinned cards, hparams with real metrics."""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import hparams, text

Histogram = tuple[list[float], list[int]]
"""Edges (n + 1) and counts (n)."""

PORT = 6006
PINNED = (
    ("train/loss_mean",),
    ("val/loss",),
    ("pictures/activations", "activation_std/"),
    ("pictures/activation_gradients", "activation_grad_std/"),
    ("pictures/update_data_ratio", "update_data_ratio/"),
    ("pictures/weight_gradients", "grad_data_ratio/"),
    ("saturation/", "zero_share/"),
    ("batchnorm_mean_lag/",),
    ("activation_std/",),
    ("update_data_ratio/layers.0.", "update_data_ratio/"),
)
"""Cards from left to right, in two columns. Of each group the first tag that there is; of a beginning, which ends in a
slash or dot, the first layer or parameter. A picture belongs to one run: of a directory of runs TensorBoard shows the
others, with a line for each run."""

CARD = (302, 204)
"""Pixels of an image that Time Series shows as it is in its narrowest cards. Larger ones it makes fit by leaving out
rows and columns, and with these thin lines and letters."""
FAST = 1
"""PNG's compression: half the time of the default for about a quarter more bytes."""

FIRST_HPARAMS = ("experiment", "data.batch_size", "model.batchnorm", "model.gain", "optim.lr")
"""TensorBoard shows five columns: these are what the sweeps vary."""

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
"""Custom scalars: a few charts, each with all layers in it. Entries are regular expressions of tags."""


def add_layout(trainer: Trainer) -> None:
    """Write the custom-scalars layout to every TensorBoard logger."""
    for logger in _tensorboards(trainer):
        logger.experiment.add_custom_scalars(LAYOUT)


def start_session(trainer: Trainer, step: int) -> None:
    """Make TensorBoard drop what an earlier process wrote from `step` on, which is measured again."""
    for logger in _tensorboards(trainer):
        session = SessionLog(status=SessionLog.START)
        logger.experiment._get_file_writer().add_event(Event(session_log=session), step)


def url(tags: Iterable[str], port: int = PORT) -> str:
    """The Time Series page of one run, unsmoothed, with the main cards pinned as far as `tags` has them."""
    tags = sorted(tags)
    cards: list[dict[str, Any]] = []
    for group in PINNED:
        found = [
            tag
            for choice in group
            for tag in tags
            if tag == choice or (choice.endswith(("/", ".")) and tag.startswith(choice))
        ]
        for tag in found[:1]:
            if any(card["tag"] == tag for card in cards):
                continue
            cards.append({"plugin": "scalars", "tag": tag})
            if tag.startswith("pictures/"):
                cards[-1] = {"plugin": "images", "tag": tag, "runId": "defaultExperimentId/.", "sample": 0}
    pinned = quote(json.dumps(cards, separators=(",", ":")), safe="")
    return f"http://localhost:{port}/?pinnedCards={pinned}&smoothing=0#timeseries"


def log_hparams(trainer: Trainer, config: dict[str, Any], metrics: dict[str, float]) -> None:
    """The config as flat hparams, those of FIRST_HPARAMS first, and the final losses as their metrics (`final/...`).

    The validation loss is the first of the metrics' columns, because a window may not hold more.
    """
    flat = {
        f"{section}.{key}" if isinstance(content, dict) else section: value
        for section, content in config.items()
        if content is not None and section != "run_dir"
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    }
    flat = {key: "null" if value is None else value for key, value in flat.items()}
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
    """As each logger's log_metrics; to TensorBoard in one event, which is faster by far."""
    if not numbers:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and not logger._prefix:
            _write(logger, Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()]), step)
        else:
            logger.log_metrics(dict(numbers), step)


def log_histograms(trainer: Trainer, histograms: Mapping[str, Histogram], step: int) -> None:
    """To TensorBoard; sums are those of the bins' centers."""
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
    """The picture as large as TensorBoard's cards."""
    small, whole = picture.copy(), Image.new("RGB", CARD, "white")
    small.thumbnail(CARD, Image.Resampling.LANCZOS)
    whole.paste(small, ((CARD[0] - small.width) // 2, 0))
    return whole


def png(picture: Image.Image) -> bytes:
    """Compressed quickly."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=FAST)
    return file.getvalue()


def log_card(trainer: Trainer, tag: str, encoded: bytes, step: int) -> None:
    """To TensorBoard, the PNG of a `card`."""
    image = Summary.Image(width=CARD[0], height=CARD[1], colorspace=3, encoded_image_string=encoded)
    for logger in _tensorboards(trainer):
        _write(logger, Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def log_text(trainer: Trainer, tag: str, lines: Iterable[str], step: int) -> None:
    """To TensorBoard, line by line and literally, an empty line as (empty)."""
    # indented by four, Markdown takes nothing in a line for markup
    summary = text(tag, "\n".join(f"    {line or '(empty)'}" for line in lines))
    summary.value[0].tag = tag  # without the /text_summary that torch adds
    for logger in _tensorboards(trainer):
        _write(logger, summary, step)


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


@rank_zero_only
def _write(logger: TensorBoardLogger, summary: Any, step: int) -> None:
    logger.experiment._get_file_writer().add_summary(summary, step)
