"""The processes of a campaign: the provider, the proxies; and what is asked of them."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from tests.upstream.certificates import Certificate, make_certificate

from account_pool.demo.mitmdump import POOL_READY, Mitmdump, addon_script
from benchmarks.chaos import CHECKOUT
from benchmarks.chaos.clients import Target
from benchmarks.chaos.oracle import credential
from benchmarks.chaos.plan import CLIENT, SECRET
from benchmarks.chaos.replies import VENDORS

#: Keys of each vendor for the usual clients, and requests each may have at once.
KEYS, AT_ONCE = 60, 2
#: Longest line of the provider's answers.
LINE_LIMIT = 1 << 24
#: Seconds between two looks at who is on cooldown.
TIDY_S = 0.25
#: Seconds, of a refusal that does not say how long.
COOLDOWN_S = 2
ADMIN_TOKEN = "account-pool-admin-token"
#: What a proxy prints when something in it failed.
TRACEBACK_LINES = 40
TRACEBACK = ("Traceback", "Addon error", "Unhandled", "internal error", "has crashed")


class ScriptedProvider:
    """The provider's process, for as long as its block runs."""

    def __init__(
        self, certificate: Certificate, *, seed: int, lanes: int, crowd: int = 1, sabotage: str = ""
    ) -> None:
        many = range(KEYS * crowd)
        keys = {vendor: [credential(vendor, n) for n in many] for vendor in VENDORS}
        self._how = {
            "chain": str(certificate.chain),
            "key": str(certificate.key),
            "allowed": keys,
            "limits": {key: AT_ONCE for of in keys.values() for key in of},
            "seed": seed,
            "lanes": lanes,
            "sabotage": sabotage,
        }
        self.ports: dict[str, Any] = {}
        self._process: Process | None = None
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> ScriptedProvider:
        path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "addon")])
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.chaos.provider",
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE_LIMIT,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.ports = await self._say(self._how)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def ask(self, what: str, **more: object) -> Any:
        """Ask what `Provider.asked` answers."""
        # To the end, whoever is cancelled: the next would read that answer as its own.
        return await asyncio.shield(asyncio.create_task(self._say({"ask": what, **more})))

    async def _say(self, value: object) -> Any:
        assert self._process is not None
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        async with self._asking:
            stdin.write(json.dumps(value).encode() + b"\n")
            line = await stdout.readline()
        if not line:
            raise RuntimeError("the scripted provider has ended")
        return json.loads(line)


@dataclass
class Folder:
    """What all proxies of a campaign have in common.

    Attributes:
        leaks: credentials in logs, dumps or the admin API.
        mishaps: what a proxy says when something in it failed.
    """

    path: Path
    certificate: Certificate
    authority: Path
    leaks: list[str] = field(default_factory=list)
    mishaps: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, path: Path) -> Folder:
        from mitmproxy.certs import CertStore

        authority = path / "authority"
        authority.mkdir()
        CertStore.create_store(authority, "mitmproxy", 2048)
        return cls(path, make_certificate(path), authority)

    def target(self, proxy: Proxy, ports: Mapping[str, Any]) -> Target:
        return Target(proxy.port, dict(ports), {p: self._tls(p) for p in ("h1", "h2")})

    def _tls(self, protocol: str) -> ssl.SSLContext:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self.authority / "mitmproxy-ca-cert.pem")
        tls.set_alpn_protocols(["h2"] if protocol == "h2" else ["http/1.1"])
        return tls


class Proxy(Mitmdump):
    """A mitmdump with the addon; what it prints is searched for secrets and tracebacks."""

    def __init__(self, name: str, folder: Folder, ports: Mapping[str, Any], *args: str) -> None:
        self.confdir = folder.path / name
        self.leaks, self.mishaps = folder.leaks, folder.mishaps
        if not self.confdir.exists():
            self.confdir.mkdir()
            for file in folder.authority.iterdir():
                (self.confdir / file.name).write_bytes(file.read_bytes())
        settings: dict[str, object] = {
            "confdir": self.confdir,
            "flow_detail": 0,
            "pool_accounts": folder.path / f"{name.rstrip('0123456789')}.yaml",
            "pool_max_wait": 20,
            # A bad answer is one only while an account is good.
            "pool_cooldown": COOLDOWN_S,
            "ssl_verify_upstream_trusted_ca": folder.certificate.authority,
        }
        given = [arg for n, value in settings.items() for arg in ("--set", f"{n}={value}")]
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "SYSTEMROOT", "TEMP", "LANG")}
        super().__init__(
            *given,
            *args,
            "-s",
            str(addon_script()),
            folder=self.confdir,
            env={**kept, "HOME": str(self.confdir)},
            ready=POOL_READY,
            on_line=self._look_at,
        )
        self._log = (self.confdir / "log").open("a")
        self.http = httpx.AsyncClient(trust_env=False, timeout=60)

    def _look_at(self, line: str) -> None:
        print(line, file=self._log, flush=True)
        if SECRET in line or CLIENT in line:
            self.leaks.append(f"a secret in the log: {line.replace(SECRET, '...')}")

    async def __aenter__(self) -> Proxy:
        await super().__aenter__()
        return self

    async def stop(self) -> None:
        await super().stop()
        for at, line in enumerate(self.lines):
            if any(word in line for word in TRACEBACK):
                shown = "\n".join(self.lines[max(0, at - 2) : at + TRACEBACK_LINES])
                self.mishaps.append(f"{self.confdir.name} says:\n{shown}")
                break
        await self.http.aclose()
        self._log.close()

    async def get(self, path: str) -> Any:
        """Return what the admin API says; no secret may be in it."""
        answer = await self.http.get(f"{self.url}{path}")
        if SECRET in answer.text or CLIENT in answer.text:
            self.leaks.append(f"a secret in GET {path}")
        return answer.raise_for_status().json() if path != "/metrics" else answer.text

    async def post(self, path: str, value: object) -> None:
        token = (self.confdir / ADMIN_TOKEN).read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        answer = await self.http.post(f"{self.url}{path}", json=value, headers=headers)
        answer.raise_for_status()

    async def tidy(self) -> None:
        """End each cooldown and each disabling, again and again: accounts are to be good."""
        while True:
            with suppress(httpx.HTTPError):
                bad = [
                    {"provider": account["provider"], "label": account["label"]}
                    for account in (await self.get("/account-pool"))["accounts"]
                    if account["state"] == "disabled" or account["asked_last"] or _is_long(account)
                ]
                posts = (self.post("/account-pool/clear-cooldown", name) for name in bad)
                await asyncio.gather(*posts)
            await asyncio.sleep(TIDY_S)

    async def at_rest(self, ceiling_s: float) -> int:
        """Return how many requests are in flight, once there are none or time is up."""
        in_flight = -1
        with suppress(TimeoutError):
            async with asyncio.timeout(ceiling_s):
                while in_flight:
                    summary = (await self.get("/account-pool"))["summary"]
                    in_flight = summary["in_flight"]
                    await asyncio.sleep(TIDY_S / 5)
        return in_flight


def _is_long(account: Mapping[str, Any]) -> bool:
    """Say whether an account is on a cooldown, for a model at least, that does not end soon."""
    left = [cooldown["remaining_s"] for cooldown in account["cooldowns"]]
    return max(left, default=0) > COOLDOWN_S


def accounts_file(
    path: Path, accounts: Sequence[Mapping[str, Any]], ports: Mapping[str, Any]
) -> None:
    """Write accounts.yaml as a whole, as only its owner may read it."""
    lanes = ports["lanes"]
    hosts = {vendor: {"hosts": [f"localhost:{ports[vendor]}"]} for vendor in VENDORS}
    hosts[VENDORS[0]]["hosts"] += [f"localhost:{port}" for port in lanes]
    # JSON is YAML.
    text = json.dumps({"accounts": list(accounts), "providers": hosts}, indent=1)
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def keys(crowd: int) -> list[dict[str, Any]]:
    """Return the accounts that have keys, for *crowd* times the usual clients."""
    return [
        {
            "provider": vendor,
            "label": f"key{number}",
            "token": credential(vendor, number),
            "max_concurrent": AT_ONCE,
        }
        for vendor in VENDORS
        for number in range(KEYS * crowd)
    ]
