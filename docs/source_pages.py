"""Pages of the site for files that are no documents: a link to a file or folder of the repository opens its text.

A link whose text is the name of a function or class, `[`name`](../concertormer_jax/file.py)`, opens its definition.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

_FOLDER = "source"  # of the site
_LINE = "line"  # prefix of the anchors: #line-12


class LinksToSource(SphinxTransform):
    """Turns links to files and folders, which MyST takes for downloads or unknown documents, into links to pages."""

    default_priority = 100

    def apply(self, **_: Any) -> None:
        """Replace the links of the document that is read, and remember what they lead to."""
        root, page = Path(self.env.srcdir).resolve(), self.env.docname
        links = [*self.document.findall(addnodes.download_reference), *self.document.findall(addnodes.pending_xref)]
        for link in links:
            if link["reftype"] != "myst" or link["refdomain"]:
                continue
            path = (root / page).parent.joinpath(link["reftarget"]).resolve()
            if not path.is_relative_to(root) or not (path.is_dir() or _is_text(path)):
                continue
            name = path.relative_to(root).as_posix()
            _linked(self.env).add(name)
            address = self.app.builder.get_relative_uri(page, f"{_FOLDER}/{name}")
            if path.is_file() and (line := line_of(link.astext(), path.read_text())):
                address += f"#{_LINE}-{line}"
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=address))


def line_of(name: str, text: str) -> int | None:
    """Return the number of the line, from 1, in which Python's `text` defines `name`, such as `Block.__call__`."""
    start, line = 0, None
    for part in name.split("."):
        found = re.compile(rf"^ *(?:def |class |)({re.escape(part)})\b(?=[(:=\[ ])", re.MULTILINE).search(text, start)
        if not found:
            return None
        start, line = found.end(), text.count("\n", 0, found.start(1)) + 1
    return line


def _is_text(path: Path) -> bool:
    try:
        path.read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _linked(env: Any) -> set[str]:
    """The files and folders that documents link to, as paths from the repository's root."""
    if not hasattr(env, "linked_sources"):
        env.linked_sources = set()
    return env.linked_sources


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield (name, content, template) of every page; of a folder, those of its files too."""
    root = Path(app.srcdir).resolve()
    for name in sorted(_linked(app.env)):
        path = root / name
        if path.is_dir():
            files = sorted(filter(_is_text, path.iterdir()))
            items = "".join(f'<li><a href="{path.name}/{file.name}.html">{file.name}</a></li>' for file in files)
            yield _page(name, f"<ul>{items}</ul>")
            yield from (_page(f"{name}/{file.name}", _highlighted(file)) for file in files)
        else:
            yield _page(name, _highlighted(path))


def _page(name: str, body: str) -> tuple[str, dict[str, str], str]:
    title = f"<h1><code>{html.escape(name)}</code></h1>"
    return f"{_FOLDER}/{name}", {"title": name, "body": f'<div class="source-page">{title}{body}</div>'}, "page.html"


def _highlighted(path: Path) -> str:
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(path.read_text(), lexer, HtmlFormatter(lineanchors=_LINE, anchorlinenos=True, linenos="inline"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; Sphinx calls this."""
    app.add_transform(LinksToSource)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False}
