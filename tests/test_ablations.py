"""Every ablation's recipe: it changes the variant alone, trains two steps, and its evaluation is traced."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_runs as runs
from test_configs import build
from tiny_network import random_params

from concertormer_jax.inference.compiled import restore_bytes
from concertormer_jax.models import ABLATIONS, Architecture, concertormer, create, parameter_shapes
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.schedule import make_phases
from concertormer_jax.training.setup import module_from, training_from
from concertormer_jax.weights.checkpoints import (
    architecture_dict,
    load_model,
    require_same_architecture,
    save_converted,
)
from configs import ablation

SMALL = {key: value for key, value in runs.TINY_RUN.items() if key != "model.variant"}


def shrunk(name, **settings):
    return runs.override(build(f"ablation:{name}"), SMALL | runs.ONE_STAGE | settings)


@pytest.mark.parametrize("name", ABLATIONS)
def test_recipe_is_that_of_lite_with_another_variant(name):
    recipe, lite = build(f"ablation:{name}").to_dict(), build("gopro:lite").to_dict()
    assert recipe["model"].pop("variant") == name
    assert lite["model"].pop("variant") == "lite"
    assert recipe == lite


def test_the_header_says_the_command_and_every_name():
    header = ablation.__doc__
    assert "python train.py --config=configs/ablation.py:NAME --workdir=" in header
    for name in ABLATIONS:
        assert re.search(rf"\b{name}\b", header), name


def test_the_recipe_of_full_builds_the_network_of_lite():
    full, lite = (module_from(build(recipe).model) for recipe in ("ablation:full", "gopro:lite"))
    assert full == lite


def test_an_unknown_ablation_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"ablation.py:gdmpl is unknown; choose gdmlp, spatial_ripieno, "):
        build("ablation:gdmpl")


def test_every_setting_can_be_set_in_a_config():
    settings = {
        "model.groups": "ripieno_spatial, concertino_spatial",
        "model.communication": "spatial",
        "model.sca": False,
        "model.shift": False,
        "model.block_px": 4,
        "model.two_stage": True,
        "model.multiscale_input": False,
        "model.skip": "concatenation",
    }
    config = runs.override(build("gopro:lite"), settings)
    expected = Architecture(
        ("ripieno_spatial", "concertino_spatial"), "spatial", False, False, 4, True, False, "concatenation"
    )
    assert module_from(config.model) == create("lite", remat=True).clone(architecture=expected)
    nothing = runs.override(build("ablation:skip_sum"), {"model.groups": ""})
    assert module_from(nothing.model) == create("gdmlp", remat=True)
    with pytest.raises(UserError, match=r"config.model.skip='add' is unknown"):
        module_from(runs.override(config, {"model.skip": "add"}).model)


def only_the_decoder(monkeypatch):
    """Leave the blocks of two of three stages out: the decoder's are compiled, with what enters them."""
    stage = concertormer.Stage

    def make(*arguments, name, **settings):
        return stage(*arguments, name=name, **settings) if name == "decoders_0" else lambda x, y: x

    monkeypatch.setattr(concertormer, "Stage", make)


@pytest.mark.parametrize("name", ABLATIONS)
def test_recipe_trains_two_steps_when_shrunk(name, monkeypatch):
    only_the_decoder(monkeypatch)
    size = 2 * create(name).architecture.block_px
    config = shrunk(name, **{"model.width": 8, "model.remat": False, "stages.crop_px": (size,), "stages.batch": (1,)})
    training = training_from(config, make_phases((2,), (size,), (1,)))
    rng = np.random.default_rng(0)
    state = jax.tree.map(  # random
        lambda leaf: jnp.asarray(rng.uniform(-0.3, 0.3, leaf.shape).astype(leaf.dtype)),
        jax.eval_shape(training.initialise, parameter_shapes(training.module)),
    )
    state = state.replace(optimizer=jax.tree.map(jnp.zeros_like, state.optimizer))
    before = jax.device_get(state.params)
    batch = {part: rng.integers(0, 256, (1, size, size, 3)).astype(np.uint8) for part in ("input", "target")}
    step = jax.jit(training.step)
    for _ in range(2):
        state, metrics = step(state, batch)
        assert np.isfinite(metrics["loss"])
    assert state.step == 2
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params["decoders_0"]):
        old = before["decoders_0"]
        for key in path:
            old = old[key.key]
        assert not np.array_equal(leaf, old), jax.tree_util.keystr(path)
    restored, _ = jax.eval_shape(restore_bytes(training.module), state.params, batch["input"])
    assert restored.shape == (1, size, size, 3)


def test_a_checkpoint_says_what_its_network_is_made_of(tmp_path):
    module = module_from(shrunk("gdmlp").model).clone(remat=False)
    save_converted(tmp_path / "saved", module, random_params(module), train_crop_px=16)
    assert load_model(tmp_path / "saved").module == module
    other = module_from(shrunk("gdmlp", **{"model.skip": "concatenation"}).model)
    with pytest.raises(UserError, match="another architecture: skip is sum there and concatenation in this config"):
        require_same_architecture("the folder", architecture_dict(module), other)
