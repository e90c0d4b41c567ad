"""Gives generated cases to everything that reads input of a user or files: make fuzz

A case is used, refused with a sentence, or a fault: a traceback, a hang, or a silently wrong number. A tally is
printed.
"""

import argparse
import logging
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from makemore_pl.arguments import read
from makemore_pl.checkpoint import load_module
from makemore_pl.config import resolve
from makemore_pl.errors import explain, is_mistake, one_sentence
from makemore_pl.train import run
from reliability import damage, typed, word_lists
from reliability.process import ROOT

SHARES = {"words": 0.3, "overrides": 0.2, "sampling": 0.1, "arguments": 0.1, "damaged": 0.2, "places": 0.1}
HANG = 20
"""Seconds of computing after which a case counts as hung; of waiting it takes 20 times as many."""


class Hung(BaseException):
    """Raised if a case takes too long. It is a BaseException, so that no handler in the program catches it."""


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung


class Tally:
    """The results of the cases of one target."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def take(self, target: Callable[[Any], None], case: Any) -> None:
        signal.setitimer(signal.ITIMER_PROF, HANG)  # of this process alone, however busy the machine is
        signal.alarm(20 * HANG)
        try:
            target(case)
            self.counts["used"] += 1
        except Hung:
            self._fault("hangs", case)
        except AssertionError as error:
            self._fault(f"WRONG: {error}", case)
        except Exception as error:
            if is_mistake(error):
                self.counts["refused"] += 1
                sentence = explain(error)
                if not sentence or len(sentence.splitlines()) > 6:
                    self._fault("no sentence", case)
                return
            frames = [each for each in traceback.extract_tb(error.__traceback__) if "makemore_pl/" in each.filename]
            at = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
            self._fault(f"{type(error).__name__} at {at}", case)
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _fault(self, what: str, case: Any) -> None:
        self.counts["faults"] += 1
        self.faults[what] += 1
        self.examples.setdefault(what, f"{case!r}"[:300])

    def __str__(self) -> str:
        counts = ", ".join(f"{self.counts[each]:,} {each}" for each in ("used", "refused", "faults"))
        lines = [f"{self.name}: {sum(self.counts.values()):,} cases: {counts}"]
        lines += [f"  {n} x {what}, such as {self.examples[what]}" for what, n in self.faults.most_common()]
        return "\n".join(lines)


def small_run(scratch: Path) -> Path:
    """A finished run, for sampling and for being damaged."""
    words = scratch / "list.txt"
    listed = (ROOT / "makemore_pl" / "names" / "ssa_names_2018.txt").read_text(encoding="utf-8").split()
    words.write_text("\n".join(listed[:60]), encoding="utf-8")
    overrides = [
        f"data.path={words}",
        "model.batchnorm=pre",
        "model.n_hidden=12",
        "trainer.max_steps=30",
        "trainer=cpu",
    ]
    overrides += [
        "trainer.engine=eager",
        "trainer.enable_progress_bar=false",
        "~callbacks.figures",
        "data.batch_size=8",
    ]
    overrides += [f"run_dir={scratch / 'run'}"]
    run(resolve(hydra.compose("train", overrides=overrides)), announce=False)
    (scratch / "run" / ".hydra").mkdir()
    (scratch / "run" / ".hydra" / "overrides.yaml").write_text("\n".join(f"- {each}" for each in overrides))
    return scratch / "run"


def fuzz(count: int, number: int, scratch: Path) -> list[Tally]:
    """So many cases in all, the same for the same number."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run_dir = small_run(scratch)
        sources: dict[str, tuple[Callable[[Any], None], SearchStrategy[Any]]] = {
            "words": (partial(word_lists.words, scratch / "words.txt"), word_lists.WORD_FILES),
            "overrides": (typed.overrides, typed.OVERRIDES),
            "sampling": (
                partial(word_lists.sampling, load_module(run_dir / "checkpoints" / "last.ckpt")),
                word_lists.SAMPLING,
            ),
            "arguments": (typed.arguments, typed.ARGUMENTS),
            "damaged": (partial(damage.damaged, run_dir), damage.DAMAGED),
            "places": (typed.places, typed.PLACES),
        }
        return [
            fuzz_one(name, target, strategy, max(1, round(count * SHARES[name])), number)
            for name, (target, strategy) in sources.items()
        ]


def fuzz_one(name: str, target: Callable[[Any], None], strategy: SearchStrategy[Any], count: int, number: int) -> Tally:
    """So many cases of one target."""
    tally = Tally(name)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def cases(case: Any) -> None:
        tally.take(target, case)

    cases()
    print(tally, flush=True)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = read(parser)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    signal.signal(signal.SIGALRM, _hung)
    signal.signal(signal.SIGPROF, _hung)
    scratch = Path(tempfile.mkdtemp(prefix="makemore_pl_fuzz_"))
    try:
        tallies = fuzz(arguments.cases, arguments.seed, scratch)
    finally:
        shutil.rmtree(scratch)
    cases, faults = (sum(sum(t.counts.values()) for t in tallies), sum(t.counts["faults"] for t in tallies))
    print(f"{cases:,} cases, {faults:,} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    with one_sentence():
        main()
