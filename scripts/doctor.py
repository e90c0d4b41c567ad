"""Says what is wrong with a training and what to change: python scripts/doctor.py +experiment=original"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from makemore_pl.arguments import read
from makemore_pl.command_line import typed
from makemore_pl.config import Config, resolve
from makemore_pl.errors import one_sentence

ROOT = Path(__file__).resolve().parents[1]
EPILOG = """
doctor.verify=true runs the training and each prescription again from doctor.seeds=3 seeds and says whether it helped.
doctor.fail_on=warning (or critical) ends with exit code 2 if there is a finding of that severity or worse.
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train briefly (2,000 steps, or trainer.max_steps=...) and say what is wrong with the "
        "configuration, or examine an existing run or sweep.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", help="overrides as for train.py, or one run or sweep directory")
    parser.add_argument("--json", action="store_true", help="print the content of findings.json instead of sentences")
    parser.add_argument("--explain", metavar="ID", help="print what a finding means and what to do; all: all findings")
    return read(parser)


def compose(overrides: Sequence[str], run_dir: str = ".") -> Config:
    import hydra

    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(hydra.compose("train", overrides=[*overrides, f"run_dir={typed(run_dir)}"]))


def main() -> int:
    arguments = parse()
    if arguments.explain is not None:
        from makemore_pl.doctor.handbook import handbook
        from makemore_pl.doctor.plain_words import explain

        print(handbook() if arguments.explain == "all" else "\n".join(explain(arguments.explain)))
        return 0
    directories = [Path(each) for each in arguments.what if each and Path(each).is_dir()]
    overrides = [each for each in arguments.what if not each or not Path(each).is_dir()]
    # the directories of jobs are called seed=1, and no key but hydra/launcher has a slash
    misspelt = [each for each in overrides if "/" in each.partition("=")[0] and not each.startswith("hydra/")]
    if stray := misspelt or [each for each in overrides if "=" not in each and not each.startswith("~")]:
        raise ValueError(f"{stray[0]!r} is no directory, and no override such as model.gain=1.")
    if directories and (stray := [each for each in overrides if not each.startswith("doctor.")]):
        raise ValueError(f"{stray[0]} can't change a run that is over: give either directories or overrides.")
    fail_on = compose(overrides).doctor.fail_on
    from makemore_pl.checkup import examined_directory, examined_overrides  # imports torch and lightning, which is slow

    if directories:
        reports = [report for each in directories for report in examined_directory(each, compose)]
    else:
        reports = [examined_overrides(overrides, compose, lambda line: print(line, file=sys.stderr))]
    if arguments.json:
        shown = {report.name: report.diagnosis.as_json() for report in reports}
        print(json.dumps(shown if len(shown) > 1 else next(iter(shown.values())), indent=2))
    else:
        print("\n\n".join("\n".join(report.lines()) for report in reports))
    return 2 if any(report.fails(fail_on) for report in reports) else 0


if __name__ == "__main__":
    with one_sentence():
        sys.exit(main())
