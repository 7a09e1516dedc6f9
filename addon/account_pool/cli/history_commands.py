"""The commands of `account-pool` that show what the proxy has done.

What a command does is in a module of its own, imported when it runs, as in `commands.py`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from account_pool.cli.arguments import AsJson, Port
from account_pool.cli.places import DEFAULT_PORT

history = typer.Typer()


def _group(value: str) -> str:
    from account_pool.cli.history import GROUPS

    if value not in GROUPS:
        raise typer.BadParameter(f"{value} is not one of {', '.join(GROUPS)}")
    return value


def _instant(value: str | None) -> str | None:
    from account_pool.cli.requests import instant

    try:
        return value and instant(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_From = Annotated[
    str | None,
    typer.Option(
        "--from",
        callback=_instant,
        help="Only what began then or later: 2026-08-01, 2026-08-01T13:00:00Z, or 24h, 7d ago.",
        show_default=False,
    ),
]
_To = Annotated[
    str | None,
    typer.Option("--to", callback=_instant, help="Only what began before.", show_default=False),
]
_Account = Annotated[
    str | None,
    typer.Option("--account", help="Only of provider/label, or of a provider.", show_default=False),
]
_Model = Annotated[
    str | None, typer.Option("--model", help="Only of this model.", show_default=False)
]
_Tool = Annotated[
    str | None,
    typer.Option("--tool", help="Only of this tool, such as claude-code.", show_default=False),
]

_Lines = Annotated[
    int, typer.Option("--lines", "-n", min=1, max=1000, help="How many, from the newest.")
]
_Follow = Annotated[bool, typer.Option("--follow", "-f", help="Wait for new ones.")]
_EachAsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def _which(
    from_: str | None, to: str | None, account: str | None, model: str | None, tool: str | None
) -> dict[str, str]:
    """Return the parameters of the REST API that were given."""
    given = {"from": from_, "to": to, "account": account, "model": model, "tool": tool}
    return {name: text for name, text in given.items() if text}


@history.command()
def usage(
    *,
    port: Port = DEFAULT_PORT,
    days: Annotated[int, typer.Option(min=1, max=400, help="How many days, today included.")] = 30,
    by: Annotated[
        str,
        typer.Option(callback=_group, help="account, provider, model, day, hour (UTC) or tool."),
    ] = "account",
    from_: _From = None,
    to: _To = None,
    account: _Account = None,
    model: _Model = None,
    tool: _Tool = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Ask providers what accounts have left (pool_look_up)."),
    ] = False,
) -> int:
    """Show how many requests and tokens were served, by account, model, day, tool ..."""
    from account_pool.cli.history import show_left, show_usage

    if refresh:
        if as_csv:
            raise typer.BadParameter("--refresh has --json, and no --csv")
        return show_left(port, account, as_json=as_json)

    if as_json and as_csv:
        raise typer.BadParameter("write --json or --csv, not both")
    which = _which(from_, to, account, model, tool)
    if not from_:
        which = {"days": str(days), **which}
    return show_usage(port, which, by=by, as_json=as_json, as_csv=as_csv)


def _status(value: str | None) -> str | None:
    if value not in (None, "ok", "refused", "aborted"):
        raise typer.BadParameter(f"{value} is not one of ok, refused, aborted")
    return value


@history.command()
def requests(
    *,
    port: Port = DEFAULT_PORT,
    lines: _Lines = 20,
    follow: _Follow = False,
    from_: _From = None,
    to: _To = None,
    account: _Account = None,
    model: _Model = None,
    tool: _Tool = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            callback=_status,
            help="Only those that ended so: ok, refused or aborted.",
            show_default=False,
        ),
    ] = None,
    as_json: _EachAsJson = False,
) -> int:
    """Show the requests that have ended: who served them, how they ended, what they took."""
    from account_pool.cli.requests import show_requests

    which = _which(from_, to, account, model, tool)
    if status:
        which["status"] = status
    return show_requests(port, which, lines=lines, follow=follow, as_json=as_json)


def _kind(value: str | None) -> str | None:
    from account_pool.core.decisions import Kind

    if value is not None and value not in set(Kind):
        raise typer.BadParameter(f"{value} is not one of {', '.join(Kind)}")
    return value


@history.command()
def decisions(
    *,
    port: Port = DEFAULT_PORT,
    lines: _Lines = 20,
    follow: _Follow = False,
    account: Annotated[
        str | None, typer.Option(help="Only those about provider/label.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            callback=_kind, help="Only of this kind, such as cooldown.", show_default=False
        ),
    ] = None,
    as_json: _EachAsJson = False,
) -> int:
    """Show what the proxy decided, and why: cooldowns, moves, waits, refusals ..."""
    from account_pool.cli.history import show_decisions

    return show_decisions(
        port, lines=lines, follow=follow, account=account, kind=kind, as_json=as_json
    )


@history.command()
def logs(
    *,
    port: Port = DEFAULT_PORT,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many lines to show, from the end.")
    ] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for new lines.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Include connections that open and close.")
    ] = False,
    path: Annotated[bool, typer.Option("--path", help="Print where the log is.")] = False,
) -> int:
    """Show the log of the proxy that `run` started."""
    from account_pool.cli.history import show_logs

    return show_logs(port, lines=lines, follow=follow, path_only=path, everything=everything)
