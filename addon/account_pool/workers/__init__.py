"""Several mitmproxy processes that serve one port: a launcher, and its workers.

The launcher (`launcher.py`) accepts connections and passes each to a worker, starts anew a
worker that has died, and ends all of them. A worker (`worker.py`) is a mitmdump whose
connections come from the launcher. Both speak over a `channel.py`.
"""
