"""Text that may come from foreign files or names, on its way to the terminal."""


def printable(text: str) -> str:
    """Return `text` with every character that a terminal could act on, or not print, written as an escape (`\\x1b`).

    That is control and formatting characters, line ends, and bytes of file names that are no text.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
