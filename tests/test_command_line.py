"""What is mistyped on a command line, or wrong in a config file, is one sentence."""

import argparse

import pytest
from command_lines import parse_all, sentence_of

from concertormer_jax.commands.flags import make_parser, number, parse_arguments, whole

TRAIN = "concertormer_jax.commands.train"
DEMO = "--config=configs/demo.py"
WORKDIR = "--workdir=runs/x"
FROM_COMMON = "from configs import common\ndef get_config():\n    config = common.get_config()\n"
CONFIG_FILES = {  # by name: content, and words of the sentence
    "syntax": ("def get_config(:\n", "line 1: SyntaxError"),
    "import": ("\nimport no_such_module\n", "line 2: ModuleNotFoundError: No module named 'no_such_module'"),
    "raises": ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
    "value": ("def get_config():\n    return int('x')\n", "line 2: ValueError: invalid literal"),
    "memory": ("def get_config():\n    raise MemoryError('all of it')\n", "line 2: MemoryError: all of it"),
    "missing": ("def get_config():\n    return open('/no/such/file')\n", "line 2: FileNotFoundError"),
    "exits": ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
    "without": ("x = 1\n", "defines no get_config()"),
    "called": ("get_config = 3\n", "defines no get_config()"),
    "none": ("def get_config():\n    pass\n", "returns None, not the ConfigDict"),
    "dict": ("def get_config():\n    return {'seed': 0}\n", "returns {'seed': 0}, not the ConfigDict"),
    "argument": ("def get_config(recipe):\n    pass\n", "needs the name of a recipe behind a colon"),
    "two": ("def get_config(recipe, other):\n    pass\n", "needs the name of a recipe behind a colon"),
    "lacks": (FROM_COMMON + "    del config.stages\n    return config\n", "config.stages.steps is missing"),
    "surplus": (
        FROM_COMMON + "    config.optimizer.lr = 1\n    return config\n",
        "config.optimizer.lr: the config has",
    ),
    "typo": (FROM_COMMON + "    config.optimiser.beta1 = 1\n", "line 4: AttributeError"),
    "type": (FROM_COMMON + "    config.stages.steps = 'abc'\n", "line 4: TypeError"),
    "nan": (FROM_COMMON + "    config.data.shares = (float('nan'),)\n    return config\n", "config.data.shares=(nan,)"),
    "binary": ("\0\0\0", "SyntaxError"),
}


def test_a_config_file_that_cannot_be_used_is_one_sentence(tmp_path):
    for name, (content, _) in CONFIG_FILES.items():
        (tmp_path / f"{name}.py").write_text(content)
    lines = [[f"--config={tmp_path / name}.py", WORKDIR] for name in CONFIG_FILES]
    lines += [[*line, "--config.stages.steps=3,"] for line in lines]
    found = parse_all(TRAIN, lines)
    for (name, (_, words)), result in zip([*CONFIG_FILES.items()] * 2, found, strict=True):
        sentence = sentence_of(*result)
        assert sentence.startswith(f"--config={tmp_path / name}.py: ") and words in sentence


def test_a_config_of_the_right_kind_is_taken(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n" + FROM_COMMON + "    config.model.variant = 'demo'\n    return config\n"
        "@dataclasses.dataclass\nclass Mine:\n    x: 'int' = 0\n"
    )
    good = [
        [f"--config={tmp_path / 'mine.py'}", WORKDIR],
        [WORKDIR, "--config", "configs/gopro.py:lite", "--config.stages.steps=1,2,3", "--noconfig.model.remat"],
        [DEMO, WORKDIR, "--config.init_from=", "--config.model.width", "8", "--distributed"],
    ]
    assert parse_all(TRAIN, good) == [(0, "")] * len(good)
    assert parse_all("concertormer_jax.commands.ablation_study", [["--output=x"]], "configs/evidence.py") == [(0, "")]


WRONG_FLAGS = {
    ("--config=configs/gopro.py:nope", WORKDIR): "configs/gopro.py:nope is unknown; choose released, paper, lite",
    ("--config=configs/ablation.py:nope", WORKDIR): "configs/ablation.py:nope is unknown; choose gdmlp",
    ("--config=configs/demo.py:nope", WORKDIR): "takes no recipe; leave out :nope",
    ("--config=nowhere.py", WORKDIR): "nowhere.py is no file and no recipe; the recipes are",
    ("--config=configs", WORKDIR): "configs is no file",
    ("--config=", WORKDIR): "--config= is empty",
    (WORKDIR,): "--config is missing",
    (DEMO,): "--workdir is missing",
    (DEMO, "--workdir="): "--workdir= is empty",
    (DEMO, "--workdir", ""): "'' is empty",
    (DEMO, WORKDIR, "left", "over"): "'left' is no flag of this command",
    ("left", DEMO, WORKDIR): "'left' is no flag of this command",
    (DEMO, WORKDIR, "--", "--config.seed=1"): "'--config.seed=1' is no flag of this command",
    (DEMO, WORKDIR, "--wrokdir=x"): "Unknown command line flag 'wrokdir'",
    (DEMO, WORKDIR, "--distributed=perhaps"): "--distributed=perhaps: must be true or false",
    (DEMO, WORKDIR, "--distributed", "true"): "'true' is no flag",
    (DEMO, WORKDIR, "--flagfile=/no/such/file"): "/no/such/file",
    ("--config.seed=1", DEMO, WORKDIR): "--config.seed=1",
    (DEMO, WORKDIR, "--config.optimizer.lr=1"): "config.optimizer.lr: the config has no such key",
    (DEMO, WORKDIR, "--config.optimizer=1"): "config.optimizer: the config has no such key",
    (DEMO, WORKDIR, "--config.=1"): "config.: the config has no such key",
    (DEMO, WORKDIR, "--config.stages.steps[0]=1"): "config.stages.steps[0]: the config has no such key",
    (DEMO, WORKDIR, "--noconfig.seed"): "noconfig.seed",
    (DEMO, WORKDIR, "--config.seed"): "config.seed",
    (DEMO, WORKDIR, "--config.seed=abc"): "config.seed='abc' must be a whole number from 0",
    (DEMO, WORKDIR, "--config.seed", "1e3"): "config.seed='1e3' must be a whole number from 0",
    (DEMO, WORKDIR, "--config.model.remat=maybe"): "config.model.remat='maybe' must be True or False",
    (DEMO, WORKDIR, "--config.stages.steps=abc"): "config.stages.steps=('abc',) must be a tuple",
    (DEMO, WORKDIR, "--config.stages.steps=(8.5,8)"): "config.stages.steps=(8.5, 8) must be a tuple",
    (DEMO, WORKDIR, "--config.stages.steps=8 8"): "config.stages.steps='8 8' must be a tuple",
    (DEMO, WORKDIR, "--config.stages.steps="): "config.stages.steps",
    (DEMO, WORKDIR, "--config.stages.batch=8,8"): "config.stages.steps=(500,), crop_px=(64,) and batch=(8, 8)",
    (DEMO, WORKDIR, "--config.data.source=" + "x" * 5000): "config.data.source",
}


def test_wrong_flags_are_one_sentence():
    found = parse_all(TRAIN, [*map(list, WRONG_FLAGS)])
    for (line, words), result in zip(WRONG_FLAGS.items(), found, strict=True):
        assert words in sentence_of(*result), line


@pytest.mark.parametrize("words", [["--size="], ["--size", ""], [""], ["--size=3", "--nothing"], ["--size=x"], []])
def test_argparse_refuses_with_one_sentence(words, capsys):
    parser = make_parser(None)
    parser.add_argument("--size", type=whole(1, 9), required=True)
    assert parse_arguments(parser, ["--size=9"]).size == 9
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(parser, words)
    sentence_of(stopped.value.code, capsys.readouterr().err)


@pytest.mark.parametrize("text", ["0", "10", "-1", "nan", "inf", "1e1", "3.0", "x", "9" * 5000, "1_0"])
def test_whole_numbers_out_of_range_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"'.*' must be a whole number from 1 to 9|9\.\.\. must be"):
        whole(1, 9)(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "1e400", "x", "9.1"])
def test_numbers_out_of_range_are_refused(text):
    assert number(0.5, 9)(" 8.5 ") == 8.5
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' must be a number from 0.5 to 9"):
        number(0.5, 9)(text)
