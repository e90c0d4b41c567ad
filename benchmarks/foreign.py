"""What the instruments cost on networks that are not this project's, beside torchinstruments and torchmortem.

Three networks of two to four milliseconds a step, trained by plain Lightning with the JSON-lines logger; every
contender as its defaults have it. A round is one process for each network, with one thread: plain Lightning before and
after each contender, in CPU time of the process, so that what else the machine does falls on both. Memory is the peak
of a process of its own, on a ResNet-18.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CONTENDERS = {
    "plain": "plain Lightning",
    "stats": "ActivationStats, GradientStats, UpdateStats, BatchNormStats",
    "all": "the same, Histograms and Figures",
    "doctor": "Doctor",
    "torchinstruments": "torchinstruments",
    "torchmortem": "torchmortem",
}
NETWORKS = ("mlp", "cnn", "transformer")
GOALS = {"stats": 1.05, "all": 1.15, "doctor": 1.03}
"""Times plain Lightning."""
COPIES = 2.0
"""Of all tapped outputs, that the instruments may add to peak memory."""
STEPS, MEMORY_STEPS, WARMUP = 2_000, 4, 20
BATCH = 64
HEADER = ["network", "with", "ms of CPU time a step", "times plain Lightning", "goal"]
MEMORY_HEADER = ["with", "peak memory, MiB", "more than plain, in copies of the tapped outputs", "goal"]
Record = dict[str, Any]


def measure(rounds: int, steps: int, scratch: Path, say: Callable[[str], None]) -> list[Record]:
    """One record for each training of a round with its CPU seconds, and for each of memory with its peak."""
    missing = [name for name in ("torchinstruments", "torchmortem") if find_spec(name) is None]
    if missing:
        say(f"Not installed, left out: {', '.join(missing)} (pip install -e '.[benchmark]')")
    there = [name for name in CONTENDERS if name not in ("plain", *missing)]
    records: list[Record] = []
    for turn in range(rounds):
        for network in NETWORKS:
            first = turn % len(there)
            order = ["plain", *(each for name in there[first:] + there[:first] for each in (name, "plain"))]
            found, _ = _process(network, order, steps, scratch)
            for place, (name, seconds) in enumerate(zip(order, found["cpu_seconds"], strict=True)):
                record = {"network": network, "contender": name, "round": turn, "ms": 1e3 * seconds / steps}
                if name != "plain":
                    beside = found["cpu_seconds"][place - 1] + found["cpu_seconds"][place + 1]
                    record["ratio"] = 2 * seconds / beside
                    say(f"round {turn + 1}/{rounds}: {network} {name} {record['ratio']:.3f} times plain")
                records.append(record)
    # else glibc keeps what was freed, and the peak differs by a copy from run to run
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    for name in ("plain", *(each for each in there if each != "torchmortem")):  # which fails on a ReLU in place
        found, peak = _process("resnet18", [name], MEMORY_STEPS, scratch)
        records.append({"contender": name, "peak_mb": peak, "tapped_mb": found["tapped_mb"]})
        say(f"{name}: peak memory {peak:.0f} MiB")
    return records


def rows(records: list[Record]) -> list[list[str]]:
    """Medians over the rounds, of CPU time and of its ratio to plain Lightning's just before and after."""
    found = []
    for network in NETWORKS:
        for name, words in CONTENDERS.items():
            runs = [each for each in records if (each.get("network"), each["contender"]) == (network, name)]
            if runs:
                ms = statistics.median(each["ms"] for each in runs)
                ratio = statistics.median(each.get("ratio", 1.0) for each in runs)
                goal = f"≤ {GOALS[name]}" if name in GOALS else ""
                found.append([network, words, f"{ms:.2f}", f"{ratio:.3f}", goal])
    return found


def memory_rows(records: list[Record]) -> list[list[str]]:
    peaks = {each["contender"]: each for each in records if "peak_mb" in each}
    return [
        [
            CONTENDERS[name],
            f"{each['peak_mb']:.0f}",
            f"{(each['peak_mb'] - peaks['plain']['peak_mb']) / each['tapped_mb']:.1f}",
            f"≤ {COPIES:g}" if name in GOALS else "",
        ]
        for name, each in peaks.items()
    ]


def _process(network: str, order: list[str], steps: int, scratch: Path) -> tuple[dict[str, Any], float]:
    """What a fresh process has written, and its peak memory in MiB."""
    from benchmarks.process import run

    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        result = Path(directory) / "result.json"
        case = {"network": network, "order": order, "steps": steps, "directory": directory}
        process = run(["-m", "benchmarks.foreign", json.dumps(case), str(result)], scratch / "cache")
        return json.loads(result.read_text()), process["memory_mb"]


def train_in_turns(network: str, order: list[str], steps: int, directory: str) -> dict[str, Any]:
    """CPU seconds of one training after the other, and MiB of the outputs that the instruments tap in the last."""
    import gc

    if len(order) > 1:
        train(network, "plain", WARMUP, f"{directory}/warmup")
    seconds = []
    for place, contender in enumerate(order):
        gc.collect()
        seconds.append(train(network, contender, steps, f"{directory}/{place}"))
    return {"cpu_seconds": seconds, "tapped_mb": tapped_mb(network)}


def train(network: str, contender: str, steps: int, directory: str) -> float:
    """CPU seconds of one fit."""
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch import Tensor
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    from makemore_pl import diagnostics
    from makemore_pl.diagnostics.jsonl import JSONLinesLogger

    torch.manual_seed(0)
    net, x = networks()[network]()

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            self.loss = loss.detach()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            self.adam = torch.optim.Adam(self.parameters())
            return self.adam

    module = Module()
    stats = [getattr(diagnostics, f"{name}Stats") for name in ("Activation", "Gradient", "Update", "BatchNorm")]
    watch = {
        "stats": stats,
        "all": [*stats, diagnostics.Histograms, diagnostics.Figures],
        "doctor": [partial(diagnostics.Doctor, announce=False)],
    }
    callbacks: list[Callback] = [each() for each in watch.get(contender, [])]
    if contender == "torchmortem":
        callbacks.append(mortem(module))
    end: Callable[[], Any] = lambda: None  # noqa: E731
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, callbacks=callbacks, logger=JSONLinesLogger(directory),
        default_root_dir=directory, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    y = torch.randint(10, (len(x),))
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    started = time.process_time()
    if contender == "torchinstruments":
        from torchinstruments import inject_observer, remove_observer

        inject_observer(net, output_dir=f"{directory}/observed")
        end = partial(remove_observer, net)
    trainer.fit(module, loader)
    end()
    return time.process_time() - started


def mortem(module: Any) -> Any:
    """Torchmortem as a callback."""
    from lightning.pytorch import Callback
    from torchmortem import Autopsy

    class Mortem(Callback):
        def on_train_start(self, *_: Any) -> None:
            self.autopsy = Autopsy(module.net, optimizer=module.adam)
            self.autopsy.__enter__()

        def on_train_batch_end(self, *_: Any) -> None:
            self.autopsy.step(loss=module.loss.item())

        def on_train_end(self, *_: Any) -> None:
            self.autopsy.__exit__(None, None, None)
            self.autopsy.report(os.devnull)

    return Mortem()


def networks() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """By name: a network for ten classes, and examples for it."""
    import torch

    from benchmarks import modules

    return {
        "mlp": lambda: (modules.image_mlp(), torch.randn(4096, 784)),
        "cnn": lambda: (modules.cnn(), torch.randn(4096, 1, 12, 12)),
        "transformer": lambda: (modules.Transformer(), torch.randint(50, (4096, 8))),
        "resnet18": lambda: (modules.resnet18(), torch.randn(2 * BATCH, 3, 64, 64)),
    }


def tapped_mb(network: str) -> float:
    """MiB of what comes out of the first call of each activation function."""
    import torch
    from torch import nn

    from makemore_pl.diagnostics.activation_stats import is_activation

    net, x = networks()[network]()
    sizes: dict[nn.Module, int] = {}

    def hook(module: nn.Module, _: Any, out: torch.Tensor) -> None:
        sizes.setdefault(module, out.nbytes)

    for module in net.modules():
        if is_activation(module):
            module.register_forward_hook(hook)
    with torch.no_grad():
        net(x[:BATCH])
    return sum(sizes.values()) / 2**20


if __name__ == "__main__":
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    Path(sys.argv[2]).write_text(json.dumps(train_in_turns(**json.loads(sys.argv[1]))))
