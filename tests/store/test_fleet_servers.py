"""Which server takes writes: over TLS, for a user of the ACL, by Sentinels, in a cluster."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.e2e.harness import free_port
from tests.store.servers import (
    SLOTS,
    TIMEOUT_S,
    Cluster,
    Server,
    StartServer,
    new_pool,
    start_cluster,
    start_tls,
    until,
)
from tests.upstream.certificates import Certificate, make_certificate

from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.fleet_store import FleetStore, inspect
from account_pool.store.pool_state import parse
from account_pool.store.store import StoreError

redis = pytest.importorskip("redis")
PASSWORD = "fake-password-hunter2"


@contextlib.contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    with contextlib.closing(Engine(parse(url))) as engine:
        yield engine


def works(engine: Engine) -> bool:
    with contextlib.suppress(StoreError):
        return engine.call("ping") is None
    return False


def said(url: str) -> str:
    """Return why an engine cannot be used."""
    with engine_of(url) as engine, pytest.raises(StoreError) as error:
        engine.call("ping")
    return str(error.value)


# -- TLS


def tls_url(server: Server, certificate: Certificate, rest: str = "") -> str:
    return f"rediss://localhost:{server.port}/?timeout={TIMEOUT_S}&ca={certificate.authority}{rest}"


def test_a_certificate_is_verified(
    start_server: StartServer, certificate: Certificate, tmp_path: Path
) -> None:
    server = start_tls(start_server, certificate)
    with engine_of(tls_url(server, certificate)) as engine:
        assert engine.call("open", "1") == b"1"
    other = make_certificate(tmp_path)
    remedy = "not trusted; name the file of its CA with ca=PATH"
    assert remedy in said(tls_url(server, other))
    assert remedy in said(f"rediss://localhost:{server.port}/")


def test_a_certificate_of_another_name_is_refused(
    start_server: StartServer, tmp_path: Path
) -> None:
    certificate = make_certificate(tmp_path, ["db.example"], always=[])
    server = start_tls(start_server, certificate)
    assert "not trusted; name the file of its CA" in said(tls_url(server, certificate))


def make_own_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of a proxy, which is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    files = folder / "own.pem", folder / "own-key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


def test_a_server_may_ask_for_a_certificate(
    start_server: StartServer, certificate: Certificate, tmp_path: Path
) -> None:
    server = start_tls(start_server, certificate, "tls-auth-clients yes")
    # With TLS 1.3 its alert may be lost in the reset that follows it.
    assert "cert=PATH and key=PATH" in said(tls_url(server, certificate))
    own, key = make_own_certificate(tmp_path)
    authorities = tmp_path / "authorities.pem"
    authorities.write_text(certificate.authority.read_text() + own.read_text())
    server.kill()
    server.settings.append(f"tls-ca-cert-file {authorities}")
    server.start()
    with engine_of(tls_url(server, certificate, f"&cert={own}&key={key}")) as engine:
        assert works(engine)


def test_certificates_that_were_replaced_are_read_anew(
    start_server: StartServer, certificate: Certificate, tmp_path: Path
) -> None:
    server, trusted = start_tls(start_server, certificate), tmp_path / "trusted.pem"
    trusted.write_bytes(make_certificate(tmp_path).authority.read_bytes())
    url = f"rediss://localhost:{server.port}/?timeout={TIMEOUT_S}&ca={trusted}"
    moments = iter(range(1000, 10_000, 100))
    with contextlib.closing(Engine(parse(url), now=lambda: next(moments))) as engine:
        with pytest.raises(StoreError, match="not trusted"):
            engine.call("ping")
        trusted.write_bytes(certificate.authority.read_bytes())
        assert works(engine)


def test_a_server_without_tls_is_said(server: Server, certificate: Certificate) -> None:
    url = f"rediss://localhost:{server.port}/?ca={certificate.authority}"
    assert re.search(
        "does not (answer in TLS.*; check that it runs, and|speak TLS.*;) name its TLS port",
        said(url),
    )


def test_a_file_that_is_no_certificate_is_said(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing\n")
    for name in ("ca.pem", "missing.pem"):
        assert re.search(
            f"cannot be used .*; check .*{name}",
            said(f"rediss://localhost:1/?ca={tmp_path / name}"),
        )


# -- users


def test_a_user_of_the_acl_logs_in(start_server: StartServer, monkeypatch) -> None:
    server = start_server("redis", f"user proxy on >{PASSWORD} ~* &* +@all")
    url = f"redis://proxy@127.0.0.1:{server.port}/?timeout={TIMEOUT_S}&password=env:FAKE_PASSWORD"
    monkeypatch.setenv("FAKE_PASSWORD", PASSWORD)
    with engine_of(url) as engine:
        assert works(engine)
        assert engine.ask(lambda connection: b"ok") == b"ok"
        assert PASSWORD not in repr(vars(engine)) + repr(vars(engine._servers))


def test_a_password_that_was_changed_is_read_anew(start_server: StartServer, tmp_path) -> None:
    server = start_server("redis", f"user proxy on >{PASSWORD} ~* &* +@all")
    file = tmp_path / "password"
    file.write_text("fake-wrong")
    url = f"redis://proxy@127.0.0.1:{server.port}/?timeout={TIMEOUT_S}&password=file:{file}"
    with engine_of(url) as engine:
        with pytest.raises(StoreError, match="refuses the user or the password") as error:
            engine.call("ping")
        shown = "".join(traceback.format_exception(error.value)) + repr(error.value)
        assert "fake-wrong" not in shown
        file.write_text(PASSWORD)
        until(lambda: works(engine))


def test_a_server_that_asks_for_a_password_is_said(start_server: StartServer) -> None:
    server = start_server("redis", f"requirepass {PASSWORD}")
    assert "asks for a password; write password=env:VARIABLE" in said(server.url("team"))


def test_one_that_refuses_the_password_does_not_keep_others_from_being_asked(
    start_server: StartServer,
) -> None:
    closed = start_server("redis", f"requirepass {PASSWORD}")
    [opened] = start_cluster(start_server, nodes=1).nodes
    hosts = [f"127.0.0.1:{port}" for port in (closed.port, opened.port, free_port())]
    with engine_of(f"redis+cluster://{hosts[0]},{hosts[1]}/?timeout={TIMEOUT_S}") as engine:
        assert works(engine)
    assert "asks for a password" in said(f"redis+cluster://{hosts[0]},{hosts[2]}/")


# -- Sentinels


@pytest.fixture
def sentinel(start_server: StartServer) -> tuple[Server, Server, Server]:
    """A server, its replica, and a Sentinel that has both of them replace each other."""
    primary = start_server("redis", "repl-diskless-sync-delay 0")
    replica = start_server("redis", f"replicaof 127.0.0.1 {primary.port}")
    until(lambda: "master_link_status:up" in replica.ask("INFO", "replication"))
    watching = start_server(
        "sentinel",
        f"sentinel monitor main 127.0.0.1 {primary.port} 1",
        "sentinel down-after-milliseconds main 500",
        "sentinel failover-timeout main 2000",
    )
    until(lambda: watching.ask("SENTINEL", "REPLICAS", "main"))
    return primary, replica, watching


def test_a_sentinel_names_the_server_that_takes_over(sentinel) -> None:
    primary, replica, watching = sentinel
    pool = new_pool()
    url = (
        f"redis+sentinel://127.0.0.1:1,127.0.0.1:{watching.port}/"
        f"?master=main&pool={pool}&timeout={TIMEOUT_S}"
    )
    with engine_of(url) as engine:
        assert engine.call("open", "1", lasting=True) == b"1"
        with replica.client() as client:  # which was waited for, but not for ever
            until(lambda: client.get(engine.key("format")) == b"1")
        primary.kill()
        until(lambda: works(engine))
        assert engine.call("open", "2") == b"1", "the replica has it"
        assert engine._servers.primary.port == replica.port


def fails_over(sentinel: Server) -> bool:
    """Have *sentinel* make the replica the primary; False: it does not know enough of it yet."""
    with contextlib.suppress(redis.ResponseError):
        return bool(sentinel.ask("SENTINEL", "FAILOVER", "main"))
    return False


def takes_writes(engine: Engine) -> bool:
    """A replica answers a ping, too."""
    with contextlib.suppress(StoreError):
        return engine.call("open", "1") == b"1"
    return False


def test_a_server_that_became_a_replica_is_left(sentinel) -> None:
    """It may go on for a while, and takes no writes."""
    primary, replica, watching = sentinel
    url = f"redis+sentinel://127.0.0.1:{watching.port}/?master=main&timeout={TIMEOUT_S}"
    with engine_of(url) as engine:
        engine.call("open", "1")
        until(lambda: fails_over(watching))
        until(lambda: "role:slave" in primary.ask("INFO", "replication"))
        until(lambda: takes_writes(engine))
        assert engine._servers.primary.port == replica.port


def test_a_sentinel_that_knows_no_such_server_is_said(sentinel) -> None:
    url = f"redis+sentinel://127.0.0.1:{sentinel[2].port}/?master=other&timeout={TIMEOUT_S}"
    assert "knows no server other; write the name" in said(url)


def test_what_is_no_sentinel_is_said_with_the_remedy(sentinel) -> None:
    server, _, watching = sentinel
    wrong = said(f"redis+sentinel://127.0.0.1:{server.port}/?master=main&timeout={TIMEOUT_S}")
    assert "is no Sentinel; write the port of one" in wrong
    assert "unknown" not in wrong
    for scheme in ("redis", "redis+cluster"):
        wrong = said(f"{scheme}://127.0.0.1:{watching.port}/?timeout={TIMEOUT_S}")
        assert re.search("does not know the command [A-Z]+: it is a Sentinel, or", wrong)
        assert "with args" not in wrong


# -- clusters


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_pool_is_followed_through_a_cluster(start_server: StartServer, kind: str) -> None:
    cluster, pool = start_cluster(start_server, kind), new_pool()
    owner = cluster.owner(pool)
    others = [node for node in cluster.nodes if node is not owner]
    with engine_of(cluster.url(pool, [*others, owner])) as engine:
        assert engine.call("open", "1") == b"1"
        cluster.move(pool, others[0])
        assert engine.call("open", "2") == b"1"
        assert engine._servers.primary.port == others[0].port


def test_a_cluster_is_not_followed_to_a_host_that_is_not_written_down(
    start_server: StartServer,
) -> None:
    cluster, pool = start_cluster(start_server), new_pool()
    owner = cluster.owner(pool)
    others = [node for node in cluster.nodes if node is not owner]
    assert "not in the URL; write down all of its servers" in said(cluster.url(pool, others))
    assert "total_connections_received:0" not in owner.ask("INFO", "stats")


def test_a_cluster_that_is_named_as_one_server_is_said(start_server: StartServer) -> None:
    cluster, pool = start_cluster(start_server), new_pool()
    other = next(node for node in cluster.nodes if node is not cluster.owner(pool))
    assert "is of a cluster: write redis+cluster://" in said(other.url(pool))


def test_a_server_of_a_cluster_that_is_away_is_not_said_to_be_missing_in_the_url(
    start_server: StartServer,
) -> None:
    cluster, pool = start_cluster(start_server), new_pool()
    owner = cluster.owner(pool)
    others = [node for node in cluster.nodes if node is not owner]
    owner.kill()
    # Until the others have noticed it, they name it.
    assert re.search("refused|is down", said(cluster.url(pool, [owner, *others])))
    assert re.search("refused|is down", said(cluster.url(pool, [*others, owner])))


def test_one_server_that_is_no_cluster_is_said_until_it_is_one(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Of several such servers each would have logins of its own."""
    servers = [start_server("redis"), start_server("redis")]
    cluster = Cluster(servers)
    url = cluster.url("team")
    for server in servers:
        assert server.ask("PING") == "PONG"
    remedy = "write redis:// and one server"
    assert f"is no cluster; {remedy}" in said(url)
    store = FleetStore(parse(url), tmp_path)
    with contextlib.closing(store.engine), pytest.raises(StoreError, match="is no cluster"):
        store.state()
    [fact] = inspect(FleetStore(parse(url), tmp_path))
    assert (fact.level, fact.remedy) == ("bad", remedy)
    assert "{ap:team}:format" not in servers[0].ask("KEYS", "*")
    with engine_of(url) as engine:
        assert not works(engine)
        for server in servers:
            server.kill()
        servers[0].settings += ["cluster-enabled yes", f"cluster-port {free_port()}"]
        servers[0].start()
        servers[0].ask("CLUSTER", "ADDSLOTSRANGE", "0", str(SLOTS - 1))
        until(lambda: works(engine))


def test_a_user_who_may_not_ask_whether_it_is_a_cluster_uses_it(start_server: StartServer) -> None:
    cluster = start_cluster(start_server, nodes=1)
    cluster.nodes[0].ask("ACL", "SETUSER", "default", "-info")
    with engine_of(cluster.url(new_pool())) as engine:
        assert works(engine)


def test_nobody_at_all_is_there() -> None:
    for scheme, rest in (("redis", ""), ("redis+cluster", ""), ("redis+sentinel", "?master=m")):
        assert "cannot be reached: the connection was refused" in said(
            f"{scheme}://127.0.0.1:{free_port()}/{rest}"
        )
