"""The names of Lightning without a promise that training needs: used here and nowhere else in a run's own code."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer import trainer as trainer_module


def count_steps(trainer: Trainer, unwatched: int) -> None:
    """Tell Lightning's counters of the optimizer steps that a batch takes before its watched one.

    Lightning (2.6) counts one optimizer step a batch. `trainer.global_step` and with it max_steps and checkpoints read
    the first counter, loggers the second. When one goes: find what `global_step` and `_batches_that_stepped` have
    become in lightning/pytorch/loops/training_epoch_loop.py; test_train.py compares both with plain Lightning.
    """
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.increment_by(unwatched)
    loop._batches_that_stepped = trainer.global_step


def end_after_batch(trainer: Trainer) -> None:
    """Let a training end where its batch, a validation that is due and all callbacks are done, as on SIGTERM.

    `trainer.should_stop` is no substitute: the training would end as if it had been finished. When the name goes: see
    what lightning/pytorch/trainer/connectors/signal_connector.py sets when SIGTERM comes.
    """
    trainer._signal_connector.received_sigterm = True


@contextmanager
def without_cuda() -> Iterator[None]:
    """Keep Lightning from initializing CUDA in a run on the CPU, which takes seconds and 0.5 GB of the GPU.

    Lightning (2.6) keeps the states of all generators over its sanity check, also where there is no such check, and
    reads those of every GPU. When it goes: find what `isolate_rng` has become in lightning/pytorch/trainer/trainer.py.
    """
    before = trainer_module.isolate_rng  # type: ignore[attr-defined]
    trainer_module.isolate_rng = partial(before, include_cuda=False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer_module.isolate_rng = before  # type: ignore[attr-defined]


def counts_steps(callback: ModelCheckpoint) -> bool:
    """Whether it saves each n steps, of which it must see each one to come to a multiple of n.

    When it goes: find what `every_n_train_steps` has become in model_checkpoint.py.
    """
    return bool(callback._every_n_train_steps)
