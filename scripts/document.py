"""Writes docs/config.md, the reference of every setting, from the docstrings in makemore_pl/config/schema.py."""

import argparse
import ast
import inspect
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from makemore_pl.arguments import read
from makemore_pl.config import Config, choices
from makemore_pl.errors import one_sentence
from makemore_pl.files import write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "config.md"
LISTED = {
    "data.source": [f"{name} ({meaning})" for name, meaning in choices.SOURCE_NAMES.items()],
    "model.activation": choices.ACTIVATION_NAMES,
    "optim.name": choices.OPTIMIZER_SETTINGS,
}
"""Settings whose docstring does not list their choices. They are taken from config/choices.py."""
INTRODUCTION = """# Every setting

<!-- Made by `make config` from the docstrings in makemore_pl/config/schema.py: change those. -->

`python scripts/train.py --cfg job +experiment=deep` prints the whole config of a run. Type a setting as `key=value`,
without a leading `+`. Steps are optimizer steps, losses are in nats, shares are fractions from 0 to 1.
"""


def docstrings(schema: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, in one line."""
    (definition,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def typed(value: Any) -> str:
    """A default as one would type it on the command line."""
    if value == MISSING:
        return "???"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def section(schema: type, prefix: str) -> list[str]:
    """The rows of one table, followed by the tables of the dataclasses that are fields of it."""
    texts, default = docstrings(schema), schema()
    rows, inner = ["", "| setting | default | meaning |", "|---|---|---|"], []
    for setting in fields(schema):
        value = getattr(default, setting.name)
        if is_dataclass(value):
            summary = " ".join((type(value).__doc__ or "").split())
            inner += ["", f"## {setting.name}", "", summary, *section(type(value), f"{setting.name}.")]
        else:
            meaning = texts[setting.name].replace("|", "\\|")
            if prefix + setting.name in LISTED:
                meaning += f" One of {', '.join(LISTED[prefix + setting.name])}."
            shown = "open" if isinstance(value, dict) else f"`{typed(value)}`"
            rows.append(f"| `{prefix}{setting.name}` | {shown} | {meaning} |")
    return [*rows, *inner]


def page() -> str:
    """The whole of docs/config.md."""
    return INTRODUCTION + "\n".join(section(Config, "")) + "\n"


if __name__ == "__main__":
    with one_sentence():
        read(argparse.ArgumentParser(description=__doc__))
        write_atomically(PAGE, page())
