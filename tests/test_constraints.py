"""constraints.txt: one version of everything that pyproject.toml asks for, for every Python that the README names."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from training_runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(text: str) -> list[Requirement]:
    """The requirements of a file, without comments."""
    lines = (re.sub(r"(^| )#.*", "", line).strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


PINNED = requirements((ROOT / "constraints.txt").read_text())
ASKED_FOR = requirements((ROOT / "requirements.txt").read_text())
ASKED_FOR += [Requirement(line) for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra]


def pinned_for(python: str) -> dict[str, str]:
    """The versions for one Python, by name."""
    versions = {}
    for pin in PINNED:
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert canonicalize_name(pin.name) not in versions, f"{pin.name} has two versions for Python {python}"
            versions[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return versions


def test_every_line_is_one_version():
    for pin in PINNED:
        assert pin.url is None and not pin.extras
        assert re.fullmatch(r"==[0-9][\w.]*", str(pin.specifier)), pin


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_all_that_is_asked_for_has_a_version_that_will_do(python):
    versions = pinned_for(python)
    for requirement in ASKED_FOR:
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is missing for Python {python}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is not {version}"
