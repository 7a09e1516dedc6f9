"""Builds an image without a container engine: a folder stands in for its root.

The instructions are those of the Dockerfile, whatever they become. What differs from an
engine: an absolute path means one below the folder, `FROM python:...` gives a virtual
environment at `/usr/local`, and programs that change users and owners are only written down.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: They need root, and would change this machine.
OF_ROOT = ("useradd", "chown")
#: At the start of an absolute path, not inside of a URL, a path or an option's value.
_ABSOLUTE = re.compile(r"(?<![\w.:/$}*-])/(?=[a-z])")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class CannotBuild(Exception):
    """A step failed; the text is what it printed."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a Dockerfile, continuations joined: `KEYWORD --flag=value text`."""

    keyword: str
    flags: Mapping[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The exec form of a command, or plain words."""
        return json.loads(self.text) if self.text.startswith("[") else self.text.split()


def parse(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        keyword, *words = line.split()
        rest = line.strip().removeprefix(keyword).strip()
        flags = {}
        for word in words:
            if not word.startswith("--"):
                break
            name, _, value = word[2:].partition("=")
            flags[name] = value
            rest = rest.removeprefix(word).strip()
        found.append(Instruction(keyword.upper(), flags, rest))
    return found


@dataclass(slots=True)
class Image:
    """A stage that was built, and what the engine would know of it.

    Attributes:
        root: the folder that stands for `/`.
        environ: of `ENV`, and a path to look for programs.
        settings: the last of each of USER, ENTRYPOINT, CMD, HEALTHCHECK, VOLUME, EXPOSE.
        as_root: command lines of programs that would have changed users and owners.
    """

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    settings: dict[str, Instruction] = field(default_factory=dict)

    def inside(self, text: str) -> str:
        """Return *text* with its absolute paths below the root."""
        return _ABSOLUTE.sub(f"{self.root}/", text)

    def path(self, name: str) -> Path:
        """Return where *name*, which may be relative to the working directory, lies."""
        return Path(f"{self.root}{Path(self.workdir) / name}")

    @property
    def as_root(self) -> list[str]:
        log = self.root.with_suffix(".as-root")
        return log.read_text().splitlines() if log.exists() else []

    def entry(self, command: Sequence[str] | None = None) -> list[str]:
        """Return what the engine would start; *command* stands for CMD, as in compose.yaml."""
        given = self.settings["CMD"].words if command is None else command
        return [self.inside(word) for word in [*self.settings["ENTRYPOINT"].words, *given]]

    def healthcheck(self) -> list[str]:
        kind, _, command = self.settings["HEALTHCHECK"].text.partition(" ")
        assert kind == "CMD", "an exec form, without a shell"
        return [self.inside(word) for word in json.loads(command)]


def build(context: Path, folder: Path, environ: Mapping[str, str]) -> Image:
    """Run every stage of the Dockerfile in *context* and return the last one.

    Args:
        environ: what a builder passes to each step, such as where packages come from.
    """
    stages: dict[str, Image] = {}
    args: dict[str, str] = {}
    image: Image | None = None
    for step in parse((context / "Dockerfile").read_text(encoding="utf-8")):
        if step.keyword == "FROM":
            base, *names = re.split(r"\s+AS\s+", _filled(step.text, args), flags=re.IGNORECASE)
            image = _from(base, folder / f"stage{len(stages)}", environ)
            stages[names[0] if names else str(len(stages))] = image
        elif step.keyword == "ARG":
            name, _, value = step.text.partition("=")
            args[name] = value
        else:
            assert image is not None, "an instruction before FROM"
            _step(step, image, args, stages, context)
    assert image is not None
    return image


def _from(base: str, root: Path, environ: Mapping[str, str]) -> Image:
    assert re.fullmatch(r"python:3\.\d+-slim", base), f"no stand-in for {base}"
    local, shadowing = root / "usr" / "local", root.with_suffix(".shadowing")
    subprocess.run([sys.executable, "-m", "venv", local], check=True)
    shadowing.mkdir()
    for program in OF_ROOT:
        script = shadowing / program
        script.write_text(f'#!/bin/sh\necho "{program} $*" >> "{root.with_suffix(".as-root")}"\n')
        script.chmod(0o755)
    path = f"{shadowing}:{local / 'bin'}:/usr/bin:/bin"
    return Image(root, {**environ, "PATH": path, "HOME": str(root)})


def _step(
    step: Instruction,
    image: Image,
    args: Mapping[str, str],
    stages: Mapping[str, Image],
    context: Path,
) -> None:
    if step.keyword == "WORKDIR":
        image.workdir = _filled(step.text, args)
        image.path(".").mkdir(parents=True, exist_ok=True)
    elif step.keyword == "ENV":
        for name, value in re.findall(r"(\w+)=(\S+)", step.text):
            image.environ[name] = image.inside(value)
    elif step.keyword == "COPY":
        source = stages[step.flags["from"]].root if "from" in step.flags else context
        *names, target = step.words
        for name in names:
            _copy(
                source / name.lstrip("/"), image.path(target), into=len(names) > 1, context=context
            )
    elif step.keyword == "RUN":
        _run(step, image, args, stages)
    elif step.keyword in ("USER", "ENTRYPOINT", "CMD", "HEALTHCHECK", "VOLUME", "EXPOSE"):
        image.settings[step.keyword] = Instruction(
            step.keyword, step.flags, _filled(step.text, args)
        )
    else:
        raise AssertionError(f"{step.keyword} has no stand-in")


def _copy(source: Path, target: Path, *, into: bool, context: Path) -> None:
    if source.is_relative_to(context):
        assert not is_ignored(context, source), f"{source} is not sent to the builder"
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
    else:
        target.mkdir(exist_ok=True) if into else None
        shutil.copy(source, target)


def is_ignored(context: Path, path: Path) -> bool:
    """Say whether .dockerignore, which ignores all that it does not name, leaves *path* out."""
    top = path.relative_to(context).parts[0]
    return f"!{top}" not in (context / ".dockerignore").read_text().splitlines()


def _run(
    step: Instruction, image: Image, args: Mapping[str, str], stages: Mapping[str, Image]
) -> None:
    mounted = [_mount(step.flags["mount"], image, stages)] if "mount" in step.flags else []
    done = subprocess.run(
        ["sh", "-ec", image.inside(step.text)],
        cwd=image.path("."),
        env={**image.environ, **args},
        capture_output=True,
        text=True,
        check=False,
    )
    for path in mounted:
        shutil.rmtree(path)
    if done.returncode:
        raise CannotBuild(f"{step.text}\n{done.stdout}{done.stderr}")


def _mount(options: str, image: Image, stages: Mapping[str, Image]) -> Path:
    asked = dict(option.split("=") for option in options.split(","))
    assert asked["type"] == "bind"
    target = image.path(asked["target"])
    shutil.copytree(stages[asked["from"]].path(asked["source"]), target)
    return target


def _filled(text: str, args: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: args[found[1]], text)


def files_below(root: Path) -> Iterator[str]:
    """Return the files of an image, as paths inside of it."""
    return (f"/{p.relative_to(root)}" for p in sorted(root.rglob("*")) if not p.is_dir())
