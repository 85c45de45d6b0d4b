"""The campaign: what goes wrong in a year of use, in one evening. `pytest -n 0 -m long -s tests/test_campaign.py`

Each part prints its counts. Nothing is lost, nothing is silent, and there is no traceback. Damage to the files of
checkpoints is in test_damaged_checkpoints.py, thousands of weights files in test_weights_fuzz.py.
"""

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import training_runs as runs
from command_lines import parse_all, sentence_of
from test_weights_fuzz import SAVED_BY_TORCH, mutated
from tiny_network import random_params, tiny_network

from concertormer_jax import convert
from concertormer_jax.checkpoints import load_model, save_converted
from concertormer_jax.data.images import write_png
from concertormer_jax.training.config_limits import KEYS
from concertormer_jax.values import Number, OrNone, Several, Switch, Text, Whole

pytestmark = pytest.mark.long

LAST_STEP = 24
# When to kill: words of the output, and seconds after them.
MOMENTS = [
    *[("seed:", 0.0), ("seed:", 0.5), ("seed:", 2.0), ("parameters,", 0.0), ("parameters,", 0.2)],
    *[("compiling the step", 0.0), ("compiling the step", 0.5), ("compiled in", 0.0), ("compiled in", 0.1)],
    *[("compiling the validation", 0.0), ("compiling the validation", 0.3)],
    *[("step ", delay / 100) for delay in range(14)],
]
RUNS = 5


def train_until(command: list[str], words: str, delay_s: float) -> None:
    """Start `command` and kill it `delay_s` after `words`, or let it end."""
    process = runs.start(command, devices=1)
    for line in process.stdout:
        if words in line:
            time.sleep(delay_s)
            process.kill()
            break
    said, _ = process.communicate(timeout=600)
    assert "Traceback" not in said, said


def test_runs_killed_at_25_moments_end_as_one_that_was_left_alone(tmp_path):
    runs.write_photos(tmp_path / "photos")
    stages = {"stages.steps": (12, 12), "stages.crop_px": (16, 32), "stages.batch": (2, 2)}
    settings = runs.TINY_RUN | runs.WITHOUT_ATTENTION | stages | {"data.source": str(tmp_path / "photos")}
    runs.finish(runs.start(runs.command(tmp_path / "undisturbed", settings), devices=1))
    expected = runs.stored_state(tmp_path / "undisturbed", LAST_STEP)
    random.Random(0).shuffle(MOMENTS)
    identical = 0
    for number in range(RUNS):
        command = runs.command(tmp_path / f"run{number}", settings)
        for words, delay_s in MOMENTS[number::RUNS]:
            train_until(command, words, delay_s)
        runs.finish(runs.start(command, devices=1))
        runs.assert_identical(runs.stored_state(tmp_path / f"run{number}", LAST_STEP), expected)
        assert load_model(tmp_path / f"run{number}").step <= LAST_STEP
        identical += 1
    print(f"\n{len(MOMENTS)} kills in {RUNS} runs, {identical} of which end bit-identical")


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
    for line, result in zip(lines, parse_all("train", lines), strict=True):
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


EVALUATE = "evaluate.py --ckpt=ckpt --data=pairs --output=out"
RESTORE = "-m concertormer_jax.restore --ckpt=ckpt pictures/photo0.png out.png"
ATTRIBUTION = "-m concertormer_jax.attribution --ckpt=ckpt pictures/photo0.png"
FIELD = "-m concertormer_jax.receptive_field --ckpt=ckpt pictures/photo0.png"
MAPS = "-m concertormer_jax.attention_maps --ckpt=ckpt pictures/photo0.png"
PLAN = "-m concertormer_jax.plan --config=configs/demo.py"
SHEET = "-m concertormer_jax.data.contact_sheet large.png"
TRAIN = "train.py --config=configs/demo.py"
SUMMARY = "-m concertormer_jax.summary demo"
WRONG = {  # by the beginning of the command: what is wrong, each in a command of its own
    "evaluate.py": ["", "--ckpt=", "--ckpt=nowhere", "--ckpt=file", "--ckpt=empty", "--ckpt=ckpt left over"],
    EVALUATE: [
        *[f"--batch={value}" for value in ("0", "-1", "x", "1e99", "nan")],
        *[f"--tlc={value}" for value in ("", "on", "a/b", "-64", "100", "9" * 30, "nan")],
        *[f"--metrics={value}" for value in ("", ",", "psnr")],
        *[f"--output={value}" for value in ("", "file", "file/x", "/proc/x", "x" * 300)],
        *[f"--data={value}" for value in ("", "nowhere", "file", "empty", "tfds:nope", "tfds:../x", "s3://b/x")],
        *["--protocol=", "--protocol=nope", "--predictions=pictures", "--nothing", "--data-dir="],
    ],
    RESTORE: [f"{flag}={value}" for flag in ("--tile", "--tlc") for value in ("", "-1", "x", "100", "9" * 30, "nan")],
    "-m concertormer_jax.restore --ckpt=ckpt": ["nowhere out.png", "pictures/photo0.png out.xyz", "file out.png", "x"],
    "-m concertormer_jax.restore pictures/photo0.png": [
        "out.png --ckpt=",
        "out.png --ckpt=nowhere",
        "/proc/x --ckpt=ckpt",
    ],
    "-m concertormer_jax.convert": [
        "nowhere out",
        "file out",
        "empty out",
        "ckpt /proc/x.pth",
        "ckpt out.xyz --nothing",
    ],
    "-m concertormer_jax.prepare": ["nope --source=pictures", "gopro --source=", "gopro --source=file", "gopro"],
    "-m concertormer_jax.evaluation.table": ["nowhere", "file", "empty", "--output=/proc/x", "--output=empty"],
    "-m concertormer_jax.data.synthesize pictures": ["", "/proc/x", "file/x", "out --seed=-1", "out --degradation=fog"],
    SHEET: ["/proc/x.png", "file/x.png", "out.xyz", "out.png --seed=-1", "out.png --seed=nan", "out.png --seed=1e99"],
    ATTRIBUTION: [
        *[f"--window={value}" for value in ("", "1,1", "-1,1,4", "90,90,40", "9" * 5000 + ",1,1")],
        *[
            f"{flag}={value}"
            for flag in ("--sigma", "--steps", "--kernel", "--batch")
            for value in ("0", "nan", "1e99")
        ],
        *["--kernel=4", "--crop=4", "--crop=-1", "--output=/proc/x", "--output=file"],
    ],
    FIELD: ["--crop=0", "--crop=999", "--crop=1e9", "--crop=32 --output=/proc/x", "--crop=32 --output="],
    MAPS: [
        "--stage=",
        "--stage=nope",
        "--block=0",
        "--block=99",
        "--crop=-1",
        "--output=x.jpg",
        "--output=/proc/x.png",
    ],
    SUMMARY: [
        *[f"--size={value}" for value in ("", "0", "-1", "nan", "1e3", "9" * 9, "8x", "9" * 5000)],
        *[f"--chart={value}" for value in ("", "x", "x.xyz", "/proc/x.png", "file/x.png", "empty")],
    ],
    "-m concertormer_jax.summary": ["", "nope", "demo left"],
    PLAN: ["", "--device=tpu", "--tpu=", "--tpu=v5e:0x0", "--tpu=x"],
    f"{PLAN} --device=cpu": [
        *[
            f"{flag}={value}"
            for flag in ("--evaluate", "--forward")
            for value in ("", "0x0", "-1x5", "9", "99999x99999")
        ],
        *["--tlc=", "--profile=-1", "--profile=x", "--only=x", "--output=", "--output=/proc/x", "left"],
        *["--config.model.width=3", "--config.stages.crop_px=8,", "--config.optimizer.constant_steps=500"],
    ],
    "-m concertormer_jax.evidence": ["", "--output=", "--output=/proc/x", "--output=out --config.optimizer.lr=1"],
    "-m concertormer_jax.evidence --output=never": [
        *["--steps=0", "--steps=x", f"--steps={10**12}", "--seeds=", "--seeds=-1", f"--seeds={10**12}"],
        *["--variants=half", "--config=nowhere.py", "--config.stages.steps=8.5,"],
    ],
    TRAIN: [
        *["", "--workdir=", "--workdir=never left", "--workdir=never --distributed", "--workdir=file/x"],
        *["--workdir=never --flagfile=/no/such/file", "--workdir=s3://bucket/x", "--workdir=gs://"],
        *["--workdir=never --config.data.source=nowhere", "--workdir=never --config.data.source="],
        *["--workdir=never --config.init_from=nowhere", "--workdir=never --config.model.width=3"],
    ],
}


def test_wrong_command_lines_are_one_sentence(place):
    lines = [(f"{start} {end}").split() for start, ends in WRONG.items() for end in ends]
    for line in lines:
        program = [runs.ROOT / line[0]] if line[0].endswith(".py") else line[:1]
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, *program, *line[1:]],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(runs.ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert "Traceback" not in done.stderr, (line, done.stderr)
        assert done.returncode == 2, (line, done.returncode, done.stderr)
        (sentence,) = [said for said in done.stderr.splitlines() if said.startswith("error: ")]
        assert sentence.isprintable() and len(sentence) < 6000, line
        assert time.monotonic() - started < 300, line
    assert not (place / "out.png").exists() and not (place / "never" / "checkpoints").exists()
    print(f"\n{len(lines)} wrong command lines, each refused with one sentence")


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
