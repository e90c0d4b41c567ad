"""Turns a user's mistake into one sentence and exit code 1, without a traceback."""

import errno
import logging
import os
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from makemore_pl.command_line import typed
from makemore_pl.config.choices import GROUPS, did_you_mean
from makemore_pl.config.schema import unknown_key

USERS_MISTAKES = (ValueError, FloatingPointError, HydraException, OmegaConfBaseException)
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user asks for tracebacks. It is read at import, because hydra_raises sets the variable later."""
COMPOSING = ("hydra.", "omegaconf.")
"""Packages in which every error is caused by what the user typed."""
LONGEST_WORD = 400
"""A longer run of characters without a space is shortened in a message. No path is so long."""


def is_mistake(error: BaseException) -> bool:
    """Whether the user's input or the machine caused an error, and not a fault in the program.

    Among the errors of Lightning and torch these are misconfigurations, RuntimeErrors that Lightning's own code raises
    (as when a callback monitors a metric that is not logged), and a lack of memory. Among those of Hydra, it is every
    error that its own code raises.
    """
    if isinstance(error, USERS_MISTAKES) or _lacks_memory(error):
        return True
    if isinstance(error, OSError):
        return error.errno is not None and not isinstance(error, (ConnectionError, BrokenPipeError, ChildProcessError))
    if type(error).__name__ == "MisconfigurationException":
        return True
    source = _source(error)
    return source.startswith("lightning.") if isinstance(error, RuntimeError) else source.startswith(COMPOSING)


def _lacks_memory(error: BaseException) -> bool:
    allocator = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return allocator or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _source(error: BaseException) -> str:
    """The module whose code has raised it."""
    trace, name = error.__traceback__, ""
    while trace:
        name = str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next
    return name


def explain(error: BaseException) -> str:
    """The sentence for a mistake. For an unknown config key it suggests the key that was probably meant."""
    absurd = rf"(\S{{100}})\S{{{LONGEST_WORD},}}(\S{{50}})"
    return re.sub(absurd, r"\1…\2", _sentence(error).strip())


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, USERS_MISTAKES):
        return _of_the_system(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override), str(error.message))
    if _lacks_memory(error):
        first_line = str(error).partition("\n")[0]
        return f"There is not enough memory: make the network or the minibatch smaller. {first_line}"
    if not isinstance(error, USERS_MISTAKES) and _source(error).startswith(COMPOSING):
        given = [argument for argument in sys.argv[1:] if argument.lstrip("+~").startswith("hydra")]
        first_line = str(error).partition("\n")[0]
        return f"Hydra can't use {' '.join(given or sys.argv[1:])}: {type(error).__name__} {first_line}".rstrip() + "."
    omegaconf_error = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(omegaconf_error, OmegaConfBaseException) and omegaconf_error.full_key:
        key = str(omegaconf_error.full_key)
        first_line = str(omegaconf_error).partition("\n")[0]
        if re.search(r"^Key '.*' (not in|is not in struct)", first_line):
            return unknown_key(key)
        if number := re.match(r"Value '(.*)' of type '\w+' could not be converted to (Integer|Float)", first_line):
            return _no_number(key, *number.groups())
        return f"{key}: {first_line}"
    text = str(error)
    if added := re.match(r"Could not override .* No match in the defaults list\.\nTo append .* use (\S+)", text):
        return f"Type {added[1]}: the defaults have none that it could take the place of."
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'\n", text):
        key, _, value = ambiguous[1].partition("=")
        return f"{ambiguous[1]} is several values: add -m for a sweep, or quote it, {_as_text(key, value)}"
    if in_file := re.search(r"^Key '.*' not in '.*'\n\s+full_key: (\S+)", text, re.MULTILINE):
        return unknown_key(in_file[1])
    if "raised while composing config" in text:
        return " ".join(line.strip() for line in text.splitlines()[:2])
    if missing := re.match(r"(?:In '.*': )?Could not find '(\S+?)/(\S*)'", text):
        group, name = missing.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        listed = f" Available: {', '.join(options)}." if options else ""
        return f"There is no {group}={name}.{did_you_mean(name, options)}{listed}"
    if text.startswith("Could not override "):
        return text.replace("\n", " ")
    if "Config group override must be a string or a list" in text:
        given = [
            argument for argument in sys.argv[1:] if argument.lstrip("+").partition("=")[0].partition("@")[0] in GROUPS
        ]
        return f"A group takes one of its names, not {' '.join(given)}."
    return re.split(r"\n(?:Config search path:|full_key: )", text)[0]


def _no_number(key: str, value: str, kind: str) -> str:
    if kind == "Float":
        return f"{key} must be a number, got {value!r}."
    whole = re.fullmatch(r"-?\d+\.0|-?\d(\.\d+)?e\+\d+", value)
    instead = f" as {int(float(value))}" if whole and abs(float(value)) < 1e15 else ""
    given = value or "an empty text"
    return f"{key} must be a whole number: type it{instead} without a point or an exponent, not {given}."


def _as_text(key: str, value: str) -> str:
    return shlex.quote(f"{key}={typed(value)}")


def _unreadable(override: str, message: str) -> str:
    """The sentence for an override that Hydra can't parse. It shows the value with quotes if that would help."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is no override: type it as {key}=VALUE."
    if value.strip(", ") != value:
        return f"{override!r} has a comma at an end: type {shlex.quote(f'{key}={value.strip(chr(44) + chr(32))}')}."
    try:
        OverridesParser.create().parse_override(f"{key}={typed(value)}")
    except HydraException:
        return f"Hydra can't read the override {override!r}: {message.partition(chr(10))[0]}."
    return f"Hydra can't read the override {override!r}: quote its value, {_as_text(key, value)}"


def _of_the_system(error: OSError) -> str:
    name = error.filename2 or error.filename  # filename2 is the target of a move
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.strerror}: make room, or write elsewhere."
    if name is None:
        return f"{error.strerror}."
    name = os.fsdecode(name)
    if isinstance(error, FileExistsError):
        return f"{name} can't be made a directory: something else of this name is there."
    return f"{name} can't be used: {error.strerror}."


def quiet_threads() -> None:
    """Show no traceback of a log line that can't be written, or of a mistake that ends a thread.

    Such a mistake is a full disk under TensorBoard's writer, which raises it again where more is to be written.
    """
    logging.raiseExceptions = False

    def end(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is None or not is_mistake(ended.exc_value):
            threading.__excepthook__(ended)

    threading.excepthook = end


@contextmanager
def one_sentence() -> Iterator[None]:
    """Print the sentence of a user's mistake on standard error and exit with 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown instead.
    """
    if not TRACEBACKS:
        quiet_threads()
    if sys.stdout is None:  # standard output is closed, as by >&- in a shell
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
    except BrokenPipeError:  # the reader has ended, as `head` does; see below
        logging.getLogger(__name__).debug("standard output is closed")
    except Exception as error:
        if TRACEBACKS or not is_mistake(error):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        # the message says where the run has stopped; without one it was before its first step
        print(f"\n{stopped}" if str(stopped) else "\nstopped", file=sys.stderr)
        sys.exit(getattr(stopped, "code", 130))
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the reader has ended, as `head` does, or the disk is full: discard the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Within it Hydra raises an error instead of printing it in its own way."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
