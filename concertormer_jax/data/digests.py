"""Digests of the data of a run, by which they are known again wherever they lie."""

import hashlib
import json

_READ = 8  # pictures or pairs of a set whose content counts, evenly spaced


def digest_of_files(named) -> dict:
    """Return `digest` of files. named: (name, path, ...) for every picture or pair."""
    named = list(named)
    rows = [[name, *(path.stat().st_size for path in paths)] for name, *paths in named]
    return digest(rows, lambda place: [path.read_bytes() for path in named[place][1:]])


def digest(rows: list, content_of) -> dict:
    """Return {"pictures": the number of rows, "digest": of all rows and of the content of some}.

    rows: a list for every picture or pair that JSON can hold, with its name and what is known of it without reading;
    content_of: place in `rows` to a list of bytes.
    """
    total = hashlib.sha256(json.dumps(rows).encode())
    for place in range(0, len(rows), max(1, len(rows) // _READ)):
        for content in content_of(place):
            total.update(hashlib.sha256(content).digest())
    return {"pictures": len(rows), "digest": total.hexdigest()}
