"""`account-pool serve` and `service`: a proxy that stays, here or from a user's login on.

`serve` becomes the mitmproxy of this environment, with the pool in it, or the launcher of several
(`workers/launcher.py`). A service is a user unit of systemd, an agent of launchd, or a task of
Windows; each runs `serve`. Their files are made by pure functions, from a `Plan`. None holds a
secret: credentials that stand in variables of a shell are named, and stay there.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import plistlib
import random
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn
from xml.sax.saxutils import escape

from account_pool.cli import api
from account_pool.cli.accounts import find, mitmproxy_config, read_accounts
from account_pool.cli.certificates import upstream_trust
from account_pool.cli.environment import without_own_proxy
from account_pool.cli.output import fail, note, show_json, warn
from account_pool.cli.processes import CONFDIR, DEFAULT_PORT, HOST, Places
from account_pool.config.accounts_file import OPTION, VARIABLE, counted, shown
from account_pool.config.configuration import Config
from account_pool.config.options import set_options
from account_pool.credentials.sources import EnvSource, ValueSource, variables_in
from account_pool.demo.mitmdump import addon_script, mitmdump_command
from account_pool.filesystem import expanded, named_path, write_whole

#: How a worker is started. Without what lies about in the working directory.
WORKER = (sys.executable, "-P", "-m", "account_pool.workers")
#: Options of mitmproxy with which it listens nowhere, or where another option says.
_ELSEWHERE = frozenset(
    {"-m", "--mode", "-n", "--no-server", "-h", "--help", "--version", "--options", "--commands"}
)
#: mitmweb's own columns, and comments: there stands who served a request.
COLUMNS = ("tls", "icon", "path", "method", "status", "comment", "size", "time")
#: Ports that Linux gives to nobody who does not name them (ip_local_port_range): any other that
#: is free may be a connection's before the first worker listens.
_NOT_GIVEN = range(20_000, 32_768)


def serve(
    program: str,
    port: int | None,
    accounts_file: Path | None,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    workers: int = 1,
) -> NoReturn:
    """Replace this process by *program*, mitmdump or one of its sisters.

    *arguments* are its own. Which file serves is found, and said, there. With more than one
    of *workers*, stay, and have so many mitmdumps serve one port. Raises ConfigError,
    ImportError, and OSError where there is no such program.
    """
    if find_spec("mitmproxy") is None:
        raise ModuleNotFoundError("No module named 'mitmproxy'")
    if (taken := _taken(port, arguments)) is not None:
        # mitmproxy would name an option of its own.
        sys.exit(fail(api.occupied(taken, api.probe(taken))))
    if workers > 1 and sys.platform != "linux":
        note("--workers is for Linux; one worker serves")
        workers = 1
    start = mitmdump_command(program) if workers == 1 else WORKER
    command = [*start, "-s", str(addon_script())]
    if not _values("--listen-host", arguments) and "listen_host" not in _settings(arguments):
        command += ["--listen-host", HOST]
    if port is not None:
        command += ["--listen-port", str(port)]
    if accounts_file is not None:
        command += ["--set", f"{OPTION}={named_path(accounts_file).absolute()}"]
    if program == "mitmweb" and "web_columns" not in _settings(arguments) and _has_columns():
        command += [word for name in COLUMNS for word in ("--set", f"web_columns={name}")]
    places = Places.usual(port or DEFAULT_PORT)
    confdir = dict(set_options(arguments)).get("confdir")
    # Where it cannot be made, mitmproxy ends with a traceback.
    (dataclasses.replace(places, confdir=expanded(confdir)) if confdir else places).make()
    command += upstream_trust(places, environ, arguments)
    # Else a log that goes to a file or a pipe comes in pieces of 8 KiB.
    environ = {"PYTHONUNBUFFERED": "1", **without_own_proxy(environ, places.url)}
    if workers == 1:
        _become([*command, *arguments], environ)
    from account_pool.proxy.process import on_sighup  # noqa: PLC0415 - of several workers alone
    from account_pool.workers.launcher import launch  # noqa: PLC0415 - the same

    sys.exit(
        launch([*command, *arguments, *_one_port(port, arguments)], workers, environ, on_sighup)
    )


def _taken(port: int | None, arguments: Sequence[str]) -> int | None:
    """Return the port that is to be listened at, if another program has it."""
    # argparse takes the beginning of an option for the whole.
    words = {word.partition("=")[0] for word in arguments if len(word) > 2 or word in _ELSEWHERE}
    if any(option.startswith(word) for word in words for option in _ELSEWHERE):
        return None
    settings = _settings(arguments)
    if "mode" in settings or str(settings.get("server", "true")).lower() == "false":
        return None
    hosts = [*_values("--listen-host", arguments), settings.get("listen_host", HOST)]
    named = [port, *_values("--listen-port", arguments), settings.get("listen_port")]
    family = socket.AF_INET6 if ":" in str(hosts[0]) else socket.AF_INET
    number = 0
    # Whatever else is wrong with host and port, mitmproxy says.
    try:
        number = int(str(next((one for one in named if one is not None), DEFAULT_PORT)))
        socket.create_server((str(hosts[0]), number), family=family).close()
    except (OSError, ValueError, OverflowError) as error:
        return number if getattr(error, "errno", None) == errno.EADDRINUSE else None
    return None


def _one_port(port: int | None, arguments: Sequence[str]) -> list[str]:
    """Return what makes port 0, where any will do, the same one for all workers."""
    named = [str(port), *_values("--listen-port", arguments)]
    named += [value for name, value in set_options(arguments) if name == "listen_port"]
    if "0" not in named:
        return []
    for number in (*random.sample(_NOT_GIVEN, len(_NOT_GIVEN)), 0):
        with suppress(OSError), socket.socket() as free:
            free.bind(("", number))
            return ["--listen-port", str(free.getsockname()[1])]
    return []


def _values(option: str, arguments: Sequence[str]) -> list[str]:
    """Return what *arguments* give for *option*."""
    after = [b for a, b in itertools.pairwise(arguments) if a == option]
    return after + [w.partition("=")[2] for w in arguments if w.startswith(f"{option}=")]


def _settings(arguments: Sequence[str]) -> Mapping[str, object]:
    """Return the options that the user sets: in *arguments*, or in mitmproxy's config."""
    given = dict(set_options(arguments))
    return mitmproxy_config(given.get("confdir") or CONFDIR) | given


def _has_columns() -> bool:
    """Say whether this mitmweb knows COLUMNS; importing it takes a second."""
    spec = find_spec("mitmproxy")
    assert spec is not None
    for folder in spec.submodule_search_locations or ():
        with suppress(OSError):
            known = (Path(folder) / "tools" / "web" / "web_columns.py").read_text("utf-8")
            return all(f'"{name}"' in known for name in COLUMNS)
    return False


def _become(command: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Run *command* in our place: signals and exit code are its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "nt":
        # There a new process would be another one, and the shell would not wait for it.
        sys.exit(subprocess.call(command, env=environ))  # noqa: S603 - what the user wrote
    os.execve(command[0], command, environ)  # noqa: S606 - no shell is wanted


# -- a service

#: Longest time that a program of the system is waited for, and the proxy until it serves, seconds.
_PROGRAM_S, _READY_S = 30, 30.0
_LOOK_S = 0.2
#: At most so many starts a minute: a mistake in accounts.yaml does not go away by itself.
_STARTS = 10
#: Longer than requests under way have when the proxy ends (`pool_drain`), seconds.
_STOP_S = 30
_ABOUT = "A pool of LLM accounts inside mitmproxy"

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to run, and the PATH of the shell: accounts.yaml may name programs."""

    port: int
    command: Command
    path: str
    home: Path

    @property
    def name(self) -> str:
        return "account-pool" if self.port == DEFAULT_PORT else f"account-pool-{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The service of one system.

    Attributes:
        what: for people.
        file: where its definition is, and what it is.
        install, remove: what to run once it is written, and before it is removed.
        after: what to run once it is removed.
        active: exits with 0 while it runs.
        log: how to read what the proxy says.
        variables: how to give it a variable.
    """

    what: str
    file: Path
    definition: bytes
    install: tuple[Command, ...]
    remove: tuple[Command, ...]
    after: tuple[Command, ...] = ()
    active: Command
    log: str
    variables: str


def systemd(plan: Plan, config: Path) -> Service:
    """Return the user unit; *config* is the user's directory of settings (~/.config)."""
    name = f"{plan.name}.service"
    control = ("systemctl", "--user")
    return Service(
        what="systemd user unit",
        file=config / "systemd" / "user" / name,
        definition=unit(plan).encode(),
        # A restart starts it, too, and has it take what is written now.
        install=(
            (*control, "daemon-reload"),
            (*control, "enable", name),
            (*control, "restart", name),
        ),
        remove=((*control, "disable", "--now", name),),
        after=((*control, "daemon-reload"),),
        active=(*control, "is-active", "--quiet", name),
        log=f"journalctl --user -u {plan.name} -n 50",
        variables="write NAME=value into ~/.config/account-pool.env (chmod 600), a line each",
    )


def unit(plan: Plan) -> str:
    """Return the unit file (systemd.service(5), quoting as in systemd.syntax(7))."""
    program, *arguments = plan.command
    # In arguments a dollar begins a variable. In the program it does not.
    words = [_word(program), *(_word(one).replace("$", "$$") for one in arguments)]
    return f"""\
[Unit]
Description={_ABOUT}
StartLimitIntervalSec=60
StartLimitBurst={_STARTS}

[Service]
ExecStart={" ".join(words)}
Environment={_word(f"PATH={plan.path}")}
# Variables that accounts.yaml names, one NAME=value a line. May be missing.
EnvironmentFile=-%h/.config/account-pool.env
Restart=always
RestartSec=1
TimeoutStopSec={_STOP_S}
UMask=0077
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


def _word(text: str) -> str:
    """Return *text* as one word of a unit that stands for itself: % begins a specifier."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"), ("%", "%%")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def launchd(plan: Plan, user: int) -> Service:
    """Return the agent of the user with the number *user*."""
    file = plan.home / "Library" / "LaunchAgents" / f"{plan.name}.plist"
    domain = f"gui/{user}"
    return Service(
        what="launchd agent",
        file=file,
        definition=agent(plan),
        # One that is loaded already keeps its old definition.
        install=(
            ("-launchctl", "bootout", f"{domain}/{plan.name}"),
            ("launchctl", "bootstrap", domain, str(file)),
        ),
        remove=(("launchctl", "bootout", f"{domain}/{plan.name}"),),
        active=("launchctl", "print", f"{domain}/{plan.name}"),
        log=f"tail -n 50 {shlex.quote(str(_log(plan)))}",
        variables="keep it in the keychain or a file: launchd reads no shell's variables",
    )


def agent(plan: Plan) -> bytes:
    """Return the property list (launchd.plist(5))."""
    return plistlib.dumps(
        {
            "Label": plan.name,
            "ProgramArguments": list(plan.command),
            "EnvironmentVariables": {"PATH": plan.path},
            "RunAtLoad": True,
            "KeepAlive": True,
            "ThrottleInterval": 60 // _STARTS + 4,
            "ExitTimeOut": _STOP_S,
            "Umask": 0o077,
            "StandardOutPath": str(_log(plan)),
            "StandardErrorPath": str(_log(plan)),
        },
        sort_keys=False,
    )


def _log(plan: Plan) -> Path:
    return plan.home / "Library" / "Logs" / f"{plan.name}.log"


def windows(plan: Plan, local: Path) -> Service:
    """Return the scheduled task; *local* is %LOCALAPPDATA%."""
    file = local / "account-pool" / f"{plan.name}.xml"
    named = ("/TN", plan.name)
    return Service(
        what="scheduled task",
        file=file,
        definition=b"\xff\xfe" + task(plan).encode("utf-16-le"),
        install=(
            ("-schtasks", "/End", *named),
            ("schtasks", "/Create", *named, "/XML", str(file), "/F"),
            ("schtasks", "/Run", *named),
        ),
        remove=(("-schtasks", "/End", *named), ("schtasks", "/Delete", *named, "/F")),
        active=("schtasks", "/Query", *named),
        log="account-pool decisions",
        variables="set it for your user (setx NAME value), or keep it in the Credential Manager",
    )


def task(plan: Plan) -> str:
    """Return the definition of the task (Task Scheduler schema 1.2)."""
    # Without a window of its own.
    arguments = subprocess.list2cmdline(["--headless", *plan.command])
    return f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>{_ABOUT}</Description></RegistrationInfo>
  <Triggers><LogonTrigger><Enabled>true</Enabled></LogonTrigger></Triggers>
  <Principals>
    <Principal id="Author">
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure><Interval>PT1M</Interval><Count>999</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>%SystemRoot%\\System32\\conhost.exe</Command>
      <Arguments>{escape(arguments)}</Arguments>
    </Exec>
  </Actions>
</Task>
"""


def plan_of(
    port: int, accounts_file: Path | None, arguments: Sequence[str], environ: Mapping[str, str]
) -> Plan:
    """Return what a service of *port* runs; *arguments* are further ones of `serve`."""
    command = [*_program(), "serve", "--port", str(port), "--set", "flow_detail=0"]
    # What is found in another place than by this shell's variables is found by the service, too.
    named = accounts_file or (Path(environ[VARIABLE]) if environ.get(VARIABLE) else None)
    if named is not None:
        command += ["--accounts-file", str(named_path(named).absolute())]
    path = environ.get("PATH", os.defpath)
    return Plan(port=port, command=(*command, *arguments), path=path, home=expanded("~"))


def _program() -> list[str]:
    """Return how this program is started, by absolute paths."""
    name = "account-pool.exe" if os.name == "nt" else "account-pool"
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which("account-pool")
    if found:
        return [str(Path(found).absolute())]
    return [sys.executable, "-c", "from account_pool.cli import main; main()"]


def service_of(plan: Plan, environ: Mapping[str, str]) -> Service:
    """Return the service of this system for *plan*."""
    if sys.platform == "darwin":
        return launchd(plan, os.getuid())
    if os.name == "nt":
        return windows(plan, Path(environ.get("LOCALAPPDATA", plan.home / "AppData" / "Local")))
    return systemd(plan, Path(environ.get("XDG_CONFIG_HOME") or plan.home / ".config"))


def as_text(service: Service) -> str:
    """Return the definition of *service* as text."""
    is_wide = service.definition.startswith(b"\xff\xfe")
    return service.definition.decode("utf-16" if is_wide else "utf-8")


def install(
    plan: Plan, service: Service, accounts_file: Path | None, environ: Mapping[str, str]
) -> int:
    """Write *service*, start it, and wait until the proxy serves. Returns 0, or 1.

    Raises ConfigError, OSError.
    """
    loaded = read_accounts(find(accounts_file, environ), environ)
    found = api.probe(plan.port)
    if found is not api.Missing.NOBODY and not service.file.exists():
        return fail(api.occupied(plan.port, found))
    service.file.parent.mkdir(parents=True, exist_ok=True)
    # Arguments of `serve` may hold a password (`--set proxyauth=...`).
    # A link stays: some keep such files elsewhere.
    write_whole(Path(os.path.realpath(service.file)), service.definition)
    print(f"{service.what}: {shown(service.file)}")
    warn(*_unset(loaded, service))
    if (why := _run(service.install)) is not None:
        return fail(f"it was installed, but could not be started: {why}")
    return _wait(plan, service)


def _wait(plan: Plan, service: Service) -> int:
    health = api.until_ready(plan.port, _READY_S, _LOOK_S)
    if health is None:
        return fail(f"it was started, but does not serve after {_READY_S:.0f} s: see {service.log}")
    served = counted(health.size, health.accounts_file)
    print(f"running at {Places.usual(plan.port).url} with {served}")
    if service.what.startswith("systemd"):
        note("`loginctl enable-linger` keeps it running while you are logged out")
    return 0


def remove(service: Service) -> int:
    """Stop *service*, and remove it. Returns 0, or 1."""
    if not service.file.exists():
        return fail(f"there is no {service.what} at {shown(service.file)}")
    why = _run(service.remove)
    service.file.unlink()
    why = why or _run(service.after)
    print(f"removed {shown(service.file)}")
    return 0 if why is None else fail(f"it may still be running: {why}")


def status(plan: Plan, service: Service, *, as_json: bool) -> int:
    """Print whether *service* is installed, and runs. Returns 0 if it serves, else 1."""
    installed = service.file.exists()
    active = installed and _run((service.active,)) is None
    health = api.probe_patiently(plan.port)
    serves = isinstance(health, api.Health) and health.ready
    if as_json:
        value: dict[str, Any] = {
            "kind": service.what,
            "file": str(service.file),
            "installed": installed,
            "active": active,
            "serves": serves,
            "url": Places.usual(plan.port).url,
            "log": service.log,
        }
        show_json(value)
        return int(not (active and serves))
    state = "active" if active else "not active"
    print(f"{service.what}: {shown(service.file)}, {state if installed else 'not installed'}")
    if isinstance(health, api.Health):
        by = "" if active else ", started otherwise"
        served = counted(health.size, health.accounts_file)
        print(f"proxy: {Places.usual(plan.port).url} with {served}{by}")
    else:
        print(f"proxy: none answers at {HOST}:{plan.port}")
    if installed:
        print(f"log: {service.log}")
    return int(not (active and serves))


def _unset(loaded: Config, service: Service) -> Iterator[str]:
    """Say which accounts have their credential in variables, which no service knows."""
    for entry in loaded.accounts:
        source, names = entry.source, []
        if isinstance(source, EnvSource):
            names = [source.name]
        elif isinstance(source, ValueSource):
            names = variables_in(source.text.reveal())
        if names:
            needs = f"{entry.account.key} needs {' and '.join(names)}"
            yield f"{needs}, which the service lacks: {service.variables}"


def _run(commands: Sequence[Command]) -> str | None:
    """Run programs of the system; return why one failed. One with "-" before it may."""
    for command in commands:
        name = command[0].removeprefix("-")
        try:
            done = subprocess.run(  # noqa: S603 - our own words, no shell
                [name, *command[1:]],
                capture_output=True,
                text=True,
                check=False,
                timeout=_PROGRAM_S,
            )
            said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
            why = said if done.returncode else None
        except (OSError, subprocess.SubprocessError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
        if why is not None and not command[0].startswith("-"):
            return f"{shlex.join([name, *command[1:]])}: {why.splitlines()[0]}"
    return None
