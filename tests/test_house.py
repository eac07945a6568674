"""The rules of the house, each held by a test: who may import whom, what loads when, what ships, what the pages say."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import canwait
import offline

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "canwait"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").rglob("*.md")]

# ------------------------------------------------------------------------------------------- who may import whom

NOUNS = {"types", "errors", "lifecycle", "clock", "codec"}
PURE = {
    "render",
    "structured",
    "bodies",
    "tokens",
    "price",
    "plan",
    "settling",
    "forecast",
    "turnaround",
    "schedule",
    "watching",
    "notices",
    "compare",
    "gate",
    "gates",
    "lots",
    "checks",
    "language",
    "freshness",
    "cron",
    "releasing",
    "canary",
    "scalars",
    "stratified",
}
SHELL = {"db", "entries", "ledger", "blobs", "views", "prices", "providers", "sources", "sinks"}
SHELL |= {
    "prepare",
    "planned",
    "known",
    "resume",
    "durable",
    "addresses",
    "landing",
    "load",
    "resend",
    "outlook",
    "quoted",
}
SHELL |= {"judging", "inspection", "judge", "importing", "holding", "halting", "deadlines", "history", "rescue"}
SHELL |= {"outcomes", "affording", "parts", "billing", "ramp", "canary_gate", "asking"}
SHELL |= {"publishing", "published", "changes", "loading", "channels", "notifying", "knowing"}
INSIDE = NOUNS | PURE | SHELL | {"fields", "spec", "engine", "settings"}

# A module or folder of src/canwait -> (whom it may import besides itself, why not more). A new module needs a line.
MAY_IMPORT: dict[str, tuple[set[str], str]] = {
    # nouns
    "types": (set(), "read first, so it needs nothing"),
    "errors": (set(), "everything may raise, so errors know nobody"),
    "lifecycle": ({"types"}, "two tables over the nouns"),
    "clock": ({"types"}, "time is an argument, not a service"),
    "codec": (NOUNS, "nouns to JSON and back"),
    # pure
    **dict.fromkeys(PURE, (NOUNS | PURE, "planning is pure: values in, values out (law 1)")),
    "document": ({"errors", "render"}, "text becomes a tree that knows its places; what its fields mean is spec.py's"),
    "fields": (set(), "amounts as people write them; whose they are is for others"),
    "spec": (
        NOUNS
        | {
            "fields",
            "render",
            "structured",
            "document",
            "addresses",
            "checks",
            "language",
            "gate",
            "importing",
            "notices",
            "channels",
        },
        "a job file becomes a Job, templates checked; its cost is for others",
    ),
    "channels": (
        NOUNS | {"addresses", "environment"},
        "one way out each: what is told is others', and so is when again",
    ),
    "notifying": (
        NOUNS | PURE | {"channels", "db", "entries", "ledger", "blobs", "knowing", "outlook"},
        "the ledger's part for notices, and the loop that empties its outbox",
    ),
    "knowing": (
        NOUNS | PURE | {"db", "ledger", "blobs", "history", "holding", "publishing", "views", "landing", "resend"},
        "read-only answers with what to type next; it runs nothing",
    ),
    # shell
    "db": ({"errors"}, "two dialects of SQL, no nouns"),
    "entries": (NOUNS | PURE | {"db"}, "money inside a transaction; the ledger opens and closes it"),
    "ledger": (NOUNS | PURE | {"db", "entries"}, "the only writer of what happened; it knows no file and no provider"),
    "places": (set(), "identities to integers"),
    "known": ({"errors", "durable"}, "an index over manifests; whose they are is for others"),
    "resume": (NOUNS | PURE | {"addresses"}, "whether a plan still holds: a look at a file, never at its rows"),
    "durable": ({"errors"}, "files that stay, whatever they hold"),
    "environment": (set(), "keys, wherever they are needed"),
    "columns": (set(), "Arrow over Python's memory"),
    "lines": ({"errors"}, "files of lines; what a line means is for others"),
    "blobs": (NOUNS | {"durable"}, "bytes by content; what they mean is for others"),
    "prices": (NOUNS | {"price"}, "dated, sourced data; multiplying is price.py's"),
    "providers": (
        NOUNS | {"tokens", "local_model", "lines", "durable", "environment"},
        "one wire protocol each: never money, ledger or blobs (section 3)",
    ),
    "addresses": ({"environment"}, "text about places outside; what lies there is for sources and sinks"),
    "objects": ({"addresses"}, "a file to and from an object store; what it holds is for sources and sinks"),
    "compression": (set(), "bytes to text and back, whoever reads or writes them"),
    "sources": (NOUNS | {"addresses", "objects", "compression"}, "rows in: never money, ledger or blobs"),
    "sinks": (
        NOUNS | {"addresses", "objects", "compression", "durable", "places"},
        "rows out: never money, ledger or blobs",
    ),
    "simulator": (NOUNS | {"tokens", "price", "prices"}, "a witness: no adapter, engine or ledger that it proves"),
    "planned": (NOUNS | {"blobs", "durable"}, "a plan as a file; making one is prepare.py's"),
    "prepare": (
        NOUNS
        | PURE
        | {"planned", "durable", "blobs", "columns", "lines", "places", "known"}
        | {"sources", "prices", "providers", "landing"},
        "plans write blobs, never money",
    ),
    "local_model": (NOUNS, "a file in the user's cache and the process that serves it"),
    "landing": (NOUNS | PURE | {"lines", "sinks"}, "raw output becomes results; the ledger is told by others"),
    "load": (NOUNS | PURE | {"ledger", "blobs", "landing", "sinks"}, "accepted results become rows; it moves no money"),
    "importing": (set(), "the user's own code, by the name a job file gives it"),
    "judging": (
        NOUNS | PURE | {"db", "entries", "ledger", "halting"},
        "what people say of a sample; which rows are in it is not its own",
    ),
    "inspection": (
        NOUNS | PURE | {"judging", "canary_gate", "importing", "ledger", "blobs", "lines", "landing", "load"},
        "draws samples and opens gates; it sends nothing and moves no money",
    ),
    "judge": (
        NOUNS | PURE | {"judging", "inspection", "ledger", "blobs", "load", "sources"},
        "what a judge model is asked, and what its word is for; running it is the engine's",
    ),
    "resend": (NOUNS | PURE | {"ledger", "blobs", "load"}, "which failed rows may go again: selecting, not sending"),
    "views": (
        NOUNS | PURE | {"db", "ledger", "blobs", "resend", "judging", "publishing"},
        "read-only answers; it cannot run anything",
    ),
    "outlook": (NOUNS | PURE | {"db", "ledger", "blobs"}, "what a job will cost, from what its ledger and canary say"),
    "outcomes": (
        NOUNS | PURE | {"halting", "judging", "inspection", "views"},
        "rows as Python values; where they come from is for others",
    ),
    "affording": (NOUNS | PURE | {"entries", "ledger"}, "limits before a run; only the reservation grants"),
    "quoted": (NOUNS | PURE | {"views", "changes"}, "plans and money as Python values; it reads nothing"),
    "audit": (
        NOUNS | PURE | {"compression", "document", "fields", "sources", "prices"},
        "reads what others logged; owns no job",
    ),
    "history": (NOUNS | PURE | {"db", "ledger"}, "what the ledger saw, as values; what it tells is for pure modules"),
    "deadlines": (
        NOUNS | PURE | {"history", "ledger", "providers", "ramp", "rescue", "spec"},
        "what a plan says of time; nothing is moved here",
    ),
    "rescue": (
        NOUNS | PURE | {"db", "entries", "ledger", "history"},
        "which shards are moved; moving them is the engine's",
    ),
    "holding": (NOUNS | PURE | {"db", "entries", "ledger"}, "what waits for a canary; sending it is the engine's"),
    "halting": (
        NOUNS | PURE | {"db", "entries", "ledger"},
        "what a plan is stopped for; stopping to send it is the engine's",
    ),
    "canary_gate": (
        NOUNS | PURE | {"db", "ledger", "halting", "judging"},
        "what waits for people to judge a canary; its lot is judging's",
    ),
    "asking": (
        NOUNS | PURE | {"db", "ledger", "blobs", "landing", "resend", "judging", "inspection"},
        "rows that are asked again; sending them is the engine's",
    ),
    "ramp": (NOUNS | PURE | {"ledger", "history"}, "how much goes out at a time; sending it is the engine's"),
    "parts": (
        NOUNS | PURE | {"blobs", "ledger", "landing", "lines"},
        "a shard cut in parts, and the shards its lines become",
    ),
    "billing": (
        NOUNS | PURE | {"parts", "landing"},
        "what a batch is billed by what it says; booking it is the ledger's",
    ),
    # the loop
    "engine": (
        NOUNS
        | PURE
        | {"ledger", "blobs", "landing", "parts", "billing", "providers"}
        | {"rescue", "holding", "halting", "canary_gate", "ramp", "outlook"},
        "advance(shard): any provider, any caller",
    ),
    # faces
    "__init__": (INSIDE | {"client", "reading"}, "the public names"),
    "client": (INSIDE | {"simulator"}, "the Python face: what it says, others print"),
    "publishing": (
        NOUNS | PURE | {"db", "entries", "ledger", "judging"},
        "the ledger's part for readers; it knows no file",
    ),
    "published": (NOUNS | {"blobs", "durable"}, "a publication's rows as a file; what it is worth is for others"),
    "odcs": (NOUNS | PURE | {"document"}, "another standard's words for our contracts; stating them is for others"),
    "loading": (
        NOUNS
        | PURE
        | {"blobs", "ledger", "judging", "inspection", "sinks", "views", "publishing", "published", "changes"},
        "rows to their target and readers; what may be read is its gate's",
    ),
    "changes": ({"columns"}, "two plans' rows side by side; which plans is for others"),
    "reading": (INSIDE | {"client", "live"}, "the reader's face: what it says, others print"),
    "live": (INSIDE | {"client"}, "one row asked for a reader that waits; running it is the engine's"),
    "settings": (NOUNS | {"engine", "fields"}, "what the environment says; opening it is the client's"),
    "rehearsal": (INSIDE | {"simulator", "client"}, "a client whose every provider is the simulator"),
    "drills": (INSIDE | {"simulator", "client"}, "what anyone can run to prove the laws"),
    "demo": (INSIDE | {"simulator", "client", "drills"}, "the first minute"),
    "benchmark": (INSIDE | {"client", "document"}, "a few jobs side by side; running them is the engine's"),
    "cli": (
        INSIDE
        | {
            "simulator",
            "client",
            "reading",
            "odcs",
            "rehearsal",
            "local_model",
            "audit",
            "benchmark",
            "drills",
            "server",
            "integrations",
        },
        "parse, call, print",
    ),
    "__main__": ({"cli"}, "python -m canwait"),
    "server": (INSIDE | {"simulator", "client", "audit"}, "parse, call, print"),
    "integrations": (INSIDE | {"client"}, "another engine calls advance; safety stays in the ledger"),
    "migrations": (set(), "numbered SQL and nothing else"),
    "schemas": (set(), "published JSON Schemas and nothing else"),
}

# What a pure module may not touch: the clock, chance, files, the network, processes.
IMPURE = {"asyncio", "httpx2", "os", "psycopg", "random", "secrets", "shutil", "socket", "sqlite3", "subprocess"}
IMPURE |= {"tempfile", "threading", "time", "urllib", "uuid"}
IMPURE_CALLS = {"now", "today", "utcnow", "open", "print", "input", "read_text", "read_bytes", "write_text"}

# Loaded only when work needs them: --help, completion and `import canwait` do without.
HEAVY = {"genai_prices", "h11", "httpx2", "jinja2", "jsonschema_rs", "numpy", "orjson", "pandas", "psycopg", "pyarrow"}
HEAVY |= {"obstore", "py3langid", "pydantic", "rich", "toktok", "xllamacpp", "yaml"}

cli_has_landed = pytest.mark.skipif(
    not (PACKAGE / "cli" / "__init__.py").read_text("utf-8").strip(), reason="the command line has not landed"
)


def test_every_module_has_a_line_in_the_table() -> None:
    """A new module states whom it may import, and why not more, before it lands."""
    assert {unit(module) for module in IMPORTS} - set(MAY_IMPORT) == set()


def test_every_import_points_inwards() -> None:
    """Each module imports only what the table allows."""
    wrong = [
        f"{source} imports {target}; {MAY_IMPORT[unit(source)][1]}"
        for source, targets in IMPORTS.items()
        if unit(source) in MAY_IMPORT
        for target in sorted(targets)
        if unit(target) not in MAY_IMPORT[unit(source)][0] | {unit(source), "__init__"}
    ]
    assert wrong == []


def test_the_engine_sees_the_protocol_and_never_an_adapter() -> None:
    """The engine knows providers by their Protocol only, so a new one never touches it."""
    known = {target for target in IMPORTS.get("canwait.engine", ()) if unit(target) == "providers"}
    assert known <= {"canwait.providers"}


def test_there_is_no_import_cycle() -> None:
    """No module reaches itself through its imports, also not through those inside functions."""
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("module", sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem in PURE))
def test_pure_modules_touch_nothing(module: str) -> None:
    """A pure module imports nothing that reaches outside, and calls no clock, file or terminal."""
    tree = parse(PACKAGE / f"{module}.py")
    imported = {name.partition(".")[0] for name in outside_imports(tree)}
    called = {getattr(n.func, "attr", getattr(n.func, "id", "")) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert (imported & IMPURE, called & IMPURE_CALLS) == (set(), set())


def test_what_is_imported_is_declared() -> None:
    """Every third-party import is a dependency of canwait or of one of its extras: no provider SDK slips in."""
    theirs = {"duckdb", "pandas", "polars"}  # imported only where a user has handed one of their frames in
    theirs |= {"pydantic_core"}  # pydantic brings and pins it
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = [*PYPROJECT["project"]["dependencies"], *(r for e, rs in extras.items() if e != "dev" for r in rs)]
    names = {canonicalize_name(Requirement(r).name) for r in declared}
    known = {top: {canonicalize_name(d) for d in found} for top, found in packages_distributions().items()}
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in outside_imports(parse(path))
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names | theirs and not known.get(top, {top}) & names
    }
    assert undeclared == set()


# ---------------------------------------------------------------------------------------------------- what it weighs


def test_a_bare_install_is_at_most_twenty_packages() -> None:
    """canwait without extras brings at most 19 others, and no provider SDK and no litellm is among them."""
    closure = required_packages("canwait")
    assert len(closure) <= 20, sorted(closure)
    assert closure & {"openai", "anthropic", "google-genai", "litellm"} == set()


def test_importing_canwait_loads_nothing_heavy() -> None:
    """`import canwait` and naming its nouns load no third-party package at all."""
    assert loaded_by("import canwait; canwait.Job, canwait.Plan, canwait.errors") & (HEAVY | {"click"}) == set()


@cli_has_landed
def test_help_loads_nothing_heavy() -> None:
    """`canwait --help` loads click and nothing else of weight: every Tab press pays for it."""
    show = "import sys; sys.argv = ['canwait', '--help']\nfrom canwait.cli import main\n"
    loaded = loaded_by(f"{show}try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code")
    assert "click" in loaded
    assert loaded & HEAVY == set()


@cli_has_landed
def test_help_is_instant() -> None:
    """`canwait --help` takes at most 150 ms of CPU, the installed command, best of ten."""
    command = [Path(sys.executable).with_name("canwait"), "--help"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # as a user has it, without our guard

    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(10)) <= 0.150


@pytest.mark.slow
def test_the_wheel_ships_every_file_of_the_package(tmp_path: Path) -> None:
    """SQL, schemas, prices and marker files are in the wheel, the licence too, and nothing that is not the package."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = zipfile.ZipFile(wheel).namelist()
    files = {f"canwait/{p.relative_to(PACKAGE).as_posix()}" for p in PACKAGE.rglob("*") if p.is_file()}
    assert {n for n in shipped if ".dist-info/" not in n} == {f for f in files if "__pycache__" not in f}
    assert {"LICENSE", "NOTICE"} <= {n.rpartition("/")[2] for n in shipped}


# ------------------------------------------------------------------------------------------------------ how it reads


def test_files_have_names_and_a_readable_size() -> None:
    """No file is called after nothing (`utils`, `helpers`, `common`), and none is longer than 900 lines."""
    assert [p for p in SOURCES if {"utils", "util", "helpers", "helper", "common", "misc"} & {*p.parts, p.stem}] == []
    assert {p.name: n for p in SOURCES if (n := len(p.read_text("utf-8").splitlines())) > 900} == {}


def test_nothing_is_left_for_later() -> None:
    """The source holds no note of undone work: it is done, or it is an issue."""
    texts = [p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".sql", ".toml", ".yaml", ".json"}]
    assert [p for p in texts if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", p.read_text("utf-8"))] == []


def test_every_test_says_its_promise() -> None:
    """Each test's docstring is there and starts the failure report with what was promised."""
    silent = [
        f"{path.name}::{node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert silent == []


# ------------------------------------------------------------------------------------------------ what the pages say


def test_pages_document_every_public_name() -> None:
    """docs/api.md has one heading for each name in `__all__`, and no other; each name can be had."""
    documented = re.findall(r"^## `(\w+)", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M)
    assert sorted(documented) == sorted(canwait.__all__)
    assert all(getattr(canwait, name) is not None for name in canwait.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_pages_link_to_what_exists(page: Path) -> None:
    """Every relative link of a page leads to a file of the repository."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    assert [to for to in links if "://" not in to and not (page.parent / to).exists()] == []


def test_pages_give_the_commands_that_ci_runs() -> None:
    """The README's commands are targets of the Makefile, and CI runs its test command and nothing else."""
    readme, makefile = (ROOT / "README.md").read_text("utf-8"), (ROOT / "Makefile").read_text("utf-8")
    commands = set(re.findall(r"^\$ make ([a-z]+)", readme, re.M))
    assert commands == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in commands)
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1].endswith(" test")


# ------------------------------------------------------------------------------------------------- what tests may do


@pytest.mark.parametrize("where", ["192.0.2.1", "2001:db8::1", "0.0.0.0", "example.invalid", ("8.8.8.8", 53)])
def test_beyond_loopback_is_refused(where: Any) -> None:
    """An address that is not this machine's own is not local."""
    assert not offline.is_local(where)


@pytest.mark.parametrize(
    "where", [None, "", "localhost", "127.0.0.1", "127.9.9.9", ("::1", 80, 0, 0), b"::1", "/tmp/s"]
)
def test_loopback_is_allowed(where: Any) -> None:
    """Loopback addresses and Unix sockets are local."""
    assert offline.is_local(where)


def test_a_connection_beyond_loopback_ends_a_test() -> None:
    """A connection beyond loopback raises what no `except Exception` swallows."""
    import socket

    with pytest.raises(offline.BeyondLoopback), socket.socket() as s:
        s.connect_ex(("192.0.2.1", 9))
    with pytest.raises(offline.BeyondLoopback):
        socket.getaddrinfo("example.invalid", 443)


def test_processes_of_a_test_are_held_to_loopback_too() -> None:
    """A Python process that a test starts cannot leave loopback either."""
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), 1)\nexcept Exception: print('swallowed')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "BeyondLoopback" in done.stderr


def test_the_postgres_of_the_tests_is_a_fresh_database(postgres_url: str) -> None:
    """A test's PostgreSQL is a real server of this run, and its database is empty."""
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        version, tables = connection.execute(
            "SELECT current_setting('server_version_num')::int, count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() or (0, None)
    assert (version >= 160_000, tables) == (True, 0)


# ------------------------------------------------------------------------------------------------------- how we look


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = ("canwait", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str:
    """The line of the table a module stands under: "providers" for canwait.providers.openai."""
    return [*module.split("."), "__init__"][1]


def runtime_nodes(node: ast.AST) -> list[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            found += [n for other in child.orelse for n in [other, *runtime_nodes(other)]]
        else:
            found += [child, *runtime_nodes(child)]
    return found


def inside_imports(path: Path) -> set[str]:
    """The modules of canwait that a file imports, resolved; a name that is no module stands for its package."""
    here, found = module_name(path).split("."), set()
    for node in runtime_nodes(parse(path)):
        if isinstance(node, ast.Import):
            found |= {(a.name, None) for a in node.names if a.name.split(".")[0] == "canwait"}
        elif isinstance(node, ast.ImportFrom):
            up = node.level - (path.name == "__init__.py")
            base = (
                [*here[: len(here) - up], *filter(None, [node.module])]
                if node.level
                else (node.module or "").split(".")
            )
            if base[0] == "canwait":
                found |= {(".".join(base), a.name) for a in node.names}
    modules = {module_name(p) for p in SOURCES}
    return {f"{base}.{name}" if f"{base}.{name}" in modules else base for base, name in found} - {module_name(path)}


def outside_imports(tree: ast.Module) -> set[str]:
    """The modules a file imports from elsewhere, by full name."""
    found = set()
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module)
    return {name for name in found if name.partition(".")[0] != "canwait"}


def required_packages(name: str) -> set[str]:
    """A package and all it needs here, without extras of its own."""
    wanted: dict[str, set[str]] = defaultdict(set)
    open_ends = [(name, frozenset[str]())]
    while open_ends:
        package, extras = open_ends.pop()
        new = ({""} | extras) - wanted[package]
        wanted[package] |= new
        for text in distribution(package).requires or [] if new else []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in new):
                open_ends.append((canonicalize_name(need.name), frozenset(need.extras)))
    return set(wanted)


def loaded_by(code: str) -> set[str]:
    """The top-level modules a fresh interpreter has loaded after running this code."""
    tell = "\nimport json, sys; print('\\n' + json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + tell], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


SOURCES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = {module_name(path): inside_imports(path) for path in SOURCES}
