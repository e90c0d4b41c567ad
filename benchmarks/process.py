"""Times a fresh process. Without torch, because a child's peak memory is at least its parent's memory at the fork."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def peak_memory_mb(usage: resource.struct_rusage) -> float:
    return round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)


def run(arguments: list[str], cache: Path) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory, with those of its compiler, of `python *arguments`.

    Args:
        cache: where inductor keeps its compiled code.
    """
    cache.mkdir(exist_ok=True)
    # packages of compiled code are unpacked under TMPDIR
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TMPDIR": str(cache)}
    log = cache / "log.txt"
    with log.open("wb") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.kill()
            raise
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{log.read_text(errors='replace')[-2000:]}\n{' '.join(arguments)} failed.")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "memory_mb": peak_memory_mb(usage)}
