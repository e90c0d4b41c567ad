"""What is compared. Imports no torch, as networks.py."""

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
"""The matrix products of a step alone."""
OURS = {
    "3": ["callbacks=none"],
    "4": [],
    "3e": ["callbacks=none", "trainer.engine=eager"],
    "4e": ["trainer.engine=eager"],
}
"""Overrides of the contenders that are this project."""
SCALED = ("1b", "3")
"""Those of the scaling table."""
WARMUP = 500
"""Steps of a loop that are not measured."""
WARMUP_OURS = 16_000
"""Steps of ours: compiling is over then, and so are the pictures of step 10,000."""
