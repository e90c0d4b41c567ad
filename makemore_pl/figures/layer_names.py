"""Names of layers and parameters as people read them, and their order."""

import re
from collections.abc import Iterable


def spoken(name: str) -> str:
    """The name of a layer or parameter in words: `layers.0.linear.weight` becomes layer 1 weight.

    Names of other projects' networks are left as they are.
    """
    found = re.fullmatch(
        r"(?:layers\.(\d+)|(output|embedding))((?:\.(?:linear|batchnorm|activation))?(?:\.\w+)?)", name
    )
    if not found:
        return name
    rest = found[3].replace(".linear", "").replace(".batchnorm", " BatchNorm").replace(".", " ")
    return (f"layer {int(found[1]) + 1}" if found[1] else found[2]) + rest


def short(names: Iterable[str]) -> dict[str, str]:
    """Names for a legend: as `spoken`, and without "weight" if they stay different."""
    names = list(names)
    shortened = {name: re.sub(r"[. ]weight$", "", spoken(name)) for name in names}
    distinct = len(set(shortened.values())) == len(names)
    return shortened if distinct else {name: spoken(name) for name in names}


def in_order(names: Iterable[str]) -> list[str]:
    """The names sorted so that numbers in them count as numbers: layers.2 comes before layers.10."""
    return sorted(names, key=lambda name: [(not part.isdigit(), int(part) if part.isdigit() else 0, part)
                                           for part in re.split(r"(\d+)", name)])  # fmt: skip
