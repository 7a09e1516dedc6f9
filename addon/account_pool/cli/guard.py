"""Watches the proxy while a tool runs, and carries out what `watch.py` decides.

Says nothing on the terminal, which is the tool's: notes go to the proxy's log, and
`summary` is for afterwards.
"""

from __future__ import annotations

import threading
import time

from account_pool.cli.proxy_process import CannotStart, note
from account_pool.cli.shared import SharedProxy
from account_pool.cli.watch import LOOK_CLOSER_S, Seen, Step, Watch
from account_pool.supervision import where

#: How often a process of our own is asked whether it is there, in seconds: it costs nothing.
_NOTICE_S = 0.1


class Guard:
    """Runs in a thread of its own for as long as its block lasts."""

    def __init__(self, proxy: SharedProxy) -> None:
        self._proxy = proxy
        self._thread = threading.Thread(target=self._run, name="guard of the proxy", daemon=True)
        self._restarts = 0
        self._given_up = False

    def __enter__(self) -> Guard:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._proxy.over.set()
        self._thread.join()

    def summary(self) -> str | None:
        """Return what the user should know of the proxy, None if it was well."""
        if self._given_up:
            return (
                "the proxy kept crashing and is not restarted any more; account-pool logs says why"
            )
        if self._restarts:
            times = "once" if self._restarts == 1 else f"{self._restarts} times"
            return f"the proxy had to be restarted {times}; account-pool logs says why"
        return None

    def _run(self) -> None:
        watch = Watch(time.monotonic())
        while not self._wait(watch.look_again_in_s()):
            seen = self._seen()
            if seen is None:
                # Not started by a `run`: whoever did takes care of it. It may also be
                # between two starts of another `run`.
                continue
            step = watch.look(seen, time.monotonic())
            if step is Step.GIVE_UP:
                self._given_up = True
                note(self._proxy.places, "gave up: restarting the proxy does not help")
                return
            if step is not Step.NOTHING:
                self._revive(step)

    def _seen(self) -> Seen | None:
        """Return how the proxy is; the tool runs on, and is watched, whatever fails here."""
        try:
            return self._proxy.look()
        except Exception as error:
            note(self._proxy.places, f"looking at the proxy failed: {where(error)}")
            return None

    def _revive(self, step: Step) -> None:
        found = "is dead" if step is Step.START else "does not answer"
        note(self._proxy.places, f"the proxy {found}; restarting it")
        try:
            self._restarts += self._proxy.revive()
        except (CannotStart, OSError) as error:
            if self._proxy.over.is_set():
                return
            note(self._proxy.places, str(error))
        except Exception as error:
            note(self._proxy.places, f"restarting the proxy failed: {where(error)}")

    def _wait(self, seconds: float) -> bool:
        """Wait, less if a process of ours ends; say whether it is all over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._proxy.over.wait(min(left, _NOTICE_S)):
                return True
            if seconds > LOOK_CLOSER_S and self._proxy.has_ended():
                return False
        return self._proxy.over.is_set()
