"""What texts have alike: the prefix that a cache could hold, what breaks it, and texts that are nearly the same. Pure.

Texts are hostile and only ever compared. Work is bounded whatever is handed in: the first `_MOST_TEXTS` texts, and of
each its first `_MOST_BYTES`.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from .facts import Prefix

_MOST_TEXTS, _MOST_BYTES = 256, 32_768
_SHARED_BY = 90  # percent of the texts

_PIECE = 32  # bytes; text is alike later if pieces of this size stand in nearly all texts, wherever
_LATER_TEXTS, _LATER_BYTES = 32, 16_384

_NEAR_BYTES = 524_288  # of all texts that are compared with each other
_MANY = 10  # texts, from which on what nearly all hold is their template

_WORD = re.compile(rb"[0-9A-Za-z:+.,_-]{1,64}(?: [0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?)?")
_WORD_BEFORE = re.compile(rb"[0-9A-Za-z:+._-]{0,64}\Z")
_KINDS = (  # the first that matches a whole word
    ("time", re.compile(rb"(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9](?:[T ][0-9:.,+Z-]*)?[.,:]?")),
    ("time", re.compile(rb"[0-2]?[0-9]:[0-5][0-9](?::[0-5][0-9](?:[.,][0-9]+)?)?Z?[.,:]?")),
    ("time", re.compile(rb"1[0-9]{9}(?:[0-9]{3}){0,3}(?:\.[0-9]+)?[.,:]?")),  # seconds to nanoseconds since 1970
    ("id", re.compile(rb"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}[.,:]?")),
    ("number", re.compile(rb"[#-]?[0-9][0-9.,]*:?")),
    ("id", re.compile(rb"(?=[^0-9]*[0-9])[0-9A-Fa-f]{8,}[.,:]?")),
    ("id", re.compile(rb"[A-Za-z]{1,12}[_-](?=[0-9A-Za-z]*[0-9])[0-9A-Za-z]{3,}[.,:]?")),  # req_8fK2..., TCK-1042
)


def prefix_of(texts: Sequence[str]) -> Prefix | None:
    """What a sample of a site's texts begins with alike. None: fewer than two texts.

    `shared_later_bytes` counts text that nearly all hold after the point where they part, in whole pieces: at least.
    """
    if len(texts) < 2:
        return None
    whole = [text.encode("utf-8", "replace") for text in texts[:_MOST_TEXTS]]
    mean_bytes = sum(map(len, whole)) / len(whole)
    alike, shared = _longest([text[:_MOST_BYTES] for text in whole])
    varying = [text[len(shared) :] for text in alike]
    if not any(varying):
        return Prefix(len(whole), mean_bytes, len(shared), 0, None, None)
    kind, back = _breaker(shared, varying)
    return Prefix(len(whole), mean_bytes, len(shared), _alike_later(varying), kind, len(shared) - back)


def near_duplicates(texts: Sequence[str], *, seed: int = 0) -> tuple[int, int]:
    """How many texts are nearly, but not wholly, equal to an earlier one, and how many were compared.

    Near means that of the 4-byte shingles of both, 8 in 10 are in both. Shingles that nearly all texts hold are left
    out first, for a shared instruction makes no two questions alike. Candidates come from MinHash (64 values of one
    permutation, 16 bands); each is then compared for true. Equal texts are compared once.
    """
    different = list(dict.fromkeys(text.encode("utf-8", "replace")[:_MOST_BYTES] for text in texts[:_MOST_TEXTS]))
    n_fit = bisect_left(list(accumulate(map(len, different))), _NEAR_BYTES)
    sets = [_shingles(text) for text in different[: n_fit + 1]]
    if len(sets) >= _MANY:
        seen = Counter(shingle for shingles in sets for shingle in shingles)
        common = {shingle for shingle, n in seen.items() if n * 100 >= _SHARED_BY * len(sets)}
        sets = [shingles - common for shingles in sets]
    random = Random(seed)
    factor = random.getrandbits(64) | 1
    buckets: dict[tuple[int, ...], list[int]] = {}
    n_near = 0
    for i, shingles in enumerate(sets):
        bands = _bands(shingles, factor) if shingles else []
        earlier = {j for band in bands for j in buckets.get(band, ())}
        n_near += any(_jaccard_is_near(shingles, sets[j]) for j in earlier)
        for band in bands:
            buckets.setdefault(band, []).append(i)
    return n_near, len(sets)


# ---------------------------------------------------------------------------------------------------------- the prefix


def _longest(texts: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """The texts that share the longest prefix, nearly all of them, and that prefix, whole characters only.

    In sorted order such texts stand together, and what the first and the last of them share, all between them share.
    """
    ordered = sorted(texts)
    n = -(-len(ordered) * _SHARED_BY // 100)
    found = [(_n_common(ordered[i], ordered[i + n - 1]), i) for i in range(len(ordered) - n + 1)]
    length, first = max(found, key=lambda f: (f[0], -f[1]))
    shared = ordered[first][:length].decode("utf-8", "ignore").encode()
    return [text for text in ordered if text.startswith(shared)], shared


def _n_common(a: bytes, b: bytes) -> int:
    """Bytes that both begin with."""
    return bisect_left(range(1, min(len(a), len(b)) + 1), True, key=lambda n: a[:n] != b[:n])


def _breaker(shared: bytes, varying: Sequence[bytes]) -> tuple[str, int]:
    """What the texts part at looks like, in most of them, and how many bytes of it the prefix already holds."""
    before = _WORD_BEFORE.search(shared)
    head = before.group() if before else b""
    kinds = Counter(_kind(head, text) for text in varying)
    kind, n = kinds.most_common(1)[0]
    if kind == "text" or n * 2 < len(varying):
        return "text", 0
    return kind, len(head)


def _kind(head: bytes, rest: bytes) -> str:
    word = _WORD.match(head + rest[:100])
    found = (name for name, shape in _KINDS if word and shape.fullmatch(word.group()))
    return next(found, "text")


def _alike_later(varying: Sequence[bytes]) -> int:
    """Bytes in pieces of a text that nearly all the others hold as well, wherever: the best of three texts."""
    texts = sorted((text[:_LATER_BYTES] for text in varying), key=len)
    step = max(1, len(texts) // _LATER_TEXTS)
    texts = texts[::step][:_LATER_TEXTS]
    allowed = len(texts) * (100 - _SHARED_BY) // 100
    return max(_held_by_all(text, texts, allowed) for text in texts[:: max(1, len(texts) // 3)])


def _held_by_all(text: bytes, texts: Sequence[bytes], allowed: int) -> int:
    total = 0
    for at in range(0, len(text) - _PIECE + 1, _PIECE):
        piece, n_without = text[at : at + _PIECE], 0
        for other in texts:
            n_without += piece not in other
            if n_without > allowed:
                break
        else:
            total += _PIECE
    return total


# ------------------------------------------------------------------------------------------------------ near duplicates


def _shingles(text: bytes) -> set[int]:
    """Every run of four bytes, as a number; of a shorter text the whole."""
    if len(text) < 4:
        return {int.from_bytes(text, "little")} if text else set()
    return {n for at in range(4) for n in struct.unpack_from(f"<{(len(text) - at) // 4}I", text, at)}


def _bands(shingles: set[int], factor: int) -> list[tuple[int, ...]]:
    """Sixteen keys, each over four minima; two sets share a key as likely as they are alike.

    One permutation sorts the shingles into 64 bins, each with its minimum; an empty bin takes that of the next.
    """
    minima: dict[int, int] = {}
    for shingle in shingles:
        mixed = (shingle + 1) * factor & 0xFFFF_FFFF_FFFF_FFFF
        mixed ^= mixed >> 32
        place = mixed & 63
        if mixed < minima.get(place, 1 << 64):
            minima[place] = mixed
    values, last = [0] * 64, minima[min(minima)]
    for place in range(63, -1, -1):
        last = minima.get(place, last)
        values[place] = last
    return [(n, *values[n : n + 4]) for n in range(0, 64, 4)]


def _jaccard_is_near(a: set[int], b: set[int]) -> bool:
    if min(len(a), len(b)) * 10 < max(len(a), len(b)) * 8:
        return False
    both = len(a & b)
    return both * 10 >= (len(a) + len(b) - both) * 8
