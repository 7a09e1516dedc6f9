"""`python -m benchmarks`."""

from benchmarks.run import main

# The worker processes import this module again: they must not start a run.
if __name__ == "__main__":
    raise SystemExit(main())
