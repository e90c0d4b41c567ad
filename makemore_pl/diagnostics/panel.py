"""The lecture's printed panel of its deep BatchNorm network after step 1,000, beside a run's own diagnostics.

The run: `+experiment=deep_batchnorm data=lecture seed=2147483647 optim.schedule=constant trainer.max_steps=1001`, with
the default callbacks.
"""

import json
from pathlib import Path
from typing import NamedTuple

STEP = 1000

# printed in the lecture; then what its own loop gives with the biased variance, which nn.BatchNorm1d divides by
_SATURATION = [(2.78, 3.16), (2.56, 2.66), (2.25, 2.62), (1.69, 2.00), (1.88, 2.16)]
_ACTIVATION_STD = [(0.63, 0.6387), (0.64, 0.6456), (0.65, 0.6517), (0.65, 0.6589), (0.65, 0.6576)]
_ACTIVATION_GRAD_STD = [
    (2.6407e-3, 2.6259e-3),
    (2.2456e-3, 2.2354e-3),
    (2.0457e-3, 2.0357e-3),
    (1.9831e-3, 1.9854e-3),
    (1.9524e-3, 1.9478e-3),
]
_GRAD_DATA_RATIO = {
    "embedding.weight": (8.0126e-3, 8.0860e-3),
    "layers.0.linear.weight": (4.8811e-2, 4.8930e-2),
    "layers.1.linear.weight": (6.9646e-2, 7.0186e-2),
    "layers.2.linear.weight": (6.0737e-2, 6.0718e-2),
    "layers.3.linear.weight": (5.6315e-2, 5.6657e-2),
    "layers.4.linear.weight": (5.5701e-2, 5.6402e-2),
    "output.linear.weight": (1.1601e-1, 1.1631e-1),
}


class Row(NamedTuple):
    quantity: str
    layer: str
    published: float
    biased: float
    """The lecture's loop with the biased variance: all that is left to explain is float32."""
    ours: float


def panel_rows(path: Path) -> list[Row]:
    """The rows, saturation in percent as printed, from a run's diagnostics.jsonl.

    Raises:
        ValueError: naming a tag that the run has not measured at step 1,000.
    """
    measured: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["step"] == STEP:
            measured |= record.get("values", {})
    expected = {f"saturation/layers.{i}": each for i, each in enumerate(_SATURATION)}
    expected |= {f"activation_std/layers.{i}": each for i, each in enumerate(_ACTIVATION_STD)}
    expected |= {f"activation_grad_std/layers.{i}": each for i, each in enumerate(_ACTIVATION_GRAD_STD)}
    expected |= {f"grad_data_ratio/{name}": each for name, each in _GRAD_DATA_RATIO.items()}
    if missing := expected.keys() - measured.keys():
        raise ValueError(f"{path} has no {min(missing)} at step {STEP}.")
    rows = []
    for tag, (published, biased) in expected.items():
        quantity, _, layer = tag.partition("/")
        percent = 100.0 if quantity == "saturation" else 1.0
        rows.append(Row(quantity, layer, published, biased, percent * measured[tag]))
    return rows
