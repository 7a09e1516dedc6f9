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
from typing import Annotated, Any

import typer

from account_pool.cli import proxy_commands
from account_pool.cli.proxy_commands import AccountsFile
from account_pool.config import ConfigError
from account_pool.config.replace import CannotEdit
from account_pool.version import __version__

app = typer.Typer(
    name="account-pool",
    help="A pool of LLM accounts inside mitmproxy.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    except ConfigError as error:
        # Each problem names its place.
        print(error, file=sys.stderr)
        return 1
    except CannotEdit as error:
        return _fail(str(error))
    except ImportError as error:
        # What a command needs is imported when it runs.
        from account_pool.demo.mitmdump import INCOMPLETE  # noqa: PLC0415

        return _fail(f"{error}; {INCOMPLETE}")
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
        return _fail(_usage(error), getattr(error, "exit_code", 2))
    return code if isinstance(code, int) else 0


def _fail(why: str, code: int = 1) -> int:
    print(f"account-pool: {why}", file=sys.stderr)
    return code


def _usage(error: Any) -> str:
    """Return what was wrong with a command line, and where it is explained."""
    said = str(error.format_message())
    where = getattr(getattr(error, "ctx", None), "command_path", "")
    if not where or said.endswith("?"):
        return said  # it asks what was meant
    return f"{said.rstrip('.')}; see {where} --help"


def _show_version(asked: bool) -> None:
    if asked:
        print(f"account-pool {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Show the version."
        ),
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
    accounts_file: AccountsFile = None,
) -> int:
    """Say what recorded responses mean: class, scope, cooldown and whether to replay.

    Each goes the way it would go in the proxy. The providers are the built-in ones and those
    of accounts.yaml, if there is one; no credential is read.
    """
    from account_pool.cli.classify import classify_recorded  # noqa: PLC0415

    return classify_recorded(jsonl, provider, accounts_file)


@app.command()
def check(
    accounts_file: AccountsFile = None,
    try_each: Annotated[
        bool,
        typer.Option(
            "--try",
            help="Also send one cheap request with each account's credential, straight to its "
            "provider.",
        ),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Confirm the accounts.yaml of this directory as it is now; until then only "
            "commands that name it use it.",
        ),
    ] = False,
) -> int:
    """Validate the accounts that `run` would use, and show them. Sends nothing without --try."""
    from account_pool.cli import check  # noqa: PLC0415

    if trust:
        return check.confirm_file(accounts_file, os.environ)
    if not try_each:
        return check.check_accounts(accounts_file, os.environ)
    from account_pool.cli.try_accounts import try_all  # noqa: PLC0415
    from account_pool.cli.which_file import find  # noqa: PLC0415

    return try_all(check.read_accounts(find(accounts_file, os.environ), os.environ))


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
    accounts_file: AccountsFile = None,
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
    from account_pool.cli.which_file import to_write  # noqa: PLC0415

    if bool(provider) == bool(tool):
        return _fail("login: write either copilot or --from TOOL", 2)
    if tool:
        if host or proxy or base_url:
            return _fail("login: --host and --proxy belong to copilot", 2)
        path = to_write(accounts_file, os.environ)
        return login_from(tool, label, path, os.environ, file=file, copy=copy)
    if provider != "copilot" or copy or file:
        return _fail("login: write copilot, or --from TOOL; --copy and --file belong to it", 2)
    path = to_write(accounts_file, os.environ)
    return login_copilot(label, path, os.environ, host=host, base_url=base_url, proxy=proxy)


@app.command()
def add(
    provider: Annotated[
        str, typer.Argument(help="A provider, such as openai.", metavar="PROVIDER")
    ],
    label: Annotated[str, typer.Argument(help="The account's name.", metavar="LABEL")],
    *,
    env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the key.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="The file that holds the key.")] = None,
    pointer: Annotated[
        str | None, typer.Option(help="With --file: where in its JSON, such as /key.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="With azure: the resource, my-name.openai.azure.com.")
    ] = None,
    accounts_file: AccountsFile = None,
) -> int:
    """Add an account with a key: account-pool add openai work.

    Asks for the key without showing it, or reads it from standard input, and stores it in
    the accounts file, which only you can read then. With --env or --file the key stays
    where it is. A proxy that runs reads the file again by itself.
    """
    from account_pool.cli.add import NewAccount, add_key  # noqa: PLC0415
    from account_pool.cli.which_file import to_write  # noqa: PLC0415

    if (env and file) or (pointer and not file):
        return _fail("add: write --env NAME, or --file PATH and perhaps --pointer", 2)
    new = NewAccount(
        provider=provider.strip().lower(),
        label=label,
        env=env,
        file=file,
        pointer=pointer,
        host=host,
    )
    return add_key(new, to_write(accounts_file, os.environ), os.environ)
