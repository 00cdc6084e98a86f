"""Random changes of JSON values and of bytes, for tests of hostile input."""

from __future__ import annotations

import copy

NASTY_VALUES = (
    *(None, True, False, 0, -1, 2**31, 2**64, 10**400, 1e308, -0.0, float("nan"), float("-inf")),
    *(
        "",
        " ",
        "\x00",
        "x" * 20_000,
        "\u202e",
        "<script>x</script>",
        "::error::x",
        "\x1b[31m",
        "../../x",
        "/dev/zero",
        "%0A",
        "٣",
    ),
    *([], {}, [[]], [None], [0] * 50, {"a": None}, {"": {}}, ["all"], "FAIL", "PASS", "INFO", "unknown", "nll", "auroc"),
)
NASTY_KEYS = ("", "x", "schema", "__class__", "a.b", "y" * 2000, "\x00")


def value_paths(value, prefix=(), depth=8):
    """Return the path of every value within nested lists and dictionaries."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items if depth for path in ((*prefix, key), *value_paths(inner, (*prefix, key), depth - 1))]


def value_at(value, path):
    """Return the value at a path."""
    for key in path:
        value = value[key]
    return value


def mutate_value(value, rng, changes=0):
    """Return a copy of nested lists and dictionaries with some values replaced, removed, moved or added."""
    value = copy.deepcopy(value)
    for _ in range(changes or rng.choice((1, 1, 1, 2, 4))):
        paths = value_paths(value)
        if not paths:
            return value
        *above, key = rng.choice(paths)
        parent = value_at(value, above)
        action = rng.randrange(7)
        if action <= 3:
            parent[key] = copy.deepcopy(rng.choice(NASTY_VALUES))
        elif action == 4:
            del parent[key]
        elif action == 5:
            parent[key] = copy.deepcopy(value_at(value, rng.choice(paths)))
        elif isinstance(parent, dict):
            parent[rng.choice(NASTY_KEYS)] = copy.deepcopy(rng.choice(NASTY_VALUES))
        else:
            parent.append(copy.deepcopy(parent[key]))
    return value


def mutate_bytes(data, rng):
    """Return bytes with some of them changed, removed or inserted."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 10))):
        place, action = rng.randrange(len(changed)), rng.randrange(4)
        if action == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif action == 1:
            del changed[place : place + rng.randrange(1, 200)]
        elif action == 2:
            del changed[place:]
        else:
            changed[place:place] = rng.randbytes(5)
        changed = changed or bytearray(b"x")
    return bytes(changed)
