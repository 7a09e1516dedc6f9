"""Files of certificates that tools and the proxy are given, and `account-pool ca`.

Each ecosystem has a variable of its own for the authorities it trusts, and most of them
*replace* the system's list. A tool talks to more hosts than the pool's: so these get a bundle of
the system's authorities, those the user had named, and mitmproxy's. The few that add to the list
get mitmproxy's certificate. Tested with the tools themselves where a row says "measured".

Nothing is changed in stores: they belong to the system, and most need its administrator. `run`
and `env` need none of that, as they name the certificate to their tools alone.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import shutil
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from account_pool.cli.accounts import mitmproxy_config
from account_pool.cli.output import Failed, note, show_json
from account_pool.cli.processes import Places
from account_pool.config.accounts_file import shown
from account_pool.config.options import set_options
from account_pool.config.problems import ConfigError
from account_pool.filesystem import expanded, read_file, require_file, write_whole

#: These replace what a tool trusts, so that they need the system's authorities as well.
BUNDLE_VARIABLES: Mapping[str, str] = {
    "SSL_CERT_FILE": "OpenSSL, Rust, Go, httpx: Claude Code, Codex, Copilot CLI, SDKs (measured)",
    "REQUESTS_CA_BUNDLE": "Python requests",
    "CURL_CA_BUNDLE": "curl (measured)",
    "GIT_SSL_CAINFO": "git over https",
    "CODEX_CA_CERTIFICATE": "Codex; comes before SSL_CERT_FILE there (measured)",
    "AWS_CA_BUNDLE": "AWS CLI and SDKs",
    "PIP_CERT": "pip",
    "CARGO_HTTP_CAINFO": "cargo",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "gRPC",
    "HTTPLIB2_CA_CERTS": "Python httplib2",
    "NIX_SSL_CERT_FILE": "programs of Nix",
}
#: These add to what a tool trusts.
EXTRA_VARIABLES: Mapping[str, str] = {
    "NODE_EXTRA_CA_CERTS": "Node: Gemini CLI needs it (measured)",
    "DENO_CERT": "Deno",
}
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_EXTRA = "NODE_EXTRA_CA_CERTS"
#: mitmproxy's options for what it trusts upstream.
_TRUSTED_CA = "ssl_verify_upstream_trusted_ca"
_OWN_TRUST = frozenset({_TRUSTED_CA, "ssl_verify_upstream_trusted_confdir"})
#: Fewer authorities than this are not a system's: OpenSSL was built for another place, or
#: reads a directory that it does not list.
_FEW = 10
#: Those of a system have some hundred KiB.
MAX_BYTES = 16 * 1024 * 1024
#: Where systems keep one file of all they trust (Debian, Fedora, SUSE, Alpine and BSD). A Python
#: that was built elsewhere does not look there, nor does any while SSL_CERT_FILE is set.
_STORES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The files of certificates a tool is given.

    *bundle* has the system's authorities and mitmproxy's; *extra* mitmproxy's, and what the
    user's own NODE_EXTRA_CA_CERTS named.
    """

    bundle: Path
    extra: Path


def write_trust(places: Places, environ: Mapping[str, str]) -> Trust:
    """Write the files for *environ*, the user's own environment. Raises OSError."""
    make_authority(places)
    ours = _authority(places.authority)
    whole = joined([*system_authorities(), *_named(environ), ours])
    write_whole(places.bundle, whole, mode=0o644, durable=False)
    extra = environ.get(_EXTRA)
    if extra and Path(extra) != places.authority:
        write_whole(places.extra, joined([_text(Path(extra)), ours]), mode=0o644, durable=False)
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
        places = replace(places, confdir=expanded(given.get("confdir") or places.confdir))
        if not _OWN_TRUST.isdisjoint(given | mitmproxy_config(str(places.confdir))):
            return []
        places.make()
        whole = joined([*system_authorities(), *_named(environ)], without=_text(places.authority))
        write_whole(places.upstream, whole, mode=0o644, durable=False)
    except (OSError, ConfigError):
        return []  # mitmproxy says what is wrong with its own
    return ["--set", f"{_TRUSTED_CA}={places.upstream.absolute()}"]


#: What to do where mitmproxy's certificate is of no use; with its folder.
REMAKE = "remove {}/mitmproxy-ca* and start the proxy again"


def _authority(path: Path) -> str:
    """Return mitmproxy's certificate in *path*. Raises Failed where there is none, OSError."""
    text = read_file(path, MAX_BYTES).decode("ascii", "replace")
    try:
        base64.b64decode("".join(next(certificates(text)).split()), validate=True)
    except (StopIteration, ValueError):
        remedy = REMAKE.format(shown(path.parent))
        raise Failed(f"{shown(path)} holds no certificate; {remedy}") from None
    return text


def _named(environ: Mapping[str, str]) -> list[str]:
    """Return what the user's own variables name.

    In a shell that `account-pool env` has prepared these are our own files, which hold what
    the user had named before.
    """
    own = [Path(environ[name]) for name in (*BUNDLE_VARIABLES, _EXTRA) if environ.get(name)]
    return [_text(path) for path in dict.fromkeys(own)]


def make_authority(places: Places) -> None:
    """Let mitmproxy make its certificate where it has not yet, as its first start does."""
    if places.authority.exists():
        # What is no file would keep mitmproxy for ever: it writes there.
        require_file(places.authority)
        return
    places.make()
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
        return read_file(expanded(path), MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


# -- `account-pool ca`: where mitmproxy's certificate is, who trusts it, how to change that

#: What programs ask that are not given anything else. On macOS many ask the Keychain instead.
SYSTEM = "OpenSSL's store" if sys.platform == "darwin" else "the system's store"
#: Longest time that a program of the system is waited for, seconds.
_PROGRAM_S = 10
_NAME = "mitmproxy"


@dataclass(frozen=True, slots=True)
class Store:
    """A store of certificates that are trusted, and how ours gets in and out.

    Attributes:
        name: who asks it.
        trust, remove: what to type.
        holds: whether it has ours; None: that cannot be seen.
    """

    name: str
    trust: str
    remove: str
    holds: bool | None = None


def show_authority(port: int, environ: Mapping[str, str], *, only_path: bool, as_json: bool) -> int:
    """Print where the certificate is, and how to trust it. Makes it if there is none. Returns 0."""
    path = Places.usual(port).authority
    make_authority(Places.usual(port))
    if only_path:
        print(path)
        return 0
    der = _der(path)
    fingerprint = hashlib.sha256(der).hexdigest().upper()
    known = list(stores(path, environ))
    if as_json:
        show_json(
            {
                "path": str(path),
                "sha256": fingerprint,
                "stores": [asdict(one) for one in known],
            }
        )
        return 0
    print(f"{path}\nSHA-256 {fingerprint}")
    for one in known:
        holds = {True: "trusts it", False: "does not trust it", None: "not known"}[one.holds]
        print(f"\n{one.name}: {holds}\n  trust   {one.trust}\n  remove  {one.remove}")
    note("`account-pool run` and `env` need none of this: they name it to their tools alone")
    note(f"whoever can read {path.with_name('mitmproxy-ca.pem')} can read what these programs send")
    return 0


def trusting(authority: Path, environ: Mapping[str, str]) -> list[str]:
    """Return the names of the stores that hold *authority*, as far as that can be seen."""
    return [store.name for store in stores(authority, environ) if store.holds]


def stores(authority: Path, environ: Mapping[str, str]) -> Iterator[Store]:
    """Yield the stores of this system, and the file this shell names, for *authority*."""
    if sys.platform == "darwin":
        yield _keychain(authority)
    elif os.name == "nt":
        yield _windows(authority)
    else:
        yield _linux(authority)
    yield from _nss(authority, expanded("~"))
    yield from _java(authority, environ)
    named = environ.get("SSL_CERT_FILE")
    if named:
        path = expanded(named)
        yield Store(
            "SSL_CERT_FILE of this shell",
            'eval "$(account-pool env)"',
            'eval "$(account-pool env --unset)"',
            holds(path, authority),
        )


def _der(authority: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(_authority(authority))


def _linux(authority: Path) -> Store:
    """The one of the distribution; which that is, its program tells."""
    path, holds = shlex.quote(str(authority)), is_in_system(authority)
    if shutil.which("update-ca-trust"):  # Fedora, RHEL, openSUSE; Arch with either
        copy = f"/etc/pki/ca-trust/source/anchors/{_NAME}.crt"
        if not Path(copy).parent.is_dir():
            copy = f"/etc/ca-certificates/trust-source/anchors/{_NAME}.crt"
        again = "update-ca-trust"
        clear = again
    else:  # Debian, Ubuntu, Alpine
        copy = f"/usr/local/share/ca-certificates/{_NAME}.crt"
        again, clear = "update-ca-certificates", "update-ca-certificates --fresh"
    return Store(
        SYSTEM,
        f"sudo cp {path} {copy} && sudo {again}",
        f"sudo rm {copy} && sudo {clear}",
        holds,
    )


def _keychain(authority: Path) -> Store:
    path = shlex.quote(str(authority))
    code = _code("security", "verify-cert", "-c", str(authority), "-p", "ssl", "-l", "-L", "-q")
    return Store(
        "the Keychain",
        f"security add-trusted-cert -k ~/Library/Keychains/login.keychain-db {path}",
        f"security remove-trusted-cert {path} && security delete-certificate -c {_NAME}",
        None if code is None else code == 0,
    )


def _windows(authority: Path) -> Store:
    # The thumbprint by which certutil names one.
    sha1 = hashlib.sha1(_der(authority), usedforsecurity=False).hexdigest()
    return Store(
        SYSTEM,
        f'certutil -user -addstore Root "{authority}"',
        f"certutil -user -delstore Root {sha1}",
        is_in_system(authority),
    )


def _nss(authority: Path, home: Path) -> Iterator[Store]:
    """Those of Firefox, and on Linux of Chromium, which ask no store of the system."""
    places = [(home / ".pki/nssdb", "Chromium")]
    profiles = (
        ".mozilla/firefox",
        "snap/firefox/common/.mozilla/firefox",
        "Library/Application Support/Firefox/Profiles",
        "AppData/Roaming/Mozilla/Firefox/Profiles",
    )
    for profile in profiles:
        found = sorted((home / profile).glob("*/cert9.db"))
        places += [(file.parent, f"Firefox ({file.parent.name})") for file in found]
    for folder, name in places:
        if not (folder / "cert9.db").is_file():
            continue
        database = shlex.quote(f"sql:{folder}")
        yield Store(
            name,
            f"certutil -d {database} -A -t C,, -n {_NAME} -i {shlex.quote(str(authority))}",
            f"certutil -d {database} -D -n {_NAME}",
            _is_in_nss(folder / "cert9.db", _der(authority)),
        )


def _is_in_nss(database: Path, der: bytes) -> bool | None:
    """Say whether *database* has the certificate; in a11, as PKCS #11 numbers CKA_VALUE."""
    try:
        # Only read, and not waited for: a browser may have it open.
        uri = f"{database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=1)) as opened:
            (found,) = opened.execute(
                "SELECT count(*) FROM nssPublic WHERE a11 = ?", (der,)
            ).fetchone()
    except sqlite3.Error:
        return None
    return bool(found)


def _java(authority: Path, environ: Mapping[str, str]) -> Iterator[Store]:
    home = environ.get("JAVA_HOME")
    file = Path(home) / "lib/security/cacerts" if home else None
    if file is None or not file.is_file():
        return
    try:
        # Not encrypted in either of its formats, JKS and PKCS #12 without a password.
        holds = _der(authority) in file.read_bytes()
    except OSError:
        holds = None
    yield Store(
        "Java of JAVA_HOME",
        f"keytool -importcert -cacerts -alias {_NAME} -file {shlex.quote(str(authority))}",
        f"keytool -delete -cacerts -alias {_NAME}",
        holds,
    )


def _code(*command: str) -> int | None:
    """Return the exit code of a program of the system, None where it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_PROGRAM_S)  # noqa: S603 - ours
        return done.returncode
    except (OSError, subprocess.SubprocessError):
        return None
