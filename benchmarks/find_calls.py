"""`canwait audit ./src` over a tree of Python files: what finding its calls costs beside merely parsing every file.

    python benchmarks/find_calls.py --files 1000 --share 0.1

`--share` of the files name a library; the others are web handlers, tables and tests around them. Baseline: `ast.parse`
of all files.
"""

from __future__ import annotations

import argparse
import ast
import random
import tempfile
from pathlib import Path

from measure import measured, ratio, table

from canwait.audit.code import find_calls

LINES = 300
CALLS = """
from openai import OpenAI
from anthropic import AsyncAnthropic

from app.m{other} import load_{other}

client = OpenAI()
RULES = "Answer with one of the labels that are given, and with nothing else." * 3


class Service{n}:
    def __init__(self) -> None:
        self.claude = AsyncAnthropic()

    async def ask_{n}(self, text: str) -> str:
        reply = await self.claude.messages.create(model="m", max_tokens=64, messages=[{{"role": "user", "content": text}}])
        return reply.content[0].text


def label_{n}(text: str) -> str:
    prompt = f"{{RULES}} {{text}}"
    reply = client.chat.completions.create(model="m", messages=[{{"role": "user", "content": prompt}}])
    return reply.choices[0].message.content
"""
PLAIN = """
import json
from dataclasses import dataclass

from app.m{other} import load_{other}


@dataclass
class Record{n}:
    name: str
    total: int = 0

    def create(self, rows: list[dict[str, int]]) -> int:
        return sum(row["total"] for row in rows if row.get("name") == self.name)


def load_{n}(path: str) -> list[Record{n}]:
    with open(path) as file:
        return [Record{n}(row["name"], int(row["total"])) for row in json.load(file)]
"""
BLOCK = """

def step_{n}_{k}(values: dict[str, int], limit: int = {k}) -> dict[str, int]:
    chosen = {{}}
    for key, value in sorted(values.items()):
        if value > limit and key.startswith("a"):
            chosen[key] = min(value * {k}, len(values))
        else:
            chosen.setdefault(key, 0)
    return dict(chosen, total=sum(chosen.values()))
"""


def make(root: str, files: int, share: float) -> None:
    chance = random.Random(7)
    (Path(root) / "app").mkdir()
    for n in range(files):
        text = (CALLS if chance.random() < share else PLAIN).format(n=n, other=chance.randrange(files))
        k = 0
        while text.count("\n") < LINES:
            k += 1
            text += BLOCK.format(n=n, k=k)
        (Path(root) / "app" / f"m{n}.py").write_text(text)


def parse(root: str) -> int:
    """The baseline."""
    return sum(len(ast.parse(path.read_bytes()).body) > 0 for path in Path(root).rglob("*.py"))


def find(root: str) -> int:
    """The number of calls."""
    return len(find_calls(Path(root)).sites)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=1000)
    options.add_argument("--share", type=float, default=0.1)
    options.add_argument("--runs", type=int, default=5)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as root:
        make(root, asked.files, asked.share)
        base, found = measured(parse, root, runs=asked.runs), measured(find, root, runs=asked.runs)
    rows = [
        (name, m.cpu_s, m.wall_s, m.peak_mb, asked.files / m.cpu_s, m.cpu_s / base.cpu_s)
        for name, m in (("ast.parse", base), ("find_calls", found))
    ]
    print(f"{asked.files:,} files of {LINES} lines, {found.returned:,} calls")
    print(table(("", "CPU s", "wall s", "peak MB", "files / CPU s", "x ast.parse"), rows))
    ratio("find_calls", f"ast.parse / find_calls, {asked.share:.0%} of files", base.cpu_s / found.cpu_s)


if __name__ == "__main__":
    main()
