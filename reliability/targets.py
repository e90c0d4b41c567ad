"""What is fuzzed: each target takes one generated case and says whether it was used or refused.

Refused means is_mistake() of errors.py: the scripts print a sentence. A target raises AssertionError for a number
that is silently wrong, and whatever else it raises is a traceback for the user.
"""

import contextlib
import io
import json
import math
import random
import runpy
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import strategies as st
from omegaconf import OmegaConf

from makemore_pl.checkpoint import load_module, read_checkpoint
from makemore_pl.command_line import typed
from makemore_pl.config import Config, resolve
from makemore_pl.config.stored_config import load_config
from makemore_pl.data import Vocabulary, split_examples
from makemore_pl.evaluate import evaluate
from makemore_pl.report.run_directory import read_run
from makemore_pl.report.sweep_directory import correlations, layer_mean, read_runs, rows, varied_keys
from makemore_pl.sample import Distributions, Settings, stream
from makemore_pl.sweep.conclusion import command
from makemore_pl.sweep.directory_names import job_name
from makemore_pl.sweep.job import refuse_other_run
from makemore_pl.words import read_words

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


LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=40)
WORD_FILES = st.one_of(
    st.binary(max_size=400),
    st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\u2028"]), st.sampled_from(["", "\ufeff"])).map(
        lambda each: (each[2] + each[1].join(each[0])).encode()
    ),
    st.tuples(LINES, st.binary(max_size=3)).map(lambda each: "\n".join(each[0]).encode("utf-8") + each[1]),
    LINES.map(lambda each: "\n".join(each).encode("utf-16")),
    st.lists(st.text("abcdé中😀", min_size=1, max_size=6), min_size=10, max_size=40).map(
        lambda e: "\n".join(e).encode()
    ),
)


class Fuzz:
    """Targets that need files: a word file, a run directory and copies of it to be damaged."""

    def __init__(self, run_dir: Path, scratch: Path) -> None:
        self.run_dir = run_dir
        self.scratch = scratch
        self.module = load_module(run_dir / "checkpoints" / "last.ckpt")
        self.config = load_config(run_dir)
        self.weights = self.module.state_dict()
        self.files = sorted(path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file())
        self.read = [path for path in self.files if path.suffix in (".ckpt", ".yaml", ".json", ".jsonl")]
        self.parser = OverridesParser.create()
        self.parse_arguments = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "sample.py"))["parse"]

    def words(self, content: bytes) -> None:
        """A list that is accepted loses no word and no character."""
        path = self.scratch / "words.txt"
        path.write_bytes(content)
        found = read_words(path)
        expected = [line.strip("\ufeff \t\r") for line in content.decode("utf-8").split("\n")]
        assert found == [word for word in expected if word]
        vocabulary = Vocabulary.of(found)
        for word in found[:50]:
            assert "".join(vocabulary.characters[index - 1] for index in vocabulary.encode(word)) == word
        splits = split_examples(found, 3)
        assert sum(len(y) for _, y in splits.values()) == sum(map(len, found)) + len(found)

    def sampling(self, given: dict[str, Any]) -> None:
        """Names begin with the prompt, are no longer than they may be, and have a likelihood."""
        settings = Settings(**given)
        distributions = Distributions(self.module.model, self.module.vocabulary, self.config.data.block_size, settings)
        names = [name for batch in stream(distributions, ()) for name in batch]
        assert settings.unique or len(names) == settings.count
        for name in names:
            assert name.word.startswith(settings.prompt)
            assert len(name.word) <= settings.max_length
            assert name.log_likelihood <= 0
            assert not math.isnan(name.log_likelihood)

    def arguments(self, given: list[str]) -> None:
        """Command lines of sample.py, up to where the network would be asked."""
        before = sys.argv
        sys.argv = ["sample.py", str(self.run_dir), *given]
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                parsed = vars(self.parse_arguments())
        except SystemExit as error:  # argparse's own sentence
            if error.code == 2:
                raise ValueError("refused by argparse") from None
            return
        finally:
            sys.argv = before
        Settings(**{each.name: parsed[each.name] for each in fields(Settings) if each.name in parsed})

    def damaged(self, given: tuple[int, str, int, bytes]) -> None:
        """Whatever a damaged file holds, weights and losses that come out are those that were saved."""
        place, how, where, content = given
        copy = Path(tempfile.mkdtemp(dir=self.scratch)) / "run"
        shutil.copytree(self.run_dir, copy)
        try:
            name = self.read[place % len(self.read)]
            damage(copy / name, how, where, content)
            losses, weights, resuming, reading, sweeping, going_on = _uses(copy, self)
            readers = {
                ".ckpt": [losses, weights, resuming],
                ".yaml": [losses, reading, sweeping, going_on],
                ".json": [reading, sweeping, going_on],
                ".jsonl": [reading, sweeping],
            }[name.suffix]
            readers[where % len(readers)]()
        finally:
            shutil.rmtree(copy.parent)

    def places(self, given: str) -> None:
        """Paths, names and commands: refused, or the same after the shell's and Hydra's own parsers."""
        override = f"data.path={typed(given)}"
        parsed = self.parser.parse_override(override)
        assert OmegaConf.create({"path": parsed.value()}).path == given, "typed() and Hydra disagree"
        assert shlex.split(command([override]))[-1] == override
        name = job_name([override, "seed=1"], ["data.path", "seed"])
        assert not set(name) & set("/\\:*?\"'<>| \n\0$"), "a job's name is no file name"
        assert name == job_name([override, "seed=1"], ["data.path", "seed"])
        for use in (load_config, lambda path: read_checkpoint(path), read_words, read_run):
            with contextlib.suppress(ValueError):
                use(Path(given))


def _uses(run: Path, fuzz: Fuzz) -> list[Callable[[], object]]:
    """What the scripts do with a run directory."""

    def losses() -> None:
        config = load_config(run)
        found = evaluate(run / "checkpoints" / "last.ckpt", config, recalibrated=False)["running statistics"]
        saved = json.loads((fuzz.run_dir / "metrics.json").read_text())
        if config.data == fuzz.config.data:
            assert all(abs(found[split] - saved[f"{split}/loss"]) < 1e-6 for split in found), "another loss, silently"

    def weights() -> None:
        loaded = load_module(run / "checkpoints" / "last.ckpt").state_dict()
        same = all(torch.equal(loaded[key], fuzz.weights[key]) for key in fuzz.weights)
        assert same, "other weights, silently"

    def resuming() -> None:
        from makemore_pl.checkpoint import check_resumable
        from makemore_pl.data import NamesDataModule

        config = fuzz.config
        datamodule = NamesDataModule(config.data, config.trainer, torch.Generator())
        path = run / "checkpoints" / "last.ckpt"
        check_resumable(path, config, datamodule)
        generator = read_checkpoint(path)["NamesDataModule"]["generator"]
        whole = read_checkpoint(fuzz.run_dir / "checkpoints" / "last.ckpt")["NamesDataModule"]["generator"]
        assert torch.equal(generator, whole), "another generator, silently"

    def reading() -> None:
        found = read_run(run)
        layer_mean(found.diagnostics, "saturation", None)

    def sweeping() -> None:
        runs = read_runs(run.parent)
        rows(runs, varied_keys(runs))
        correlations(runs)

    def going_on() -> None:
        refuse_other_run(run, fuzz.config)

    return [losses, weights, resuming, reading, sweeping, going_on]


DAMAGES = ("cut", "flip", "insert", "replace", "empty", "gone", "folder", "nested", "other", "link")


def damage(path: Path, how: str, where: int, content: bytes) -> None:
    """Do it to one file."""
    raw = path.read_bytes()
    place = where % max(len(raw), 1)
    if how in ("gone", "folder", "link"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        if how == "link":
            path.symlink_to(path)
        return
    made = {
        "cut": raw[:place],
        "flip": raw[:place] + bytes([raw[place] ^ (1 << where % 8)]) + raw[place + 1 :] if raw else b"",
        "insert": raw[:place] + content + raw[place:],
        "replace": content,
        "empty": b"",
        "nested": random.Random(where).choice([b"[", b'{"a":', b"a: {", b"- "]) * 20_000,
        "other": random.Random(where).choice(
            [b"[]", b"{}", b"null", b"3", b'"x"', b"nan", b'{"val/loss": "x"}', b"a: b"]
        ),
    }
    path.write_bytes(made[how])


DAMAGED = st.tuples(st.integers(0, 99), st.sampled_from(DAMAGES), st.integers(0, 2**20), st.binary(max_size=60))
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(-1, 12),
        "seed": st.one_of(st.integers(0, 2**63 - 1), st.sampled_from(EXTREMES)),
        "temperature": st.floats(),
        "top_k": st.one_of(st.none(), st.integers(-1, 40)),
        "prompt": st.one_of(st.text("abdelno", max_size=4), st.text(max_size=4)),
        "max_length": st.integers(-1, 30),
        "unique": st.booleans(),
        "batch_size": st.integers(-1, 20),
        "batch_statistics": st.booleans(),
    },
)
OPTIONS = st.sampled_from(
    [
        "--count",
        "--seed",
        "--temperature",
        "--top-k",
        "--prompt",
        "--max-length",
        "--batch-size",
        "--unique",
        "--x",
        "-h",
    ]
)
ARGUMENTS = st.lists(st.one_of(OPTIONS, NUMBERS.map(str), REALS.map(str), TEXTS), max_size=5)
PLACES = st.one_of(st.text(max_size=30), st.text("a/.~'\"\\ ${}[]=,:é中", max_size=20))
