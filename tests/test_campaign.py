"""The campaign: what goes wrong in a year of use, in one evening. `pytest -n 0 -m long -s tests/test_campaign.py`

Each part prints its counts. Nothing is lost, nothing is silent, and there is no traceback. Damage to the files of
checkpoints is in test_damaged_checkpoints.py, thousands of weights files in test_weights_fuzz.py.
"""

import random
import subprocess
import sys
import time

import numpy as np
import pytest
import training_runs as runs
from command_lines import parse_all, run_all, sentence_of
from test_weights_fuzz import SAVED_BY_TORCH, mutated
from tiny_network import random_params, tiny_network

from concertormer_jax.commands import convert
from concertormer_jax.data.images import write_png
from concertormer_jax.runtime.values import Number, OrNone, Several, Switch, Text, Whole
from concertormer_jax.training.config_limits import KEYS
from concertormer_jax.weights.checkpoints import load_model, save_converted

pytestmark = pytest.mark.long

LAST_STEP, RUNS = 200, 5
BEGINNINGS = [  # of a start, before its first step: words of the output, and seconds after them
    *[("seed:", 0.0), ("seed:", 1.0), ("parameters,", 0.0), ("parameters,", 0.2), ("compiling the step", 0.0)],
    *[("compiling the step", 0.5), ("compiled in", 0.0), ("compiled in", 0.1), ("compiling the validation", 0.0)],
    ("compiling the validation", 0.3),
]


def moments_of(number: int) -> list[tuple[str, float]]:
    """When to kill one of the runs: five starts that each get further, or go on from where the one before was."""
    early, late = BEGINNINGS[2 * number : 2 * number + 2]
    return [
        (f"step {6 + number}/", 0.0),
        early,
        (f"step {60 + number}/", 0.03 * number),  # a checkpoint is due every five steps
        late,
        (f"step {140 + number}/", 0.1 * number),
    ]


def kill_at(command: list[str], words: str, delay_s: float) -> None:
    """Start `command` and kill it `delay_s` after it says `words`; it must not have ended before."""
    process = runs.start(command, devices=1)
    next(line for line in process.stdout if words in line)
    time.sleep(delay_s)
    assert process.poll() is None
    process.kill()
    said, _ = process.communicate(timeout=600)
    assert "Traceback" not in said, said


def test_runs_killed_at_25_moments_end_as_one_that_was_left_alone(tmp_path):
    runs.write_photos(tmp_path / "photos")
    stages = {"stages.steps": (100, 100), "stages.crop_px": (16, 32), "stages.batch": (2, 2)}
    settings = runs.TINY_RUN | runs.WITHOUT_ATTENTION | stages | {"data.source": str(tmp_path / "photos")}
    settings["run.checkpoint_every_steps"] = 5
    runs.finish(runs.start(runs.command(tmp_path / "undisturbed", settings), devices=1))
    expected = runs.stored_state(tmp_path / "undisturbed", LAST_STEP)
    kills = 0
    for number in range(RUNS):
        workdir = tmp_path / f"run{number}"
        for words, delay_s in moments_of(number):
            kill_at(runs.command(workdir, settings), words, delay_s)
            kills += 1
        assert any((workdir / "checkpoints").iterdir())
        runs.finish(runs.start(runs.command(workdir, settings), devices=1))
        runs.assert_identical(runs.stored_state(workdir, LAST_STEP), expected)
        assert load_model(workdir).step <= LAST_STEP
    assert kills == 25
    print(f"\n{kills} kills in {RUNS} runs, all of which end bit-identical")


def wrong_texts(kind) -> list[str]:
    """Five values that a command line can give and a key of `kind` cannot take."""
    match kind:
        case OrNone():
            return wrong_texts(kind.kind)
        case Whole():
            return ["x", "nan", "1.5", str(kind.least - 1), str(kind.most + 1)]
        case Number():
            return ["x", "nan", "inf", str(kind.least - 1), str(kind.most + 1)]
        case Switch():
            return ["x", "nan", "2", "maybe", ""]
        case Several():
            return ["x", "8 8", "nan", "(None,)", "((8,),)"]
        case Text():  # whatever can be printed is text
            return ["a\nb", "\x1b[31m", "\t", "\x7f", "x" * 5000]
    return ["nope", "a\nb", "1", "None", "x" * 5000]


def test_five_wrong_values_for_every_key_are_one_sentence_each():
    lines = [
        ["--config=configs/demo.py", "--workdir=never", f"--config.{key}={text}"]
        for key, kind in KEYS.items()
        for text in wrong_texts(kind)
    ]
    for line, result in zip(lines, parse_all("concertormer_jax.commands.train", lines), strict=True):
        assert f"{line[-1].partition('=')[0].lstrip('-')}=" in sentence_of(*result), line
    assert len(lines) == 5 * len(KEYS)
    print(f"\n{len(lines)} wrong values for {len(KEYS)} keys, each refused with one sentence")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, pictures, pairs, a file and an empty folder."""
    folder = tmp_path_factory.mktemp("place")
    module = tiny_network()
    save_converted(folder / "ckpt", module, random_params(module), train_crop_px=64)
    for part in ("pictures", "pairs/input", "pairs/target"):
        runs.write_photos(folder / part, 2, 96)
    for name in ("configs", "photos"):
        (folder / name).symlink_to(runs.ROOT / name)
    write_png(folder / "large.png", np.zeros((700, 700, 3), np.uint8))
    (folder / "file").write_text("")
    (folder / "empty").mkdir()
    return folder


EVALUATE = "--ckpt=ckpt --data=pairs --output=out"
PICTURE = "--ckpt=ckpt pictures/photo0.png"
DEMO = "--config=configs/demo.py"
WRONG = {  # by command and the beginning of its arguments: what is wrong, each in a command of its own
    ("evaluate", ""): ["--ckpt=", "--ckpt=nowhere", "--ckpt=file", "--ckpt=empty", "--ckpt=ckpt left over"],
    ("evaluate", EVALUATE): [
        *[f"--batch={value}" for value in ("0", "-1", "x", "1e99", "nan")],
        *[f"--tlc={value}" for value in ("", "on", "a/b", "-64", "100", "9" * 30, "nan")],
        *[f"--metrics={value}" for value in ("", ",", "psnr")],
        *[f"--output={value}" for value in ("", "file", "file/x", "/proc/x", "x" * 300)],
        *[f"--data={value}" for value in ("", "nowhere", "file", "empty", "tfds:nope", "tfds:../x", "s3://b/x")],
        *["--protocol=", "--protocol=nope", "--predictions=pictures", "--nothing", "--data-dir="],
    ],
    ("restore", f"{PICTURE} out.png"): [
        *[f"{flag}={value}" for flag in ("--tile", "--tlc") for value in ("", "-1", "x", "100", "9" * 30, "nan")],
        *["--ckpt=", "--ckpt=nowhere", "--ckpt=file"],
    ],
    ("restore", "--ckpt=ckpt"): [
        "nowhere out.png",
        "pictures/photo0.png out.xyz",
        "file out.png",
        "pictures file",
        "x",
    ],
    ("convert", ""): ["nowhere out", "file out", "empty out", "ckpt /proc/x.pth", "ckpt out.xyz", "ckpt"],
    ("prepare", ""): [
        "nope --source=pictures",
        "gopro --source=",
        "gopro --source=file",
        "gopro --source=empty",
        "gopro",
    ],
    ("table", ""): ["nowhere", "file", "empty", "--output=/proc/x", "--output=empty", "--output=file/x"],
    ("synthesize", "pictures"): [
        "",
        "/proc/x",
        "file/x",
        "out --seed=-1",
        "out --seed=nan",
        "out --degradation=fog",
    ],
    ("contact_sheet", "large.png"): [
        *["/proc/x.png", "file/x.png", "out.xyz", "out.png --seed=-1", "out.png --seed=nan", "out.png --seed=1e99"]
    ],
    ("attribution", PICTURE): [
        *[f"--window={value}" for value in ("", "1,1", "-1,1,4", "90,90,40", "9" * 5000 + ",1,1")],
        *[f"{flag}={value}" for flag in ("--sigma", "--steps", "--kernel", "--batch") for value in ("0", "nan", "1e9")],
        *["--kernel=4", "--crop=4", "--crop=-1", "--output=/proc/x", "--output=file"],
    ],
    ("receptive_field", PICTURE): ["--crop=0", "--crop=999", "--crop=1e9", "--crop=32 --output=/proc/x", "--output="],
    ("attention_maps", PICTURE): [
        *["--stage=", "--stage=nope", "--block=0", "--block=99", "--crop=-1", "--output=x.jpg", "--output=/proc/x.png"]
    ],
    ("summary", "demo"): [
        *[f"--size={value}" for value in ("", "0", "-1", "nan", "1e3", "9" * 9, "8x", "9" * 5000)],
        *[f"--chart={value}" for value in ("", "x", "x.xyz", "/proc/x.png", "file/x.png", "empty")],
    ],
    ("summary", ""): ["", "nope", "demo left"],
    ("plan", DEMO): ["", "--device=tpu", "--tpu=", "--tpu=v5e:0x0", "--tpu=x"],
    ("plan", f"{DEMO} --device=cpu"): [
        *[f"{flag}={value}" for flag in ("--evaluate", "--forward") for value in ("", "0x0", "-1x5", "9", "9x99999")],
        *["--tlc=", "--profile=-1", "--profile=x", "--only=x", "--output=", "--output=/proc/x", "left"],
        *["--config.model.width=3", "--config.stages.crop_px=8,", "--config.optimizer.constant_steps=500"],
    ],
    ("ablation_study", ""): ["", "--output=", "--output=/proc/x", "--output=out --config.optimizer.lr=1"],
    ("ablation_study", "--output=never"): [
        *["--steps=0", "--steps=x", f"--steps={10**12}", "--seeds=", "--seeds=-1", f"--seeds={10**12}"],
        *["--variants=half", "--config=nowhere.py", "--config.stages.steps=8.5,"],
    ],
}
TRAIN = [  # each in a process of its own
    *["", "--workdir=", "--workdir=never left", "--workdir=never --distributed", "--workdir=file/x"],
    *["--workdir=never --flagfile=/no/such/file", "--workdir=s3://bucket/x", "--workdir=gs://"],
    *["--workdir=never --config.data.source=nowhere", "--workdir=never --config.data.source="],
    *["--workdir=never --config.init_from=nowhere", "--workdir=never --config.model.width=3"],
]


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in WRONG))
def test_wrong_command_lines_are_one_sentence(place, name):
    module = f"concertormer_jax.commands.{name}"
    lines = [f"{start} {end}".split() for (of, start), ends in WRONG.items() if of == name for end in ends]
    for line, (status, said) in zip(lines, run_all(module, lines, place, "configs/evidence.py"), strict=True):
        assert "Traceback" not in said, (line, said)
        assert status == 2, (line, status, said)
        (sentence,) = [one for one in said.splitlines() if one.startswith("error: ")]
        assert sentence.isprintable() and len(sentence) < 6000, line
    assert not [path for path in ("out", "out.png", "out.xyz", "never") if (place / path / "checkpoints").exists()]
    print(f"\n{name}: {len(lines)} wrong command lines, each refused with one sentence")


def test_wrong_command_lines_of_the_training_are_one_sentence(place):
    for end in TRAIN:
        done = subprocess.run(
            [sys.executable, runs.ROOT / "train.py", DEMO, *end.split()],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert "Traceback" not in done.stderr, (end, done.stderr)
        assert done.returncode == 2, (end, done.returncode, done.stderr)
        assert done.stderr.count("error: ") == 1, (end, done.stderr)
    assert not (place / "never" / "checkpoints" / "0").exists()
    print(f"\ntrain: {len(TRAIN)} wrong command lines, each refused with one sentence")


def test_hostile_weights_files_are_one_sentence(tmp_path, capsys):
    rng, files, refused = random.Random(3), 300, 0
    whole = SAVED_BY_TORCH.read_bytes()
    for number in range(files):
        path = tmp_path / f"w{number}.pth"
        path.write_bytes(mutated(whole, rng))
        with pytest.raises(SystemExit) as stopped:  # the weights of no network, whole or not
            convert.main([str(path), str(tmp_path / f"out{number}")])
        sentence = sentence_of(stopped.value.code, capsys.readouterr().err)
        assert sentence.isprintable() and len(sentence) < 1000
        assert not (tmp_path / f"out{number}").exists()
        refused += 1
    print(f"\n{files} hostile weights files, {refused} refused with one sentence")
