"""The names of a sweep's directory and of its jobs' directories. TensorBoard shows them as names of runs."""

import hashlib
import re
from collections.abc import Mapping, Sequence

LONGEST_NAME = 150


def job_name(overrides: Sequence[str], varied: Sequence[str]) -> str:
    """A directory name that shows the varied settings, such as `gain=0.5_batch_size=8_seed=1`.

    Equal values give equal names, and different values different names: if a character had to be replaced, because a
    file name can't have it, a few digits of a hash are added.
    """
    values = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    chosen = {key: values[key] for key in varied}
    parts = [f"{label}={value}" for label, value in zip(_labels(varied), chosen.values(), strict=True)]
    name = "_".join(parts) or "job"
    ambiguous = any("=" in value for value in chosen.values())
    return _file_name(name, repr(chosen) if ambiguous else name)


def _labels(keys: Sequence[str]) -> list[str]:
    """The last part of each key if no other key has the same last part, else the whole key."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return [last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)]


def _file_name(name: str, identity: str) -> str:
    # upper case is replaced too, because some file systems do not distinguish it
    safe = re.sub(r"[^a-z0-9_.=+-]", "-", name)[:LONGEST_NAME]
    return safe if safe == name == identity else f"{safe}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def sweep_name(fixed: Mapping[str, str], varied: Sequence[str]) -> str:
    """A directory name for the sweep: its experiment, then fixed overrides with values, then the varied keys."""
    labels = dict(zip([*fixed, *varied], _labels([*fixed, *varied]), strict=True))
    parts = [] if "experiment" in varied else [fixed.get("experiment", "default")]
    parts += [f"{labels[key]}={value}" for key, value in fixed.items() if key != "experiment"]
    name = "_".join([*parts, *(labels[key] for key in varied)])
    return _file_name(name, name)
