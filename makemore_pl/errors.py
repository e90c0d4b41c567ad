"""A user's mistake ends in one sentence and exit code 1, never in a traceback."""

import errno
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from makemore_pl.command_line import typed
from makemore_pl.config.choices import did_you_mean
from makemore_pl.config.schema import unknown_key

USERS_MISTAKES = (ValueError, FloatingPointError, HydraException, OmegaConfBaseException)
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"
"""Whether the user asks for tracebacks. Read once: one_sentence sets the variable."""
COMPOSING = ("hydra.", "omegaconf.")
"""Where all that fails comes of what was typed."""
LONGEST = 400
"""Characters of a word in a sentence that are not left out: no path is as long."""


def is_mistake(error: BaseException) -> bool:
    """Whether an error comes of what the user gave or of the machine, and not of a fault in the program.

    Of Lightning and torch these are misconfigurations, RuntimeErrors that Lightning's own code raises (such as of a
    callback that monitors what is not logged), and a lack of memory. Of Hydra it is all that fails in its own code.
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
    """The sentence for a mistake, with the key that was meant where it is one of Hydra's composition."""
    absurd = rf"(\S{{100}})\S{{{LONGEST},}}(\S{{50}})"
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
        given = [each for each in sys.argv[1:] if each.lstrip("+~").startswith("hydra")]
        first_line = str(error).partition("\n")[0]
        return f"Hydra can't use {' '.join(given or sys.argv[1:])}: {type(error).__name__} {first_line}".rstrip() + "."
    omegaconf_error = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(omegaconf_error, OmegaConfBaseException) and omegaconf_error.full_key:
        key = str(omegaconf_error.full_key)
        first_line = str(omegaconf_error).partition("\n")[0]
        if re.search(r"^Key '.*' (not in|is not in struct)", first_line):
            return unknown_key(key)
        return f"{key}: {first_line}"
    text = str(error)
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'\n", text):
        key, _, value = ambiguous[1].partition("=")
        return f"{ambiguous[1]} is several values: add -m for a sweep, or quote it, {_as_text(key, value)}"
    if in_file := re.search(r"^Key '.*' not in '.*'\n\s+full_key: (\S+)", text, re.MULTILINE):
        return unknown_key(in_file[1])
    if "raised while composing config" in text:
        return " ".join(line.strip() for line in text.splitlines()[:2])
    if missing := re.match(r"(?:In '.*': )?Could not find '(\S+)/(\S+)'", text):
        group, name = missing.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        listed = f" Available: {', '.join(options)}." if options else ""
        return f"There is no {group}={name}.{did_you_mean(name, options)}{listed}"
    return re.split(r"\n(?:Config search path:|full_key: )", text)[0]


def _as_text(key: str, value: str) -> str:
    return shlex.quote(f"{key}={typed(value)}")


def _unreadable(override: str, message: str) -> str:
    """For what Hydra's grammar of overrides does not have: the same with the value quoted, where that helps."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is no override: type it as {key}=VALUE."
    try:
        OverridesParser.create().parse_override(f"{key}={typed(value)}")
    except HydraException:
        return f"Hydra can't read the override {override!r}: {message.partition(chr(10))[0]}."
    return f"Hydra can't read the override {override!r}: quote its value, {_as_text(key, value)}"


def _of_the_system(error: OSError) -> str:
    name = error.filename2 or error.filename  # the second is where something was to be moved
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}: make room, or write elsewhere."
    if name is None:
        return f"{error.strerror}."
    if isinstance(error, FileExistsError):
        return f"{name} can't be made a directory: something else of this name is there."
    return f"{name} can't be used: {error.strerror}."


@contextmanager
def one_sentence() -> Iterator[None]:
    """Print the sentence of a user's mistake on standard error and exit with 1.

    With HYDRA_FULL_ERROR=1 in the environment the traceback is shown instead.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of printing
    logging.raiseExceptions = False  # a log line that nobody can read ends nothing
    if sys.stdout is None:  # closed, as by >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        yield
    except BrokenPipeError:  # the reader has left, as `head` does; standard output is let go of below
        logging.getLogger(__name__).debug("standard output is closed")
    except Exception as error:
        if TRACEBACKS or not is_mistake(error):
            raise
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stopped:
        # of a run that has saved its last step, or before there was one
        print(f"\n{stopped}" if str(stopped) else "\nstopped", file=sys.stderr)
        sys.exit(getattr(stopped, "code", 130))
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the reader has left, as `head` does, or the disk is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
