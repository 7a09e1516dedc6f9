"""Load with `mitmdump -s addon/pool.py`: an account pool inside mitmproxy."""

from account_pool.proxy.addon import addon

addons = [addon()]
