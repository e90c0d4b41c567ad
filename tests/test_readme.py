"""What the README shows works as it is written there."""

import re
import shutil
from pathlib import Path

from conftest import ROOT, python

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_on_a_module_that_is_not_ours(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    done = python("example.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.code == 0, done.err
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(events)).Reload()
    tags = set(found.Tags()["scalars"])
    for tag in ("zero_share/2", "grad_data_ratio/0.weight", "update_data_ratio/5.weight", "batchnorm_mean_lag/1"):
        assert tag in tags, sorted(tags)


def test_paths_in_the_readme_exist() -> None:
    named = re.findall(r"\]\(([\w./-]+)\)|`((?:docs|conf|makemore_pl)/[\w./-]*)`", README)
    paths = [a or b for a, b in named]
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_config_reference_is_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "scripts" / "document.py", tmp_path / "scripts")
    done = python(tmp_path / "scripts" / "document.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.code == 0, done.err
    made = (tmp_path / "docs" / "config.md").read_text(encoding="utf-8")
    assert made == (ROOT / "docs" / "config.md").read_text(encoding="utf-8"), "make config"
