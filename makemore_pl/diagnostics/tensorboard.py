"""Lightning's TensorBoardLogger, which leaves nothing beside its events."""

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class TensorBoard(TensorBoardLogger):
    """Without `hparams.yaml`: a run directory has config.yaml, and the hparams of its events."""

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()
