"""The network in Lightning the usual way."""

import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.modules import mlp
from benchmarks.networks import Network
from benchmarks.splits import Forward, Splits, Tick


class LitMLP(LightningModule):
    def __init__(self, network: Network, decay_epoch: int, tick: Tick) -> None:
        super().__init__()
        self.model = mlp(network)
        self.decay_epoch = decay_epoch
        self.tick = tick

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = cross_entropy(self.model(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        # in this hook, because it is called anyway and another callback would cost time
        self.tick(self.global_step)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LRScheduler]]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [MultiStepLR(optimizer, [self.decay_epoch])]


def fit(network: Network, splits: Splits, steps: int, tick: Tick, root: Path, accelerator: str = "cpu") -> Forward:
    """TensorDataset, DataLoader that shuffles, self.log, progress bar, TensorBoard, checkpoints: the defaults."""
    warnings.simplefilter("ignore")
    loader = DataLoader(TensorDataset(*splits["train"]), batch_size=network.batch_size, shuffle=True)
    module = LitMLP(network, max(1, steps // 2 // len(loader)), tick)
    trainer = Trainer(accelerator=accelerator, max_steps=steps, logger=TensorBoardLogger(root), default_root_dir=root)
    trainer.fit(module, loader)
    return module.model.eval()
