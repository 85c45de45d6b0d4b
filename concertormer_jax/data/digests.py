"""Digests of the data of a run, by which they are known again wherever they lie."""

import hashlib
import json

_READ = 8  # files of a set that are read as a whole, evenly spaced


def digest_of_files(named) -> dict:
    """Return {"pictures": their number, "digest": of their names, the sizes of their files and some files' content}.

    named: (name, path, ...) for every picture or pair.
    """
    named = list(named)
    read = set(range(0, len(named), max(1, len(named) // _READ)))
    rows = []
    for place, (name, *paths) in enumerate(named):
        contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] if place in read else []
        rows.append([name, *(path.stat().st_size for path in paths), *contents])
    return digest_of_rows(rows)


def digest_of_rows(rows: list) -> dict:
    """Return the same of rows that JSON can hold, the first of each a picture's name."""
    text = json.dumps(sorted(rows), ensure_ascii=False)
    return {"pictures": len(rows), "digest": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()}
