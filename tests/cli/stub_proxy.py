"""Stands in for the proxy: says what the admin pages say, in a tenth of the time.

Run as a program: `stub_proxy.py PORT FOLDER`. Files in FOLDER change what it does:
`accounts.json` (the answer of GET /account-pool), `dies` (it ends at once), `mute`
(it never answers), `busy`, `empty` (it has no account), `accounts_file` (whose text it
names, as it is when it starts), `token` (whoever reads must send it), `proxies.json` (the answer
of GET /proxies).
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

INSTANCE = secrets.token_hex(8)
SOURCE: str | None = None


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        folder = Path(sys.argv[2])
        if self.path == "/health":
            busy = (folder / "busy").exists()
            size = 0 if (folder / "empty").exists() else 1
            answer = {"instance": INSTANCE, "ready": True, "busy": int(busy), "size": size}
            answer["accounts_file"] = SOURCE
        elif (folder / "token").exists() and self.headers["authorization"] != (
            f"Bearer {(folder / 'token').read_text()}"
        ):
            code = "wrong_token" if self.headers["authorization"] else "no_token"
            return self._answer(401, {"error": {"code": code, "message": "the token is needed"}})
        elif self.path == "/proxies" and (folder / "proxies.json").exists():
            answer = json.loads((folder / "proxies.json").read_text())
        elif self.path.startswith("/decisions"):
            written = folder / "decisions.json"
            answer = json.loads(written.read_text()) if written.exists() else {"decisions": []}
        else:
            answer = json.loads((folder / "accounts.json").read_text())
        return self._answer(200, answer)

    def do_POST(self) -> None:
        """It knows no account."""
        self.rfile.read(int(self.headers["content-length"]))
        if (Path(sys.argv[2]) / "token").exists() and not self.headers["authorization"]:
            return self._answer(401, {"error": {"code": "no_token", "message": "it is needed"}})
        error = {"code": "unknown_account", "message": "the pool has no such account"}
        return self._answer(404, {"error": error})

    def _answer(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


if __name__ == "__main__":
    if (Path(sys.argv[2]) / "dies").exists():
        sys.exit("account-pool: accounts.yaml, line 3: opnai is no provider")
    if (Path(sys.argv[2]) / "mute").exists():
        signal.pause()
    if (source := Path(sys.argv[2]) / "accounts_file").exists():
        SOURCE = source.read_text()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Pages).serve_forever()
