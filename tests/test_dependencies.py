"""What is imported is declared, what is declared is used, and imports run downwards.

mitmproxy 12.3 replaced a package that we had imported because mitmproxy brought it, and
a fresh install stopped starting. Every import counts here, also one inside a function.

Among the files of the package, imports make no circles, and lead from a folder to those
below it only, in the order of docs/code.md. Imports for types count too: a file that
needs another to be understood depends on it.

No file and no class of the package is so large that it must hold several ideas.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

from msgspec import Struct
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

#: Declared, and of use without an import.
NOT_IMPORTED = {
    "tzdata": "data that zoneinfo reads",
    "mkdocs-material": "a theme",
    "pytest-asyncio": "a plugin",
    "pytest-cov": "a plugin",
    "pytest-timeout": "a plugin",
    "mypy": "run as a command",
    "types-pyyaml": "read by mypy",
    "ruff": "run as a command",
    "hatchling": "builds the wheel that a test installs",
    "hatch-fancy-pypi-readme": "the same",
    "huggingface-hub": "a bound on what cohere brings",
}
#: Which distributions install something below a name.
OWNERS = metadata.packages_distributions()
#: Modules of this repository.
OURS = {"account_pool", "benchmarks", "docs", "tests"}

PACKAGE = ROOT / "addon" / "account_pool"
#: Folders of the package, the highest first; files beside them are below all.
[_LINE] = re.findall(
    r"from a folder to those after it: ([^.]+)\.", (ROOT / "docs" / "code.md").read_text("utf-8")
)
FOLDERS = [*re.findall(r"`(\w+)`", _LINE), ""]
#: Lines of a file, and methods of a class, at most. What has more is split along its ideas.
MAX_LINES, MAX_METHODS = 600, 25
#: What `msgspec.structs` has, too, by the same name.
BOTH_HAVE = {f"dataclasses.{name}" for name in ("asdict", "astuple", "fields", "replace")}
#: By which file, which one, and in which way.
Edges = dict[tuple[str, str], str]


def requirements(*extras: str) -> list[Requirement]:
    """Return what is declared for this Python: without an extra, what users install."""
    lines = PROJECT["dependencies"] if not extras else [r for e in extras for r in EXTRAS[e]]
    declared = [Requirement(line) for line in lines]
    return [r for r in declared if r.marker is None or r.marker.evaluate()]


def name_of(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-").replace(".", "-")


def imports(*folders: str) -> dict[str, str]:
    """Return the dotted names that are imported below *folders*, and by which file."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
                found.setdefault(name, str(path.relative_to(ROOT)))
    return {
        name: path
        for name, path in found.items()
        if name.partition(".")[0] not in OURS | sys.stdlib_module_names
    }


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the names imported anywhere in *node*, on the Python that runs this."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names, level=0):
            yield from (f"{module}.{alias.name}" for alias in names)
        case ast.Call(func=ast.Attribute(attr="importorskip" | "import_module"), args=[first, *_]):
            if isinstance(first, ast.Constant):
                yield first.value
        case ast.If(test=test) if "sys.version_info" in ast.unparse(test):
            taken = eval(ast.unparse(test), {"sys": sys})
            for statement in node.body if taken else node.orelse:
                yield from imported(statement)
            return
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


@cache
def modules_of(distribution: str) -> set[str]:
    """Return the dotted names of what *distribution* installs; no namespace it shares."""
    try:
        files = metadata.files(distribution) or ()
    except metadata.PackageNotFoundError:
        # An extra that is not here: the usual names.
        return {distribution.replace("-", "_"), distribution.replace("-", ".")}
    paths = [Path(str(file)) for file in files if file.suffix in (".py", ".so", ".pyd")]
    names = (path.with_name(path.name.partition(".")[0]) for path in paths)
    modules = {(name.parent if name.name == "__init__" else name).parts for name in names}
    alone = {parts[0] for parts in modules if len(set(OWNERS.get(parts[0], ()))) == 1}
    return alone | {".".join(parts) for parts in modules}


def provided(name: str, modules: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts) + 1))


def undeclared(names: dict[str, str], declared: Iterable[Requirement]) -> list[str]:
    modules = {module for r in declared for module in modules_of(r.name)}
    return [f"{path}: {name}" for name, path in names.items() if not provided(name, modules)]


def unused(names: Iterable[str], declared: Iterable[Requirement]) -> set[str]:
    return {
        name_of(r)
        for r in declared
        if name_of(r) not in NOT_IMPORTED
        and not any(provided(name, modules_of(r.name)) for name in names)
    }


@cache
def edges(folder: Path) -> Edges:
    """Return the imports among the files of the package in *folder*, by names as `core/pool`."""
    files = {path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py")}
    names = {file.parent if file.name == "__init__" else file for file in files}
    found: Edges = {}
    for file in sorted(files):
        tree = ast.parse((folder / file).with_suffix(".py").read_text(encoding="utf-8"))
        name = file.parent if file.name == "__init__" else file
        for imports, how in ways_of_importing(tree):
            package, *rest = imports.split(".")
            if package != folder.name:
                continue
            to = Path(*rest)
            while to not in names:
                to = to.parent
            if to != name:
                found.setdefault((str(name), str(to)), how)
    return found


def ways_of_importing(node: ast.AST, how: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names imported anywhere in *node*, and how it is if it is not at once."""
    match node:
        case ast.Import() | ast.ImportFrom():
            yield from ((name, how) for name in imported(node))
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            how = how or "in a function"
        case ast.If(test=test) if "TYPE_CHECKING" in ast.unparse(test):
            how = how or "for types"
    for child in ast.iter_child_nodes(node):
        yield from ways_of_importing(child, how)


def upwards(edges: Edges) -> Edges:
    """Return those of *edges* that lead to a folder above."""
    return {(file, to): how for (file, to), how in edges.items() if rank(file) > rank(to)}


def circles(edges: Edges) -> Edges:
    """Return those of *edges* that are part of a circle."""
    reached: dict[str, set[str]] = {file: {file} for edge in edges for file in edge}
    is_larger = True
    while is_larger:
        size = sum(map(len, reached.values()))
        for file, to in edges:
            reached[file] |= reached[to]
        is_larger = sum(map(len, reached.values())) > size
    return {(file, to): how for (file, to), how in edges.items() if file in reached[to]}


def too_large(folder: Path) -> dict[str, int]:
    """Return files of *folder* with too many lines, classes with too many methods, and how many."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(folder).as_posix()
        if (lines := len(source.splitlines())) > MAX_LINES:
            found[name] = lines
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef) and (many := methods(node)) > MAX_METHODS:
                found[f"{name}: {node.name}"] = many
    return found


def methods(node: ast.ClassDef) -> int:
    return sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)


def rank(file: str) -> int:
    folder = file.partition("/")[0]
    return FOLDERS.index(folder if folder in FOLDERS else "")


def test_the_order_of_the_folders_is_complete():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {*FOLDERS} - {""} == folders


def test_imports_between_folders_run_downwards():
    assert upwards(edges(PACKAGE)) == {}


def test_imports_between_files_make_no_circle():
    assert circles(edges(PACKAGE)) == {}


def test_no_file_and_no_class_is_too_large():
    assert too_large(PACKAGE) == {}


def test_what_is_too_large_is_found(tmp_path):
    few, many = (
        f"class {name}:\n" + "    def a(self): ...\n    async def b(self): ...\n" * pairs
        for name, pairs in (("Few", MAX_METHODS // 2), ("Many", MAX_METHODS // 2 + 1))
    )
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text(few + many)
    (tmp_path / "b.py").write_text("\n" * (MAX_LINES + 1))
    (tmp_path / "c.py").write_text("\n" * MAX_LINES)
    assert too_large(tmp_path) == {"core/a.py: Many": 26, "b.py": MAX_LINES + 1}


def test_functions_of_dataclasses_are_named_in_full_beside_structs():
    """mypy takes a Struct for a dataclass; `dataclasses.replace` of one is a TypeError."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        names = set(imported(ast.parse(path.read_text(encoding="utf-8"))))
        if taken := names & BOTH_HAVE:
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            known = vars(import_module(name)).values()
            if any(isinstance(one, type) and issubclass(one, Struct) for one in known):
                found[name] = taken
    assert found == {}


def test_what_the_package_imports_is_declared():
    found = imports("addon")
    fleet = {name: path for name, path in found.items() if "/store/fleet/" in path}
    rest = {name: path for name, path in found.items() if name not in fleet}
    assert undeclared(rest, requirements()) == []
    # Its code is imported without its extra, and asks for it when it is used.
    assert undeclared(fleet, requirements() + requirements("fleet")) == []


def test_what_the_package_declares_is_imported():
    assert unused(imports("addon"), requirements() + requirements("fleet")) == set()


def test_what_tests_import_is_declared():
    declared = requirements() + requirements(*EXTRAS)
    assert undeclared(imports("tests", "benchmarks", "docs"), declared) == []


def test_what_the_extras_declare_is_imported():
    names = {**imports("tests", "benchmarks", "docs"), "requests": "proxy/tracing.py"}
    assert unused(names, requirements(*EXTRAS)) == set()


def test_every_requirement_has_a_lowest_version():
    declared = requirements() + requirements(*EXTRAS)
    bare = [str(r) for r in declared if not any(s.operator in (">=", "<") for s in r.specifier)]
    assert bare == []


def test_mitmproxy_is_bounded_below_its_next_major():
    """The package stands on parts of it that have no promise of stability."""
    [mitmproxy] = [r for r in requirements() if r.name == "mitmproxy"]
    assert "12.99" in mitmproxy.specifier
    assert "13.0.0" not in mitmproxy.specifier


def test_an_import_anywhere_is_seen():
    source = """
        import a, b.c as d
        from e.f import g
        from . import ours
        def f():
            if sys.version_info >= (3, 1): from h import i
            else: import never
            try: import j
            except ImportError: k = importlib.import_module("l.m")
        class C:
            pytest.importorskip("n")
    """
    seen = set(imported(ast.parse(inspect.cleandoc(source))))
    assert seen == {"a", "b.c", "e.f.g", "h.i", "j", "l.m", "n"}


def test_what_is_missing_or_left_over_is_found():
    msgspec, tzdata = Requirement("msgspec"), Requirement("tzdata")
    assert undeclared({"msgspec.json": "x.py", "zstandard": "y.py"}, [msgspec]) == [
        "y.py: zstandard"
    ]
    assert unused({"typer"}, [msgspec, tzdata]) == {"msgspec"}


def test_a_namespace_is_no_module():
    """`google` belongs to many; who declares one of them may not use another."""
    modules = {"google.genai", "google.genai.types"}
    assert provided("google.genai.Client", modules)
    assert not provided("google.auth", modules)


def test_imports_in_circles_and_upwards_are_found(tmp_path):
    folder = tmp_path / "account_pool"
    for name, source in {
        "__init__": "from account_pool.version import x",
        "version": "",
        "core/__init__": "",
        "core/a": "import account_pool.core.b as b",
        "core/b": "def f():\n    from account_pool.core.c import x",
        "core/c": "if TYPE_CHECKING:\n    from account_pool.core.a import x",
        "core/d": "from account_pool.core import a, missing\nfrom account_pool import x",
        "store/__init__": "from account_pool.core.a import x",
        "core/e": "from account_pool.store import x",
    }.items():
        path = (folder / name).with_suffix(".py")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(source)
    found = edges(folder)
    assert found["core/d", "core/a"] == found["core/d", "."] == ""
    assert circles(found) == {
        ("core/a", "core/b"): "",
        ("core/b", "core/c"): "in a function",
        ("core/c", "core/a"): "for types",
    }
    assert upwards(found) == {("core/e", "store"): ""}
