"""How docstrings and signatures are shown: entries `name: meaning`, one below the other, become a list."""

import re

from sphinx.application import Sphinx

_ENTRY = re.compile(r"(\w+(?:, \w+)*): ")
_CONTINUED = "    "
_OF_EVERY_MODULE = re.compile(r", parent: .*= <flax\..*?>, name: [^,)]*")  # fields that Flax adds


def as_restructured_text(text: str) -> str:
    """Return a docstring with its paragraphs of entries, whose later lines are indented, as lists.

    Bars stay bars: |x| is an absolute value here.
    """
    paragraphs = text.strip("\n").replace("|", r"\|").split("\n\n")
    return "\n\n".join(_listed(paragraph) for paragraph in paragraphs) + "\n"


def _listed(paragraph: str) -> str:
    lines = paragraph.split("\n")
    if not _ENTRY.match(lines[0]) or not all(_ENTRY.match(line) or line.startswith(_CONTINUED) for line in lines):
        return paragraph
    return "\n".join(
        f"  {line.lstrip()}" if line.startswith(_CONTINUED) else _ENTRY.sub(r"- **\1**: ", line, count=1)
        for line in lines
    )


def _process(_app, _what, _name, _obj, _options, lines: list[str]) -> None:
    lines[:] = as_restructured_text("\n".join(lines)).split("\n")


def _short(_app, _what, _name, _obj, _options, signature: str | None, returns: str | None):
    return signature and (_OF_EVERY_MODULE.sub("", signature), returns)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; Sphinx calls this."""
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _short)
    return {"parallel_read_safe": True}
