"""Files that are almost right: JSON, YAML and headers with a wrong value, anything else with wrong bytes."""

import json
import struct
from copy import deepcopy
from random import Random
from typing import Any

import yaml

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 3, 0.5, -0.0, 1e308, 2**31, 2**63, 10**400, float("nan"), float("inf"), [], {}, "", " "),
    *("../..", "/etc/passwd", "a\0b", "\ud800", "\x1b[2J", "=1+1", "<b>", "eager", "org/x--y.Z", "x" * 5000, "1e999"),
    *([[]], [None], ["a", "a"], {"": None}, {"a": {"b": {"c": 1}}}, [[1, 2], [3]], list(range(500)), DEEP),
]
WHOLE = [
    *(b"", b"\0", b"null", b"[]", b"{}", b"0", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[" * 100_000, b"{" * 5000),
    *(b"[" + b"9" * 5000 + b"]", b"[1e999, NaN]", b'{"a":' * 50_000, b"\n" * 1000, b"\x89PNG\r\n\x1a\n" + bytes(40)),
]
BYTES = [b"\0", b"\xff", b"\r", b'"', b",", b"\n", b"-", b"9" * 30, b"\xed\xa0\x80", b"{", b"[", b": *a", b"&a "]


def mutant(seed: bytes, name: str, random: Random) -> bytes:
    """One file like `seed`, whose name is `name`, with a few things wrong."""
    if random.random() < 0.04:
        return random.choice(WHOLE)
    if random.random() < 0.7 and (changed := _structured(seed, name, random)) is not None:
        return changed
    return _bytes(seed, random)


def _structured(seed: bytes, name: str, random: Random) -> bytes | None:
    """A change within what the file means; None where it has no such meaning here."""
    try:
        if name.endswith(".safetensors"):
            length = struct.unpack("<Q", seed[:8])[0]
            header = json.dumps(_tree(json.loads(seed[8 : 8 + length]), random)).encode()
            return struct.pack("<Q", len(header)) + header + seed[8 + length :]
        text = seed.decode()
        if name.endswith((".json", ".jsonl")):
            lines = text.splitlines() if name.endswith("l") else [text]
            place = random.randrange(len(lines))
            lines[place] = json.dumps(_tree(json.loads(lines[place]), random), ensure_ascii=random.random() < 0.9)
            return "\n".join(lines).encode(errors="surrogatepass")
        if name.endswith((".yaml", ".md")):
            front, *rest = text.split("---\n", 2)[1:] if name.endswith(".md") else [text]
            changed = yaml.safe_dump(_tree(yaml.safe_load(front), random), allow_unicode=random.random() < 0.5)
            return (f"---\n{changed}---\n{rest[0]}" if rest else changed).encode(errors="surrogatepass")
    except (ValueError, struct.error, yaml.YAMLError, IndexError, OverflowError):
        pass
    return None


def _tree(data: Any, random: Random) -> Any:
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(data))
        if not places:
            return deepcopy(random.choice(VALUES))
        holder, key = random.choice(places)
        action = random.random()
        if action < 0.15:
            del holder[key]
        elif action < 0.25 and isinstance(holder, dict):
            holder[random.choice(["", "x", "schema", "\ud800", "__metadata__", str(key) * 2])] = holder.pop(key)
        elif action < 0.35:
            other, its = random.choice(places)
            holder[key] = other[its] if its in other or (isinstance(other, list) and its < len(other)) else None
        elif action < 0.42:
            holder[key] = [holder[key]]
        elif action < 0.5 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * random.choice((-1, 0.5, 2, 1000, 10**9))
        else:
            holder[key] = deepcopy(random.choice(VALUES))
    return json.loads(json.dumps(data)) if _within(data) else deepcopy(random.choice(VALUES))


def _places(data: Any, depth: int = 0) -> Any:
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in list(keys)[:400] if depth < 8 else ():
        yield data, key
        yield from _places(data[key], depth + 1)


def _within(data: Any) -> bool:
    """Whether a value can be written down: a swap may have put it inside itself."""
    try:
        json.dumps(data)
    except (ValueError, RecursionError):
        return False
    return True


def _bytes(seed: bytes, random: Random) -> bytes:
    data = bytearray(seed)
    head = random.random() < 0.5  # headers are where most is decided
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        if not data:
            return b""
        place = random.randrange(min(len(data), 400) if head else len(data))
        action, length = random.randrange(6), random.choice((1, 1, 4, 16, 200))
        if action == 0:
            data[place] ^= 1 << random.randrange(8)
        elif action == 1:
            data[place : place + 4] = random.choice((bytes(4), b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"))
        elif action == 2:
            del data[place : place + length]
        elif action == 3:
            data[place:place] = random.choice(BYTES)
        elif action == 4:
            data[place:place] = data[random.randrange(len(data)) :][:length]
        else:
            del data[place : len(data) if random.random() < 0.3 else place + length]
    return bytes(data)
