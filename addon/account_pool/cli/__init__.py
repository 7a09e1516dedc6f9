"""The `account-pool` command.

`main.py` and `proxy_commands.py` name the commands and turn errors into one line and an
exit code; what a command does is in a module of its own, imported when it is asked for.
"""

from account_pool.cli.main import main

__all__ = ["main"]
