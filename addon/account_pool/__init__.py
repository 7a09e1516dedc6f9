"""A pool of LLM accounts inside mitmproxy.

The map, in reading order:

- `core/`         pure: who may serve, what an answer means, what happens next
- `providers/`    one file per API family: hosts, paths, credential, limits, envelope
- `credentials/`  where secrets come from, the Copilot exchange, one keeper
- `store/`        what survives a restart
- `config/`       accounts.yaml and the environment
- `proxy/`        the mitmproxy shell: the HTTP layer that replays, the addon, options
- `admin/`        what it tells of itself: REST, metrics, the dashboard
- `cli/`          the `account-pool` command
- `demo/`         a scripted provider, and a failover to watch without an account

`addon/pool.py` beside this package is what mitmproxy loads.
"""

from account_pool.version import __version__

__all__ = ["__version__"]
