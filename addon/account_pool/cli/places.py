"""Where the command line keeps its files: beside mitmproxy's own, one set for each port."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from account_pool.filesystem import expanded

#: The defaults of mitmproxy: its directory, and the port it listens on.
CONFDIR = "~/.mitmproxy"
DEFAULT_PORT = 8080
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Places:
    """Files in *confdir*; those of a proxy carry its *port*."""

    confdir: Path
    port: int

    @classmethod
    def usual(cls, port: int) -> Places:
        """Return those of the user who runs this."""
        return cls(expanded(CONFDIR), port)

    def make(self) -> None:
        """Make the directory where it is not there. Raises OSError."""
        if self.confdir.exists() and not self.confdir.is_dir():
            wrong = "it is not a directory; move it away"
            raise NotADirectoryError(errno.ENOTDIR, wrong, str(self.confdir))
        self.confdir.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def record(self) -> Path:
        """What `run` knows of the proxy it started."""
        return self.confdir / f"account-pool-{self.port}.json"

    @property
    def lock(self) -> Path:
        """Held by who starts or ends that proxy."""
        return self.confdir / f"account-pool-{self.port}.lock"

    @property
    def log(self) -> Path:
        """What that proxy says."""
        return self.confdir / f"account-pool-{self.port}.log"

    @property
    def authority(self) -> Path:
        """mitmproxy's certificate, which signs those it shows to clients."""
        return self.confdir / "mitmproxy-ca-cert.pem"

    @property
    def bundle(self) -> Path:
        """The system's authorities and mitmproxy's."""
        return self.confdir / "account-pool-ca-bundle.pem"

    @property
    def upstream(self) -> Path:
        """The system's authorities and the user's own: what the proxy itself trusts."""
        return self.confdir / "account-pool-upstream.pem"

    @property
    def extra(self) -> Path:
        """mitmproxy's certificate and those of the user's own NODE_EXTRA_CA_CERTS."""
        return self.confdir / "account-pool-ca-extra.pem"
