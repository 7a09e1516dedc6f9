"""The vendors' authorisation servers, scripted: where the real tools log in, in tests.

A proxy that ends TLS for every host with a throwaway certificate and answers itself; nothing
leaves the machine. `browser` is a program that does what a person does in a browser: it opens
the address that the tool shows, and follows it back to the tool.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.upstream.certificates import Certificate, make_certificate

HOSTS = (
    "claude.ai",
    "claude.com",
    "platform.claude.com",
    "console.anthropic.com",
    "api.anthropic.com",
    "auth.openai.com",
    "chatgpt.com",
    "api.openai.com",
    "accounts.google.com",
    "oauth2.googleapis.com",
    "www.googleapis.com",
    "openidconnect.googleapis.com",
    "cloudcode-pa.googleapis.com",
    "developers.google.com",
)
CLAUDE_ACCOUNT = "00000000-0000-4000-8000-00000000000a"
CLAUDE_ORGANIZATION = "00000000-0000-4000-8000-00000000000b"
CODEX_ACCOUNT = "00000000-0000-4000-8000-00000000000c"
#: Seconds that a login of Claude lasts.
LOGIN_S = 30 * 86400


def jwt(**claims: Any) -> str:
    """Return a token that says *claims* and is signed by nobody."""
    parts = ({"alg": "RS256", "typ": "JWT"}, {"exp": 4102444800, "iat": 1790000000, **claims})
    return ".".join([*(_encoded(json.dumps(part).encode()) for part in parts), _encoded(b"fake")])


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


class Authorisation:
    """The servers of all vendors.

    Attributes:
        url: of the proxy to reach them through.
        certificate: `authority` is to be trusted.
        asked: the requests, as "METHOD host/path".
        tokens: what was sent to a token endpoint, with its user agent.
        person: who is logged in in the browser; part of every token and id.
        refuses: the person says no.
    """

    def __init__(self, certificate: Certificate) -> None:
        self.certificate = certificate
        self.asked: list[str] = []
        self.tokens: list[dict[str, Any]] = []
        self.person = "one"
        self.refuses = False
        self.url = ""
        self._grants = 0

    def answer(
        self, method: str, host: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Any]:
        """Return status and JSON, or status and where to go on."""
        path = urlsplit(target).path
        self.asked.append(f"{method} {host}{path}")
        if "authorize" in path or (host == "accounts.google.com" and "/auth" in path):
            return 302, self._authorized(parse_qs(urlsplit(target).query))
        if path.endswith("/token"):
            return self._token(host, headers, body)
        if host == "api.anthropic.com" and path == "/api/oauth/profile":
            account = {"uuid": self._id(CLAUDE_ACCOUNT), "email": self._email}
            organization = {"uuid": CLAUDE_ORGANIZATION, "organization_type": "claude_max"}
            return 200, {"account": account, "organization": organization}
        if path == "/api/oauth/claude_cli/roles":
            return 200, {"organization_role": "admin", "workspace_role": None}
        if path == "/oauth2/v2/userinfo":
            return 200, {"email": self._email, "id": "1"}
        if path.endswith(":loadCodeAssist"):
            tier = {"id": "free-tier", "name": "free", "isDefault": True}
            return 200, {"currentTier": tier, "cloudaicompanionProject": "fake-project"}
        if path.endswith("/tokeninfo"):
            return 200, {"email": self._email, "expires_in": 3600}
        return 200, {}

    @property
    def _email(self) -> str:
        return f"{self.person}@example.com"

    def _id(self, like: str) -> str:
        return like[:-2] + self.person.encode().hex()[:2]

    def _authorized(self, query: Mapping[str, list[str]]) -> str:
        back = {"state": query["state"][0]}
        back |= {"error": "access_denied"} if self.refuses else {"code": f"code-{self.person}"}
        return f"{query['redirect_uri'][0]}?{urlencode(back)}"

    def _token(self, host: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        text = body.decode()
        is_json = text.startswith("{")
        sent = json.loads(text) if is_json else {n: v[0] for n, v in parse_qs(text).items()}
        self.tokens.append({**sent, "user-agent": headers.get("user-agent", "")})
        self._grants += 1
        name = f"{self.person}-{self._grants}"
        if "openai" in host:
            about = {
                "chatgpt_account_id": self._id(CODEX_ACCOUNT),
                "chatgpt_plan_type": "plus",
                "chatgpt_user_id": f"user-{self.person}",
            }
            said = {"email": self._email, "aud": [str(sent.get("client_id"))]}
            return 200, {
                "id_token": jwt(**said, **{"https://api.openai.com/auth": about}),
                "access_token": jwt(jti=name, **{"https://api.openai.com/auth": about}),
                "refresh_token": f"rt_fake_{name}",
            }
        if "google" in host:
            return 200, {
                "access_token": f"ya29.fake-{name}",
                "refresh_token": f"1//fake-{name}",
                "expires_in": 3599,
                "scope": "https://www.googleapis.com/auth/cloud-platform",
                "token_type": "Bearer",
                "id_token": jwt(
                    aud=sent.get("client_id"), sub=f"sub-{self.person}", email=self._email
                ),
            }
        return 200, {
            "token_type": "Bearer",
            "access_token": f"sk-ant-oat01-fake-{name}",
            "refresh_token": f"sk-ant-ort01-fake-{name}",
            "expires_in": 28800,
            "refresh_token_expires_in": LOGIN_S,
            "scope": "user:inference user:profile",
            "account": {"uuid": self._id(CLAUDE_ACCOUNT), "email_address": self._email},
            "organization": {"uuid": CLAUDE_ORGANIZATION, "name": "fake"},
        }


@contextmanager
def authorisation(folder: Path) -> Iterator[Authorisation]:
    """Run the servers; their certificate is written to *folder*."""
    certificate = make_certificate(folder, HOSTS)
    servers = Authorisation(certificate)
    context = certificate.server_context(["http/1.1"])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        host = ""

        def do_CONNECT(self) -> None:
            self.host = self.path.partition(":")[0]
            self.send_response(200)
            self.end_headers()
            try:
                self.connection = context.wrap_socket(self.connection, server_side=True)
            except (ssl.SSLError, OSError):
                self.close_connection = True
                return
            self.rfile = self.connection.makefile("rb", -1)
            self.wfile = self.connection.makefile("wb", 0)
            self.close_connection = False

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, what = servers.answer(
                self.command, self.host, self.path, headers, self.rfile.read(length)
            )
            content = b"" if status == 302 else json.dumps(what).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("location", what)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def log_message(self, *_args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(OSError, ssl.SSLError):
                super().handle()
            self.connection.close()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        servers.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield servers
        finally:
            server.shutdown()
            thread.join()


def vendor_tool(name: str) -> str | None:
    """Return where the vendor's tool *name* is, None where it is not: POOL_VENDOR_TOOLS or PATH."""
    return shutil.which(name, path=os.environ.get("POOL_VENDOR_TOOLS")) or shutil.which(name)


_BROWSER = """#!{python}
import ssl, sys, urllib.request
proxy = urllib.request.ProxyHandler({{"https": {proxy!r}}})
trust = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile={authority!r}))
try:
    urllib.request.build_opener(proxy, trust).open(sys.argv[1], timeout=60).read()
except urllib.error.URLError as error:
    print(error, file=sys.stderr)
"""


def browser(folder: Path, servers: Authorisation) -> Path:
    """Write a browser into *folder*, under each name that the tools start one by."""
    authority = str(servers.certificate.authority)
    text = _BROWSER.format(python=sys.executable, proxy=servers.url, authority=authority)
    for name in ("xdg-open", "browser"):
        file = folder / name
        file.write_text(text)
        file.chmod(0o700)
    return folder / "browser"
