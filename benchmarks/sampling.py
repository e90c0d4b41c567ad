"""Measures names a second, and those of the lecture's loop: python benchmarks/sampling.py [RUN_DIRECTORY]

It prints JSON, and uses one thread. Without a run directory it first trains the batchnorm experiment for 3,000 steps.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from makemore_pl.arguments import read, read_path
from makemore_pl.checkpoint import load_module
from makemore_pl.errors import one_sentence
from makemore_pl.model import MLP
from makemore_pl.sample import Distributions, Settings, sample, stream

ROOT = Path(__file__).parents[1]
Layer = Callable[[Tensor], Tensor]


def linear(module: nn.Linear) -> Layer:
    weight = module.weight.detach().T.contiguous()
    bias = module.bias.detach() if module.bias is not None else torch.zeros(module.out_features)
    return lambda x: x @ weight + bias


def batchnorm(module: nn.BatchNorm1d) -> Layer:
    assert module.running_mean is not None
    assert module.running_var is not None
    mean, std = module.running_mean, (module.running_var + module.eps).sqrt()
    gain, bias = module.weight.detach(), module.bias.detach()
    return lambda x: gain * (x - mean) / std + bias


def lecture_forward(model: MLP) -> Layer:
    """The forward pass as the lecture writes it, on plain tensors without nn modules."""
    embedding = model.embedding.weight.detach()
    layers: list[Layer] = []
    for module in [*model.layers.modules(), *model.output.modules()]:
        if isinstance(module, nn.Linear):
            layers.append(linear(module))
        elif isinstance(module, nn.BatchNorm1d):
            layers.append(batchnorm(module))
        elif isinstance(module, nn.Tanh):
            layers.append(torch.tanh)

    def forward(x: Tensor) -> Tensor:
        x = embedding[x].view(len(x), -1)
        for layer in layers:
            x = layer(x)
        return x

    return forward


def lecture_loop(forward: Layer, block_size: int, count: int) -> list[list[int]]:
    g = torch.Generator().manual_seed(2147483647 + 10)
    names = []
    for _ in range(count):
        out: list[int] = []
        context = [0] * block_size
        while True:
            logits = forward(torch.tensor([context]))
            probs = F.softmax(logits, dim=1)
            ix = int(torch.multinomial(probs, num_samples=1, generator=g).item())
            context = [*context[1:], ix]
            out.append(ix)
            if ix == 0:
                break
        names.append(out)
    return names


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(checkpoint: Path, count: int = 100_000, lecture_count: int = 500, repeat: int = 5) -> dict[str, float]:
    """Names a second, as the best of several rounds in which the contenders take turns, and peak memory in MB.

    The lecture's loop is timed on plain tensors and on nn modules without gradients. The ratio is to the faster one.
    """
    torch.set_num_threads(1)
    module = load_module(checkpoint)
    model, vocabulary, block_size = module.model, module.vocabulary, int(module.hparams["block_size"])
    on_tensors, on_modules = lecture_forward(model), torch.no_grad()(model.forward)
    x = torch.randint(len(vocabulary), (100, block_size))
    torch.testing.assert_close(on_tensors(x), on_modules(x), rtol=1e-3, atol=1e-4)

    lecture_loop(on_tensors, block_size, 10)
    memory = [peak_memory_mb()]
    for _ in stream(Distributions(model, vocabulary, block_size, Settings(10 * count))):
        pass
    memory.append(peak_memory_mb())
    contenders: dict[str, tuple[int, Callable[[], Any]]] = {
        "lecture_plain_tensors": (lecture_count, lambda: lecture_loop(on_tensors, block_size, lecture_count)),
        "lecture_modules": (lecture_count, lambda: lecture_loop(on_modules, block_size, lecture_count)),
        "sample": (count, lambda: sample(model, vocabulary, count, block_size)),
    }
    rates = dict.fromkeys(contenders, 0.0)
    for _ in range(repeat):
        for contender, (names, call) in contenders.items():
            rates[contender] = max(rates[contender], names / seconds(call))
    memory.append(peak_memory_mb())
    return {
        "count": count,
        **{contender: round(rate) for contender, rate in rates.items()},
        "ratio": round(rates["sample"] / max(rates["lecture_plain_tensors"], rates["lecture_modules"]), 1),
        "memory_mb_before": round(memory[0], 1),
        "memory_mb_streaming_10_times_count": round(memory[1], 1),
        "memory_mb_list_of_count": round(memory[2], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Names a second, against the lecture's loop on the same network.")
    parser.add_argument("run_directory", type=read_path, nargs="?")
    arguments = read(parser)
    with tempfile.TemporaryDirectory() as directory:
        run_directory = arguments.run_directory or Path(directory) / "run"
        if arguments.run_directory is None:
            overrides = ["+experiment=batchnorm", "trainer.max_steps=3000", "trainer=cpu", "logger=none"]
            command = [sys.executable, str(ROOT / "scripts" / "train.py"), *overrides, f"hydra.run.dir={run_directory}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(json.dumps(measure(run_directory / "checkpoints" / "last.ckpt"), indent=2))


if __name__ == "__main__":
    with one_sentence():
        main()
