"""The files under deploy/ and the commands of the documents: they parse, and name what exists."""

import importlib
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml
from command_lines import parse_all
from training_runs import ROOT

from concertormer_jax.__main__ import COMMANDS

FILES = sorted(path for path in (ROOT / "deploy").iterdir() if path.is_file())
CLOUD = ROOT / "docs" / "cloud.md"
WITH_CONFIG = {"train": "", "plan": "", "ablation_study": "evidence"}  # commands, and each one's default config
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def strings(tree):
    """All strings of a parsed YAML document; a list of strings is one, as a container's arguments are."""
    if isinstance(tree, list) and all(isinstance(entry, str) for entry in tree):
        yield shlex.join(tree)
    elif isinstance(tree, dict | list):
        for entry in tree.values() if isinstance(tree, dict) else tree:
            yield from strings(entry)
    elif isinstance(tree, str):
        yield tree


def text_of(path) -> str:
    """What a file runs, with lines that are continued joined."""
    if path.suffix == ".yaml":
        parts = strings(yaml.safe_load(path.read_text()))
        text = "\n".join(f"concertormer {part}" if part.startswith("train ") else part for part in parts)
    elif path.suffix == ".md":
        text = "\n".join(re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL))
    else:
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))
    return text.replace("\\\n", " ")


_CALL = re.compile(r"(?:concertormer (?=[a-z])|-m concertormer_jax |python (?=train\.py|evaluate\.py))([^\n\"&|]*)")


def commands_in(path) -> list[tuple[str, list[str]]]:
    """(command, its arguments) of every call of this software in a file."""
    found = []
    for call in _CALL.findall(text_of(path)):
        name, *arguments = shlex.split(call, comments=True)
        found.append((name.removesuffix(".py"), arguments))
    return found


CALLS = [(path, *call) for path in [*FILES, *DOCUMENTS] if path.suffix for call in commands_in(path)]


def test_there_are_calls_to_check():
    files = {path.name for path, *_ in CALLS}
    assert files >= {"jobset.yaml", "sky.yaml", "slurm.sh", "tpu_vm.sh"}
    assert files >= {"README.md", "cloud.md", "datasets.md", "published_weights.md"}


def test_shell_scripts_parse():
    scripts = [path for path in FILES if path.suffix == ".sh"]
    assert scripts
    for script in scripts:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_tpu_that_is_not_to_be_had_ends_the_script(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text("#!/bin/bash\n[[ $* == *describe* ]] && echo FAILED\nexit 0\n")
    gcloud.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "BUCKET": "my-bucket", "ZONE": "us-west4-a"}
    script = ROOT / "deploy" / "tpu_vm.sh"
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith("error: concertormer is FAILED; run this again")


@pytest.mark.parametrize("command", WITH_CONFIG)
def test_every_command_with_a_config_is_accepted(command):
    lines = [arguments for _, name, arguments in CALLS if name == command]
    assert lines
    found = parse_all(f"concertormer_jax.commands.{command}", lines, WITH_CONFIG[command])
    for line, (status, said) in zip(lines, found, strict=True):
        assert status == 0, (line, said)


@pytest.mark.parametrize(("path", "name", "arguments"), [call for call in CALLS if call[1] not in WITH_CONFIG])
def test_every_flag_of_other_commands_exists(path, name, arguments, capsys):
    assert name in COMMANDS, path
    with pytest.raises(SystemExit):
        importlib.import_module(f"concertormer_jax.commands.{name}").main(["--help"])
    known = set(re.findall(r"--[a-z_-]+", capsys.readouterr().out))
    for argument in arguments:
        if argument.startswith("--"):
            assert argument.partition("=")[0] in known, (path, argument)


def test_the_jobset_starts_a_process_on_every_host_of_its_slice():
    manifest = yaml.safe_load((ROOT / "deploy" / "jobset.yaml").read_text())
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sides[0]) * int(sides[1])
    assert spec["parallelism"] == spec["completions"] == chips // container["resources"]["limits"]["google.com/tpu"]
    assert "--distributed" in container["args"]


def test_the_dockerfile_copies_all_that_a_package_is_built_of_and_installs_extras_that_exist():
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    built_of = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert sorted(copied) == sorted([*built_of, "pyproject.toml"])
    assert {"tpu", "cuda"} <= settings["project"]["optional-dependencies"].keys()
    assert f"python:{settings['project']['requires-python'].strip('>=')}" <= re.search(r"FROM (\S+)-slim", text)[1]


def test_every_file_is_named_in_the_document():
    document = CLOUD.read_text()
    for path in FILES:
        assert f"(../deploy/{path.name})" in document, path.name
