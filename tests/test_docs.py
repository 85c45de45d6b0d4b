"""The documentation site: it builds without a warning, its notebook runs, and every link in it leads somewhere."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from training_runs import ROOT

from docs.docstrings import as_restructured_text
from docs.source_pages import line_of


class Page(HTMLParser):
    """What a page links to, what it loads, and the names of its places."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.places |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found["href"])
        elif found.get("src"):
            self.loads.append(found["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` does; every page by its path."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fresh-env", "--fail-on-warning", "--keep-going"]
    command += ["-c", "docs", ".", str(folder)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return {file.relative_to(folder).as_posix(): Page(file.read_text()) for file in folder.rglob("*.html")}, folder


def test_every_link_leads_somewhere(site):
    pages, folder = site
    assert {"index.html", "docs/tour.html", "README.html", "docs/api.html", "docs/notebook.html"} <= pages.keys()
    followed = 0
    for name, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme:
                continue
            target = (
                os.path.normpath(os.path.join(os.path.dirname(name), unquote(address.path))) if address.path else name
            )
            assert (folder / target).is_file(), f"{name}: {link}"
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].places, f"{name}: {link}"
            followed += 1
    assert followed > 1000


def test_pages_load_nothing_from_elsewhere(site):
    pages, folder = site
    for name, page in pages.items():
        for link in page.loads:
            address = urlsplit(link)
            assert address.scheme in ("", "data"), f"{name}: {link}"
            if not address.scheme:
                assert (folder / os.path.dirname(name) / unquote(address.path)).is_file(), f"{name}: {link}"


def test_links_to_functions_open_their_definition(site):
    pages, _ = site
    line = line_of("split_blocks", (ROOT / "concertormer_jax/ops/blocks.py").read_text())
    assert f"../source/concertormer_jax/ops/blocks.py.html#line-{line}" in pages["docs/tour.html"].links
    assert "../source/deploy.html" in pages["docs/cloud.html"].links


def test_the_notebook_was_run_and_shows_what_came_of_it(site):
    pages, folder = site
    text = (folder / "docs/notebook.html").read_text()
    assert len([link for link in pages["docs/notebook.html"].loads if "_images/" in link]) == 3
    assert "in-the-box" in text and "fine-tuned" in text


def test_no_outputs_are_stored_in_the_notebook():
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )


def test_the_line_of_a_definition():
    text = "import a\n\nLIMIT: int = 3\n\nclass B:\n    def __call__(self): ...\n\ndef b(): ...\n"
    assert [line_of(name, text) for name in ("LIMIT", "B", "B.__call__", "b", "c")] == [3, 5, 6, 8, None]


def test_entries_of_a_docstring_are_a_list():
    text = "Returns |x|.\n\nNote: of two\nlines.\n\nx: a number\n    of any sign.\nlow, high: limits.\n"
    said = "Returns \\|x\\|.\n\nNote: of two\nlines.\n\n- **x**: a number\n  of any sign.\n- **low, high**: limits.\n"
    assert as_restructured_text(text) == said
