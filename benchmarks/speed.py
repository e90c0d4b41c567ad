"""Measures the steady state and the whole command of every contender on every network."""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import tables
from benchmarks.contenders import CONTENDERS, FLOOR, OURS, SCALED, WARMUP, WARMUP_OURS
from benchmarks.networks import AXES, NETWORKS, Network, scaled
from benchmarks.process import ROOT, run
from benchmarks.publishing import environment, write_text
from benchmarks.results import Results

WORDS = ROOT / "makemore_pl" / "names" / "ssa_names_2018.txt"
Unit = tuple[str, str, dict[str, Callable[[], dict[str, Any]]]]
"""Network, contender, and kind of measurement -> function that measures it; they are run one after the other."""
CONSOLE = Console()


def measure(arguments: argparse.Namespace) -> None:
    surroundings = environment()
    results = Results(arguments.command_steps)
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(arguments.repeat):
            for name, contender, tasks in units(arguments, Path(scratch), turn):
                for kind, task in tasks.items():
                    record = {"network": name, "contender": contender, "kind": kind, "round": turn, **task()}
                    results.records.append(record)
                    measured = f"{record['us']:.1f} µs a step" if kind == "steady" else f"{record['seconds']:.1f} s"
                    place = f"round {turn + 1}/{arguments.repeat}: {name} {contender} {kind}"
                    CONSOLE.print(f"{place}: {measured}", highlight=False)
            write(results, arguments, surroundings)
    show(results, arguments, surroundings)
    if arguments.scaling:
        from benchmarks.figure import draw

        draw(results, arguments.figure)


def steady(contender: str, network: Network, steps: int, quick: bool, scratch: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=scratch) as run_dir:
        case = {
            "contender": contender,
            "network": {name: getattr(network, name) for name in Network.__slots__},
            "warmup": WARMUP_OURS if contender in OURS and not quick else WARMUP,
            "steps": steps,
            "words": str(WORDS),
            "run_dir": f"{run_dir}/run",
            "overrides": [*(["trainer.engine=eager"] if quick else []), *OURS.get(contender, [])],
        }
        result = Path(run_dir) / "result.json"
        process = run(["-m", "benchmarks.measurement", json.dumps(case), str(result)], scratch / "cache")
        measured: dict[str, Any] = json.loads(result.read_text())
        return process | measured


def command(chosen: Sequence[str], network: Network, steps: int, cache: Path) -> dict[str, Any]:
    """Run the whole command with these overrides."""
    with tempfile.TemporaryDirectory(dir=cache.parent) as run_dir:
        overrides = [*network.overrides, *chosen, f"hydra.run.dir={run_dir}", f"trainer.max_steps={steps}"]
        process = run(["scripts/train.py", *overrides], cache)
        metrics = json.loads((Path(run_dir) / "metrics.json").read_text())
        return process | {key: metrics[key] for key in ("train/loss", "val/loss")}


def run_whole(name: str, contender: str, full: str) -> bool:
    if full == "some":
        return name == "batchnorm" and contender == "1a"
    return full == "all" and contender not in (*OURS, FLOOR)


def units(arguments: argparse.Namespace, scratch: Path, turn: int) -> list[Unit]:
    """Everything to measure in one round."""
    if arguments.scaling:
        networks = dict(scaled(axis, value) for axis, values in AXES.items() for value in values)
        contenders = [*SCALED]
    else:
        networks = {name: NETWORKS[name] for name in arguments.only}
        contenders = [*arguments.contenders, *([FLOOR] if "3" in arguments.contenders else [])]
    found: list[Unit] = []
    for name, network in networks.items():
        for contender in contenders:
            measure = partial(steady, contender, network, scratch=scratch, quick=arguments.quick)
            found.append((name, contender, {"steady": partial(measure, arguments.steps)}))
            if arguments.scaling:
                continue
            if contender in ("3", "4") and turn < arguments.commands:
                cache = scratch / f"{name}-{contender}-{turn}"
                task = partial(command, OURS[contender], network, arguments.command_steps, cache)
                found.append((name, contender, {"cold": task, "warm": task}))
            if turn < arguments.commands and run_whole(name, contender, arguments.full):
                found.append((name, contender, {"whole": partial(measure, arguments.command_steps - WARMUP)}))
    start = turn * (len(contenders) // 2 + 1) % len(found)
    return found[start:] + found[:start]


def write(results: Results, arguments: argparse.Namespace, surroundings: dict[str, Any]) -> None:
    """Write the JSON file and the Markdown beside it."""
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output", "figure")}
    content = {**surroundings, "settings": settings, "summary": results.summary(), "records": results.records}
    paragraphs = [tables.environment_sentence(surroundings, results)]
    for title, header, body in sections(results, arguments):
        paragraphs += [title, tables.markdown(header, body)]
    paragraphs += notes(results, arguments)
    write_text(arguments.output, content, paragraphs)


def sections(results: Results, arguments: argparse.Namespace) -> list[tuple[str, list[str], list[list[str]]]]:
    if arguments.scaling:
        return [("`batchnorm` with one size changed", tables.SCALING_HEADER, tables.scaling_rows(results))]
    found = [(tables.TITLES[name], tables.HEADER, tables.rows(results, name)) for name in results.networks()]
    judged = [] if arguments.quick else tables.goal_rows(results)
    return [*found, *([("Goals", tables.GOALS_HEADER, judged)] if judged else [])]


def notes(results: Results, arguments: argparse.Namespace) -> list[str]:
    names = [f"{contender}: {name}" for contender, name in CONTENDERS.items()]
    if arguments.scaling:
        return [f"{'; '.join(f'{each}: {CONTENDERS[each]}' for each in SCALED)}. {tables.LEGEND}"]
    names.append(f"{FLOOR}: the matrix products of a step alone")
    return ["; ".join(names) + ".", f"{tables.LEGEND} {tables.command_legend(results.command_steps)}"]


def show(results: Results, arguments: argparse.Namespace, surroundings: dict[str, Any]) -> None:
    CONSOLE.print(tables.environment_sentence(surroundings, results), highlight=False)
    for section in sections(results, arguments):
        CONSOLE.print(tables.screen(*section))
    for note in notes(results, arguments):
        CONSOLE.print(note, highlight=False)
