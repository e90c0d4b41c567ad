"""Gives each worker process of a sweep one of several GPUs."""

import multiprocessing
import os
import re
from functools import cache


@cache  # only once a process, because CUDA reads the environment only once
def take_gpu() -> None:
    """Let this worker process see only one of the visible GPUs. Workers take them in turn.

    It does nothing in a process that has no parent process of ours: Ray and SLURM, which start such processes, choose
    the GPU themselves.
    """
    if multiprocessing.parent_process() is None:
        return
    if found := os.environ.get("CUDA_VISIBLE_DEVICES"):
        visible = found.split(",")
    else:
        import torch  # device_count() asks NVML, which does not initialize CUDA

        visible = [str(place) for place in range(torch.cuda.device_count())]
    if visible:
        # workers are called LokyProcess-1, LokyProcess-2, ...; a worker that LokyProcess-3 started is LokyProcess-3:1
        found_number = re.search(r"\d+$", multiprocessing.current_process().name)
        number = int(found_number[0]) if found_number else os.getpid()
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[(number - 1) % len(visible)]
