"""What is typed: overrides, options, and paths; each target takes one generated case.

A case is refused with what is_mistake() of errors.py takes for a user's mistake, for which the scripts print a
sentence. AssertionError is raised for a number that is silently wrong. Whatever else is raised is a traceback.
"""

import argparse
import contextlib
import io
import math
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import strategies as st
from omegaconf import OmegaConf

from makemore_pl.arguments import read_hydra
from makemore_pl.checkpoint import read_checkpoint
from makemore_pl.command_line import typed
from makemore_pl.config import Config, resolve
from makemore_pl.config.stored_config import load_config
from makemore_pl.report.run_directory import read_run
from makemore_pl.sample import Settings
from makemore_pl.sweep.conclusion import command
from makemore_pl.sweep.directory_names import job_name
from makemore_pl.words import read_words
from reliability.process import ROOT

FLOAT32 = torch.finfo(torch.float32)
EXTREMES = (0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**20, 10**400)
POSITIVE = ("lr", "eps", "gain", "bn_eps", "bn_momentum", "gradient_clip_val")
"""Settings that 0 is refused for."""
NUMBERS = st.one_of(st.integers(-3, 300), st.sampled_from(EXTREMES), st.integers())
REALS = st.one_of(st.floats(0, 3), st.floats(), st.sampled_from(["1e39", "1e-50", "1e400", "nan", "inf", "-0.0", ".5"]))
TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["null", "true", "~", "???", "${seed}", "${x", "[", "'", '"', "\\", ""])
)


def _typed_keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for each in fields(schema):
        if is_dataclass(each.type):
            yield from _typed_keys(each.type, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, str(each.type)


TYPED_KEYS = dict(_typed_keys(Config))
KEYS = [
    *TYPED_KEYS,
    "model",
    "optim",
    "trainer",
    "data",
    "model.n_hiden",
    "callbacks.figures.steps",
    "hydra.run.dir",
]
CHOICES = st.sampled_from(["adam", "sgd", "pre", "none", "cpu", "tanh", "compile", "names", "kaiming", "cosine"])
VALUES = st.one_of(
    NUMBERS.map(str),
    REALS.map(str),
    TEXTS,
    CHOICES,
    st.lists(NUMBERS.map(str), max_size=3).map(lambda each: f"[{','.join(each)}]"),
    st.dictionaries(st.sampled_from("abc"), NUMBERS.map(str), max_size=2).map(
        lambda each: "{" + ",".join(f"{key}:{value}" for key, value in each.items()) + "}"
    ),
)
ANY = st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS), VALUES).map(
    lambda each: f"{each[0]}{each[1]}={each[2]}"
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(1, 10**4),
    "float": st.floats(0, 1),
    "bool": st.booleans(),
}


@st.composite
def _of_its_type(draw: st.DrawFn) -> str:
    key = draw(st.sampled_from(list(TYPED_KEYS)))
    kind = next((kind for kind in LIKELY if kind in TYPED_KEYS[key]), "str")
    return f"{key}={draw(LIKELY.get(kind, CHOICES))}"


OVERRIDES = st.one_of(
    st.lists(_of_its_type(), min_size=1, max_size=2),
    st.tuples(_of_its_type(), ANY).map(list),
    st.lists(ANY, min_size=1, max_size=1),
)


def overrides(given: list[str]) -> None:
    """A config that passes holds numbers that a run can hold: finite, and neither more nor nothing in float32."""
    config = resolve(compose("train", overrides=[*given, "run_dir=x"]))
    for group in (config.data, config.model, config.optim, config.trainer):
        for each in fields(group):
            value = getattr(group, each.name)
            if isinstance(value, float):
                assert math.isfinite(value), f"{each.name}={value} is accepted"
                assert abs(value) <= FLOAT32.max, f"{each.name} beyond float32 is accepted"
                if each.name in POSITIVE:
                    assert torch.tensor(value).item() > 0, f"{each.name} that is 0 in float32 is accepted"


SCRIPTS: dict[str, Callable[[], argparse.Namespace]] = {
    name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["parse"] for name in ("sample", "doctor")
}
OPTIONS = st.sampled_from([
    "--count", "--seed", "--temperature", "--top-k", "--prompt", "--max-length", "--batch-size", "--unique", "--x",
    "-h", "--json", "--explain",
])  # fmt: skip
HYDRA_S_OPTIONS = st.sampled_from([
    "--cfg", "-c", "--cfg=job", "-cjob", "-m", "--multirun", "--info", "-i", "--config-dir", "--resolve", "--",
    "--seed=3", "--lr", "--experiment",
])  # fmt: skip
LINES_OF_OPTIONS = st.tuples(
    st.sampled_from(["sample", "doctor"]),
    st.lists(st.one_of(OPTIONS, NUMBERS.map(str), REALS.map(str), TEXTS), max_size=5),
)
LINES_OF_HYDRA = st.tuples(
    st.just("train"), st.lists(st.one_of(HYDRA_S_OPTIONS, _of_its_type(), ANY, CHOICES, TEXTS), max_size=5)
)
ARGUMENTS = st.one_of(LINES_OF_OPTIONS, LINES_OF_HYDRA)


def arguments(given: tuple[str, list[str]]) -> None:
    """Command lines, up to where the network would be asked. Where options stand makes no difference."""
    script, line = given
    if script == "train":
        understood = read_hydra(line)
        assert read_hydra(understood) == understood, "another order is understood in another way"
        return
    before = sys.argv
    sys.argv = [f"{script}.py", *(["run"] if script == "sample" else []), *line]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            parsed = vars(SCRIPTS[script]())
    except SystemExit:  # -h
        return
    finally:
        sys.argv = before
    if script == "sample":
        Settings(**{each.name: parsed[each.name] for each in fields(Settings) if each.name in parsed})


PLACES = st.one_of(st.text(max_size=30), st.text("a/.~'\"\\ ${}[]=,:é中", max_size=20))


def places(given: str) -> None:
    """Paths, names and commands: refused, or the same after the shell's and Hydra's own parsers."""
    override = f"data.path={typed(given)}"
    parsed = OverridesParser.create().parse_override(override)
    assert OmegaConf.create({"path": parsed.value()}).path == given, "typed() and Hydra disagree"
    assert shlex.split(command([override]))[-1] == override
    name = job_name([override, "seed=1"], ["data.path", "seed"])
    assert not set(name) & set("/\\:*?\"'<>| \n\0$"), "a job's name is no file name"
    assert name == job_name([override, "seed=1"], ["data.path", "seed"])
    for use in (load_config, lambda path: read_checkpoint(path), read_words, read_run):
        with contextlib.suppress(ValueError):
            use(Path(given))
