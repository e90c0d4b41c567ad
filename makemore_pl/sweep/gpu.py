"""Which GPU a worker process of a sweep takes, where there are several."""

import multiprocessing
import os
import re
from functools import cache


@cache  # once a process: CUDA reads the environment only once
def take_gpu() -> None:
    """Leave this worker process one of the visible GPUs, the next worker the next one, and so on around.

    A launcher that gives its jobs GPUs itself, Ray or SLURM, starts them without a parent process of ours.
    """
    if multiprocessing.parent_process() is None:
        return
    if found := os.environ.get("CUDA_VISIBLE_DEVICES"):
        visible = found.split(",")
    else:
        import torch  # counts by NVML, which leaves CUDA as it is

        visible = [str(place) for place in range(torch.cuda.device_count())]
    if visible:
        # LokyProcess-1 is the first; LokyProcess-3:1 is the first of the third process
        found_number = re.search(r"\d+$", multiprocessing.current_process().name)
        number = int(found_number[0]) if found_number else os.getpid()
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[(number - 1) % len(visible)]
