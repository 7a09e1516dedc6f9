"""Fixtures of the end-to-end tests: a scripted provider and real proxies.

Both are handed out as factories, `provider(script)` and `pool_proxy(accounts, ...)`,
and both look at what they saw when the test is over.
"""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import patience
from tests.e2e import harness, redirect
from tests.upstream.certificates import Certificate, make_certificate
from tests.upstream.exchange import Script
from tests.upstream.provider import Provider

patience.load_profile()

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would
# whatever they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever runs the tests may have accounts and keys of their own: no test finds them.

    Nor is colour forced on what programs print into a pipe.
    """
    from account_pool.config.configuration import GITHUB_VARIABLES
    from account_pool.providers.registry import BUILT_IN

    keys = {variable for name in BUILT_IN for variable in BUILT_IN.env(name)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        for name in ("ACCOUNT_POOL_ACCOUNTS", "FORCE_COLOR", *GITHUB_VARIABLES, *keys):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def fast_steps() -> Iterator[None]:
    """An addon in the process of the tests takes those shorter ways that POOL_TEST_FAST says."""
    with pytest.MonkeyPatch.context() as patch:
        if harness.FAST:
            from account_pool.config import options
            from account_pool.proxy import wiring
            from account_pool.proxy.fast import steps

            allowed = options.read_fast(harness.FAST)

            class Allowed(steps.Steps):
                def use(self, chosen: Collection[str]) -> None:
                    super().use(allowed.intersection(chosen))

            patch.setattr(wiring, "Steps", Allowed)
        yield


StartProvider = Callable[..., Awaitable[Provider]]
StartProxy = Callable[..., Awaitable[harness.Proxy]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let idle workers take tests of busy ones: by number, the slow ones all go to one."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """The scripted provider's certificate, valid for loopback and the vendors' hosts."""
    return make_certificate(tmp_path_factory.mktemp("certificate"), redirect.HOSTS)


@pytest.fixture(scope="session")
def mitmproxy_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration folder of mitmproxy with a certificate authority in it."""
    from mitmproxy.certs import CertStore

    folder = tmp_path_factory.mktemp("authority")
    CertStore.create_store(folder, "mitmproxy", 2048)
    return folder


@pytest.fixture
def setting(certificate: Certificate, mitmproxy_authority: Path, tmp_path: Path) -> harness.Setting:
    return harness.Setting(certificate, mitmproxy_authority, tmp_path)


@pytest.fixture
async def provider(certificate: Certificate) -> AsyncIterator[StartProvider]:
    """Start scripted providers. A script that raised fails the test."""
    started: list[Provider] = []
    async with AsyncExitStack() as stack:

        async def start(script: Script, **settings: Any) -> Provider:
            settings.setdefault("certificate", certificate)
            started.append(await stack.enter_async_context(Provider(script, **settings)))
            return started[-1]

        yield start
    for one in started:
        assert not one.journal.errors, one.journal.errors


@pytest.fixture
async def pool_proxy(setting: harness.Setting) -> AsyncIterator[StartProxy]:
    """Start proxies with the addon; see `Setting.prepare` for the arguments.

    Whatever a test is about, its proxy must not have printed a secret or a traceback.
    """
    started: list[harness.Proxy] = []
    async with AsyncExitStack() as stack:

        async def start(*args: Any, **kwargs: Any) -> harness.Proxy:
            started.append(setting.prepare(*args, **kwargs))
            return await stack.enter_async_context(started[-1])

        yield start
        # Before they are stopped: asyncio of 3.11 prints tracebacks of its own then.
        printed = [proxy.output for proxy in started]
    for output in printed:
        assert not re.search(r"Traceback|Addon error|Unhandled|internal error", output), output
    for proxy in started:
        assert not re.search(r"sk-fake-\w+-000", proxy.output), proxy.output
