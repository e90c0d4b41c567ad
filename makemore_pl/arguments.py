"""Reads command lines: options may stand anywhere, and a mistake is one sentence instead of argparse's usage."""

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from makemore_pl.config.choices import GROUPS
from makemore_pl.config.schema import key_of

OPTION = re.compile(r"--?[^\W\d][\w.-]*(=|\Z)")
"""What is taken for an option. A negative number, and a text with spaces, is a value."""


def read(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was typed, as this parser of argparse understands it.

    Raises:
        ValueError: it can't be understood.
    """
    options, others = in_order(parser, sys.argv[1:])
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_args([*options, "--", *others] if others else options)


def read_hydra(arguments: Sequence[str]) -> list[str]:
    """Overrides first, then Hydra's options: Hydra takes no override behind an option that stands behind another one.

    Raises:
        ValueError: Hydra would print its usage.
    """
    parser = get_args_parser()
    options, others = in_order(parser, arguments)
    overrides = [argument for argument in others if argument != "--"]  # argparse would drop only the first
    parser.error = _refuse  # type: ignore[method-assign]
    parser.parse_args([*overrides, *options])
    return [*overrides, *options]


def read_path(text: str) -> Path:
    """For argparse's `type`: a path. An empty text is refused, because Path("") is the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("a path can't be empty")
    return Path(text)


def in_order(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and the other arguments.

    Raises:
        ValueError: an option is unknown, lacks its value, or is given twice with values.
    """
    options: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    waiting: argparse.Action | None = None  # the option whose value may come next
    for place, argument in enumerate(arguments):
        if argument == "--":
            return options, [*others, *arguments[place + 1 :]]
        if OPTION.match(argument):
            name, equals, _ = argument.partition("=")
            action = _named(parser, name)
            if action is None:
                if waiting and waiting.nargs is None and waiting.choices is None:
                    before = arguments[place - 1]
                    raise ValueError(
                        f"{before} lacks its value; one that begins with a dash is typed {before}={argument}"
                    )
                raise ValueError(_unknown(parser, arguments[place:]))
            takes_one = action.nargs is None and not isinstance(action, argparse._AppendAction)
            if takes_one and action.dest in seen:
                raise ValueError(f"{name} is given twice.")
            seen.add(action.dest)
            waiting = None if action.nargs == 0 or equals or name not in action.option_strings else action
            options.append(argument)
        elif waiting and (waiting.nargs != "?" or argument in (waiting.choices or ())):
            if argument.startswith("-") and waiting.nargs is None:
                options[-1] += f"={argument}"  # argparse takes -1 for a value, but not -1e3
            else:
                options.append(argument)
            waiting = waiting if waiting.nargs == "+" else None
        else:
            others.append(argument)
            waiting = None
    return options, others


def _named(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    """The option of this name; of a short one its value may follow at once, as in -cjob."""
    known = parser._option_string_actions
    return known.get(name) or (None if name.startswith("--") else known.get(name[:2]))


def _unknown(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """The sentence for an unknown option, the first of these arguments. A setting is typed without dashes."""
    name, equals, value = arguments[0].partition("=")
    known = {option.lstrip("-"): option for option in parser._option_string_actions}
    close = difflib.get_close_matches(name.lstrip("-"), known, n=1)
    meant = f" Did you mean {known[close[0]]}?" if close else " -h lists the options."
    if any(action.nargs == "*" and not action.option_strings for action in parser._actions):  # it takes overrides
        word = name.lstrip("-").replace("-", "_")
        key = "+experiment" if word == "experiment" else word if word in GROUPS else key_of(word)
        if not equals:
            value = next((text for text in arguments[1:2] if "=" not in text and not OPTION.match(text)), "VALUE")
        if key:
            meant = f" Type {shlex.quote(f'{key}={value}')}"
    return f"There is no option {name}.{meant}"


def _refuse(message: str) -> NoReturn:
    """In the place of argparse's method, which prints the usage and exits with 2."""
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        raise ValueError(f"{found[1]!r} is one argument too many; an option is typed as --option VALUE.")
    raise ValueError(f"{message[0].upper()}{message[1:]}.")
