"""Kills engines and proxies at each step of a refresh: `python -m tests.store.kills`.

Three processes, each as on a machine of its own, share one login whose refresh tokens work once,
over an engine with `appendfsync always`. In each round one of them refreshes and stops at a step;
there it, the engine or both are killed, or something else happens. Then all go on, and each has
to get the newest tokens: the login is not lost, and no spent token was sent.

One thing cannot be survived: a proxy that is killed after the token server has spent the refresh
token, and before the answer is on a disk. Nobody has the new one then. That is the provider's own
gap, and counted apart.

Nor can a stop: a proxy that is suspended past its claim, once its refresh token has left, cannot be
told from one that is gone. Another then sends the same token once the access token has ended, or it
sends its own late. The server of these rounds refuses that and goes on, and so must the login; one
that ends a login for it has ended it. Such rounds are counted apart, too.
"""
