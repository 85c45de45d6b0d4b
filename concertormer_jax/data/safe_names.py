"""Names that came with data, before they become paths."""

import unicodedata

from concertormer_jax.errors import UserError

_LONGEST = 255  # bytes of a file's name, on nearly all file systems
_SUFFIX = ".png"  # the longest that is put behind a name


def checked_name(name: str, origin) -> str:
    """Return `name` if it can stand for a file below any folder: one or more parts between slashes, none of them `..`.

    origin: where the name comes from, for messages. Raises UserError for anything else: an absolute path, one that
    leads out of its folder, an empty or too long part, backslashes, control characters, bytes that are no text.
    """
    if isinstance(name, str):
        parts = name.split("/")
        longest = max(len(part.encode("utf-8", "surrogatepass")) for part in parts) + len(_SUFFIX)
        unprintable = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
        if not unprintable and longest <= _LONGEST and "\\" not in name and not {"", ".", ".."} & set(parts):
            return name
    raise UserError(f"{origin}: {_shown(name)} is no name that a file can have here; rename it where it comes from.")


def checked_part(name: str, origin) -> str:
    """Return `name` like `checked_name`, if it is one part alone."""
    if "/" in checked_name(name, origin):
        raise UserError(f"{origin}: {_shown(name)} is a path in place of a name; rename it where it comes from.")
    return name


def _shown(name) -> str:
    text = ascii(name)
    return text if len(text) <= 80 else f"{text[:76]}..."
