"""Damaged run directories: whatever a damaged file holds, what comes out of it is what was saved, or a sentence."""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import strategies as st

from makemore_pl.checkpoint import check_resumable, load_module, read_checkpoint
from makemore_pl.config.stored_config import load_config
from makemore_pl.data import NamesDataModule
from makemore_pl.evaluate import evaluate
from makemore_pl.report.run_directory import read_run
from makemore_pl.report.sweep_directory import correlations, layer_mean, read_runs, rows, varied_keys
from makemore_pl.sweep.job import refuse_other_run

READ = (".ckpt", ".yaml", ".json", ".jsonl")
"""Files of a run directory that something reads."""
DAMAGES = ("cut", "flip", "insert", "replace", "empty", "gone", "folder", "nested", "other", "link")
DAMAGED = st.tuples(st.integers(0, 99), st.sampled_from(DAMAGES), st.integers(0, 2**20), st.binary(max_size=60))


def damaged(run_dir: Path, given: tuple[int, str, int, bytes]) -> None:
    """Damage one file of a copy of this finished run, and use the copy."""
    files = sorted(path.relative_to(run_dir) for path in run_dir.rglob("*") if path.suffix in READ)
    place, how, where, content = given
    copy = Path(tempfile.mkdtemp(dir=run_dir.parent)) / "run"
    shutil.copytree(run_dir, copy)
    try:
        name = files[place % len(files)]
        damage(copy / name, how, where, content)
        losses, weights, resuming, reading, sweeping, going_on = _uses(copy, run_dir)
        readers = {
            ".ckpt": [losses, weights, resuming],
            ".yaml": [losses, reading, sweeping, going_on],
            ".json": [reading, sweeping, going_on],
            ".jsonl": [reading, sweeping],
        }[name.suffix]
        readers[where % len(readers)]()
    finally:
        shutil.rmtree(copy.parent)


def _uses(run: Path, whole: Path) -> list[Callable[[], object]]:
    """What the scripts do with a run directory, of which `whole` is undamaged."""
    ours = load_config(whole)

    def losses() -> None:
        config = load_config(run)
        found = evaluate(run / "checkpoints" / "last.ckpt", config, recalibrated=False)["running statistics"]
        saved = json.loads((whole / "metrics.json").read_text())
        if config.data == ours.data:
            assert all(abs(found[split] - saved[f"{split}/loss"]) < 1e-6 for split in found), "another loss, silently"

    def weights() -> None:
        loaded = load_module(run / "checkpoints" / "last.ckpt").state_dict()
        saved = load_module(whole / "checkpoints" / "last.ckpt").state_dict()
        same = all(torch.equal(loaded[key], saved[key]) for key in saved)
        assert same, "other weights, silently"

    def resuming() -> None:
        datamodule = NamesDataModule(ours.data, ours.trainer, torch.Generator())
        path = run / "checkpoints" / "last.ckpt"
        check_resumable(path, ours, datamodule)
        generator = read_checkpoint(path)["NamesDataModule"]["generator"]
        saved = read_checkpoint(whole / "checkpoints" / "last.ckpt")["NamesDataModule"]["generator"]
        assert torch.equal(generator, saved), "another generator, silently"

    def reading() -> None:
        found = read_run(run)
        layer_mean(found.diagnostics, "saturation", None)

    def sweeping() -> None:
        runs = read_runs(run.parent)
        rows(runs, varied_keys(runs))
        correlations(runs)

    def going_on() -> None:
        refuse_other_run(run, ours)

    return [losses, weights, resuming, reading, sweeping, going_on]


def damage(path: Path, how: str, where: int, content: bytes) -> None:
    """Do it to one file."""
    raw = path.read_bytes()
    place = where % max(len(raw), 1)
    if how in ("gone", "folder", "link"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        if how == "link":
            path.symlink_to(path)
        return
    made = {
        "cut": raw[:place],
        "flip": raw[:place] + bytes([raw[place] ^ (1 << where % 8)]) + raw[place + 1 :] if raw else b"",
        "insert": raw[:place] + content + raw[place:],
        "replace": content,
        "empty": b"",
        "nested": random.Random(where).choice([b"[", b'{"a":', b"a: {", b"- "]) * 20_000,
        "other": random.Random(where).choice(
            [b"[]", b"{}", b"null", b"3", b'"x"', b"nan", b'{"val/loss": "x"}', b"a: b"]
        ),
    }
    path.write_bytes(made[how])
