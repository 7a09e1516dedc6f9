"""The `account-pool` command.

`commands.py` is the table of commands; `main.py` runs one and turns its error into a line and
an exit code. What a command does is in a module of its own, imported when it runs.
"""

from account_pool.cli.main import main

__all__ = ["main"]
