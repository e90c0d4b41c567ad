"""The private names of Lightning that training needs. No other file of a run uses private names of Lightning."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer import trainer as trainer_module


def count_steps(trainer: Trainer, unwatched: int) -> None:
    """Add the optimizer steps that a batch takes before its watched one to Lightning's counters.

    Lightning (2.6) counts one optimizer step a batch. `trainer.global_step`, max_steps and checkpoints use the first
    counter, loggers use the second. If a name goes: find what replaces `global_step` and `_batches_that_stepped` in
    lightning/pytorch/loops/training_epoch_loop.py. test_train.py compares both with unmodified Lightning.
    """
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.increment_by(unwatched)
    loop._batches_that_stepped = trainer.global_step


def end_after_batch(trainer: Trainer) -> None:
    """Let a training end, as on SIGTERM, after its current batch, any validation that is due, and their callbacks.

    `trainer.should_stop` would not do, because the training would end as if it were finished. If the name goes: see
    what lightning/pytorch/trainer/connectors/signal_connector.py sets when SIGTERM comes.
    """
    trainer._signal_connector.received_sigterm = True


@contextmanager
def without_cuda() -> Iterator[None]:
    """Keep Lightning from initializing CUDA in a run on the CPU, which would take seconds and 0.5 GB of the GPU.

    Lightning (2.6) saves and restores the states of all generators around its sanity check, even if it makes no such
    check, and for this reads those of every GPU. If the name goes: find what replaces `isolate_rng` in
    lightning/pytorch/trainer/trainer.py.
    """
    before = trainer_module.isolate_rng  # type: ignore[attr-defined]
    trainer_module.isolate_rng = partial(before, include_cuda=False)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer_module.isolate_rng = before  # type: ignore[attr-defined]


def counts_steps(callback: ModelCheckpoint) -> bool:
    """Whether it saves every n steps. Then it must see every step, or it would miss the multiples of n.

    If the name goes: find what replaces it for `every_n_train_steps` in model_checkpoint.py.
    """
    return bool(callback._every_n_train_steps)
