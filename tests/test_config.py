"""A typo is never ignored: one sentence that names the key, exit code 1, no traceback."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
from conftest import EXPERIMENTS, GROUPS, ROOT, Compose, Finished, python
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from makemore_pl.config import Config, DataConfig, ModelConfig, OptimConfig, TrainerConfig, choices, memory, resolve
from makemore_pl.config.settings_without_effect import settings_without_effect
from makemore_pl.config.stored_config import load_config
from makemore_pl.errors import explain
from makemore_pl.train import build

TrainScript = Callable[..., Finished]


def sentence(*overrides: str, run_dir: Path) -> str:
    """What scripts/train.py prints for these overrides, without the cost of a process."""
    with pytest.raises((ValueError, HydraException, OmegaConfBaseException)) as caught:
        resolve(hydra.compose("train", overrides=[*overrides, f"run_dir='{run_dir}'"]))
    return explain(caught.value)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model.n_hiden=300",), "Unknown config key 'model.n_hiden'. Did you mean 'model.n_hidden'?"),
        (("+model.n_hiden=300",), "Unknown config key 'model.n_hiden'. Did you mean 'model.n_hidden'?"),
        (
            ("model.n_hidden=abc",),
            "model.n_hidden must be a whole number: type it without a point or an exponent, not abc.",
        ),
        (
            ("model.n_hidden=1.5",),
            "model.n_hidden must be a whole number: type it without a point or an exponent, not 1.5.",
        ),
        (("--seed=3",), "There is no option --seed. Type seed=3"),
        (("model.n_hidden=0",), "model.n_hidden must be at least 1, got 0."),
        (("+experiment=typo_inside",), "Unknown config key 'model.n_hiden'. Did you mean 'model.n_hidden'?"),
        (("+experiment=string_for_model",), "In 'experiment/string_for_model': "),
        (("+experiment=kamiing",), "There is no experiment=kamiing. Did you mean 'kaiming'?"),
        (("experiment=kaiming",), "+experiment=kaiming"),
        (("hydra.verbose=5",), "Hydra can't use hydra.verbose=5: AssertionError."),
        (("hydra.run.dir=words.txt",), "words.txt can't be made a directory: something else of this name is there."),
        (("hydra.run.dir=words.txt/x",), "words.txt/x can't be used: Not a directory."),
        (("hydra.run.dir=loop/x",), "loop/x can't be used: Too many levels of symbolic links."),
        (("model.init=" + "a" * 5000,), "a…a"),
        (("data.path=$(x), y",), "quote its value, 'data.path=\"$(x), y\"'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(
    train_script: TrainScript, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    experiments = tmp_path / "mine" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "typo_inside.yaml").write_text("# @package _global_\nmodel:\n  n_hiden: 300\n")
    (experiments / "string_for_model.yaml").write_text("# @package _global_\nmodel: mlp\n")
    (tmp_path / "words.txt").touch()
    (tmp_path / "loop").symlink_to("loop")
    code, out, err = train_script("--config-dir", str(tmp_path / "mine"), *arguments)
    assert code == 1
    assert "Traceback" not in out + err
    assert said in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    assert len(err) < 500
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("metrics.json"))


def test_what_must_be_fast_imports_no_torch(tmp_path: Path) -> None:
    """--help and --cfg job answer at once: counted in modules imported, not in seconds."""
    for arguments in (("--help",), ("--cfg", "job", "+experiment=deep_batchnorm"), ("model.n_hidden=0",)):
        done = python("-X", "importtime", ROOT / "scripts" / "train.py", *arguments, cwd=tmp_path)
        imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines() if line.startswith("import time")}
        assert "omegaconf" in imported, "the listing of imports must have worked"
        assert not imported & {"torch", "lightning", "lightning.pytorch", "pooch", "torchmetrics"}, arguments


def test_cfg_job_shows_the_whole_config(train_script: TrainScript) -> None:
    code, out, _ = train_script("--cfg", "job", "+experiment=batchnorm", "model.gain=0.5")
    assert code == 0
    for line in ("experiment: batchnorm", "  batchnorm: pre", "  gain: 0.5", "  momentum: 0.0", "seed: 2147483647"):
        assert line in out.splitlines()


def test_help_names_the_groups_and_the_project(train_script: TrainScript) -> None:
    code, out, _ = train_script("--help")
    assert code == 0
    assert "makemore_pl" in out
    assert all(experiment in out for experiment in EXPERIMENTS)
    assert all(f"{group}: " in out for group in ("data", "model", "optim", "trainer", "callbacks", "logger"))


# --- sentences -------------------------------------------------------------------------------------------------------


def files_of(group: str) -> str:
    return ", ".join(sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml")))


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.batchsize=3", "Unknown config key 'data.batchsize'. Did you mean 'data.batch_size'?"),
        ("+data.pth=x", "Unknown config key 'data.pth'. Did you mean 'data.path'?"),
        ("optimm.lr=1", "Unknown config key 'optimm'. Did you mean 'optim'?"),
        ("+sead=1", "Unknown config key 'sead'. Did you mean 'seed'?"),
        ("+zzz=1", "Unknown config key 'zzz'."),
        ("+model.n_hidden.size=1", "model.n_hidden"),
        ("~optim.lr", "optim.lr"),
        ("optim=adamm", f"There is no optim=adamm. Did you mean 'adam'? Available: {files_of('optim')}."),
        ("data=lectur", f"There is no data=lectur. Did you mean 'lecture'? Available: {files_of('data')}."),
        ("model.batchnorm=prre", "one of none, pre, post, output, pre_output, got 'prre'. Did you mean 'pre'?"),
        ("model.init=kamiing", "model.init must be one of kaiming, xavier, small, normal, got 'kamiing'."),
        (
            "model.activation=tan",
            f"model.activation must be one of {', '.join(choices.ACTIVATION_NAMES)}, got 'tan'.",
        ),
        (
            "optim.name=rmspropp",
            f"optim.name must be one of {', '.join(choices.OPTIMIZER_SETTINGS)}, "
            "got 'rmspropp'. Did you mean 'rmsprop'?",
        ),
        ("optim.schedule=linear", "optim.schedule must be one of constant, step_decay, cosine, got 'linear'."),
        ("trainer.engine=fast", "trainer.engine must be one of auto, compile, eager, record, got 'fast'."),
        ("trainer.precision=16", "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed, got '16'."),
        ("data.source=mine", f"data.source must be one of {', '.join(choices.SOURCE_NAMES)}, got 'mine'."),
        ("data.block_size=0", "data.block_size must be at least 1, got 0."),
        ("data.batch_size=0", "data.batch_size must be at least 1, got 0."),
        ("model.n_layers=0", "model.n_layers must be at least 1, got 0."),
        ("model.n_embd=-3", "model.n_embd must be at least 1, got -3."),
        ("model.gain=0", "model.gain must be greater than 0, got 0.0."),
        ("model.gain=-1.5", "model.gain must be greater than 0, got -1.5."),
        ("model.gain=nan", "model.gain must be greater than 0, got nan."),
        ("model.output_scale=-1", "model.output_scale must be 0 or greater, got -1.0."),
        ("model.bn_momentum=0", "model.bn_momentum must be in (0, 1], got 0.0."),
        ("model.bn_momentum=1.1", "model.bn_momentum must be in (0, 1], got 1.1."),
        ("model.bn_eps=0", "model.bn_eps must be greater than 0, got 0.0."),
        ("model.dropout=1", "model.dropout must be in [0, 1), got 1.0."),
        ("optim.lr=0", "optim.lr must be greater than 0, got 0.0."),
        ("optim.lr=-0.1", "optim.lr must be greater than 0, got -0.1."),
        ("optim.momentum=1", "optim.momentum must be in [0, 1), got 1.0."),
        ("optim.beta2=1", "optim.beta2 must be in [0, 1), got 1.0."),
        ("optim.alpha=1", "optim.alpha must be in [0, 1), got 1.0."),
        ("optim.weight_decay=-1", "optim.weight_decay must be 0 or greater, got -1.0."),
        ("optim.decay_at=1.5", "optim.decay_at must be a fraction of the run, 0 to 1, got 1.5."),
        ("optim.nesterov=true", "optim.nesterov needs optim.momentum greater than 0."),
        ("trainer.max_steps=0", "trainer.max_steps must be at least 1, got 0."),
        ("trainer.watch_every=0", "trainer.watch_every must be at least 1, got 0."),
        ("trainer.val_check_interval=0", "trainer.val_check_interval must be at least 1, got 0."),
        ("trainer.threads=0", "trainer.threads must be at least 1, got 0."),
        ("trainer.gradient_clip_val=0", "trainer.gradient_clip_val must be greater than 0, or null, got 0.0."),
        ("seed=-1", "seed must be in [0, 2**63), got -1."),
        ("seed=null", "seed: "),
        ("optim.lr=fast", "optim.lr must be a number, got 'fast'."),
        ("+callbacks.mine.step=3", "callbacks.mine has no _target_, so there is nothing to build."),
        ("+logger.mine=3", "logger.mine has no _target_, so there is nothing to build."),
        ("trainer.devices=3", "data.batch_size=32 can't be shared by trainer.devices=3: make it a multiple."),
    ],
)
def test_sentence(tmp_path: Path, override: str, said: str) -> None:
    got = sentence(override, run_dir=tmp_path)
    assert said in got
    assert "\n" not in got.strip(), "one sentence, one line"


NUMBERS = {
    f"{group}.{each.name}": str(each.type)
    for group, schema in (
        ("data", DataConfig),
        ("model", ModelConfig),
        ("optim", OptimConfig),
        ("trainer", TrainerConfig),
    )
    for each in dataclasses.fields(schema)
    if str(each.type) in ("int", "float", "float | None")
}


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    "override",
    [
        *(f"{key}={each}" for key, kind in NUMBERS.items() if kind != "int" for each in ("inf", "nan", 1e39, 1e-50)),
        *(f"{key}={each}" for key, kind in NUMBERS.items() if kind == "int" for each in (-1, 10**13, 2**63, 10**400)),
    ],
)  # fmt: skip
def test_no_number_that_a_run_could_not_hold(tmp_path: Path, override: str) -> None:
    assert sentence(override, run_dir=tmp_path).startswith(f"{override.partition('=')[0]} must be ")


@pytest.mark.parametrize("least", [True, False])
def test_bounds_of_float32_are_torch_s(least: bool) -> None:
    limits = torch.finfo(torch.float32)
    outermost = limits.smallest_normal * limits.eps if least else limits.max
    beyond = outermost / 2.01 if least else outermost * 1.01
    assert ModelConfig(output_scale=outermost).output_scale == torch.tensor(outermost).item() != 0
    assert torch.tensor(beyond).item() in (0, math.inf)
    with pytest.raises(ValueError, match=r"model\.output_scale must be a number that float32 holds"):
        ModelConfig(output_scale=beyond)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["data.block_size=1000"], "The examples"),
        (["data.block_size=100000", "data.batch_size=1"], "Validation"),
        (["model.n_hidden=1000000"], "Validation"),
        (["model.n_hidden=1000", "model.n_layers=1000"], "The network with its gradients"),
        (["data.batch_size=1000000000"], "One minibatch"),
    ],
)
def test_memory_that_is_not_there_is_not_taken(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, overrides: list[str], what: str
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**18}.__getitem__)
    with pytest.raises(ValueError, match=rf"^{what} would take [\d,]+\.\d GiB of memory, and there are 1\.0: use "):
        build(compose("trainer=cpu", *overrides))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"5",
        b"[1]",
        b"a: [",
        b"\xff\xfe",
        b"[" * 100_000,
        b"data: {path: " * 2_000,
        b"{a: &a [*a]}",
        b"data: 3",
        b"seed: " + b"1" * 5000,
    ],
)
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises((ValueError, OmegaConfBaseException)) as caught:
        load_config(tmp_path)
    sentence = explain(caught.value)
    assert f"{tmp_path / 'config.yaml'} can't be read" in sentence
    assert "\n" not in sentence


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("data.batch_size=1", "model.batchnorm=pre"), "data.batch_size=1 with model.batchnorm has no batch variance"),
        (
            ("data.batch_size=1", "model.batchnorm=output"),
            "use data.batch_size of at least 2, or model.batchnorm=none.",
        ),
        (
            ("optim=adam", "optim.momentum=0.9"),
            "optim.momentum belongs to sgd and rmsprop, not to adam: use optim.beta1.",
        ),
        (
            ("optim=rmsprop", "optim.momentum=0.9", "optim.nesterov=true"),
            "optim.nesterov belongs to sgd, not to rmsprop.",
        ),
        (
            ("optim.warmup_steps=10", "trainer.max_steps=10"),
            "optim.warmup_steps=10 must be less than trainer.max_steps=10.",
        ),
    ],
)
def test_sentence_for_a_combination(tmp_path: Path, overrides: tuple[str, ...], said: str) -> None:
    assert said in sentence(*overrides, run_dir=tmp_path)


def test_the_limits_themselves_are_accepted(compose: Compose) -> None:
    config = compose(
        "data.block_size=1", "data.batch_size=1", "model.n_embd=1", "model.n_hidden=1", "model.hidden_bias=0",
        "model.bn_momentum=1", "model.dropout=0.999", "optim.momentum=0", "optim.decay_at=1", "optim.decay_factor=0",
        "trainer.max_steps=1", "trainer.watch_every=1", "seed=0",
    )  # fmt: skip
    assert (config.data.batch_size, config.model.bn_momentum, config.trainer.max_steps) == (1, 1.0, 1)


# --- what composes ---------------------------------------------------------------------------------------------------


def test_every_experiment_composes_under_its_own_name(compose: Compose) -> None:
    assert len(EXPERIMENTS) >= 15
    for experiment in EXPERIMENTS:
        config = compose(f"+experiment={experiment}")
        assert isinstance(config, Config)
        assert config.experiment == experiment
        assert settings_without_effect(config) == [], "an experiment sets nothing that is without effect"


@pytest.mark.parametrize("group", sorted(GROUPS - {"experiment", "hydra"}))
def test_every_choice_of_every_group_composes(compose: Compose, group: str) -> None:
    choices = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    assert choices
    for choice in choices:
        assert isinstance(compose(f"{group}={choice}"), Config)


def test_experiments_are_the_lecture_s(compose: Compose) -> None:
    lecture = {
        "original": ("normal", None, 1.0, 1.0, "none"),
        "fix_softmax": ("normal", None, 1.0, 0.01, "none"),
        "fix_saturation": ("normal", 0.2, 0.01, 0.01, "none"),
        "kaiming": ("kaiming", None, 0.01, 0.01, "none"),
        "batchnorm": ("kaiming", None, 0.0, 0.01, "pre"),
        "deep_batchnorm": ("kaiming", 1.0, 0.0, 0.1, "pre_output"),
    }
    for experiment, expected in lecture.items():
        model = compose(f"+experiment={experiment}").model
        assert (model.init, model.gain, model.hidden_bias, model.output_scale, model.batchnorm) == expected, experiment
        assert model.output_bias == (1.0 if experiment == "original" else 0.0)
        assert model.bn_momentum == (0.001 if experiment == "batchnorm" else 0.1)


def test_defaults_of_the_command_line_are_the_schema_s(compose: Compose) -> None:
    config = compose()
    assert config.model == ModelConfig()
    assert config.data == DataConfig()
    assert config.optim == OptimConfig()
    assert config.trainer == TrainerConfig()
    assert (config.optim.lr, config.trainer.max_steps, config.data.batch_size) == (0.1, 200_000, 32)


def test_schema_refuses_attributes_it_does_not_have() -> None:
    for schema in (Config, DataConfig, ModelConfig, OptimConfig, TrainerConfig):
        node = schema()
        with pytest.raises(AttributeError):
            node.n_hiden = 300  # type: ignore[union-attr]


def test_every_field_of_the_schema_is_explained() -> None:
    """A docstring under every field, but for those whose class has one."""
    import ast

    tree = ast.parse((ROOT / "makemore_pl" / "config" / "schema.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and "field(default_factory=" not in ast.unparse(field):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said, f"{node.name}.{ast.unparse(field.target)}"


# --- settings without effect -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("model.batchnorm=pre", "model.hidden_bias=0.01"),
            "Without effect: model.hidden_bias: a Linear directly before BatchNorm has no bias.",
        ),
        (
            ("model.batchnorm=output", "model.output_bias=1"),
            "Without effect: model.output_bias: a Linear directly before BatchNorm has no bias.",
        ),
        (("model.bn_momentum=0.001",), "Without effect: model.bn_momentum: there is no BatchNorm."),
        (
            ("optim.schedule=cosine", "optim.decay_at=0.7"),
            "Without effect: optim.decay_at: only optim.schedule=step_decay uses it.",
        ),
        (
            ("optim.schedule=constant", "optim.decay_factor=0.5"),
            "Without effect: optim.decay_factor: optim.schedule=constant does not decay.",
        ),
        (("optim.beta1=0.8",), "Without effect: optim.beta1: sgd does not use it."),
        (
            ("doctor.stop_on_critical=true",),
            "Without effect: doctor.stop_on_critical: only a job of a sweep has others to be compared with.",
        ),
        (("model.bn_eps=0.1",), "Without effect: model.bn_eps: there is no BatchNorm."),
        (("optim.alpha=0.9",), "Without effect: optim.alpha: sgd does not use it."),
        (("optim=rmsprop", "optim.beta2=0.9"), "Without effect: optim.beta2: rmsprop does not use it."),
        (("optim.eps=0.1",), "Without effect: optim.eps: sgd does not use it."),
        (
            ("trainer.gradient_clip_algorithm=value",),
            "Without effect: trainer.gradient_clip_algorithm: nothing is clipped without trainer.gradient_clip_val.",
        ),
        (
            ("trainer.watch_every=1", "trainer.engine=compile"),
            "Without effect: trainer.engine: with trainer.watch_every=1 no step is unwatched.",
        ),
    ],
)
def test_without_effect(compose: Compose, overrides: tuple[str, ...], said: str) -> None:
    assert settings_without_effect(compose(*overrides)) == [said]


def test_what_has_an_effect_is_not_complained_of(compose: Compose) -> None:
    config = compose(
        "model.batchnorm=post", "model.hidden_bias=0.01", "model.output_bias=1", "model.bn_momentum=0.001",
        "optim.schedule=step_decay", "optim.decay_at=0.7", "optim.decay_factor=0.5", "trainer.engine=eager",
    )  # fmt: skip
    assert settings_without_effect(config) == []
    assert settings_without_effect(compose("optim=adam", "optim.beta1=0.8")) == []
    rmsprop = compose("optim=rmsprop", "optim.alpha=0.8", "optim.momentum=0.5", "optim.eps=1e-6")
    assert settings_without_effect(rmsprop) == []


def test_config_can_be_imported_without_torch() -> None:
    # in a process of its own: this one has torch
    code = "import sys, makemore_pl.config; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_config_survives_the_way_to_plain_values_and_back(compose: Compose) -> None:
    model = compose("+experiment=deep_batchnorm").model
    assert ModelConfig(**dataclasses.asdict(model)) == model


def test_a_report_resolves_nothing_of_a_run(tmp_path: Path) -> None:
    experiments = ("default", "${oc.env:SECRET}", "kaiming seed=1", "[kaiming,batchnorm]", "a=b")
    for place, experiment in enumerate(experiments):
        (tmp_path / f"{place}").mkdir()
        content = json.dumps(dataclasses.asdict(Config(experiment=experiment, run_dir="${oc.env:SECRET}")))
        (tmp_path / f"{place}" / "config.yaml").write_text(content)
    program = (
        "import runpy; from pathlib import Path; "
        f"start = runpy.run_path({str(ROOT / 'scripts' / 'report.py')!r})['starting_point']; "
        f"print([(start(Path(str(place))) or {{}}).get('run_dir') for place in range({len(experiments)})])"
    )
    done = python("-c", program, cwd=tmp_path, SECRET="told")
    assert done.out == "['${oc.env:SECRET}', None, None, None, None]\n", done.err


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${run_dir}", "a\\${x}", "\\\\${x}", "$", "}"])
def test_what_a_run_has_written_is_not_resolved_again(tmp_path: Path, text: str) -> None:
    content = dataclasses.asdict(
        Config(experiment=text, run_dir=str(tmp_path), callbacks={"a": {"_target_": "b", "c": [text]}})
    )
    (tmp_path / "config.yaml").write_text(json.dumps(content), encoding="utf-8")
    config = load_config(tmp_path)
    assert config.experiment == text
    assert config.callbacks["a"]["c"] == [text]


def test_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system does not tell how much memory it has, as Windows."""
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(memory, "LIMITS", tmp_path)
    memory.refuse_beyond_memory(2**60, "It", "use less")
    (tmp_path / "memory.max").write_text("max\n")
    memory.refuse_beyond_memory(2**60, "It", "use less")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    memory.refuse_beyond_memory(2**30, "It", "use less")
    with pytest.raises(ValueError, match=r"^It would take 2\.0 GiB of memory, and there are 1\.0: use less\.$"):
        memory.refuse_beyond_memory(2**31, "It", "use less")


def test_what_is_too_large_is_what_should_be_smaller(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**18}.__getitem__)
    for override, remedy in (("data.block_size=100000", "data.block_size"), ("model.n_hidden=1000000", "network")):
        with pytest.raises(ValueError, match=f"use a smaller {remedy}"):
            build(compose("trainer=cpu", "data.batch_size=1", override))
