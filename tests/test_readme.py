"""What the README shows works as it is written there."""

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
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


def in_a_shell(command: str, clone: Path, environment: dict[str, str]) -> None:
    """One line of the README; a server is stopped once it answers."""
    print(f"$ {command}", flush=True)
    if "tensorboard" not in command and "make look" not in command:
        subprocess.run(["bash", "-euc", command], cwd=clone, env=environment, check=True, stdin=subprocess.DEVNULL)
        return
    server = subprocess.Popen(["bash", "-euc", command], cwd=clone, env=environment, start_new_session=True)
    try:
        for _ in range(120):
            time.sleep(0.5)
            assert server.poll() is None, f"{command} ended"
            try:
                with urllib.request.urlopen("http://localhost:6006/", timeout=5) as answer:
                    assert b"TensorBoard" in answer.read()
                return
            except OSError:
                continue
        pytest.fail(f"{command} does not answer")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.mark.readme
def test_every_command_of_the_readme(tmp_path: Path) -> None:
    clone = tmp_path / "makemore_pl"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "MAKE", "MFLAGS"))}
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(blocks) > 4
    for block in blocks:
        lines = block.strip().splitlines()
        assigned = [line for line in lines if re.match(r"[A-Z]+=", line)]
        for line in lines:
            if line not in assigned:
                in_a_shell("\n".join([*assigned, line]), clone, environment)
