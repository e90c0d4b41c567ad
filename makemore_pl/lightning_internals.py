"""The names of Lightning without a promise that training needs: used here and nowhere else in a run's own code."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def count_steps(trainer: Trainer, unwatched: int) -> None:
    """Tell Lightning's counters of the optimizer steps that a batch takes before its watched one.

    Lightning (2.6) counts one optimizer step a batch. `trainer.global_step` and with it max_steps and checkpoints read
    the first counter, loggers the second. When one goes: find what `global_step` and `_batches_that_stepped` have
    become in lightning/pytorch/loops/training_epoch_loop.py; test_train.py compares both with plain Lightning.
    """
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.increment_by(unwatched)
    loop._batches_that_stepped = trainer.global_step


def stop_after_batch(trainer: Trainer) -> None:
    """Let a training end with SIGTERMException after this batch and its validation.

    It is what Lightning (2.6) does on SIGTERM; `trainer.should_stop` would validate once more. When it goes: find where
    training_epoch_loop.py raises SIGTERMException; test_train.py compares an interrupted run with a whole one.
    """
    trainer._signal_connector.received_sigterm = True


def counts_steps(callback: ModelCheckpoint) -> bool:
    """Whether it saves each n steps, of which it must see each one to come to a multiple of n.

    When it goes: find what `every_n_train_steps` has become in model_checkpoint.py.
    """
    return bool(callback._every_n_train_steps)
