"""The page of one run, in the order of the lecture: what was run, how it ended, and why."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from makemore_pl.command_line import anywhere
from makemore_pl.report import evolution, health
from makemore_pl.report.command import command_of, differences, overrides
from makemore_pl.report.run_directory import Run, flatten, recorded
from makemore_pl.report.section import Block, Code, Names, Note, Page, Picture, Section, Table, Tiles
from makemore_pl.report.verdict import verdict
from makemore_pl.report.wording import count, listed, number, show, signed

LECTURE = {
    "original": ("2.1245", "2.1682"),
    "fix_softmax": ("2.07", "2.13"),
    "fix_saturation": ("2.0356", "2.1027"),
    "kaiming": ("2.0377", "2.1070"),
    "batchnorm": ("2.0668", "2.1048"),
}
"""Published train and validation losses by experiment, with as many digits as were published."""
PACKAGES = ("makemore_pl", "torch", "lightning", "hydra-core", "numpy")
DECISIVE = ("data", "model", "optim", "seed")
"""Settings that decide the losses, apart from the number of steps."""


def run_page(
    run: Run,
    defaults: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    place: Path | None = None,
    short: bool = False,
) -> Page:
    """The page of a run.

    Args:
        defaults: the default config; without it the page does not list the settings that differ.
        start: the config of the run's experiment without other overrides; without it the command to run it again may be
            incomplete.
        place: the folder that the page is written to, by default the run's directory.
        short: whether to draw the losses only, because drawing takes most of the time.
    """
    differing = differences(run.config, defaults) if defaults is not None else {}
    sections = [
        Section("What was run", _what(run, differing, defaults is not None)),
        Section("Final losses", _final(run, start)),
        Section("Loss", evolution.loss(run)),
        *(_tables(run) if short else _pictures(run)),
        Section("How to run it again", _again(run, start or defaults)),
    ]
    told, absent = told_and_absent(sections)
    if absent:
        why = " (it was trained with callbacks=none)" if not run.config.get("callbacks") else ""
        told.insert(-1, Section("Not measured", [Note(f"This page has nothing on {listed(absent)}{why}.")]))
    if judged := verdict(run, place or run.directory, start or defaults):
        told.insert(0, Section("Verdict", judged))
    return Page(run.name, sentence(run), told, lambda: _kept(run))


def _pictures(run: Run) -> list[Section]:
    return [
        Section("Step by step", evolution.step_by_step({"": run})),
        Section("Layers", health.layers(run)),
        Section("Updates", health.updates(run)),
        Section("BatchNorm", health.batchnorm(run)),
        Section("Embeddings", health.embeddings(run)),
        Section("Names", _names(run)),
    ]


def _tables(run: Run) -> list[Section]:
    return [Section("Layers", health.layers_table(run)), Section("Updates", health.updates_table(run))]


def _kept(run: Run) -> list[Picture]:
    steps = run.diagnostics.histograms
    return evolution.four_pictures(run, {min(steps), max(steps)} if steps else ())


def told_and_absent(sections: Sequence[Section]) -> tuple[list[Section], list[str]]:
    """The sections that have content, and the names of what the other sections lack."""
    told, absent = [], []
    for section in sections:
        if all(isinstance(block, Note) and block.missing for block in section.blocks):
            absent += [block.text for block in section.blocks if isinstance(block, Note)]
        else:
            told.append(section)
    return told, absent


def sentence(run: Run) -> str:
    layers = run.get("model.n_layers")
    batchnorm = run.get("model.batchnorm")
    places = {
        "none": "no BatchNorm",
        "pre": "BatchNorm before each activation",
        "post": "BatchNorm after each activation",
        "output": "BatchNorm on the logits",
        "pre_output": "BatchNorm before each activation and on the logits",
    }
    words = run.get("data.path") or {"names": "the embedded US names", "lecture": "the lecture's names.txt"}.get(
        run.get("data.source"), run.get("data.source")
    )
    steps = run.metrics.get("steps")
    taken = f"{steps:,} steps" if steps else "an unfinished run"
    return (
        f"{layers} hidden {'layer' if layers == 1 else 'layers'} of {run.get('model.n_hidden')} "
        f"{run.get('model.activation')} units with {places.get(str(batchnorm), batchnorm)}, "
        f"{run.get('data.block_size')} characters of context, trained on {words} by {run.get('optim.name')}: {taken}, "
        f"minibatches of {run.get('data.batch_size')}, lr {show(run.get('optim.lr'))}, seed {run.get('seed')}."
    )


def _what(run: Run, differing: Mapping[str, tuple[Any, Any]], compared: bool) -> list[Block]:
    blocks: list[Block] = []
    if not run.metrics:
        step = run.diagnostics.last_step
        until = f"it was last watched at step {step:,}" if step is not None else "nothing was watched yet"
        blocks.append(Note(f"This run is not finished: it has no metrics.json, and {until}."))
    if differing:
        settings = [[key, show(value), show(default)] for key, (value, default) in differing.items()]
        blocks.append(Table("Settings that differ from the defaults", ["setting", "value", "default"], settings))
    elif compared:
        blocks.append(Note("Every setting has its default."))
    lines = "\n".join(f"{key}: {show(value)}" for key, value in flatten(run.config).items())
    return [*blocks, Code(lines, "All settings")]


def _final(run: Run, start: Mapping[str, Any] | None) -> list[Block]:
    metrics = run.metrics
    if "val/loss" not in metrics:
        return [evolution.missing("final losses")]
    tiles = [
        ("val loss", number(metrics.get("val/loss")), "nats, whole split"),
        ("train loss", number(metrics.get("train/loss")), "nats, whole split"),
        ("test loss", number(metrics.get("test/loss")), "nats, whole split"),
        ("val perplexity", number(metrics.get("val/perplexity"), 2), "characters to choose among"),
        ("initial loss", number(metrics.get("initial_loss")), f"ln V is {number(metrics.get('uniform_loss'))}"),
        ("steps", count(metrics.get("steps")), _pace(metrics)),
        ("parameters", count(metrics.get("parameters")), ""),
    ]
    blocks: list[Block] = [Tiles(tiles)]
    if run.name in LECTURE:
        train, val = LECTURE[run.name]
        losses = metrics.get("train/loss"), metrics["val/loss"]
        rows = [
            ["this run", *map(number, losses)],
            ["the lecture", train, val],
            [
                "difference",
                *(signed(ours and ours - float(its)) for ours, its in zip(losses, (train, val), strict=True)),
            ],
        ]
        same = run.get("data.source") == "lecture" and metrics.get("steps") == 200_000
        blocks.append(Table("Beside the lecture's published losses", ["", "train", "val"], rows))
        altered = _altered(run, start)
        changed = f" Other settings differ: {', '.join(altered)}." if altered else ""
        blocks.append(
            Note(
                f"Same words, same number of steps.{changed}"
                if same
                else "The lecture trained on its own word list for 200,000 steps, this run with "
                f"data.source={run.get('data.source')} for {metrics.get('steps', 0):,}: the losses need not agree."
                f"{changed}"
            )
        )
    return blocks


def _altered(run: Run, start: Mapping[str, Any] | None) -> list[str]:
    """Settings that decide the losses and in which a run differs from its experiment, apart from the words."""
    settings = run.overrides if run.overrides is not None else overrides(run.config, start) if start else []
    keys = [setting.lstrip("+~").partition("=")[0] for setting in settings]
    return [key for key in keys if key.partition(".")[0] in DECISIVE and key not in ("data", "data.source")]


def _names(run: Run) -> list[Block]:
    texts = {step: by["samples"] for step, by in sorted(run.diagnostics.texts.items()) if by.get("samples")}
    if not texts:
        return [evolution.missing("generated names")]
    columns = [(f"step {step:,}", texts[step]) for step in evolution.chosen(texts, 3)]
    note = [Note("A * marks names that are in the word list.")] if any("*" in n for _, c in columns for n in c) else []
    return [Names(columns), *note]


def _again(run: Run, start: Mapping[str, Any] | None) -> list[Block]:
    rows, when = recorded([run]), "of the run"
    if not isinstance(run.metrics.get("versions"), dict):
        rows += [[name, version] for name, version in _installed().items()]
        when = "when this page was made, because the run did not record them"
    command = command_of(run, start)
    return [
        *([Code(anywhere("train.py", *command))] if command is not None else []),
        Table(f"Versions {when}", ["package", "version"], rows),
    ]


def _installed() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _pace(metrics: Mapping[str, Any]) -> str:
    seconds, rate = metrics.get("seconds"), metrics.get("steps_per_second")
    return f"{seconds:.0f} s, {rate:,.0f} steps a second" if seconds is not None and rate is not None else ""
