"""The commands that have to do with a proxy that runs: run, env, status, logs.

Only their names, arguments and help, as in `main.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from account_pool.cli.places import DEFAULT_PORT
from account_pool.cli.shells import Shell
from account_pool.config.pool_options import BY_NAME

Port = Annotated[
    int,
    typer.Option("--port", "-p", min=1, max=65535, help="The proxy's port on this machine."),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    # What comes after the tool's name is the tool's, also without `--`.
    app.command(context_settings={"allow_interspersed_args": False})(run)
    for command in (env, status, logs):
        app.command()(command)


def _strategy(value: str | None) -> str | None:
    choices = BY_NAME["strategy"].choices or ()
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{value} is not one of {', '.join(choices)}")
    return value


def run(
    command: Annotated[
        list[str], typer.Argument(help="The tool and its arguments, after --.", metavar="COMMAND")
    ],
    *,
    port: Port = DEFAULT_PORT,
    accounts_file: Annotated[
        Path | None,
        typer.Option(
            help="The accounts file of a proxy that is started. [default: accounts.yaml]",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            callback=_strategy, help="The strategy of a proxy that is started.", show_default=False
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart",
            help="Start the tool again when it ended because of a limit and the pool has an "
            "account that can serve; at most 10 times in a row.",
        ),
    ] = False,
) -> int:
    """Run a tool through the pool: account-pool run -- claude.

    Starts a proxy if none answers, gives it to this tool alone, watches it, and stops it
    with the last tool that uses it. The exit code is the tool's, 128 + n after signal n;
    126 and 127 where it cannot be started, 1 where no proxy can be used.
    """
    from account_pool.cli.run import Wanted, run_tool  # noqa: PLC0415 - see main.py

    wanted = Wanted(
        command=command,
        port=port,
        accounts_file=accounts_file,
        strategy=strategy,
        restart=restart,
    )
    return run_tool(wanted, os.environ)


def env(
    *,
    port: Port = DEFAULT_PORT,
    shell: Annotated[
        Shell | None,
        typer.Option(help="The shell to write for. [default: the one that asks]"),
    ] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Remove the variables.")] = False,
) -> int:
    """Print what points a shell's tools at the proxy: eval "$(account-pool env)"."""
    from account_pool.cli.env import print_env  # noqa: PLC0415 - see main.py

    return print_env(port, shell, os.environ, unset=unset)


def status(
    *,
    port: Port = DEFAULT_PORT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proxy's own answer.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show it once also on a terminal.")] = False,
) -> int:
    """Show the accounts: who serves, who cools, why and until when. Live on a terminal.

    On a terminal it also shows the token that changes things ask for.
    """
    from account_pool.cli.status import show_status  # noqa: PLC0415 - see main.py

    return show_status(port, as_json=as_json, once=once)


def logs(
    *,
    port: Port = DEFAULT_PORT,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")
    ] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what comes, too.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Show connections that come and go, too.")
    ] = False,
    path: Annotated[bool, typer.Option("--path", help="Say where the log is.")] = False,
) -> int:
    """Show what the proxy that `run` started says."""
    from account_pool.cli.logs import show_logs  # noqa: PLC0415 - see main.py

    return show_logs(port, lines=lines, follow=follow, path_only=path, everything=everything)
