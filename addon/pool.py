"""Load with `mitmdump -s addon/pool.py`: an account pool inside mitmproxy."""

from account_pool.proxy.process import without_collections

with without_collections():
    from account_pool.proxy.addon import addon

del without_collections  # by what is left it is known as the script that has no hooks
addons = [addon()]
