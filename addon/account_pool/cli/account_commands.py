"""The commands of `account-pool` about accounts, and about who serves what.

What a command does is in a module of its own, imported when it runs, as in `commands.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from account_pool.cli.arguments import AccountsFile, AsJson, Key, Port, keys, providers
from account_pool.cli.output import fail, show_json
from account_pool.cli.processes import DEFAULT_PORT

accounts = typer.Typer()


@accounts.command("list")
def list_accounts(
    *, port: Port = DEFAULT_PORT, accounts_file: AccountsFile = None, as_json: AsJson = False
) -> int:
    """List the accounts: those of the proxy with their states, without one those of the file."""
    from account_pool.cli.manage import list_accounts as show

    return show(accounts_file, port, os.environ, as_json=as_json)


@accounts.command()
def remove(
    account: Key,
    *,
    port: Port = DEFAULT_PORT,
    accounts_file: AccountsFile = None,
    as_json: AsJson = False,
) -> int:
    """Remove an account from the proxy and its file, without a proxy from the file alone."""
    from account_pool.cli.manage import remove as take_away

    return take_away(account, accounts_file, port, os.environ, as_json=as_json)


@accounts.command()
def enable(account: Key, *, port: Port = DEFAULT_PORT, as_json: AsJson = False) -> int:
    """Put an account back in use; cooldowns by limits stay."""
    from account_pool.cli.manage import change

    return change("enable", account, port, as_json=as_json)


@accounts.command()
def disable(account: Key, *, port: Port = DEFAULT_PORT, as_json: AsJson = False) -> int:
    """Take an account out of use until it is enabled, across restarts too."""
    from account_pool.cli.manage import change

    return change("disable", account, port, as_json=as_json)


@accounts.command()
def clear(account: Key, *, port: Port = DEFAULT_PORT, as_json: AsJson = False) -> int:
    """End every cooldown of an account, and enable it if it is disabled."""
    from account_pool.cli.manage import change

    return change("clear", account, port, as_json=as_json)


@accounts.command("next")
def select_next(
    provider: Annotated[
        str,
        typer.Argument(help="Such as openai.", metavar="PROVIDER", autocompletion=providers),
    ],
    *,
    port: Port = DEFAULT_PORT,
    as_json: AsJson = False,
) -> int:
    """Skip the account whose turn it is; prints the one that is next."""
    from account_pool.cli.manage import change

    return change("next", provider, port, as_json=as_json)


@accounts.command()
def pin(
    session: Annotated[
        str,
        typer.Argument(
            help="A conversation, its beginning, or the tool's own id of it.", show_default=False
        ),
    ] = "",
    account: Annotated[
        str,
        typer.Argument(
            help="The account, as provider/label.", show_default=False, autocompletion=keys
        ),
    ] = "",
    *,
    port: Port = DEFAULT_PORT,
    off: Annotated[bool, typer.Option("--off", help="Pin it no more.")] = False,
    as_json: AsJson = False,
) -> int:
    """Keep a conversation on one account; without arguments, list the conversations.

    A pinned one waits or is refused where its account cannot serve, and is never moved. For
    all that a tool sends, see `run --account`.
    """
    from account_pool.cli import manage

    if not session:
        return manage.list_sessions(port, as_json=as_json)
    if off is bool(account):
        return fail("pin: write SESSION ACCOUNT, or SESSION --off", 2)
    if off:
        return manage.unpin(session, port, as_json=as_json)
    return manage.pin(session, account, port, as_json=as_json)


@accounts.command()
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
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print the JSON schema of accounts.yaml, by which editors check it."
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Validate the accounts that `run` would use, and show them. Sends nothing without --try."""
    from account_pool.cli.check import check_accounts, confirm_file
    from account_pool.config.shapes import json_schema

    if schema:
        show_json(json_schema())
        return 0
    if trust:
        return confirm_file(accounts_file, os.environ)
    if not try_each:
        return check_accounts(accounts_file, os.environ, as_json=as_json)
    from account_pool.cli.accounts import find, read_accounts
    from account_pool.cli.try_accounts import try_all

    return try_all(read_accounts(find(accounts_file, os.environ), os.environ), as_json=as_json)


@accounts.command()
def login(
    provider: Annotated[
        str,
        typer.Argument(
            help="claude, codex or gemini: have that tool log in. copilot: log in to GitHub.",
            show_default=False,
        ),
    ] = "",
    more: Annotated[
        list[str] | None,
        typer.Argument(
            help="After --: more arguments for the tool, such as --device-auth for codex.",
            metavar="[-- ARGUMENT...]",
            show_default=False,
        ),
    ] = None,
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
    program: Annotated[
        str | None,  # a path loses the "./" in front
        typer.Option(help="With claude, codex, gemini: the tool. [default: found on PATH]"),
    ] = None,
    renew: Annotated[
        bool,
        typer.Option(
            "--renew",
            help="With claude, codex, gemini: log in again to an account that is in the pool.",
        ),
    ] = False,
    base_url: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> int:
    """Add an account to accounts.yaml by logging in: account-pool login claude --label work.

    claude, codex and gemini log in as they always do, in a folder of their own: your own login
    with them stays as it is, and the pool alone refreshes the new one. --from uses a login
    that a tool has already. The file keeps its comments and order; a copy of it is made first
    (.bak). Exit codes:
    0 added, 1 not added, 2 wrong usage, 126 and 127 if the tool cannot be started, 130
    interrupted.
    """
    from account_pool.cli.accounts import to_write
    from account_pool.cli.add import login_copilot, login_from
    from account_pool.cli.tool_login import TOOLS_THAT_LOG_IN, LogIn, log_in

    names = f"{', '.join(TOOLS_THAT_LOG_IN)}, copilot"
    if bool(provider) == bool(tool):
        return fail(f"login: write one of {names}, or --from TOOL", 2)
    if provider in TOOLS_THAT_LOG_IN:
        if copy or file or host or proxy or base_url:
            return fail(f"login: {provider} takes --label, --program, --renew and -- ARGUMENT", 2)
        path = to_write(accounts_file, os.environ)
        asked = LogIn(
            tool=provider, label=label, program=program, renew=renew, more=tuple(more or ())
        )
        return log_in(asked, path, os.environ)
    if program or renew or more:
        return fail("login: --program, --renew and -- belong to claude, codex and gemini", 2)
    if tool:
        if host or proxy or base_url:
            return fail("login: --host and --proxy belong to copilot", 2)
        path = to_write(accounts_file, os.environ)
        return login_from(tool, label, path, os.environ, file=file, copy=copy)
    if provider != "copilot" or copy or file:
        return fail(
            f"login: write one of {names}, or --from TOOL; --copy and --file belong to it", 2
        )
    path = to_write(accounts_file, os.environ)
    return login_copilot(label, path, os.environ, host=host, base_url=base_url, proxy=proxy)


@accounts.command("import")
def import_accounts(
    source: Annotated[
        Path,
        typer.Argument(
            help="The auth folder or config.yaml of CLIProxyAPI, an export or the folder of "
            "claude-swap, teamclaude.json, LiteLLM's config.yaml, better-ccflare's database.",
            metavar="FILE",
        ),
    ],
    *,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Copy logins too: the other program is stopped for good. A refresh token works "
            "only once, so two holders log each other out.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be written.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without a question.")] = False,
    accounts_file: AccountsFile = None,
    as_json: AsJson = False,
) -> int:
    """Bring over the accounts of another program: account-pool import ~/.cli-proxy-api.

    Shows what comes over, what does not, and why; then asks before it writes the accounts
    file, which only you can read then. Nothing of the other program is changed. Exit codes:
    0 something comes over, 1 nothing does, 2 wrong usage, 130 interrupted.
    """
    from account_pool.cli.accounts import to_write
    from account_pool.cli.import_accounts import import_accounts as bring_over

    return bring_over(
        source,
        to_write(accounts_file, os.environ),
        os.environ,
        take_over=take_over,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )


@accounts.command()
def add(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="The provider, such as openai, and the account's name. Both may be omitted: the "
            "key's form mostly tells the provider, and the name is default then.",
            metavar="[PROVIDER] [LABEL]",
            show_default=False,
        ),
    ] = None,
    *,
    env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the key.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="The file that holds the key.")] = None,
    keychain: Annotated[
        str | None, typer.Option(help="The item of the system's keychain that holds the key.")
    ] = None,
    pointer: Annotated[
        str | None,
        typer.Option(help="With --file and --keychain: where in its JSON, such as /key."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="With azure: the resource, my-name.openai.azure.com.")
    ] = None,
    accounts_file: AccountsFile = None,
    as_json: AsJson = False,
) -> int:
    """Add an account with a key: account-pool add openai work.

    Asks for the key without showing it, or reads it from standard input, and stores it in
    the accounts file, which only you can read then. With --env, --file or --keychain the key
    stays where it is. A proxy that runs reads the file again by itself.
    """
    from account_pool.cli.accounts import to_write
    from account_pool.cli.add import AddOptions, add_key

    words = words or []
    if len(words) > 2:
        # Whatever stands there may be the key.
        return fail("add: write PROVIDER and LABEL; the key is asked for", 2)
    sources = [one for one in (env, file, keychain) if one]
    if len(sources) > 1 or (pointer and not (file or keychain)):
        return fail(
            "add: write one of --env, --file, --keychain; --pointer belongs to a file or item", 2
        )
    options = AddOptions(
        words=words, env=env, file=file, keychain=keychain, pointer=pointer, host=host
    )
    return add_key(options, to_write(accounts_file, os.environ), os.environ, as_json=as_json)
