"""Reads the evidence of a run of this project from its run directory."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from makemore_pl.config.stored_config import load_config
from makemore_pl.diagnostics_file import read_diagnostics
from makemore_pl.doctor.evidence import Evidence
from makemore_pl.doctor.facts import Facts, OptimizerFacts
from makemore_pl.stored_files import read_json


def read_evidence(run_dir: Path) -> tuple[Evidence, dict[str, Any]]:
    """What a run recorded, and its config as nested dicts.

    Raises:
        ValueError: the directory holds no run, nothing was recorded, or a file can't be read.
    """
    path, config = run_dir / "diagnostics.jsonl", asdict(load_config(run_dir))
    if not path.is_file():
        raise ValueError(f"{run_dir} has no diagnostics.jsonl: run it with logger=tensorboard or logger=jsonl.")
    series = read_diagnostics(path, ("values",)).values
    metrics = read_json(run_dir / "metrics.json")
    guess = series.get("baseline/unigram", {})
    uniform = metrics.get("uniform_loss") or next(iter(series.get("baseline/uniform", {}).values()), math.nan)
    # e^20 is more characters than there are
    facts = facts_of_config(config, round(math.exp(uniform)) if 0 < uniform < 20 else None)
    facts.unseen = min((min(found) for found in series.values() if found), default=0)
    facts.constant_guess = next(iter(guess.values()), None)
    gradients = {tag.partition("/")[2]: found for tag, found in series.items() if tag.startswith("grad_std/")}
    if gradients and all(len(found) >= 3 for found in gradients.values()):
        facts.unreached = tuple(name for name, found in gradients.items() if not any(found.values()))
    return Evidence(series, facts, final=bool(metrics)), config


def facts_of_config(config: Mapping[str, Any], classes: int | None = None) -> Facts:
    """What the config of a run says about its network and its optimizer, and what holds for every run of this project:
    one optimizer has all parameters, Lightning zeroes their gradients, weights are drawn at random, a Linear before a
    BatchNorm has no bias, and no example sees another one but in BatchNorm.
    """
    model, optim, trainer = config["model"], config["optim"], config["trainer"]
    n_layers, placement, activation = model["n_layers"], model["batchnorm"], model["activation"]
    layers = tuple(f"layers.{i}" for i in range(n_layers))
    linears = [*(f"layers.{i}.linear.weight" for i in range(n_layers)), "output.linear.weight"]
    batch = config["data"]["batch_size"]
    pre, after, output = placement in ("pre", "pre_output"), placement == "post", "output" in placement
    batchnorms = [*(layers if pre or after else ()), *(["output"] if output else [])]
    pairs = tuple(zip(layers, (*layers[1:], "output"), strict=True))
    return Facts(
        layers=layers,
        matrices=("embedding.weight", *linears),
        vocabulary=("embedding.weight",),
        output=("output.linear.weight",),
        bounded=layers if activation == "tanh" else (),
        rectified=layers if activation == "relu" else (),
        before_normalised=pre,
        loss="cross_entropy",
        classes=classes,
        loss_scale=1.0,
        targets_vary=True,
        tokens=True,
        inputs_vary=True,
        normalises=bool(batchnorms),
        batch_size=batch,
        optimizers=(OptimizerFacts(optim["name"], optim["lr"], optim["momentum"], optim["weight_decay"]),),
        clip_value=trainer["gradient_clip_val"] or 0.0,
        linear_pairs=pairs if activation == "identity" else (),
        copies={},
        bias_before_batchnorm=(),
        not_optimized=(),
        accumulates=False,
        examples_mixed="",
        asleep=(),
        values_per_channel=dict.fromkeys(batchnorms, batch),
        batchnorm_momentum=dict.fromkeys(batchnorms, model["bn_momentum"]),
        dropout=model["dropout"],
    )
