"""A user's mistake ends in one sentence and exit code 1, never in a traceback."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from makemore_pl.choices import did_you_mean
from makemore_pl.command_line import typed
from makemore_pl.config import unknown_key

USERS_MISTAKES = (ValueError, FloatingPointError, HydraException, OmegaConfBaseException)


def explain(error: BaseException) -> str:
    """The sentence for a ValueError of ours or an error of Hydra's composition, with the key that was meant."""
    omegaconf_error = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(omegaconf_error, OmegaConfBaseException) and omegaconf_error.full_key:
        key = str(omegaconf_error.full_key)
        first_line = str(omegaconf_error).partition("\n")[0]
        if re.search(r"^Key '.*' (not in|is not in struct)", first_line):
            return unknown_key(key)
        return f"{key}: {first_line}"
    text = str(error)
    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        return f"Hydra can't read {error.override}: quote its value, as in {shlex.quote(f'{key}={typed(value)}')}"
    if in_file := re.search(r"^Key '.*' not in '.*'\n\s+full_key: (\S+)", text, re.MULTILINE):
        return unknown_key(in_file[1])
    if "raised while composing config" in text:
        return " ".join(line.strip() for line in text.splitlines()[:2])
    if missing := re.match(r"(?:In '.*': )?Could not find '(\S+)/(\S+)'", text):
        group, name = missing.groups()
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        listed = f" Available: {', '.join(options)}." if options else ""
        return f"There is no {group}={name}.{did_you_mean(name, options)}{listed}"
    return text


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
    except USERS_MISTAKES as error:
        if before == "1":
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
