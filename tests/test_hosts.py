"""The instruments in other projects: with either Lightning, in any order, and with no more than they need."""

import json
import runpy
from pathlib import Path

import pytest
from conftest import python

TRAINING = """
import sys
import torch
from torch import nn
{imports}
from makemore_pl.diagnostics.jsonl import JSONLinesLogger

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        self.log("loss", loss := self.net(batch[0]).square().mean())
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

directory = sys.argv[1]
watch = [d.ActivationStats(), d.GradientStats(), d.UpdateStats(), d.BatchNormStats(), d.Histograms(), d.Figures()]
trainer = pl.Trainer(
    max_steps=3, accelerator="cpu", callbacks=watch, gradient_clip_val=0.5, default_root_dir=directory,
    logger=[TensorBoardLogger(directory, name="", version=""), JSONLinesLogger(directory)], enable_progress_bar=False,
)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=8))
"""
ONLY = """
sys.modules["lightning"] = None  # as if it were not installed
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from makemore_pl import diagnostics as d
"""
OURS_FIRST = """
from makemore_pl import diagnostics as d
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
"""


def check(run_dir: Path) -> None:
    lines = (run_dir / "diagnostics.jsonl").read_text().splitlines()
    tags = {tag for line in map(json.loads, lines) for kind in ("values", "images") for tag in line.get(kind, {})}
    quantities = "saturation/2", "grad_norm/after_clipping", "update_data_ratio/0.weight", "batchnorm_mean_lag/1"
    assert tags >= {*quantities, "pictures/activations"}


def test_pytorch_lightning_alone(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    script = tmp_path / "training.py"
    script.write_text(TRAINING.format(imports=ONLY))
    done = python("-W", "ignore", script, tmp_path / "run", cwd=tmp_path)
    assert done.code == 0, done.err
    check(tmp_path / "run")


@pytest.mark.filterwarnings("ignore")
def test_pytorch_lightning_imported_after_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning")
    script = tmp_path / "training.py"
    script.write_text(TRAINING.format(imports=OURS_FIRST))
    monkeypatch.setattr("sys.argv", [str(script), str(tmp_path / "run")])
    for _ in range(2):
        runpy.run_path(str(script))
    check(tmp_path / "run")


def test_what_importing_them_brings(tmp_path: Path) -> None:
    code = """
import sys
import lightning.pytorch, matplotlib.figure, matplotlib.backends.backend_agg, numpy, PIL.Image, torch.utils.tensorboard
before = set(sys.modules)
import makemore_pl.diagnostics
new = {name for name in set(sys.modules) - before if name.partition(".")[0] not in ("matplotlib", "PIL", "tensorboard")}
print(*sorted({".".join(name.split(".")[:2]) for name in new} - set(sys.stdlib_module_names)))
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.code == 0, done.err
    rooms = (
        "activations",
        "diagnostics",
        "diagnostics_file",
        "doctor",
        "figures",
        "files",
        "module_copy",
        "stored_form",
    )
    ours = {"makemore_pl", *(f"makemore_pl.{room}" for room in rooms)}
    assert set(done.out.split()) == ours
