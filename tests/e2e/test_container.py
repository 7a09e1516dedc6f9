"""The container image and compose.yaml, without a container engine (tests/dockerfile.py)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from ruamel.yaml import YAML

from tests import dockerfile
from tests.e2e import redirect
from tests.e2e.harness import FIRST, chat, client
from tests.e2e.test_binding import own_address
from tests.patience import PATIENCE_S
from tests.scripts import openai
from tests.upstream.replies import by_credential

ROOT = Path(__file__).parents[2]
COMPOSE = YAML(typ="safe").load(ROOT / "compose.yaml")
SERVICE = COMPOSE["services"]["pool"]
STEPS = dockerfile.parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
STATE, ACCOUNTS = "/home/pool/.mitmproxy", "/home/pool/.config/account-pool"
#: Where the packages come from; nothing else of this machine's environment.
PASSED_ON = re.compile(r"(?i)(pip_|ssl_cert_file$|https?_proxy$|no_proxy$|lang$)")
OFFLINE = re.compile(r"NewConnectionError|NameResolutionError|Network is unreachable")


def test_the_port_is_published_for_this_machine_only():
    """The command lets every client in that reaches it."""
    assert SERVICE["command"][-2:] == ["--set", "pool_allow_remote=true"]
    assert [port.rpartition(":")[0] for port in SERVICE["ports"]] == ["127.0.0.1:8080"]
    assert "network_mode" not in SERVICE


def test_the_image_alone_lets_nobody_in():
    """`docker run -p 8080:8080` publishes it to the network, so it is the owner who decides."""
    [command] = [step.words for step in STEPS if step.keyword == "CMD"]
    assert command == ["--listen-host", "0.0.0.0"]


def test_what_is_kept_is_on_volumes():
    [volumes] = [step.words for step in STEPS if step.keyword == "VOLUME"]
    mounted = [
        v if isinstance(v, str) else f"{v['source']}:{v['target']}" for v in SERVICE["volumes"]
    ]
    assert mounted == [f"state:{STATE}", f"./accounts:{ACCOUNTS}"]
    assert volumes == [STATE, ACCOUNTS]
    assert SERVICE["read_only"] is True


def test_the_builder_is_sent_no_account():
    for name in ("accounts.yaml", "accounts", ".git", "github_token", "tests"):
        assert dockerfile.is_ignored(ROOT, ROOT / name), name


class Container:
    """A process started as the engine would start *image*'s entry."""

    def __init__(self, image: dockerfile.Image, command: Sequence[str] | None, *more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._image = image
        # What it prints is shown by pytest where a test fails.
        self.process = subprocess.Popen(
            [*image.entry(command), "--listen-port", str(self.port), *more],
            cwd=image.path("."),
            env=image.environ,
            stdin=subprocess.DEVNULL,
        )

    def __enter__(self) -> Container:
        until = time.monotonic() + PATIENCE_S
        while not self.is_healthy():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > until:
                self.process.kill()
                raise AssertionError("it did not become healthy")
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def is_healthy(self) -> bool:
        check = [word.replace("8080", str(self.port)) for word in self._image.healthcheck()]
        return not subprocess.run(check, env=self._image.environ, check=False).returncode

    def stop(self) -> int:
        """Return the exit code after what `docker stop` sends first."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    async def ask(self, trusted: Path, login: str = "") -> httpx.Response:
        """Send a request as a remote client, where this machine has an address for one."""
        url = f"http://{login}{own_address() or '127.0.0.1'}:{self.port}"
        async with client(trusted, url) as http:
            return await http.request(**chat())


@pytest.fixture
def image(tmp_path) -> dockerfile.Image:
    environ = {name: value for name, value in os.environ.items() if PASSED_ON.match(name)}
    try:
        return dockerfile.build(ROOT, tmp_path / "image", environ)
    except dockerfile.CannotBuild as error:
        if OFFLINE.search(str(error)):
            pytest.skip("no package index can be reached")
        raise


@pytest.mark.timeout(900)
async def test_the_image_serves(image, provider, setting):
    assert image.settings["USER"].text == "1000"
    assert [line.split()[0] for line in image.as_root] == ["useradd", "chown"]
    assert {path.name for path in image.root.iterdir()} == {"usr", "home"}, "something was left"
    shutil.copytree(setting.authority, image.path(STATE), dirs_exist_ok=True)
    accounts = image.path(ACCOUNTS) / "accounts.yaml"
    accounts.touch(mode=0o600)
    accounts.write_text(f"accounts: [{{provider: openai, label: first, token: {FIRST}}}]\n")
    upstream = await provider(by_credential({FIRST: openai.chat_stream(["Good"])}))
    test_only = [
        *("-s", redirect.__file__, "--set", f"redirect_port={upstream.port}"),
        *("--set", f"ssl_verify_upstream_trusted_ca={setting.certificate.authority}"),
    ]
    before = outside_the_volumes(image)

    with Container(image, SERVICE["command"], *test_only) as container:
        assert (await container.ask(setting.trusted)).status_code == 200
        assert upstream.journal.credentials == [FIRST]
        assert outside_the_volumes(image) == before, "the root is read-only"
        assert container.stop() == 0

    made = {path.name for path in image.path(STATE).iterdir()}
    ours = made - {path.name for path in setting.authority.iterdir()}
    assert [name for name in ours if not name.startswith("account-pool")] == []

    if own_address() is None:
        pytest.skip("only loopback here: every client is a local one")
    with Container(image, None, *test_only) as container:
        assert (await container.ask(setting.trusted)).status_code == 403

    (image.path(STATE) / "config.yaml").write_text('proxyauth: "me:sesame"\n')
    with Container(image, None, *test_only) as container:
        with pytest.raises(httpx.ProxyError, match="407"):
            await container.ask(setting.trusted)
        assert upstream.journal.credentials == [FIRST]
        assert (await container.ask(setting.trusted, "me:sesame@")).status_code == 200


def outside_the_volumes(image: dockerfile.Image) -> list[str]:
    kept = (f"{STATE}/", f"{ACCOUNTS}/")
    return [name for name in dockerfile.files_below(image.root) if not name.startswith(kept)]
