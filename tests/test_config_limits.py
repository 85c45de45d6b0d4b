"""The table of config keys: no key is left out, nothing without sense passes, and one sentence says what is wrong."""

import math

import pytest
import training_runs as runs
from ml_collections import ConfigDict
from test_configs import RECIPES, build

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.values import Number, OrNone, Several, Switch, Text, Whole, shown
from concertormer_jax.training import config_limits
from concertormer_jax.training.config_limits import KEYS
from configs import common

NAN, INFINITE = math.nan, math.inf


def wrong_values(kind) -> list:
    """At least five values that are not of `kind`: of other types, not finite, out of range, empty."""
    if isinstance(kind, OrNone):
        return [value for value in wrong_values(kind.kind) if value is not None]
    if isinstance(kind, Whole):
        huge = (10**9 + 1) * 10**9
        return [kind.least - 1, kind.most + 1, -huge, huge, NAN, INFINITE, 8.5, "8", "", True, None, (8,)]
    if isinstance(kind, Number):
        huge = [-1e300, 1e300, 10**400]
        return [NAN, INFINITE, -INFINITE, *huge, kind.least - 1, kind.most + 1, "0.5", "", True, None, (0.5,)]
    if isinstance(kind, Switch):
        return [0, 1, 1.0, NAN, "True", "", None, ()]
    if isinstance(kind, Several):
        entries = [(value,) * max(1, kind.fewest) for value in wrong_values(kind.each)]
        (good,) = [value for value in (1, 64) if value in kind.each][-1:]
        too_many = (good,) * (kind.most + 1)
        too_few = [()] if kind.fewest else []
        return [*entries, too_many, *too_few, ((good,),), (good, None), good, NAN, str(good), "", None]
    if isinstance(kind, Text):
        return ["a\0b", "a\nb", "\x1b[31m", "x" * 10**5, 3, 2.5, NAN, True, None, ("a",)]
    return ["nope", "x" * 10**5, "a\nb", 3, NAN, True, None, ("a",)]


def accepted(key: str, value) -> bool:
    """Whether the config takes `value` for `key`; what it refuses is refused with one sentence of key and value."""
    values = common.get_config().to_dict()
    *groups, name = key.split(".")
    (values[groups[0]] if groups else values)[name] = value
    try:
        config_limits.require_valid(ConfigDict(values))
    except UserError as error:
        sentence = str(error)
        assert f"config.{key}" in sentence and shown(value) in sentence
        assert sentence.isprintable() and len(sentence) < 800
        return False
    return True


def test_the_table_has_the_keys_of_the_config():
    assert set(KEYS) == config_limits.flat(common.get_config()).keys()


@pytest.mark.parametrize("key", KEYS)
def test_what_makes_no_sense_is_refused_for_every_key(key):
    wrong = wrong_values(KEYS[key])
    assert len(wrong) >= 5
    assert [value for value in wrong if accepted(key, value)] == []


@pytest.mark.parametrize("key", KEYS)
def test_the_ends_of_every_range_are_accepted(key):
    kind = KEYS[key].kind if isinstance(KEYS[key], OrNone) else KEYS[key]
    if isinstance(kind, Whole | Number):
        assert kind.least in KEYS[key] and kind.most in KEYS[key]
    if isinstance(KEYS[key], OrNone):
        assert accepted(key, None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe):
    config_limits.require_valid(build(recipe))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"optimizer.final_learning_rate": 0.01},
            "config.optimizer.final_learning_rate=0.01 must not be more than config.optimizer.learning_rate=0.001",
        ),
        ({"data.blur_min_px": 15.0}, "config.data.blur_min_px=15.0 must not be more than config.data.blur_max_px=14.0"),
        (
            {"data.noise_sigma": (25.0, 15.0)},
            "config.data.noise_sigma=(25.0, 15.0) must have the lower number first",
        ),
        ({"data.jpeg_quality": (50,)}, "config.data.jpeg_quality=(50,) must be () or two numbers"),
        ({"data.jpeg_quality": (50, 40)}, "config.data.jpeg_quality=(50, 40) must be () or two numbers"),
        ({"run.profile_steps": (10,)}, "config.run.profile_steps=(10,) must be () or two numbers"),
        ({"run.profile_steps": (15, 10)}, "config.run.profile_steps=(15, 10) must be () or two numbers"),
        (
            {"data.shares": (1.0, 2.0), "data.source": "one"},
            "config.data.shares=(1.0, 2.0) must have one entry for each of the 1 sources",
        ),
        ({"data.shares": (0.001, 1000.0)}, "config.data.shares=(0.001, 1000.0): each must be at least 0.001 of"),
        ({"stages.steps": (10**9, 1)}, "config.stages.steps=(1000000000, 1) must not be more than 1000000000 together"),
        (
            {"stages.batch": (65536,), "stages.crop_px": (4096,), "stages.steps": (1,)},
            "config.stages.batch=(65536,): 65536 images of config.stages.crop_px=4096 are more than 4294967296 pixels",
        ),
    ],
)
def test_keys_that_do_not_agree_are_refused(changed, sentence):
    with pytest.raises(UserError) as error:
        config_limits.require_valid(runs.override(common.get_config(), changed))
    assert str(error.value).startswith(sentence)


def test_a_config_that_is_not_that_of_common_is_refused():
    for other in (None, {"seed": 0}, 3):
        with pytest.raises(UserError, match=r"the config is a \w+; get_config\(\) returns that of configs/common.py"):
            config_limits.require_valid(other)
    lacking, surplus = common.get_config(), common.get_config()
    del lacking.stages
    with pytest.raises(UserError, match=r"config.stages.steps is missing; begin with"):
        config_limits.require_valid(lacking)
    surplus.optimizer.lr = 1.0
    with pytest.raises(UserError, match=r"config.optimizer.lr: the config has no such key; see configs/common.py"):
        config_limits.require_valid(surplus)
