"""The files of certificates that tools are given.

Most variables replace what a tool trusts (`environment.BUNDLE_VARIABLES`), and a tool
talks to more hosts than the pool's: so the bundle is the system's authorities, those the
user had named, and mitmproxy's.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

from account_pool.cli.environment import BUNDLE_VARIABLES, Trust
from account_pool.cli.places import Places, write_whole

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_EXTRA = "NODE_EXTRA_CA_CERTS"
#: Fewer authorities than this are not a system's: OpenSSL was built for another place, or
#: reads a directory that it does not list.
_FEW = 10


def write_trust(places: Places, environ: Mapping[str, str]) -> Trust:
    """Write the files for *environ*, the user's own environment. Raises OSError."""
    make_authority(places)
    ours = places.authority.read_text(encoding="ascii")
    # In a shell that `account-pool env` has prepared these are our own files, which hold
    # what the user had named before.
    own = [Path(environ[name]) for name in (*BUNDLE_VARIABLES, _EXTRA) if environ.get(name)]
    theirs = [_text(path) for path in dict.fromkeys(own)]
    write_whole(places.bundle, joined([*system_authorities(), *theirs, ours]), mode=0o644)
    extra = environ.get(_EXTRA)
    if extra and Path(extra) != places.authority:
        write_whole(places.extra, joined([_text(Path(extra)), ours]), mode=0o644)
        return Trust(bundle=places.bundle, extra=places.extra)
    return Trust(bundle=places.bundle, extra=places.authority)


def make_authority(places: Places) -> None:
    """Let mitmproxy make its certificate where it has not yet, as its first start does."""
    if places.authority.is_file():
        return
    from mitmproxy.certs import CertStore  # noqa: PLC0415 - only the first time
    from mitmproxy.options import CONF_BASENAME, KEY_SIZE  # noqa: PLC0415 - the same

    CertStore.from_store(places.confdir, CONF_BASENAME, KEY_SIZE)


def system_authorities() -> list[str]:
    """Return what this system trusts, as texts of certificates; certifi's where it is hidden."""
    known = ssl.create_default_context().get_ca_certs(binary_form=True)
    if len(known) >= _FEW:
        return [ssl.DER_cert_to_PEM_cert(certificate) for certificate in known]
    import certifi  # noqa: PLC0415 - few need it

    return [Path(certifi.where()).read_text(encoding="utf-8")]


def joined(texts: Iterable[str]) -> str:
    """Return every certificate in *texts* once, in order, and nothing else of them.

    What is not a certificate stays behind: a file may hold a private key as well.
    """
    seen: dict[str, None] = {}
    for text in texts:
        for part in text.split(_BEGIN)[1:]:
            body, end, _ = part.partition(_END)
            if end:
                seen["\n".join(body.split())] = None
    return "".join(f"{_BEGIN}\n{body}\n{_END}\n" for body in seen)


def _text(path: Path) -> str:
    """Return what the user's own *path* holds; one that cannot be read adds nothing."""
    try:
        return path.expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
