"""Engines, and stores of every kind, for the tests of stores."""

from tests.store.backends import backend, pytest_generate_tests, state, timed_engines, two
from tests.store.places import fleet
from tests.store.servers import engine, server, shared_servers, start_server

__all__ = [
    "backend",
    "engine",
    "fleet",
    "pytest_generate_tests",
    "server",
    "shared_servers",
    "start_server",
    "state",
    "timed_engines",
    "two",
]
