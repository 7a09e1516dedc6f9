"""The files of certificates that tools and the proxy itself are given.

Most variables replace what a tool trusts (`environment.BUNDLE_VARIABLES`), and a tool
talks to more hosts than the pool's: so the bundle is the system's authorities, those the
user had named, and mitmproxy's.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from account_pool.cli.accounts import mitmproxy_config
from account_pool.cli.environment import BUNDLE_VARIABLES, Trust
from account_pool.cli.places import Places, write_whole
from account_pool.config.options import set_options
from account_pool.config.problems import ConfigError

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_EXTRA = "NODE_EXTRA_CA_CERTS"
#: mitmproxy's options for what it trusts upstream.
_TRUSTED_CA = "ssl_verify_upstream_trusted_ca"
_OWN_TRUST = frozenset({_TRUSTED_CA, "ssl_verify_upstream_trusted_confdir"})
#: Fewer authorities than this are not a system's: OpenSSL was built for another place, or
#: reads a directory that it does not list.
_FEW = 10
#: Where systems keep one file of all they trust (Debian, Fedora, SUSE, Alpine and BSD). A Python
#: that was built elsewhere does not look there, nor does any while SSL_CERT_FILE is set.
_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def write_trust(places: Places, environ: Mapping[str, str]) -> Trust:
    """Write the files for *environ*, the user's own environment. Raises OSError."""
    make_authority(places)
    ours = places.authority.read_text(encoding="ascii")
    whole = joined([*system_authorities(), *_named(environ), ours])
    write_whole(places.bundle, whole, mode=0o644)
    extra = environ.get(_EXTRA)
    if extra and Path(extra) != places.authority:
        write_whole(places.extra, joined([_text(Path(extra)), ours]), mode=0o644)
        return Trust(bundle=places.bundle, extra=places.extra)
    return Trust(bundle=places.bundle, extra=places.authority)


def upstream_trust(
    places: Places, environ: Mapping[str, str], arguments: Sequence[str]
) -> list[str]:
    """Return the arguments with which a proxy trusts what tools trust without it.

    mitmproxy by itself trusts certifi's list only, and a company's own authority is in the
    system's or in a variable. None where the user has named what to trust, in
    *arguments* or its configuration, or where the file cannot be written.
    """
    given = dict(set_options(arguments))
    try:
        places = replace(places, confdir=Path(given.get("confdir") or places.confdir).expanduser())
        if not _OWN_TRUST.isdisjoint(given | mitmproxy_config(str(places.confdir))):
            return []
        places.confdir.mkdir(parents=True, exist_ok=True)
        whole = joined([*system_authorities(), *_named(environ)], without=_text(places.authority))
        write_whole(places.upstream, whole, mode=0o644)
    except (OSError, ConfigError):
        return []  # mitmproxy says what is wrong with its own
    return ["--set", f"{_TRUSTED_CA}={places.upstream.absolute()}"]


def _named(environ: Mapping[str, str]) -> list[str]:
    """Return what the user's own variables name.

    In a shell that `account-pool env` has prepared these are our own files, which hold what
    the user had named before.
    """
    own = [Path(environ[name]) for name in (*BUNDLE_VARIABLES, _EXTRA) if environ.get(name)]
    return [_text(path) for path in dict.fromkeys(own)]


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
    texts = [*map(ssl.DER_cert_to_PEM_cert, known), _text(system_store())]
    if sum(text.count(_BEGIN) for text in texts) >= _FEW:
        return texts
    import certifi  # noqa: PLC0415 - few need it

    return [*texts, Path(certifi.where()).read_text(encoding="utf-8")]


def system_store() -> Path:
    """Return the file of what this system trusts, whatever the environment names."""
    paths = [Path(ssl.get_default_verify_paths().openssl_cafile), *map(Path, _STORES)]
    return next((path for path in paths if path.is_file()), paths[0])


def is_in_system(authority: Path) -> bool:
    """Say whether this system's store holds the certificate in *authority*."""
    if sys.platform == "win32":
        known = "".join(ssl.DER_cert_to_PEM_cert(c) for c, _, _ in ssl.enum_certificates("ROOT"))
        return not set(certificates(_text(authority))).isdisjoint(certificates(known))
    return holds(system_store(), authority)


def holds(path: Path, authority: Path) -> bool:
    """Say whether the file *path* holds the certificate in *authority*."""
    return not set(certificates(_text(authority))).isdisjoint(certificates(_text(path)))


def joined(texts: Iterable[str], without: str = "") -> str:
    """Return every certificate in *texts* once, in order, and nothing else of them.

    What is not a certificate stays behind: a file may hold a private key as well. So does
    what *without* holds.
    """
    left_out = set(certificates(without))
    seen = dict.fromkeys(body for text in texts for body in certificates(text))
    return "".join(f"{_BEGIN}\n{body}\n{_END}\n" for body in seen if body not in left_out)


def certificates(text: str) -> Iterator[str]:
    """Return the bodies of the certificates in *text*."""
    for part in text.split(_BEGIN)[1:]:
        body, end, _ = part.partition(_END)
        if end:
            yield "\n".join(body.split())


def _text(path: Path) -> str:
    """Return what the user's own *path* holds; one that cannot be read adds nothing."""
    try:
        return path.expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
