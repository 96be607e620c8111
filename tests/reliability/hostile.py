"""Mutations of small valid inputs: bytes, fields of lines, and values of any structure."""

import contextlib
import copy
import datetime
import gzip
import io
import math
import zipfile

import numpy as np
import polars as pl

# Values of wrong types, of wrong ranges, and of texts that mean a number in some parser.
PLAIN = [None, True, False, 0, -1, 2, 7, 10**12, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e308]
PLAIN += [math.nan, math.inf, -math.inf, "", " ", "words", "nan", "1e999", "-1", "1.5", "007", "true", "null"]
PLAIN += [
    "\x00",
    "é",
    "\U0001f3b5",
    "a" * 3000,
    "../x",
    "2024-02-30T25:61:61Z",
    "1970-01-01",
    "0001-01-01T00:00:00Z",
]
PLAIN += [[], {}, [[]], [None], [1, "a"], {"a": 1}, [[[[[]]]]], [0] * 50]
# And those that only Python has.
PYTHON = [*PLAIN, "\ud800", b"a", {"a"}, frozenset([1]), (), (1,), object(), int, list, len, range(3), 1j]
PYTHON += [
    np.float32(1),
    np.int64(3),
    np.array([1.0]),
    np.array([[1, 2]]),
    np.array("a"),
    datetime.date(2024, 1, 1),
]
PYTHON += [datetime.datetime(9999, 12, 31, 23, 59, tzinfo=datetime.UTC), datetime.timedelta(days=10**8)]
PYTHON += [pl.Series([1, 2]), pl.Series(["a"]), pl.DataFrame({"a": [1]}), pl.col("a")]
TOKENS = [
    "",
    "NaN",
    "inf",
    "-1",
    "1e999",
    "9" * 40,
    "2147483648",
    "0.5",
    "null",
    '"',
    "'",
    "\\",
    "\t",
    ",",
    "::",
    "\n\n",
]
TOKENS += [
    "\r",
    "\x00",
    "\x1a",
    "é",
    "\ufeff",
    "[",
    "{",
    "}",
    "[" * 3000,
    "{" * 3000,
    "x" * 5000,
    "1,2",
    " 3 ",
    "\ud7ff",
]


def choose(generator, values):
    return values[int(generator.integers(len(values)))]


def mutate_bytes(whole, generator):
    """Flips, cuts, copies and insertions, once or a few times."""
    data = bytearray(whole)
    for _ in range(int(choose(generator, [1, 1, 2, 5]))):
        start, stop = sorted(int(one) for one in generator.integers(len(data) + 1, size=2))
        kind = int(generator.integers(9))
        if kind <= 2 and data:
            data[min(start, len(data) - 1)] ^= 1 << int(generator.integers(8))
        elif kind == 3:
            del data[start:]
        elif kind == 4:
            del data[start : min(stop, start + 64)]
        elif kind == 5:
            data[start:start] = data[start:stop]
        elif kind == 6:
            data[start:start] = generator.bytes(int(generator.integers(1, 40)))
        elif kind == 7 and data:
            data[start : start + 8] = b"\xff" * len(data[start : start + 8])
        else:
            data[start:start] = choose(generator, TOKENS).encode()
    return bytes(data)


def mutate_lines(text, generator, separator):
    """Fields that are swapped, dropped, doubled or replaced, and lines likewise."""
    lines = text.split("\n")
    for _ in range(int(choose(generator, [1, 1, 2, 4]))):
        row = int(generator.integers(len(lines)))
        fields = lines[row].split(separator)
        place, other = (int(one) for one in generator.integers(len(fields), size=2))
        kind = int(generator.integers(8))
        if kind <= 2:
            fields[place] = str(choose(generator, [*TOKENS, *PLAIN]))
        elif kind == 3:
            fields[place], fields[other] = fields[other], fields[place]
        elif kind == 4:
            del fields[place]
        elif kind == 5:
            fields.insert(place, fields[other])
        elif kind == 6:
            lines.insert(row, choose(generator, lines))
            continue
        else:
            lines[row], lines[-1] = lines[-1], lines[row]
            continue
        lines[row] = separator.join(fields)
    return "\n".join(lines)


def encode(text, generator):
    """Text as bytes, now and then in another encoding, or compressed."""
    kind = int(generator.integers(24))
    data = text.encode("utf-8", "surrogatepass")
    if kind == 0:
        return text.encode("utf-16", "replace")
    if kind == 1:
        return text.encode("latin-1", "replace") + b"\xe9\n"
    if kind == 2:
        return b"\xef\xbb\xbf" + data
    if kind == 3:
        return gzip.compress(data, 1)[: int(generator.integers(10, 2000))]
    if kind == 4:
        return gzip.compress(data, 1)
    if kind == 5:
        return pack({"a.csv": data}, generator)
    if kind == 6:
        return data.replace(b"\n", choose(generator, [b"\r\n", b"\r", b"\n\n"]))
    return data


def pack(members, generator):
    """A ZIP archive, now and then damaged."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    data = stream.getvalue()
    return mutate_bytes(data, generator) if generator.random() < 0.3 else data


def mutate_value(value, generator, news=PLAIN, *, with_root=False):
    """A copy of a structure with one or a few things changed at random depths, perhaps all of it."""
    changed = copy.deepcopy([value])
    for _ in range(int(choose(generator, [1, 1, 2, 4]))):
        _mutate_once(changed if with_root else changed[0], generator, news)
    return changed[0]


def _mutate_once(value, generator, news):
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = choose(generator, keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and generator.random() < 0.8:
            value = inner
            continue
        choose(generator, CHANGES)(value, key, keys, generator, news)
        return


def _replace(value, key, keys, generator, news):
    value[key] = copy.deepcopy(choose(generator, news))


def _drop(value, key, keys, generator, news):
    if len(keys) > 1:
        del value[key]


def _swap(value, key, keys, generator, news):
    other = choose(generator, keys)
    value[key], value[other] = value[other], value[key]


def _double(value, key, keys, generator, news):
    if isinstance(value[key], list):
        value[key].extend(copy.deepcopy(value[key]))


def _nest(value, key, keys, generator, news):
    for _ in range(int(choose(generator, [1, 2, 50]))):
        value[key] = [value[key]]


def _rename(value, key, keys, generator, news):
    if isinstance(value, dict):
        value[choose(generator, ["", "x", "item_id", "__class__", "é"])] = value.pop(key)


CHANGES = (_replace, _replace, _replace, _drop, _swap, _double, _nest, _rename)


TYPES = [
    pl.String,
    pl.Int8,
    pl.UInt64,
    pl.Int64,
    pl.Float32,
    pl.Float64,
    pl.Boolean,
    pl.Date,
    pl.Datetime("ms"),
    pl.Null,
]
TYPES += [
    pl.Datetime("ns", "UTC"),
    pl.Time,
    pl.Duration,
    pl.Categorical,
    pl.Binary,
    pl.List(pl.Int64),
    pl.Decimal(20, 2),
]


def mutate_frame(frame, generator):
    """Columns that are cast, replaced, dropped, renamed or nested; rows that are repeated or gone."""
    for _ in range(int(choose(generator, [1, 1, 2, 3]))):
        if frame.width:
            name = choose(generator, frame.columns)
            # Not each type of column can be each other.
            with contextlib.suppress(pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
                frame = choose(generator, FRAME_CHANGES)(frame, name, generator)
    return frame


def _put_value(frame, name, generator):
    values = frame[name].to_list()
    if values:
        values[int(generator.integers(len(values)))] = choose(generator, PLAIN)
    return frame.with_columns(pl.Series(name, values, strict=False))


def _rename_column(frame, name, generator):
    news = ["", "x", "é", *(f"{one}_" for one in frame.columns)]
    return frame.rename({name: choose(generator, news)})


def _cast_column(frame, name, generator):
    return frame.with_columns(pl.col(name).cast(choose(generator, TYPES), strict=False))


def _put_into_lists(frame, name, generator):
    return frame.with_columns(pl.Series(name, [[value] for value in frame[name].to_list()], strict=False))


def _put_into_structs(frame, name, generator):
    return frame.with_columns(pl.struct(pl.col(name).alias("a")).alias(name))


FRAME_CHANGES = (
    _put_value,
    _put_value,
    _put_value,
    _rename_column,
    _cast_column,
    _put_into_lists,
    _put_into_structs,
    lambda frame, name, generator: frame.drop(name),
    lambda frame, name, generator: frame.head(int(generator.integers(2))),
    lambda frame, name, generator: pl.concat([frame, frame.head(3)]).reverse(),
)
