"""The names that tags give to layers and parameters: short, and never the same for two."""

import re
from collections import Counter
from collections.abc import Iterable

from torch import nn


def prefix(names: Iterable[str]) -> str:
    """The attribute that holds all of these parameters, with its dot, '' if there are several: tags leave it out."""
    names = list(names)
    roots = {name.partition(".")[0] + "." for name in names}
    return roots.pop() if len(roots) == 1 and all("." in name for name in names) else ""


def without_compiled(name: str) -> str:
    """The name as it is without torch.compile."""
    return re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", name).removeprefix(".")


def layer_names(module: nn.Module, chosen: Iterable[str]) -> dict[str, str]:
    """Tag name by qualified name: without prefix and a last `.activation` or `.batchnorm`, where they stay unique."""
    start = prefix(without_compiled(name) for name, _ in module.named_parameters())
    longer: dict[str, list[str]] = {}
    for name in chosen:
        whole = without_compiled(name)
        longer[name] = [re.sub(r"\.(activation|batchnorm)$", "", whole.removeprefix(start)), whole, name]
    # a longer name may in turn be the short one of another
    while twice := {short for short, count in Counter(names[0] for names in longer.values()).items() if count > 1}:
        for names in longer.values():
            if names[0] in twice and len(names) > 1:
                del names[0]
    return {name: names[0] for name, names in longer.items()}


def matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of two and more dimensions by tag name, as the lecture plots them; lazy ones once they have a shape."""
    named = {without_compiled(name): parameter for name, parameter in module.named_parameters()}
    start = prefix(named)
    there = {name.removeprefix(start): p for name, p in named.items() if not nn.parameter.is_lazy(p)}
    return {name: parameter for name, parameter in there.items() if parameter.ndim >= 2}
