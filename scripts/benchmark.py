"""Measures speed beside the lecture's loop, a simple loop and plain Lightning: python scripts/benchmark.py

Every measurement runs in a fresh process with one thread. In a round each contender is measured once on each network,
and every round begins with another contender. There are three networks and eight contenders:

1a   the lecture's loop for the same network: plain tensors, hand-written layers
1a+  the same, and at every step what the lecture records of its deep network
1b   nn modules, torch.optim.SGD, indices drawn from one tensor: the fastest simple loop
2    plain Lightning with its defaults: TensorDataset, DataLoader, self.log, progress bar, TensorBoard
3    makemore_pl with callbacks=none;  3e  with engine=eager
4    makemore_pl with its defaults;    4e  with engine=eager

Steady state: --steps steps are timed after a warm-up. makemore_pl begins its run of 200,000 steps as the command does,
with logger, progress bar, validation and checkpoints, and is timed from step 16,000 on. By then it has compiled the
steps and drawn all pictures but the last; this time is part of the whole command. No contender prints to a terminal;
contender 2 would lose most by that.

Whole command: `python scripts/train.py +experiment=...` as a user types it is timed from the start of the process to
its end, first with an empty cache of compiled code and then with a full one. 1a, 1b and 2 read the words, train, and
evaluate two splits. --full says which of these are run completely; the others are extrapolated and marked with ~.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import foreign, gpu, speed, sweep, tables, watching
from benchmarks.contenders import CONTENDERS
from benchmarks.doctor.case import FAMILIES, HALVES
from benchmarks.networks import NETWORKS
from benchmarks.process import ROOT
from benchmarks.publishing import environment, write_text
from makemore_pl.arguments import read, read_path
from makemore_pl.errors import one_sentence

FIGURE = ROOT / "docs" / "images" / "scaling.png"

console = Console()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks; with --doctor parts of cases' names")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of one steady state (default: 10000)")
    parser.add_argument("--commands", type=int, default=3, help="rounds with whole commands of ours (default: 3)")
    parser.add_argument(
        "--full",
        choices=("none", "some", "all"),
        help="whole commands of 1a, 1b, 2: some runs only 1a on batchnorm (default); all takes an hour more",
    )
    parser.add_argument("--scaling", action="store_true", help=f"instead: 1b and 3 over sizes; draws {FIGURE.name}")
    parser.add_argument("--sweep", action="store_true", help="instead: a sweep of 24 jobs, and 1b and 2 on the same")
    parser.add_argument("--sampling", action="store_true", help="instead: names a second, and those of the lecture")
    parser.add_argument("--watching", action="store_true", help="instead: what callbacks and the page add, in 8 rounds")
    parser.add_argument("--doctor", action="store_true", help="instead: how often the doctor is right")
    parser.add_argument("--half", choices=HALVES, help="of --doctor's cases (default: both)")
    parser.add_argument("--family", choices=FAMILIES, help="of --doctor's cases (default: both)")
    parser.add_argument("--losses", action="store_true", help="train only what --doctor needs for the test of harm")
    parser.add_argument("--rivals", action="store_true", help="also run other installed tools on --doctor's modules")
    parser.add_argument(
        "--foreign", action="store_true", help="instead: the cost of the instruments on networks of others"
    )
    parser.add_argument("--gpu", action="store_true", help="instead: GPU and CPU over batch size and width")
    parser.add_argument(
        "--minutes", type=float, default=15, help="--gpu begins no measurement after these (default: 15)"
    )
    parser.add_argument("--figure", type=read_path, default=FIGURE, help="the file that --scaling draws")
    parser.add_argument("--output", type=read_path, help="the JSON file; a Markdown table is written beside it")
    parser.add_argument("--quick", action="store_true", help="a short test: one round on batchnorm with engine=eager")
    arguments = read(parser)
    arguments.command_steps = 1_000 if arguments.quick else 200_000
    if not arguments.doctor:
        arguments.only = arguments.only or [*NETWORKS]
        if unknown := set(arguments.only) - set(NETWORKS):
            parser.error(f"--only: no network {', '.join(sorted(unknown))} among {', '.join(NETWORKS)}")
    if arguments.quick and not arguments.doctor:
        arguments.only, arguments.repeat, arguments.steps = ["batchnorm"], 1, 200
        arguments.commands = min(arguments.commands, 1)
        arguments.contenders = arguments.contenders or ["1a", "1b", "2", "4"]
    arguments.contenders = arguments.contenders or [*CONTENDERS]
    arguments.full = arguments.full or ("none" if arguments.quick else "some")
    if arguments.output is None:
        chosen = [
            name
            for name in ("scaling", "sweep", "sampling", "watching", "foreign", "doctor", "gpu")
            if getattr(arguments, name)
        ]
        arguments.output = Path(f"outputs/{(chosen or ['benchmark'])[0]}.json")
    return arguments


def measure_sweep(arguments: argparse.Namespace) -> None:
    surroundings = environment()
    steps = 1_000 if arguments.quick else 50_000
    with tempfile.TemporaryDirectory() as scratch:
        measured = sweep.measure(speed.WORDS, steps, Path(scratch), lambda line: console.print(line, highlight=False))
    title = f"{surroundings['date']}, commit {surroundings['commit']}"
    write_text(arguments.output, surroundings | measured, [title, tables.markdown(sweep.HEADER, sweep.rows(measured))])
    console.print(tables.screen(title, sweep.HEADER, sweep.rows(measured)))
    console.print(sweep.verdict(measured), highlight=False)


def measure_sampling(arguments: argparse.Namespace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sampling"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    measured = environment() | json.loads(done.stdout)
    write_text(arguments.output, measured, [])
    console.print_json(data=measured)


def measure_watching(arguments: argparse.Namespace) -> None:
    surroundings, steps = environment(), arguments.command_steps
    count, say = 2 if arguments.quick else 8, partial(console.print, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        run_one = partial(speed.command, network=NETWORKS["kaiming"], steps=steps, cache=Path(scratch) / "cache")
        rounds = watching.measure(run_one, count, say)
    when = f"{surroundings['date']}, commit {surroundings['commit']}"
    title, rows = f"kaiming, {steps:,} steps, medians of {count} rounds ({when})", watching.rows(rounds)
    content = surroundings | {"cpu_seconds": rounds}
    write_text(arguments.output, content, [title, tables.markdown(watching.HEADER, rows)])
    console.print(tables.screen(title, watching.HEADER, rows))


def measure_gpu(arguments: argparse.Namespace) -> None:
    rows, contenders = (gpu.ROWS[:1], gpu.QUICK) if arguments.quick else (gpu.ROWS, gpu.MEASURED)
    say = partial(console.print, highlight=False)
    measured = gpu.measure(arguments.output, environment(), rows, contenders, arguments.minutes, say)
    console.print(tables.screen("µs a step", gpu.HEADER, gpu.table(measured["cells"])))
    say(gpu.crossing_sentence(measured))


def measure_doctor(arguments: argparse.Namespace) -> None:
    from benchmarks.doctor import beside, page
    from benchmarks.doctor.counting import count
    from benchmarks.doctor.records import measure
    from benchmarks.doctor.rivals import installed
    from benchmarks.doctor.shelf import chosen

    if arguments.rivals and not installed():
        raise SystemExit("--rivals needs one of the other tools: pip install -e '.[benchmark]'.")
    try:
        cases = chosen(arguments.half, arguments.family, arguments.only, arguments.quick)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    surroundings, say = environment(), partial(console.print, highlight=False, markup=False, soft_wrap=True)
    results = measure(cases, arguments.output.with_suffix(".jsonl"), say, verdicts=not arguments.losses)
    paragraphs = [f"{surroundings['date']}, commit {surroundings['commit']}"]
    for half, family in dict.fromkeys((case.half, case.family) for case in cases):
        mine = [each for each in results if (each.case.half, each.case.family) == (half, family)]
        paragraphs += page.sections(family, half, count(mine))
        if arguments.rivals and family == "module":
            names = [each.case.name for each in mine]
            words = beside.measure(half, names, arguments.output.with_suffix(f".rivals.{half}.jsonl"), say)
            paragraphs += ["### Beside other tools", *beside.table(mine, words)]
    paragraphs += ["## Faults", page.faults()]
    arguments.output.with_suffix(".md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    say("\n\n".join(paragraphs))


def measure_foreign(arguments: argparse.Namespace) -> None:
    surroundings = environment()
    rounds, steps = (1, 60) if arguments.quick else (arguments.repeat, foreign.STEPS)
    with tempfile.TemporaryDirectory() as scratch:
        records = foreign.measure(rounds, steps, Path(scratch), lambda line: console.print(line, highlight=False))
    when = f"{surroundings['date']}, commit {surroundings['commit']}"
    sections = [
        (
            f"{steps:,} steps, batch {foreign.BATCH}, CPU time of one thread, medians of {rounds} rounds ({when})",
            foreign.HEADER,
            foreign.rows(records),
        ),
        (f"ResNet-18, batch {foreign.BATCH} ({when})", foreign.MEMORY_HEADER, foreign.memory_rows(records)),
    ]
    paragraphs = [part for title, header, rows in sections for part in (title, tables.markdown(header, rows))]
    write_text(arguments.output, surroundings | {"records": records}, paragraphs)
    for section in sections:
        console.print(tables.screen(*section))


def main() -> None:
    arguments = parse()
    if arguments.sweep:
        measure_sweep(arguments)
    elif arguments.sampling:
        measure_sampling(arguments)
    elif arguments.watching:
        measure_watching(arguments)
    elif arguments.doctor:
        measure_doctor(arguments)
    elif arguments.foreign:
        measure_foreign(arguments)
    elif arguments.gpu:
        measure_gpu(arguments)
    else:
        speed.measure(arguments)


if __name__ == "__main__":
    with one_sentence():
        main()
