"""What is compared. It does not import torch, see networks.py."""

CONTENDERS = {
    "1a": "the lecture's loop",
    "1a+": "the lecture's loop, its bookkeeping at every step",
    "1b": "`nn` modules, fused `torch.optim.SGD`, bare loop",
    "2": "plain Lightning",
    "3": "makemore_pl, `callbacks=none`",
    "4": "makemore_pl",
    "3e": "makemore_pl, `callbacks=none`, `engine=eager`",
    "4e": "makemore_pl, `engine=eager`",
}
FLOOR = "floor"
"""A step that consists of its matrix products only."""
OURS = {
    "3": ["callbacks=none"],
    "4": [],
    "3e": ["callbacks=none", "trainer.engine=eager"],
    "4e": ["trainer.engine=eager"],
}
"""Contender -> its overrides, for the contenders that are this project."""
SCALED = ("1b", "3")
"""The contenders of the scaling table."""
WARMUP = 500
"""The first steps of a loop, which are not measured."""
WARMUP_OURS = 16_000
"""The first steps of this project's runs, which are not measured. After them all steps are compiled."""
