"""Compares two run directories to the last bit, apart from times and paths."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OF_THE_PROCESS = ("seconds", "steps_per_second", "commit")
"""Keys of metrics.json that differ between any two runs."""
NOT_OF_THE_RUN = ("loops", "seconds")
"""Keys of a checkpoint that differ: Lightning's counters of batches (here strides) and of restarts, and the time."""


def differences(ours: Path, theirs: Path) -> list[str]:
    """Sentences on what differs between two run directories; empty if they hold the same run."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (read_checkpoint(run / "checkpoints" / name) for run in (ours, theirs))
        found += [f"{name}: {each}" for each in unequal(one, other)]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (ours, theirs)]
    for each in metrics:
        for key in OF_THE_PROCESS:
            each.pop(key, None)
    found += [f"metrics.json: {each}" for each in unequal(*metrics)]
    found += [f"findings.json: {each}" for each in unequal(*(read_findings(run) for run in (ours, theirs)))]
    lines = [read_diagnostics(run) for run in (ours, theirs)]
    if lines[0] != lines[1]:
        found.append(f"diagnostics.jsonl: {len(lines[0])} and {len(lines[1])} lines, not the same")
    if unlike := list(unequal(read_scalars(ours), read_scalars(theirs))):
        found.append(f"TensorBoard: {len(unlike)} tags, such as {unlike[0]}")
    return found


def read_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    for state in checkpoint["callbacks"].values():
        state.pop("current_score", None)  # ModelCheckpoint saves it and never loads it
    return {key: value for key, value in checkpoint.items() if key not in NOT_OF_THE_RUN}


def read_findings(run: Path) -> Any:
    """The doctor's verdict; None if the run had no doctor."""
    path = run / "findings.json"
    return json.loads(path.read_text()) if path.exists() else None


def read_diagnostics(run: Path) -> list[Any]:
    path = run / "diagnostics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> steps and values, as TensorBoard shows them: without the values that a later file has replaced."""
    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    return {tag: [(each.step, each.value) for each in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def unequal(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """The places in nested dicts and lists whose values are not the same bits; paths count as equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = {key: key for key in ours} | {key: key for key in theirs}
        places = [{_placeless(key): value for key, value in each.items()} for each in (ours, theirs)]
        for key in dict.fromkeys(map(_placeless, keys)):
            if key in places[0] and key in places[1]:
                yield from unequal(places[0][key], places[1][key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is in one only"
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            yield f"{where} has {len(ours)} and {len(theirs)} entries"
            return
        for place, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from unequal(*pair, f"{where}[{place}]")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape and bool(torch.equal(ours, theirs))
        if not same and not (ours.isnan().any() and torch.equal(ours.nan_to_num(), theirs.nan_to_num())):
            yield f"{where} differs"
    elif _placeless(ours) != _placeless(theirs) and not _both_nan(ours, theirs):
        yield f"{where} is {ours!r} and {theirs!r}"


def _placeless(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _both_nan(*values: Any) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in values)
