"""Fixtures: compose() over the real conf/, a small word file, the real command line."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from makemore_pl.config import Config, resolve
from makemore_pl.stride import package_cache

ROOT = Path(__file__).parents[1]
GROUPS = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
_WORDS = (
    "abo adani alben amaro anelo arbi arlo bado banno belan belo bira bolan brano dabel dalo danira darno delbo "
    "dirano dobri elan elbo elora enno eral ibra idalo ilano inbo irel labro ladi lanbo ledra lirno lobe lorena "
    "naba nadel nalor nebri nelo nida nobra norel obel odan olira onale orbad rabel radno ralo rebi rolan rondi "
    "adobe balir denor"
)
WORDS = _WORDS.split()

Compose = Callable[..., Config]


class Finished(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # as in a run; with more threads small networks are slower


@pytest.fixture(autouse=True)
def stream_of_dropout_kept() -> Iterator[None]:
    # runs seed the global generator
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture(scope="session")
def conf() -> Iterator[None]:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


@pytest.fixture
def compose(conf: None, tmp_path: Path) -> Compose:
    """compose("+experiment=kaiming", "seed=1", run_dir=...) -> Config, from the real conf/."""

    def composed(*overrides: str, run_dir: Path = tmp_path / "run") -> Config:
        return resolve(hydra.compose("train", overrides=[*overrides, f"run_dir='{run_dir}'"]))

    return composed


@pytest.fixture(scope="session")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def composed_once(conf: None) -> Callable[[tuple[str, ...]], DictConfig]:
    return functools.cache(lambda overrides: hydra.compose("train", overrides=list(overrides)))


@pytest.fixture
def small(composed_once: Callable[[tuple[str, ...]], DictConfig], words_file: Path, tmp_path: Path) -> Compose:
    """Like compose, for a run that takes much less than a second: few words and neurons, nothing compiled or logged.

    Groups and additions ("optim=adam", "+...") are composed by Hydra, once for all tests that share them; dotted keys
    are merged over the result, which spares 0.2 s a test.
    """
    dotted = {
        "data.path": str(words_file),
        "data.batch_size": "8",
        "model.n_embd": "4",
        "model.n_hidden": "12",
        "trainer.max_steps": "20",
        "trainer.engine": "eager",
        "trainer.enable_progress_bar": "false",
    }

    def composed(*overrides: str, run_dir: Path = tmp_path / "run") -> Config:
        values = dotted | {"run_dir": str(run_dir)}
        groups = {"trainer": "trainer=cpu", "callbacks": "callbacks=none", "logger": "logger=none"}
        for override in overrides:
            key, _, value = override.partition("=")
            if override.startswith("+") or key in GROUPS:
                groups[key] = override
            else:
                values[key] = value
        raw = composed_once(tuple(groups.values()))
        return resolve(OmegaConf.merge(raw, OmegaConf.from_dotlist([f"{k}={v}" for k, v in values.items()])))

    return composed


@pytest.fixture
def package_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory for compiled packages that only this test uses."""
    monkeypatch.setattr(package_cache, "CHOSEN", str(tmp_path / "cache"))
    return tmp_path / "cache" / "strides"


@pytest.fixture(scope="session")
def lecture_names() -> Path:
    path = Path(os.environ.get("MAKEMORE_NAMES", ROOT.parent / "shared" / "data" / "names.txt"))
    if not path.is_file():
        pytest.skip(f"the lecture's names.txt is not at {path}; set MAKEMORE_NAMES to its path")
    return path


def python(*arguments: str | Path, cwd: Path, **environment: str) -> Finished:
    """A real Python process, without HYDRA_FULL_ERROR unless given."""
    env = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"} | environment
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def train_script(tmp_path: Path) -> Callable[..., Finished]:
    """scripts/train.py as the user runs it, from a directory of its own."""

    def run(*arguments: str, **environment: str) -> Finished:
        return python(ROOT / "scripts" / "train.py", *arguments, cwd=tmp_path, **environment)

    return run
