"""What the instruments cost on networks that are not this project's, beside torchinstruments and torchmortem.

Three networks of two to four milliseconds a step, trained by plain Lightning with the JSON-lines logger; every contender
as its defaults have it. Each training is a fresh process with one thread. Run alone: python -m benchmarks.foreign CASE
RESULT.
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
    "torchinstruments": "torchinstruments",
    "torchmortem": "torchmortem",
}
NETWORKS = ("mlp", "cnn", "transformer")
GOALS = {"stats": 1.05, "all": 1.15}
"""Times plain Lightning."""
STEPS = 2_000
BATCH = 64
HEADER = ["network", "contender", "ms a step", "times plain", "peak memory, MiB"]


def measure(rounds: int, steps: int, scratch: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Of each network and contender: seconds, CPU seconds and peak memory, round by round and in turns."""
    from benchmarks.process import run

    missing = [name for name in ("torchinstruments", "torchmortem") if find_spec(name) is None]
    if missing:
        say(f"Not installed, left out: {', '.join(missing)} (pip install -e '.[benchmark]')")
    records = []
    for turn in range(rounds):
        for network in NETWORKS:
            contenders = [name for name in CONTENDERS if name not in missing]
            for name in contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]:
                with tempfile.TemporaryDirectory(dir=scratch) as directory:
                    result = Path(directory) / "result.json"
                    case = {"network": network, "contender": name, "steps": steps, "directory": directory}
                    process = run(["-m", "benchmarks.foreign", json.dumps(case), str(result)], scratch / "cache")
                    record = {**case, "round": turn, **json.loads(result.read_text())}
                record["memory_mb"] = process["memory_mb"]
                del record["directory"]
                records.append(record)
                say(f"round {turn + 1}/{rounds}: {network} {name} {1e3 * record['seconds'] / steps:.3f} ms a step")
    return records


def rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """Medians over the rounds, of the ratios to plain Lightning in the same round too."""
    found = []
    for network in NETWORKS:
        mine = [record for record in records if record["network"] == network]
        plain = {record["round"]: record["seconds"] for record in mine if record["contender"] == "plain"}
        for name in CONTENDERS:
            runs = [record for record in mine if record["contender"] == name]
            if runs:
                median = statistics.median(1e3 * run["seconds"] / run["steps"] for run in runs)
                ratio = statistics.median(run["seconds"] / plain[run["round"]] for run in runs)
                memory = statistics.median(run["memory_mb"] for run in runs)
                goal = f" (goal {GOALS[name]})" if name in GOALS else ""
                found.append([network, CONTENDERS[name], f"{median:.2f}", f"{ratio:.3f}{goal}", f"{memory:.0f}"])
    return found


def train(case: dict[str, Any]) -> dict[str, float]:
    """Seconds and CPU seconds of one training, without its first 20 steps but with its end."""
    import warnings

    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch import Tensor
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    from makemore_pl import diagnostics
    from makemore_pl.diagnostics.jsonl import JSONLinesLogger

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = network(case["network"])
    contender, steps, directory = case["contender"], case["steps"], case["directory"]

    class Module(LightningModule):
        after_step: Callable[[Tensor], Any] | None = None

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

    class Clock(Callback):
        def on_train_start(self, *_: Any) -> None:
            self.started = time.perf_counter(), time.process_time()

    stats = [getattr(diagnostics, f"{name}Stats") for name in ("Activation", "Gradient", "Update", "BatchNorm")]
    watch = {"stats": stats, "all": [*stats, diagnostics.Histograms, diagnostics.Figures]}.get(contender, [])
    clock, module = Clock(), Module()
    callbacks: list[Callback] = [clock, *(each() for each in watch)]
    if contender == "torchmortem":
        callbacks.append(mortem(module))
    end: Callable[[], Any] = lambda: None  # noqa: E731
    if contender == "torchinstruments":
        from torchinstruments import inject_observer, remove_observer

        inject_observer(net, output_dir=f"{directory}/observed")
        end = partial(remove_observer, net)
    trainer = Trainer(
        accelerator="cpu", max_steps=steps, callbacks=callbacks, logger=JSONLinesLogger(directory),
        default_root_dir=directory, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    y = torch.randint(10, (len(x),))
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True))
    end()
    return {
        "seconds": time.perf_counter() - clock.started[0],
        "cpu_seconds": time.process_time() - clock.started[1],
    }


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


def network(name: str) -> tuple[Any, Any]:
    """A network for ten classes, and 4,096 examples for it."""
    import torch
    from torch import nn

    if name == "mlp":
        sizes = [784, 256, 256, 256, 256]
        hidden = [[nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()] for a, b in zip(sizes, sizes[1:], strict=False)]
        return nn.Sequential(*[layer for block in hidden for layer in block], nn.Linear(256, 10)), torch.randn(
            4096, 784
        )
    if name == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
            nn.Flatten(), nn.Linear(64, 10),
        ), torch.randn(4096, 1, 12, 12)  # fmt: skip

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(32), nn.MultiheadAttention(32, 2, batch_first=True)
            self.feed = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

        def forward(self, x: Any) -> Any:
            normal = self.norm(x)
            x = x + self.attention(normal, normal, normal, need_weights=False)[0]
            return x + self.feed(x)

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.blocks, self.out = nn.Embedding(50, 32), nn.Sequential(Block()), nn.Linear(32, 10)

        def forward(self, x: Any) -> Any:
            return self.out(self.blocks(self.embedding(x)).mean(1))

    return Classes(), torch.randint(50, (4096, 8))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(train(json.loads(sys.argv[1]))))
