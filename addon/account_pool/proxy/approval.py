"""Holds a request until a person resumes or kills it (`pool_manual_approve`)."""

from __future__ import annotations

from mitmproxy import http


def hold(flow: http.HTTPFlow) -> None:
    """Let the hook that follows wait for a person; no account is chosen before."""
    flow.intercept()

    def kill() -> None:
        # mitmproxy's own (12.2) leaves whoever waits for the flow waiting: its client
        # would hang for good.
        if flow.killable:
            flow.resume()
        http.HTTPFlow.kill(flow)

    flow.kill = kill  # type: ignore[method-assign]  # of this flow only
