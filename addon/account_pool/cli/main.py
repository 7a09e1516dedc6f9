"""The commands of `account-pool`: names, arguments, exit codes.

Exit codes: 0 it worked, 1 something failed, 2 it was used wrongly, 130 Ctrl-C; `run` has
those of the tool. Errors are one line on stderr. What a command needs is imported when it
runs (hence the `noqa: PLC0415`): `--version` must not wait for mitmproxy.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from account_pool.cli import proxy_commands
from account_pool.version import __version__

app = typer.Typer(
    name="account-pool",
    help="A pool of LLM accounts inside mitmproxy.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
proxy_commands.add_to(app)


def main() -> None:
    """Run the command line. Ends the process with the exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(arguments, prog_name="account-pool", standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        # How some versions of typer tell a Ctrl-C; the others have said the exit code.
        return _fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # As in logs.py; what typer notices itself ends with 1, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except Exception as error:
        # The errors of a wrong usage have no class in common between the versions of
        # typer (with click, with a copy of it), but they all can be shown.
        if not hasattr(error, "format_message"):
            raise
        if not arguments:
            # Whoever types the name alone wants the help, not a complaint.
            print(error.format_message(), file=sys.stderr)
            return 2
        return _fail(error.format_message(), getattr(error, "exit_code", 2))
    return code if isinstance(code, int) else 0


def _fail(why: str, code: int = 1) -> int:
    print(f"account-pool: {why}", file=sys.stderr)
    return code


def _show_version(asked: bool) -> None:
    if asked:
        print(f"account-pool {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def demo() -> int:
    """Show a failover as it happens. Needs no account; ends by itself."""
    from account_pool import demo as package  # noqa: PLC0415

    return package.run()


@app.command()
def classify(
    jsonl: Annotated[
        Path, typer.Option(help="Responses, one JSON object a line; - for standard input.")
    ],
    provider: Annotated[
        str, typer.Option(help="Read all of them as responses of this provider.")
    ] = "",
    accounts_file: Annotated[
        Path | None,
        typer.Option(help="Also knows the providers and limits of this file.", show_default=False),
    ] = None,
) -> int:
    """Say what recorded responses mean: class, scope, cooldown and whether to replay.

    Each goes the way it would go in the proxy. The providers are the built-in ones and those
    of accounts.yaml, if there is one; no credential is read.
    """
    from account_pool.cli.classify import classify_recorded  # noqa: PLC0415

    return classify_recorded(jsonl, provider, accounts_file)


@app.command()
def check(
    accounts_file: Annotated[Path, typer.Option(help="The accounts file.")] = Path("accounts.yaml"),
    try_each: Annotated[
        bool,
        typer.Option(
            "--try",
            help="Also send one cheap request with each account's credential, straight to its "
            "provider.",
        ),
    ] = False,
) -> int:
    """Validate accounts.yaml and show its accounts. Sends nothing without --try."""
    from account_pool.cli.check import check_file  # noqa: PLC0415

    if try_each:
        from account_pool.cli.try_accounts import try_file  # noqa: PLC0415

        return try_file(accounts_file, os.environ)
    return check_file(accounts_file, os.environ)


@app.command()
def login(
    provider: Annotated[
        str, typer.Argument(help="copilot: log in to GitHub in a browser.", show_default=False)
    ] = "",
    *,
    tool: Annotated[
        str,
        typer.Option(
            "--from",
            help="Use the login of claude, codex, gemini, copilot or gh. Its file is "
            "read in place and never written; the tool keeps it fresh.",
            show_default=False,
        ),
    ] = "",
    label: Annotated[str, typer.Option(help="The account's name.")] = "default",
    accounts_file: Annotated[Path, typer.Option(help="The accounts file.")] = Path("accounts.yaml"),
    file: Annotated[
        Path | None, typer.Option(help="With --from: where the tool stored its login.")
    ] = None,
    copy: Annotated[
        bool,
        typer.Option(
            "--copy",
            help="With --from: copy the tokens into the accounts file, which becomes readable by "
            "you only. The tool must log in again: a refresh token works only once.",
        ),
    ] = False,
    host: Annotated[
        str | None, typer.Option(help="With copilot: a tenant such as acme.ghe.com.")
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(help="With copilot: a proxy through which to reach GitHub.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> int:
    """Add an account to accounts.yaml: the login of a vendor's tool, or a login to GitHub.

    The file keeps its comments and order; a copy of it is made first (.bak). Exit codes:
    0 added, 1 not added, 2 wrong usage, 130 interrupted.
    """
    from account_pool.cli.login import login_copilot, login_from  # noqa: PLC0415

    if bool(provider) == bool(tool):
        return _fail("login: write either copilot or --from TOOL", 2)
    if tool:
        if host or proxy or base_url:
            return _fail("login: --host and --proxy belong to copilot", 2)
        return login_from(tool, label, accounts_file, os.environ, file=file, copy=copy)
    if provider != "copilot" or copy or file:
        return _fail("login: write copilot, or --from TOOL; --copy and --file belong to it", 2)
    return login_copilot(
        label, accounts_file, os.environ, host=host, base_url=base_url, proxy=proxy
    )
