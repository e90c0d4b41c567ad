"""Prints names from a run: python scripts/sample.py RUN_DIRECTORY [--count 20] [--seed 42] [--prompt an] ...

As text it prints a name a line, as JSON one object {"settings": ..., "names": [...]}. Names are printed as they are
drawn.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from makemore_pl.arguments import read, read_path
from makemore_pl.config.stored_config import load_config
from makemore_pl.errors import one_sentence

if TYPE_CHECKING:
    from makemore_pl.sample import Distributions, Name

Row = tuple[str, dict[str, Any]]
"""A line of text, and the dict for JSON."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prints names from a checkpoint, with BatchNorm's running statistics.")
    add = parser.add_argument
    add("run_directory", type=read_path)
    add("--checkpoint", choices=("best", "last"), default="last")
    add("--count", type=int, default=20, help="names (20)")
    add("--seed", type=int, default=42, help="with the same seed, name i is the same for every --count (42)")
    add("--temperature", type=float, default=1.0, help="divides the logits; greater than 0 (1)")
    add("--top-k", type=int, help="only the k likeliest characters; 1 is greedy")
    add("--prompt", default="", help="first characters of every name")
    add("--max-length", type=int, default=50, help="characters at which a name is cut (50)")
    add("--unique", action="store_true", help="no name twice")
    add("--new-only", action="store_true", help="no name of the run's word list")
    add("--format", choices=("text", "json"), default="text")
    add("--statistics", action="store_true", help="on standard error: share of new, unique and cut names, lengths, ...")
    add(
        "--compare-batch-statistics",
        action="store_true",
        help="print beside each name those by BatchNorm in train mode: in its batch, in a batch twice as large, alone",
    )
    add("--batch-size", type=int, default=16_384, help="names generated together; bounds the memory (16384)")
    add("--accelerator", choices=("auto", "cpu", "gpu"), default="auto", help="auto: as in training, if it is here")
    arguments = read(parser)
    if arguments.compare_batch_statistics and (arguments.unique or arguments.new_only or arguments.statistics):
        raise ValueError("--compare-batch-statistics goes without --unique, --new-only and --statistics.")
    return arguments


def main() -> None:
    arguments = parse()
    config = load_config(arguments.run_directory)
    import torch

    from makemore_pl.checkpoint import load_module
    from makemore_pl.running.accelerator import device_of
    from makemore_pl.sample import Distributions, Settings, stream
    from makemore_pl.words import load_words

    given = vars(arguments) | {"run_directory": str(arguments.run_directory)}
    settings = Settings(**{key: given[key] for key in asdict(Settings()) if key in given})
    torch.set_num_threads(config.trainer.threads)
    module = load_module(arguments.run_directory / "checkpoints" / f"{arguments.checkpoint}.ckpt")
    model = module.model.to(device_of(arguments.accelerator, config, module.model))
    network = (model, module.vocabulary, config.data.block_size)
    running = Distributions(*network, settings)
    if arguments.compare_batch_statistics:
        show_comparison(running, Distributions(*network, replace(settings, batch_statistics=True)), given)
        return
    words = load_words(config.data) if arguments.new_only or arguments.statistics else []
    found, names = 0, []

    def rows() -> Iterator[list[Row]]:
        nonlocal found
        for batch in stream(running, words if arguments.new_only else ()):
            found += len(batch)
            if arguments.statistics:
                names.extend(batch)
            yield [(name.word, name._asdict()) for name in batch]

    write(rows(), given)
    if names:
        print(describe(names, words), file=sys.stderr)
    if found < settings.count:
        kinds = " and ".join(
            kind for kind, asked in (("unique", settings.unique), ("new", arguments.new_only)) if asked
        )
        raise ValueError(
            f"Only {found} of {settings.count} {kinds} names were found in 100 draws for each name, at least 10,000 in "
            "all."
        )


def write(batches: Iterable[list[Row]], given: dict[str, Any]) -> None:
    as_json, separator = given["format"] == "json", "\n"
    if as_json:
        sys.stdout.write(f'{{"settings": {json.dumps(given)},\n"names": [')
    for batch in batches:
        for line, row in batch:
            sys.stdout.write(separator + json.dumps(row) if as_json else line + "\n")
            separator = ",\n"
        sys.stdout.flush()
    if as_json:
        print("\n]}", flush=True)


def describe(names: "list[Name]", words: list[str]) -> str:
    n, known, distinct = len(names), set(words), {name.word for name in names}
    characters, cut = sum(len(name.word) for name in names), sum(name.cut for name in names)
    log_likelihood = sum(name.log_likelihood for name in names)
    return (
        f"names           {n}\n"
        f"new             {sum(name.word not in known for name in names) / n:.4f} are not in the word list\n"
        f"unique          {len(distinct) / n:.4f}\n"
        f"cut             {cut / n:.4f} reached --max-length\n"
        f"mean length     {characters / n:.4f}, of the word list {sum(map(len, words)) / len(words):.4f}\n"
        f"log-likelihood  {log_likelihood / n:.4f} nats a name, "
        f"{log_likelihood / (characters + n - cut):.4f} a character, end marks included"
    )


def show_comparison(running: "Distributions", batch: "Distributions", given: dict[str, Any]) -> None:
    from makemore_pl.sample import compare

    ways = ("running_statistics", "batch_statistics", "other_neighbours", "alone")
    compared = []

    def rows() -> Iterator[list[Row]]:
        for each in compare(running, batch):
            compared.append(each)
            line = " ".join(f"{word if len(word) < 24 else word[:22] + '…':23}" for word in each)
            yield [(line.rstrip(), dict(zip(ways, each, strict=True)))]

    if given["format"] == "text":
        print(" ".join(f"{way:23}" for way in ways).rstrip())
    write(rows(), given)
    others, crowded, alone = (sum(each[i] != each[j] for each in compared) for i, j in ((0, 1), (1, 2), (1, 3)))
    print(
        f"With BatchNorm left in train mode, {others} of {len(compared)} names are different; "
        f"{crowded} change in a larger batch, and {alone} change alone.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    with one_sentence():
        try:
            main()
        except BrokenPipeError:  # the reader has ended, as `head` does: discard the rest, or Python fails at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
