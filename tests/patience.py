"""How long tests wait for what must happen, and how much of chance they try.

No verdict depends on how fast the machine is: what a test waits for is an event, and
the ceiling only ends what hangs. What is about speed is in benchmarks/.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

#: Seconds after which something hangs. Less than pytest's own timeout, so that the test
#: says what did not come.
PATIENCE_S = 240.0

#: How many times more than usual the tests by chance try: 1, or as POOL_TRIES says (the
#: scheduled run says 10).
TRIES = int(os.environ.get("POOL_TRIES", "1"))


def load_profile() -> None:
    """Set what all tests by hypothesis have in common; to be called before they are read."""
    settings.register_profile(
        "pool",
        max_examples=tries(60),
        # Both are wall time.
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        # What fails once fails again, here and elsewhere. The scheduled run looks further.
        derandomize=TRIES == 1,
    )
    settings.load_profile("pool")


def tries(count: int) -> int:
    """Return how often to try what is usually tried *count* times."""
    return count * TRIES
