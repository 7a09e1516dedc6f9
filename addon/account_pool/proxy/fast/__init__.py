"""Shorter ways through mitmproxy, each guarded, each with mitmproxy's own way to fall back to.

A request meets some forty hooks, and mitmproxy asks each of some thirty addons for each of
them, in a task of its own. The steps here do the same in the same order with less work:

- `table`: hooks are called from a table (name of the hook -> functions) instead of a walk.
- `inline`: a hook that awaits nothing runs where it is triggered, without a task.
- `direct`: what a connection receives is handled where it arrives, without waking a task (all
  three: `handler`), and OpenSSL is asked without an exception for each read.
- `short`: events of a client's CONNECT tunnel go straight to the HTTP layer inside it.
- `relay`: whole chunks of a streamed response are copied through, not read and framed again
  (this, and how OpenSSL is asked: `short`).

Nothing of mitmproxy is replaced but on its objects (the addon manager, the handler of one
client, the streams of one connection), and only where the functions that are stood in for
read as they are known to.
"""
