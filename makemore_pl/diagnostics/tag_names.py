"""The names of layers and parameters in tags: short and unique."""

import re
from collections import Counter
from collections.abc import Iterable

from torch import nn


def prefix(names: Iterable[str]) -> str:
    """The attribute, with its dot, that holds all these parameters, or '' if there are several. Tags leave it out."""
    names = list(names)
    roots = {name.partition(".")[0] + "." for name in names}
    return roots.pop() if len(roots) == 1 and all("." in name for name in names) else ""


def without_compiled(name: str) -> str:
    """The name as it is without torch.compile."""
    if "_orig_mod" not in name:  # as nearly always, and every watched step asks for every parameter
        return name.removeprefix(".")
    return re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name).removeprefix(".")


def layer_names(module: nn.Module, chosen: Iterable[str]) -> dict[str, str]:
    """Qualified name -> tag name, without the prefix and a final `.activation` or `.batchnorm` if it stays unique."""
    start = prefix(without_compiled(name) for name, _ in module.named_parameters())
    longer: dict[str, list[str]] = {}
    for name in chosen:
        whole = without_compiled(name)
        longer[name] = [re.sub(r"\.(activation|batchnorm)$", "", whole.removeprefix(start)), whole, name]
    # repeated, because the longer name can be the short name of another layer
    while twice := {short for short, count in Counter(names[0] for names in longer.values()).items() if count > 1}:
        for names in longer.values():
            if names[0] in twice and len(names) > 1:
                del names[0]
    return {name: names[0] for name, names in longer.items()}


def matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of two or more dimensions, by tag name; lazy ones are left out until they have a shape."""
    named = {without_compiled(name): parameter for name, parameter in module.named_parameters()}
    start = prefix(named)
    there = {name.removeprefix(start): p for name, p in named.items() if not nn.parameter.is_lazy(p)}
    return {name: parameter for name, parameter in there.items() if parameter.ndim >= 2}
