"""Where this repository has been copied to and can't be installed, as on a machine without network."""

import json
import shutil
from pathlib import Path

import torch
from conftest import ROOT, python

LEFT_OUT = ("makemore_pl", "__editable__", "pooch", "platformdirs")


def test_a_run_needs_no_metadata_of_ours_and_nothing_for_downloads_and_compiling(
    tmp_path: Path, words_file: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        if not entry.name.startswith(LEFT_OUT):
            (packages / entry.name).symlink_to(entry)
    copied = tmp_path / "copied"  # without the metadata that an editable installation leaves in the repository
    for name in ("makemore_pl", "conf", "scripts"):
        shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
    overrides = (f"data.path={words_file}", "trainer.max_steps=3", "logger=none", "callbacks=none", "trainer=cpu")
    script = ("-S", copied / "scripts" / "train.py", *overrides, "hydra.run.dir=run")  # -S: no installed packages
    done = python(*script, cwd=tmp_path, PYTHONPATH=f"{copied}:{packages}")
    assert done.code == 0, done.err
    versions = json.loads((tmp_path / "run" / "metrics.json").read_text())["versions"]
    assert versions["makemore_pl"] is None
    assert versions["torch"] == torch.__version__
