"""Lightning's TensorBoardLogger, which writes event files and no other files."""

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Does not write `hparams.yaml`, because config.yaml and the events have the same settings."""

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()
