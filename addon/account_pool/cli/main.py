"""The command line: runs one command, and turns its error into a line and an exit code.

0 it worked, 1 something failed, 2 it was used wrongly, 130 Ctrl-C; `run` has those of the tool.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import typer

from account_pool.cli.commands import app
from account_pool.cli.output import Failed, fail
from account_pool.config.problems import CannotEdit, ConfigError

_STDERR = 2


def main() -> None:
    """Run the command line. Ends the process with the exit code."""
    _complete_streams()
    sys.exit(run(sys.argv[1:]))


def _complete_streams() -> None:
    """Have all three standard streams, whatever they were started with, take any text."""
    # What is opened first would get the number of one that is closed, and a tool would write there.
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(opened, True)
    os.close(opened)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_STDERR, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does it: a pipe of Windows, and a terminal in ASCII, know few characters.
        sys.stdout.reconfigure(errors="backslashreplace")


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(arguments, prog_name="account-pool", standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        # How some versions of typer tell a Ctrl-C; the others have said the exit code.
        return fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # As in history.py; what typer notices itself ends with 1, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConfigError as error:
        # Each problem names its place.
        print(error, file=sys.stderr)
        return 1
    except (CannotEdit, Failed) as error:
        return fail(error)
    except ImportError as error:
        # What a command needs is imported when it runs.
        from account_pool.demo.mitmdump import INCOMPLETE  # noqa: PLC0415

        return fail(f"{error}; {INCOMPLETE}")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}")
    except Exception as error:
        # The errors of a wrong usage have no class in common between the versions of
        # typer (with click, with a copy of it), but they all can be shown.
        if not hasattr(error, "format_message"):
            raise
        if not arguments:
            # Whoever types the name alone wants the help, not a complaint.
            print(error.format_message(), file=sys.stderr)
            return 2
        return fail(_usage(error), getattr(error, "exit_code", 2))
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> str:
    """Return what was wrong with a command line, and where it is explained."""
    # Some versions of typer check choices with pydantic, in its words.
    said = str(error.format_message()).replace("Value error, ", "")
    where = getattr(getattr(error, "ctx", None), "command_path", "")
    if not where or said.endswith("?"):
        return said  # it asks what was meant
    return f"{said.rstrip('.')}; see {where} --help"
