"""The form that the content of a stored file must have: the kind of value at each key."""

import reprlib
from dataclasses import dataclass
from typing import Any

NUMBER, WHOLE, TEXT, FLAG, OBJECT = "a number", "a whole number", "a text", "true or false", "an object"
ANY = "*"
"""In the form of an object: every key."""


@dataclass(frozen=True, slots=True)
class Optional:
    """The form of a value that may be null or absent."""

    form: Any


def refuse_misfit(content: Any, form: Any, key: str = "") -> None:
    """Compare content with its form: a kind, a list of the form of every item, or a dict of the forms at its keys.

    Keys that the form does not name are left alone.

    Raises:
        ValueError: something does not fit; the message names its key and what is expected there.
    """
    if isinstance(form, Optional):
        if content is None:
            return
        form = form.form
    if isinstance(form, dict):
        _expect(isinstance(content, dict), OBJECT, content, key)
        for name, part in form.items():
            for there in content if name == ANY else (name,):
                refuse_misfit(content.get(there), part, f"{key}.{there}".lstrip("."))
    elif isinstance(form, list):
        _expect(isinstance(content, list), "a list", content, key)
        for place, item in enumerate(content):
            refuse_misfit(item, form[0], f"{key}[{place}]")
    else:
        _expect(_fits(content, form), form, content, key)


def at(content: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts; None if they lack it."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _expect(fits: bool, kind: str, content: Any, key: str) -> None:
    if not fits:
        found = "missing or null" if content is None else reprlib.repr(content)
        raise ValueError(f"{key or 'it'} must be {kind}, but is {found}")


def _fits(content: Any, kind: str) -> bool:
    whole = type(content) is int and abs(content) < 2**63  # a bool is no number, and a longer one no float
    return {
        NUMBER: whole or isinstance(content, float),
        WHOLE: whole,
        TEXT: isinstance(content, str),
        FLAG: isinstance(content, bool),
        OBJECT: isinstance(content, dict),
    }[kind]
