"""The files of a folder that can matter: those that name a library, what they import, and those that import them."""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..calls import BadLine
from .libraries import is_library
from .modules import Module, leading, module_of

MAX_BYTES = 2_000_000  # of a file; what is longer was written by a program

_SKIPPED = {"site-packages", "node_modules", "venv", "build", "dist", "__pycache__"}
_MATTERS = re.compile(
    rb"openai|anthropic|genai|generativeai|vertexai|mistral|litellm|langchain|langgraph|pydantic_ai|instructor"
    rb"|completions\s*\.\s*\w|responses\s*\.\s*(?:create|parse|stream)|messages\s*\.\s*(?:create|stream|parse|batches)"
    rb"|generate_content|embeddings\s*\.\s*create|chat\s*\.\s*(?:complete|stream)|response_model|beat_schedule",
    re.IGNORECASE,
)
_IMPORT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]{0,9000}\)|(?:\\\n|[^\n#;])*)|import[ \t]+((?:\\\n|[^\n#;])*))",
    re.MULTILINE,
)
_AS = re.compile(rb"\bas[ \t]+\w+")
_WORD = re.compile(rb"\w+")
_SCHEDULES = re.compile(r"^[ \t]*(?:-[ \t]*)?['\"]?cron['\"]?[ \t]*:|^[ \t]*kind:[ \t]*CronJob", re.MULTILINE)
_CRONTAB = re.compile(
    r"^\s*(?:@(?:hourly|daily|weekly|monthly|midnight|reboot)|(?:[\d*/,\-A-Za-z]+\s+){4}[\d*/,\-A-Za-z]+)\s+\S"
)
_RUNS = re.compile(r"(?<![\w./-])([\w./-]+\.py)\b|(?<![\w-])-m[\"',\s]+([A-Za-z_][\w.]*)")


@dataclass(eq=False, slots=True)
class File:
    path: Path
    name: str  # relative to the root, in characters that can be printed
    dotted: tuple[str, ...]
    module: Module | None = None
    failed: bool = False

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


@dataclass(eq=False)
class Tree:
    """`modules` are those that were read; more are read as names lead to them."""

    root: Path
    files: list[File] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    unreadable: list[BadLine] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)  # files that may be logs, and are not read
    started: dict[str, str] = field(default_factory=dict)  # file, or module:function -> the line that starts it
    _by_last: dict[str, list[File]] = field(default_factory=lambda: defaultdict(list))
    _packages: set[tuple[str, ...]] = field(default_factory=set)
    _found: dict[tuple[tuple[str, ...], tuple[str, ...]], Module | None] = field(default_factory=dict)

    def read(self) -> None:
        """Look at every file once; then read those that matter and, over and over, those that import what matters."""
        importers: dict[tuple[str, str], list[File]] = defaultdict(list)
        todo: dict[File, None] = {}
        for path in _walk(self.root, self.unreadable):
            if path.suffix in _LOGS:
                self.logs.append(_printable(str(path.relative_to(self.root))))
                continue
            if path.suffix not in {".py", ".ipynb"}:
                self._schedules(path)
                continue
            file = self._file_at(path)
            text = self._text(file)
            if text is None:
                continue
            if path.suffix == ".ipynb":
                text = text.replace(b"\\n", b"\n").replace(b'"', b"\n")
            for imported in _imported(text):
                importers[imported].append(file)
            if _MATTERS.search(text):
                todo[file] = None
        hot: dict[str, set[str]] = defaultdict(set)  # last part of a module's path -> names in it that lead to a model
        while todo:
            file, _ = todo.popitem()
            module = self._parse(file)
            new = [(m, name) for m, name in leading(module, hot) if name not in hot[m]] if module else []
            for last, name in new:
                hot[last].add(name)
            for key in {k for last, name in new for k in ((last, name), (last, ""), (last, "*"))}:
                todo.update(dict.fromkeys(importers.get(key, ())))
        self.modules.sort(key=lambda m: m.file)

    def _file_at(self, path: Path) -> File:
        relative = path.relative_to(self.root) if path != self.root else Path(path.name)
        parts = relative.parts[:-1] if path.name == "__init__.py" else (*relative.parts[:-1], path.stem)
        file = File(path, _printable(str(relative)), tuple(map(_printable, parts)))
        self.files.append(file)
        if file.is_package:
            self._packages.add(file.dotted)
        if file.dotted:
            self._by_last[file.dotted[-1]].append(file)
        return file

    def find(self, dotted: tuple[str, ...], importer: Module) -> Module | None:
        """The module of the tree that this path names in that file, read if it was not; None for one outside."""
        if not dotted:
            return None
        here = importer.dotted if importer.is_package else importer.dotted[:-1]
        key = (dotted, here)
        if key not in self._found:
            file = self._file(dotted, here)
            self._found[key] = self._parse(file) if file else None
        return self._found[key]

    def _file(self, dotted: tuple[str, ...], here: tuple[str, ...]) -> File | None:
        if not dotted[0].strip("."):  # relative
            up = len(dotted[0]) - 1
            wanted = (*here[: len(here) - up], *dotted[1:])
            return next((f for f in self._by_last.get(wanted[-1], ()) if f.dotted == wanted), None) if wanted else None
        if is_library(".".join(dotted)):
            return None
        n = len(dotted)
        # An absolute path starts at a folder on Python's path, which is no package itself: the root, or one near.
        found: dict[int, list[File]] = defaultdict(list)
        for file in self._by_last.get(dotted[-1], ()):
            start = file.dotted[:-n]
            if file.dotted[-n:] == dotted and start not in self._packages and file.path.suffix == ".py":
                common = next((i for i, (a, b) in enumerate(zip(start, here, strict=False)) if a != b), None)
                found[min(len(start), len(here)) if common is None else common].append(file)
                if not start:
                    return file
        best = found[max(found)] if found else []
        return best[0] if len(best) == 1 else None

    def _text(self, file: File) -> bytes | None:
        try:
            if file.path.stat().st_size > MAX_BYTES:
                self._bad(file, 1, f"is longer than {MAX_BYTES:,} bytes")
                return None
            return file.path.read_bytes()
        except OSError as error:
            self._bad(file, 1, f"cannot be read: {error.strerror or type(error).__name__}")
            return None

    def _bad(self, file: File, line: int, why: str) -> None:
        file.failed = True
        self.unreadable.append(BadLine(file.name, line, why))

    def _parse(self, file: File) -> Module | None:
        if file.module or file.failed:
            return file.module
        text = self._text(file)
        if text is None:
            return None
        if file.path.suffix == ".ipynb":
            cells = list(self._cells(file, text))
        else:
            tree = self._ast(file, text)
            cells = [("", tree)] if tree else []
        if not cells:
            return None
        notebook = file.path.suffix == ".ipynb"
        file.module = module_of(file.name, file.dotted, cells, is_package=file.is_package, is_notebook=notebook)
        self.modules.append(file.module)
        return file.module

    def _ast(self, file: File, text: bytes | str, cell: str = "") -> ast.Module | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in someone else's text
                return ast.parse(text)
        except SyntaxError as error:
            why = f"{cell}is no Python 3: {error.msg}"
            self._bad(file, error.lineno or 1, why)
        except (ValueError, LookupError, RecursionError, MemoryError) as error:
            self._bad(file, 1, f"{cell}cannot be parsed: {str(error) or type(error).__name__}")
        return None

    def _cells(self, file: File, text: bytes) -> Iterator[tuple[str, ast.Module]]:
        """The code cells of a notebook. Lines that are the notebook's own and not Python's are left out."""
        try:
            found = json.loads(text)["cells"]
            sources = [c["source"] for c in found if c["cell_type"] == "code"]
            joined = [s if isinstance(s, str) else "".join(s) for s in sources]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self._bad(file, 1, "is no notebook of format 4")
            return
        for n, source in enumerate(joined, 1):
            lines = source.split("\n")
            if lines[0].startswith("%%") and not lines[0].startswith(("%%time", "%%capture")):
                continue
            python = ["pass" if x.lstrip().startswith(("%", "!", "?")) or x.endswith("?") else x for x in lines]
            indents = [line[: len(line) - len(line.lstrip())] for line in lines]
            tree = self._ast(
                file, "\n".join(i + p if p == "pass" else p for i, p in zip(indents, python, strict=True)), f"cell {n} "
            )
            if tree:
                yield f"cell {n}", tree

    def _schedules(self, path: Path) -> None:
        """What a workflow, a crontab or a project file says about which file is started by what."""
        relative = _printable(str(path.relative_to(self.root)))
        try:
            if path.stat().st_size > MAX_BYTES:
                return
            text = path.read_text("utf-8", "replace")
        except OSError:
            return
        if path.name == "pyproject.toml":
            self._commands(text, relative)
            return
        scheduled = bool(_SCHEDULES.search(text)) and path.suffix in {".yml", ".yaml"}
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("#") or not (
                scheduled or (path.suffix not in {".yml", ".yaml"} and _CRONTAB.match(line))
            ):
                continue
            for script, module in _RUNS.findall(line):
                name = script.removesuffix(".py") if script else module.replace(".", "/")
                self.started.setdefault(name.strip("./"), f"{relative}:{number}")

    def _commands(self, text: str, relative: str) -> None:
        try:
            project = tomllib.loads(text)
            found = {**project["project"]["scripts"]}
        except (ValueError, LookupError, TypeError, RecursionError):
            return
        for name, target in found.items():
            if isinstance(target, str):
                self.started.setdefault(target, f"command {name!r} of {relative}")


def _walk(root: Path, unreadable: list[BadLine]) -> Iterator[Path]:
    """Files to look at, sorted; a symbolic link is never followed: what it leads to inside is met there."""
    if root.is_file():
        yield root
        return
    todo = [root]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            name = _printable(str(folder.relative_to(root)))
            unreadable.append(BadLine(name, 1, f"cannot be read: {error.strerror or type(error).__name__}"))
            continue
        if folder != root and any(e.name == "pyvenv.cfg" for e in found):
            continue
        for entry in found:
            inside = entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False):
                github = entry.name == ".github" or (folder.name == ".github" and entry.name == "workflows")
                if github or (not inside and entry.name not in _SKIPPED and folder.name != ".github"):
                    todo.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and _looked_at(entry.name, folder):
                yield Path(entry.path)


_LOGS = {".jsonl", ".ndjson"}


def _looked_at(name: str, folder: Path) -> bool:
    if ".github" in folder.parts[-2:]:
        return name.endswith((".yml", ".yaml"))
    if name.startswith("."):
        return False
    ends = name.endswith((".py", ".ipynb", ".yml", ".yaml", ".cron", ".crontab", *_LOGS))
    return ends or name in {"crontab", "pyproject.toml"} or folder.name.startswith("cron.")


def _imported(text: bytes) -> Iterator[tuple[str, str]]:
    """(module, name) for each name that is imported, by the last part of the module's path; ("json", "") for a module
    itself, which a name may be too, and ("json", "*") for all names of one."""
    for module, names, modules in _IMPORT.findall(text):
        last = module.rpartition(b".")[2].decode("utf-8", "replace")
        if b"*" in names:
            yield last, "*"
        for word in _WORD.findall(_AS.sub(b"", names)):
            name = word.decode("utf-8", "replace")
            yield last, name
            yield name, ""
        for path in _AS.sub(b"", modules).split(b","):
            yield path.strip().rpartition(b".")[2].decode("utf-8", "replace"), ""


def _printable(name: str) -> str:
    """A file's name with what is no printable text written as escapes."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace").replace(os.sep, "/")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
