"""Makes docs/lecture.md: python scripts/lecture.py [--output DIRECTORY] [--page FILE] [--commands N] [--steps N]

It runs the commands of the page, except those that it has run before, and fills docs/lecture.md.j2 with their results.
To run all of them again, remove the output directory. The exit code is 1 if the numbers lack something that the page
tells the reader to look for.
"""

import argparse
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from makemore_pl.arguments import read, read_path
from makemore_pl.errors import one_sentence

ROOT = Path(__file__).parents[1]
LONG, SHORT = 50_000, 1_000


def typed(output: Path, most: int) -> dict[str, str]:
    """Name -> command of the page, as one would type it."""

    def train(experiment: str, steps: int, *overrides: str) -> str:
        words = [f"+experiment={experiment}", f"trainer.max_steps={min(steps, most)}", *overrides]
        return " ".join(["train.py", *words, f"hydra.run.dir={output}/{experiment}"])

    lines = {
        **{name: train(name, LONG) for name in ("original", "fix_softmax", "fix_saturation", "kaiming", "batchnorm")},
        "recalibrate": f"evaluate.py {output}/batchnorm --recalibrate",
        "compare": f"sample.py {output}/batchnorm --count 10 --compare-batch-statistics",
        **{name: train(name, SHORT, "optim.schedule=constant") for name in ("deep_linear", "gain_low", "gain_high")},
        "deep_batchnorm": train("deep_batchnorm", LONG),
        "lr_low": train("lr_low", SHORT, "optim.schedule=constant"),
        "names": f"sample.py {output}/deep_batchnorm --count 10 --statistics",
    }
    return {name: f".venv/bin/python scripts/{line}" for name, line in lines.items()}


def run(name: str, command: str, output: Path) -> dict[str, str]:
    """Run a command, unless it was run before; returns what it printed, the date and the commit."""
    record = ROOT / output / f"{name}.json"
    if record.exists():
        made: dict[str, str] = json.loads(record.read_text(encoding="utf-8"))
        if made["command"] != command:
            raise ValueError(f"{record} is of another command, {made['command']!r}: remove {output}.")
        return made
    if not (ROOT / output / name / "metrics.json").exists():  # train.py refuses a finished run by itself
        shutil.rmtree(ROOT / output / name, ignore_errors=True)
    print(command, end=" ", flush=True)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]],
        cwd=ROOT, text=True, encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"{command} failed:\n{done.stdout}")
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    version = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    made = {
        "command": command,
        "commit": version.stdout.strip(),
        "date": str(date.today()),
        "torch": importlib.metadata.version("torch"),
        "output": "\n".join(line.rstrip() for line in done.stdout.strip().splitlines()),
    }
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return made


def instruments(runs: dict[str, Any], page: Path, unseen: list[str]) -> dict[str, Callable[..., Any]]:
    """The functions of the template: numbers and pictures of a run, and checks of what it tells to look for."""
    from matplotlib.figure import Figure
    from PIL import Image

    import makemore_pl.doctor.diagnosis  # noqa: F401  # registers the rules
    from makemore_pl.doctor.rule import RULES
    from makemore_pl.figures import lecture_pictures
    from makemore_pl.report import evolution, health
    from makemore_pl.report.section import Pictures

    def at(name: str, tag: str, step: int) -> float:
        # the number at the last watched step up to this one
        steps, values = runs[name].diagnostics.tag(tag)
        return float(values[steps <= step][-1])

    def end(name: str, tag: str) -> float:
        # the number that the report shows
        steps, values = runs[name].diagnostics.tag(tag)
        return float(evolution.smooth(runs[name], tag.partition("/")[0], steps, values)[-1])

    def layers(name: str, quantity: str, step: int) -> dict[str, float]:
        _, found = runs[name].diagnostics.quantity(quantity)
        return {each: at(name, f"{quantity}/{each}", step) for each in sorted(found) if "bias" not in each}

    def place(name: str, picture: str) -> Path:
        path = page.parent / "images" / "lecture" / f"{name}-{picture}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def kept(name: str, picture: str, alt: str) -> str:
        # the picture of the Figures callback, at half its size
        path, whole = place(name, picture), Image.open(runs[name].directory / "figures" / f"{picture}.png")
        whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS).save(path, optimize=True)
        return f"![{alt}](images/lecture/{path.name})"

    def drawn(name: str, picture: str) -> str:
        # the picture of the report
        sections = (evolution.loss, health.updates, health.batchnorm, health.embeddings)
        blocks = [block for section in sections for block in section(runs[name]) if isinstance(block, Pictures)]
        found = {each.name: each for block in blocks for each in block.pictures}[picture]
        return saved(found.figure, place(name, picture), f"{name}. {found.alt}")

    def beside(kind: str, *names: str, alt: str) -> str:
        title, label, *_ = evolution.DISTRIBUTIONS[kind]
        groups = {f"{name}, {title}, step 0": evolution.groups_by_step(runs[name], kind)[0] for name in names}
        return saved(lecture_pictures.side_by_side(groups, label), place("_".join(names), kind), alt)

    def four(name: str, step: int) -> str:
        # this picture is also in the README
        (picture,) = evolution.four_pictures(runs[name], [step])
        path = page.parent / "images" / "lecture.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        return saved(picture.figure, path, f"{name}. {picture.alt}")

    def saved(figure: Figure, path: Path, alt: str) -> str:
        figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
        return f"![{alt}]({path.relative_to(page.parent).as_posix()})"

    def doctor(name: str) -> str:
        found = ", ".join(f"{RULES[each].title} (`{each}`)" for each in runs[name].roots)
        return f"The doctor found: {found}." if found else "The doctor found nothing wrong."

    def look(seen: bool, sentence: str) -> str:
        if not seen:
            unseen.append(sentence)
        return f"- {sentence}" + ("" if seen else " **Not seen in this run.**")

    def numbers(text: str) -> list[float]:
        return [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", text)]

    return {each.__name__: each for each in (at, end, layers, kept, drawn, beside, four, doctor, look, numbers)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the commands of docs/lecture.md and fills in what they gave.")
    parser.add_argument(
        "--output", type=read_path, default=Path("outputs/lecture"), help="for the runs (outputs/lecture)"
    )
    parser.add_argument(
        "--page", type=read_path, default=ROOT / "docs" / "lecture.md", help="images/ is written beside it"
    )
    parser.add_argument("--commands", type=int, help="run only the first N commands")
    parser.add_argument("--steps", type=int, default=LONG, help="the largest number of steps of a run")
    arguments = read(parser)
    commands = typed(arguments.output, arguments.steps)
    made = {name: run(name, commands[name], arguments.output) for name in list(commands)[: arguments.commands]}
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from makemore_pl.doctor.updates import HIGH, LOW
    from makemore_pl.files import write_atomically
    from makemore_pl.report.run_directory import is_run, read_run
    from makemore_pl.report.wording import number, significant

    directories = {name: ROOT / arguments.output / name for name in made}
    runs = {name: read_run(directory) for name, directory in directories.items() if is_run(directory)}
    unseen: list[str] = []
    environment = Environment(
        loader=FileSystemLoader(ROOT / "docs"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"n": number, "s": significant, "listed": lambda values: ", ".join(map(significant, values))}
    environment.globals |= instruments(runs, arguments.page, unseen)
    environment.globals |= {"low": LOW, "high": HIGH}
    text = environment.get_template("lecture.md.j2").render(
        made=made, runs=runs, early=min(SHORT, arguments.steps), long=LONG, short=SHORT
    )
    write_atomically(arguments.page, text.rstrip() + "\n")
    print(arguments.page)
    if unseen:
        print("Not seen in these runs:", *unseen, sep="\n- ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with one_sentence():
        main()
