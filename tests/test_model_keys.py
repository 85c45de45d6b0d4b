"""Every value of a named network can be set by its key, on the command line."""

import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from concertormer_jax.models import ABLATIONS, VARIANTS, Restormer, create
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.setup import module_from

ROOT = Path(__file__).parent.parent
RESTORMER = {"attention": "transposed", "norm_bias": True}  # what its variants that do not name them have


def model_of(monkeypatch, *arguments):
    """`config.model` of configs/common.py with flags such as --config.model.width=8."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    command = ["train.py", f"--config={ROOT / 'configs' / 'common.py'}", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    values(command)
    return values.config.model


def as_flag(name, value):
    if name == "groups":
        value = ",".join(value)
    elif isinstance(value, tuple):
        value = "".join(f"{entry}," for entry in value)
    return f"--config.model.{name}={value}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_fields_of_a_variant_are_set_by_their_keys(monkeypatch, variant):
    kind = VARIANTS[variant]
    other = next(name for name, one in VARIANTS.items() if one.network is kind.network and name != variant)
    fields = (RESTORMER if kind.network is Restormer else {}) | kind.fields
    keys = [as_flag(name, value) for name, value in fields.items()]
    model = model_of(monkeypatch, f"--config.model.variant={other}", *keys)
    assert module_from(model) == create(variant, remat=True)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_fields_of_a_form_are_set_by_their_keys(monkeypatch, ablation):
    keys = [as_flag(name, value) for name, value in ABLATIONS[ablation].items()]
    assert module_from(model_of(monkeypatch, "--config.model.variant=lite", *keys)) == create(ablation, remat=True)


def test_expansion_is_any_number_for_restormer_and_whole_for_others(monkeypatch):
    model = model_of(monkeypatch, "--config.model.variant=restormer", "--config.model.expansion=2.5")
    assert module_from(model).expansion == 2.5
    whole = module_from(model_of(monkeypatch, "--config.model.variant=lite", "--config.model.expansion=4"))
    assert whole.expansion == 4 and isinstance(whole.expansion, int)
    for value in ("2.66", "nan", "inf"):
        model = model_of(monkeypatch, "--config.model.variant=lite", f"--config.model.expansion={value}")
        with pytest.raises(UserError, match=rf"config\.model\.expansion={value} must be a whole number"):
            module_from(model)
