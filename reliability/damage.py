"""Damaged run directories: whatever a damaged file holds, what comes out of it is what was saved, or a sentence."""

import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from hypothesis import strategies as st

from makemore_pl.checkpoint import check_resumable, load_module, read_checkpoint
from makemore_pl.checkup import Report, examine_run
from makemore_pl.config import Config
from makemore_pl.config.stored_config import load_config
from makemore_pl.data import NamesDataModule
from makemore_pl.evaluate import evaluate
from makemore_pl.report.page import page_of, render
from makemore_pl.report.pair_story import pair_page
from makemore_pl.report.run_directory import read_overrides, read_run
from makemore_pl.report.summary import write_summary
from makemore_pl.report.sweep_directory import correlations, layer_mean, read_runs, rows, varied_keys
from makemore_pl.running.hopeless import read_losses
from makemore_pl.sweep.job import refuse_other_run

READ = (".ckpt", ".yaml", ".json", ".jsonl")
"""Files of a run directory that something reads."""
DAMAGES = ("cut", "flip", "insert", "replace", "empty", "gone", "folder", "nested", "other", "link", *["value"] * 6)
VALUES: tuple[object, ...] = (
    None,
    True,
    "x",
    "1",
    "",
    -1,
    0,
    3,
    2.5,
    1e300,
    10**30,
    math.nan,
    math.inf,
    [],
    {},
    [1],
    {"a": 1},
    [[]],
)
"""What a damaged value becomes."""
DAMAGED = st.tuples(st.integers(0, 99), st.sampled_from(DAMAGES), st.integers(0, 2**20), st.binary(max_size=60))


USES = {
    ".ckpt": ("evaluate", "load", "resume", "resume") * 20 + ("page",),
    ".yaml": ("evaluate", "doctor", "doctor", "sweep", "sweep", "go on") * 20 + ("page", "pair", "summary"),
    ".json": ("read", "doctor", "doctor", "sweep", "go on") * 20 + ("page", "page", "pair", "pair", "summary"),
    ".jsonl": ("read", "doctor", "doctor", "sweep", "rivals") * 20 + ("page", "page", "pair", "pair", "summary"),
}
"""Suffix -> what is done with a file of it. Pages take a hundred times as long as the rest, so they are few."""


def damaged(run_dir: Path, given: tuple[int, str, int, bytes]) -> None:
    """Damage one file of a copy of this finished run, and use the copy."""
    files = sorted(path.relative_to(run_dir) for path in run_dir.rglob("*") if path.suffix in READ)
    place, how, where, content = given
    copy = Path(tempfile.mkdtemp(dir=run_dir.parent)) / "run"
    shutil.copytree(run_dir, copy)
    try:
        name = files[place % len(files)]
        damage(copy / name, how, where, content)
        uses = _uses(copy, run_dir)
        names = USES[name.suffix]
        uses[names[where % len(names)]]()
    finally:
        shutil.rmtree(copy.parent)


def _uses(run: Path, whole: Path) -> dict[str, Callable[[], object]]:
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

    def sweeping() -> None:
        runs, lost = read_runs(run.parent)
        assert len(runs) + len(lost) == 1, "a job is gone, silently"
        rows(runs, varied_keys(runs))
        correlations(runs)

    def pair() -> None:
        render(pair_page(read_run(run), read_run(whole)))

    def summary() -> None:
        write_summary(run.parent, asdict(Config(run_dir="")))

    return {
        "evaluate": losses,
        "load": weights,
        "resume": resuming,
        "go on": lambda: refuse_other_run(run, ours),
        "doctor": lambda: Report("", examine_run(run), read_overrides(run)).lines(),
        "read": lambda: layer_mean(read_run(run).diagnostics, "saturation", None),
        "rivals": lambda: read_losses(run / "diagnostics.jsonl"),
        "sweep": sweeping,
        "page": lambda: render(page_of(run, asdict(Config(run_dir="")))),
        "pair": pair,
        "summary": summary,
    }


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
    if how == "value":
        path.write_bytes(_other_value(path, raw.decode(), random.Random(f"{where}{content!r}")))
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


def _other_value(path: Path, text: str, draw: random.Random) -> bytes:
    """The file with one value, anywhere in it, gone or of another type; in diagnostics.jsonl in one of its lines."""
    if path.suffix == ".ckpt":
        return b""
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    place = draw.randrange(len(lines))
    content = yaml.safe_load(lines[place]) if path.suffix == ".yaml" else json.loads(lines[place])
    node = content
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.2:
            break
        node = node[key]
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice(VALUES)
    lines[place] = json.dumps(content)
    return ("\n".join(lines) + "\n").encode()
