"""What holds on a GPU: `make test-gpu`, on a machine with one.

The environment variable MAKEMORE_TEST_DEVICE=cpu runs all of it on the CPU instead, which checks the tests themselves;
MAKEMORE_TEST_DEVICE=pretended runs what stays in one process on a GPU that is pretended (pretended_gpu.py).
"""

import json
import math
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pretended_gpu
import pytest
import torch
from conftest import ROOT, Compose, Finished, python
from lightning.pytorch import Callback, Trainer
from probes import HaltedError
from test_train import NETWORKS, assert_same_bits, checkpoint, essence
from torch.utils._python_dispatch import TorchDispatchMode

from makemore_pl.checkpoint import load_module
from makemore_pl.config import Config, DataConfig
from makemore_pl.config.choices import BATCHNORM_PLACEMENTS
from makemore_pl.data import split_examples
from makemore_pl.evaluate import recalibrate
from makemore_pl.losses import split_loss
from makemore_pl.model import MLP
from makemore_pl.sample import sample
from makemore_pl.stride.unwatched_steps import MOST_STEPS
from makemore_pl.train import build, run
from makemore_pl.words import load_words

PRETENDED = os.environ.get("MAKEMORE_TEST_DEVICE") == "pretended"
if PRETENDED:
    pretended_gpu.install()
DEVICE = "cuda" if PRETENDED else os.environ.get("MAKEMORE_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "")
HERE = "trainer=gpu" if DEVICE == "cuda" else "trainer=cpu"
ACCELERATOR = ("--accelerator", "gpu" if DEVICE == "cuda" else "cpu")
real = pytest.mark.skipif(PRETENDED, reason="The GPU is pretended in this process only.")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product, of whichever test
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not DEVICE, reason="torch finds no GPU here.")]
OPTIMIZERS = {
    "sgd": ("optim.lr=0.05",),
    "momentum": ("optim.lr=0.02", "optim.momentum=0.9", "optim.weight_decay=0.01"),
    "nesterov_clipped": (
        "optim.lr=0.02", "optim.momentum=0.5", "optim.nesterov=true", "trainer.gradient_clip_val=0.5",
    ),
    "adam": ("optim=adam", "optim.lr=0.01"),
    "adamw": ("optim=adamw", "optim.lr=0.01", "optim.weight_decay=0.1"),
    "rmsprop": ("optim=rmsprop", "optim.momentum=0.5", "optim.lr=0.003"),
}  # fmt: skip
BOTH = {"here": HERE, "cpu": "trainer=cpu"}
LOSSES = ("initial_loss", "train/loss", "val/loss", "test/loss")


@pytest.fixture(autouse=True)
def not_deterministic() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)  # trainer.deterministic outlives the trainer


@pytest.fixture
def trained(small: Compose, tmp_path: Path) -> Path:
    """The directory of a run on the GPU, with BatchNorm on hidden layers and logits."""
    run(small(HERE, "model.batchnorm=pre_output", "trainer.max_steps=60"))
    return tmp_path / "run"


def assert_close(run_dir: Path, other: Path, rtol: float = 1e-3, atol: float = 3e-5) -> None:
    """The networks of both runs; by default as far apart as 20 steps in float32 take sums of another order."""
    theirs = checkpoint(other)["state_dict"]
    for name, tensor in checkpoint(run_dir)["state_dict"].items():
        torch.testing.assert_close(tensor.cpu(), theirs[name].cpu(), rtol=rtol, atol=atol, msg=name)


def network(run_dir: Path, device: str) -> MLP:
    return load_module(run_dir / "checkpoints" / "last.ckpt").model.to(device)


# --- the same numbers as on the CPU ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", BATCHNORM_PLACEMENTS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_and_networks_are_those_of_the_cpu(
    small: Compose, tmp_path: Path, optimizer: str, batchnorm: str
) -> None:
    overrides = (*OPTIMIZERS[optimizer], f"model.batchnorm={batchnorm}", "model.n_layers=2")
    here = run(small(HERE, *overrides, run_dir=tmp_path / "here"))
    cpu = run(small("trainer=cpu", *overrides, run_dir=tmp_path / "cpu"))
    assert [here[key] for key in LOSSES] == pytest.approx([cpu[key] for key in LOSSES], rel=1e-4)
    assert_close(tmp_path / "here", tmp_path / "cpu")


def test_matrix_products_keep_the_bits_of_float32(small: Compose, tmp_path: Path) -> None:
    """TF32 keeps 11 of 24: this loss is then off by 1e-5 of itself or more, with all of them by 1e-7."""
    overrides = ("model.n_hidden=500", "model.output_scale=0.1", "data.batch_size=512", "trainer.max_steps=1")
    here = run(small(HERE, *overrides, run_dir=tmp_path / "here"))
    cpu = run(small("trainer=cpu", *overrides, run_dir=tmp_path / "cpu"))
    assert here["initial_loss"] == pytest.approx(cpu["initial_loss"], rel=3e-6)


def test_first_diagnostics_are_those_of_the_cpu(
    small: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = []
    for name, device in BOTH.items():
        run_dir = tmp_path / name
        overrides = ("model.batchnorm=pre_output", "model.n_layers=2", "trainer.max_steps=3")
        run(small(device, *overrides, "callbacks=diagnostics", "logger=jsonl", run_dir=run_dir))
        values: dict[str, float] = {}
        for line in (run_dir / "diagnostics.jsonl").read_text().splitlines():
            row = json.loads(line)
            values |= row.get("values", {}) if row["step"] == 0 else {}
        measured.append(values)
    assert "leaves out" not in caplog.text, "a diagnostic that fails ends no training"
    here, cpu = measured
    assert len(cpu) > 30
    assert here == pytest.approx(cpu, rel=1e-3, abs=1e-5)


def test_a_run_moves_between_devices(small: Compose, tmp_path: Path) -> None:
    overrides = ("optim=adam", "optim.lr=0.01", "model.batchnorm=pre", "trainer.val_check_interval=5")
    whole = run(small("trainer=cpu", *overrides, run_dir=tmp_path / "whole"))
    for first, then in (("here", "cpu"), ("cpu", "here")):
        moved = tmp_path / first
        with pytest.raises(HaltedError):
            run(small(BOTH[first], *overrides, "+callbacks.halt={_target_:probes.Halt,step:10}", run_dir=moved))
        got = run(small(BOTH[then], *overrides, f"ckpt_path={moved / 'checkpoints' / 'last.ckpt'}", run_dir=moved))
        assert [got[key] for key in LOSSES] == pytest.approx([whole[key] for key in LOSSES], rel=1e-4)


# --- the same bits on one device -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_resumed_equals_uninterrupted(small: Compose, tmp_path: Path, name: str) -> None:
    length = ("trainer.max_steps=60", "trainer.val_check_interval=13", "trainer.watch_every=500")
    overrides = (HERE, *NETWORKS[name], *length, "trainer.deterministic=true")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = run(small(*overrides, run_dir=whole))
    with pytest.raises(HaltedError):
        run(small(*overrides, "+callbacks.halt={_target_:probes.Halt,step:40}", run_dir=broken))
    torch.manual_seed(999)  # another process
    got = run(small(*overrides, f"ckpt_path={broken / 'checkpoints' / 'last.ckpt'}", run_dir=broken))
    assert_same_bits(essence(broken), essence(whole))
    assert [got[key] for key in LOSSES] == [expected[key] for key in LOSSES]


@pytest.mark.parametrize("name", NETWORKS)
def test_watching_and_diagnostics_change_no_bit(small: Compose, tmp_path: Path, name: str) -> None:
    overrides = (HERE, *NETWORKS[name], "trainer.max_steps=60", "trainer.deterministic=true")
    run(small(*overrides, "trainer.watch_every=500", run_dir=tmp_path / "bare"))
    run(small(*overrides, "trainer.watch_every=1", run_dir=tmp_path / "plain"))
    watched = ("trainer.watch_every=7", "callbacks=diagnostics", "logger=jsonl")
    run(small(*overrides, *watched, run_dir=tmp_path / "watched"))
    assert_same_bits(essence(tmp_path / "plain"), essence(tmp_path / "bare"))
    assert_same_bits(essence(tmp_path / "watched"), essence(tmp_path / "bare"))


@real
@pytest.mark.parametrize("engine", ["compile", "record"])
def test_runs_in_one_call(small: Compose, tmp_path: Path, engine: str) -> None:
    if engine == "record" and DEVICE == "cpu":
        pytest.skip("engine=record needs a GPU.")
    overrides = (HERE, *NETWORKS["adamw_dropout_batchnorm"], "trainer.max_steps=60", "trainer.watch_every=8")
    compiled = (*overrides, f"trainer.engine={engine}", "trainer.val_check_interval=13", "trainer.deterministic=true")
    run(small(*compiled, run_dir=tmp_path / "bare"))
    run(small(*compiled, "callbacks=diagnostics", "logger=jsonl", run_dir=tmp_path / "watched"))
    assert_same_bits(essence(tmp_path / "watched"), essence(tmp_path / "bare"))
    broken = tmp_path / "broken"
    with pytest.raises(HaltedError):
        run(small(*compiled, "+callbacks.halt={_target_:probes.Halt,step:40}", run_dir=broken))
    run(small(*compiled, f"ckpt_path={broken / 'checkpoints' / 'last.ckpt'}", run_dir=broken))
    assert_same_bits(essence(broken), essence(tmp_path / "bare"))
    run(small(*overrides, "trainer.engine=eager", run_dir=tmp_path / "eager"))
    assert_close(tmp_path / "bare", tmp_path / "eager", atol=1e-4)


# --- mixed precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_is_near_float32_and_not_it(small: Compose, tmp_path: Path, precision: str) -> None:
    if precision == "16-mixed" and DEVICE == "cpu":
        pytest.skip("16-mixed needs a GPU.")
    overrides = (HERE, "model.batchnorm=pre", "optim.momentum=0.9", "optim.lr=0.02", "trainer.max_steps=60")
    exact = run(small(*overrides, run_dir=tmp_path / "exact"))
    for watch_every in (1, 500):
        mixed = (f"trainer.precision={precision}", f"trainer.watch_every={watch_every}")
        run_dir = tmp_path / f"{watch_every}"
        metrics = run(small(*overrides, *mixed, run_dir=run_dir))
        assert [metrics[key] for key in LOSSES] == pytest.approx([exact[key] for key in LOSSES], rel=0.02)
        weights = (
            checkpoint(each)["state_dict"]["model.output.linear.weight"] for each in (run_dir, tmp_path / "exact")
        )
        assert not torch.equal(*weights)


# --- after training --------------------------------------------------------------------------------------------------


def test_recalibration(small: Compose, trained: Path, words_file: Path) -> None:
    splits = split_examples(load_words(DataConfig(path=str(words_file))), 3)
    here, cpu = network(trained, DEVICE), network(trained, "cpu")
    for _ in range(2):  # by running statistics, then recalibrated
        for x, y in splits.values():
            assert split_loss(here, x, y) == pytest.approx(split_loss(cpu, x, y), rel=1e-5)
        recalibrate(here, splits["train"][0])
        recalibrate(cpu, splits["train"][0])
        for name, buffer in here.named_buffers():
            torch.testing.assert_close(buffer.cpu(), cpu.get_buffer(name), rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"count": 20},  # each context as it comes
        {"count": 500},  # a table of all contexts
        {"count": 50, "temperature": 0.7, "top_k": 3, "prompt": "a"},
        {"count": 50, "batch_statistics": True},
    ],
)
def test_names_are_those_of_the_cpu(trained: Path, settings: dict[str, Any]) -> None:
    vocabulary = load_module(trained / "checkpoints" / "last.ckpt").vocabulary
    here, cpu = (sample(network(trained, device), vocabulary, block_size=3, **settings) for device in (DEVICE, "cpu"))
    assert [name.word for name in here] == [name.word for name in cpu]
    assert [name.log_likelihood for name in here] == pytest.approx([name.log_likelihood for name in cpu], rel=1e-9)


@real
def test_scripts_take_the_gpu(trained: Path, tmp_path: Path) -> None:
    def printed(script: str, *arguments: str) -> str:
        done = python(ROOT / "scripts" / script, trained, *arguments, cwd=tmp_path)
        assert done.code == 0, done.err
        return done.out

    names = ("--count", "50")
    assert printed("sample.py", *names, *ACCELERATOR) == printed("sample.py", *names, "--accelerator", "cpu")
    here, cpu = (
        [float(word) for word in printed("evaluate.py", "--recalibrate", *where).split() if word[:1].isdigit()]
        for where in (ACCELERATOR, ("--accelerator", "cpu"))
    )
    assert len(cpu) == 6
    assert here == pytest.approx(cpu, abs=1.1e-4)  # four digits are printed


# --- where, and how often the GPU is waited for ----------------------------------------------------------------------


class Forwards(TorchDispatchMode):
    """The devices on which characters are embedded: each forward pass begins with that."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default:
            self.devices.add(args[0].device.type)
        return func(*args, **(kwargs or {}))


def test_every_forward_pass_of_a_run_is_on_its_device(small: Compose) -> None:
    """Watched and unwatched steps, validation, diagnostics, sampled names, and the losses of the whole splits."""
    with Forwards() as forwards:
        run(small(HERE, "model.batchnorm=pre", "callbacks=diagnostics", "logger=jsonl"))
    assert forwards.devices == {DEVICE}


class Waits(Callback):
    """Counts how often the host waits for the GPU in a stride: until its last loss is known, and in all of it."""

    def __init__(self) -> None:
        self.by_step: dict[int, tuple[int, int]] = {}
        self._caught: list[warnings.WarningMessage] = []
        self._before = self._in_step = 0

    def fit(self, config: Config) -> None:
        trainer, module, datamodule = build(config)
        trainer.callbacks.append(self)  # type: ignore[attr-defined]
        with warnings.catch_warnings(record=True) as self._caught:
            warnings.simplefilter("always")
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.fit(module, datamodule=datamodule)
            finally:
                if DEVICE == "cuda":
                    torch.cuda.set_sync_debug_mode("default")

    def _count(self) -> int:
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in self._caught)

    def on_before_zero_grad(self, *_: Any) -> None:
        self._in_step = self._count() - self._before

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # the next batch is sent to the device after this
        self.by_step[trainer.global_step - 1] = (self._in_step, self._count() - self._before)
        self._before = self._count()


@pytest.mark.parametrize("name", [*NETWORKS, "bf16"])
def test_unwatched_steps_wait_once_a_call(small: Compose, name: str) -> None:
    waits = Waits()
    overrides = NETWORKS.get(name, ("trainer.precision=bf16-mixed",))
    stride = 20 if PRETENDED else 500
    waits.fit(small(HERE, *overrides, f"trainer.max_steps={2 * stride + 1}", f"trainer.watch_every={stride}"))
    in_step, in_stride = waits.by_step[2 * stride]
    # one more is for the losses of the stride
    assert in_step <= math.ceil((stride - 1) / MOST_STEPS) + 1
    # and the watched step's own: whether its gradients are finite, what clipping and Lightning need
    assert in_stride <= 10


def peak_bytes() -> int:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


@real
def test_memory_of_a_long_stride_of_large_minibatches_is_bounded(small: Compose, tmp_path: Path) -> None:
    steps = 2_000 if DEVICE == "cuda" else 500
    long = ("data.batch_size=65536", f"trainer.watch_every={steps}", f"trainer.max_steps={steps + 1}")
    run(small(HERE, "trainer.max_steps=2", run_dir=tmp_path / "short"))
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_bytes()
    run(small(HERE, *long))
    # the contexts, targets and indices of 2,000 minibatches at once would be 5 GB
    assert peak_bytes() - before < 2**29


ON_THE_CPU = """
import runpy, sys, torch
scripts, run_dir, *overrides = sys.argv[1:]
for script, *arguments in (("train.py", *overrides), ("evaluate.py", run_dir), ("sample.py", run_dir)):
    sys.argv = [script, *arguments]
    runpy.run_path(f"{scripts}/{script}", run_name="__main__")
    print(f"{script}: initialized {torch.cuda.is_initialized()}")
"""


@real
def test_runs_on_the_cpu_leave_the_gpu_alone(words_file: Path, tmp_path: Path) -> None:
    """They don't initialize CUDA, and what they compile is the same whichever GPUs they could see."""
    cache = tmp_path / "cache"
    for number, environment in enumerate(({}, {"CUDA_VISIBLE_DEVICES": ""})):
        run_dir = tmp_path / f"run_{number}"
        overrides = (
            f"data.path={words_file}", "trainer=auto", "trainer.engine=compile", "trainer.watch_every=10",
            "trainer.max_steps=40", "model.dropout=0.1", f"hydra.run.dir={run_dir}",
        )  # fmt: skip
        script = ("-c", ON_THE_CPU, ROOT / "scripts", run_dir, *overrides)
        done = python(*script, cwd=tmp_path, TORCHINDUCTOR_CACHE_DIR=str(cache), **environment)
        assert done.code == 0, done.err
        assert done.out.count("initialized False") == 3, done.out
    assert len(list(cache.rglob("*.pt2"))) == 1


# --- whatever else a user does ---------------------------------------------------------------------------------------


def test_what_is_not_finite_is_named_as_on_the_cpu(small: Compose, tmp_path: Path) -> None:
    said = []
    for name, device in BOTH.items():
        poison = "+callbacks.poison={_target_:probes.Poison,step:5,parameter:model.layers.0.linear.weight}"
        with pytest.raises(FloatingPointError) as raised:
            run(small(device, poison, run_dir=tmp_path / name))
        said.append(str(raised.value))
    assert said[0] == said[1]


@real
def test_a_sweep_on_the_gpu(train_script: Callable[..., Finished], words_file: Path, tmp_path: Path) -> None:
    overrides = (f"data.path={words_file}", HERE, "trainer.max_steps=20", "callbacks=none", "logger=none", "seed=1,2")
    done = train_script("-m", *overrides, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.code == 0, done.err
    metrics = [json.loads(path.read_text()) for path in (tmp_path / "sweep").rglob("metrics.json")]
    assert sorted(each["seed"] for each in metrics) == [1, 2]


@real
def test_the_figures_are_written_as_they_come(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    done = python(ROOT / "scripts" / "benchmark.py", "--gpu", "--quick", "--output", output, cwd=tmp_path)
    assert done.code == 0, done.err
    content = json.loads(output.read_text())
    assert bool(content["gpu"]) == (DEVICE == "cuda")
    assert all(cell["us"] > 0 for cell in content["cells"]), content["cells"]
    contenders = {cell["contender"] for cell in content["cells"]}
    assert contenders == {"1a", "2", "3e", "3r"} - (set() if DEVICE == "cuda" else {"3r"})
    assert {cell["device"] for cell in content["cells"]} == ({"cpu", "gpu"} if DEVICE == "cuda" else {"cpu"})
    assert "| 32 | 200 | 387,104 |" in output.with_suffix(".md").read_text()
