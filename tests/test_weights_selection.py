"""Which dictionary of a weights file is meant: the network's own names, whatever a trainer put around them."""

import numpy as np
import pytest

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.weights.state_dict import select

KNOWN = {f"encoders.{i}.{name}" for i in range(4) for name in ("weight", "bias")} | {"intro.weight", "intro.bias"}


def weights(number=0, prefix="", names=KNOWN):
    return {f"{prefix}{name}": np.full(1, number) for name in sorted(names)}


def taken(content, key=None):
    """The number that the selected arrays hold, whose names must be the network's; and the remark."""
    tensors, remark = select(content, "w.pth", KNOWN, key)
    assert tensors.keys() == KNOWN
    (number,) = {int(array[0]) for array in tensors.values()}
    return number, remark


def test_a_plain_file_needs_no_remark():
    assert taken(weights(1)) == (1, "")


@pytest.mark.parametrize(
    "key",
    ["params", "params_ema", "state_dict", "model", "net", "network", "generator", "model_state_dict", "ema", "Ä"],
)
def test_a_dictionary_under_any_key(key):
    assert taken({"epoch": 3, key: weights(1), "optimizer": {"state": {}}}) == (1, f"took '{key}'")


def test_dictionaries_in_dictionaries():
    assert taken({"checkpoint": {"state": {"net": weights(1)}, "lr": 0.1}}) == (1, "took 'checkpoint.state.net'")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "denoiser.net."]
)
def test_any_prefix(prefix):
    assert taken(weights(1, prefix)) == (1, f"without the prefix '{prefix}'")
    remark = f"took 'state_dict.{prefix[:-1]}'; without the prefix '{prefix}'"
    assert taken({"state_dict": weights(1, prefix)}) == (1, remark)


@pytest.mark.parametrize("average", ["params_ema", "ema", "model_ema", "ema_state_dict", "state_dict_ema", "modelEMA"])
@pytest.mark.parametrize("plain", ["params", "schema", "emanuel"])
def test_the_moving_average_is_taken_and_the_other_can_be_asked_for(average, plain):
    for content in ({plain: weights(1), average: weights(2)}, {average: weights(2), plain: weights(1)}):
        assert taken(content) == (2, f"took '{average}', not '{plain}'")
        assert taken(content, plain) == (1, f"took '{plain}', not '{average}'")
        assert taken(content, average) == (2, f"took '{average}', not '{plain}'")


def test_a_moving_average_in_the_same_dictionary():
    content = {"state_dict": weights(1, "net.") | weights(2, "net_ema.module.")}
    remark = "took 'state_dict.net_ema.module', not 'state_dict.net'; without the prefix 'net_ema.module.'"
    assert taken(content) == (2, remark)
    assert taken(content, "state_dict.net")[0] == 1
    content = weights(1) | weights(2, "ema.")
    assert taken(content)[0] == 2


def test_what_is_left_out_is_counted():
    content = weights(1, "module.") | {"n_averaged": np.ones(1), "loss.vgg.weight": np.ones(1)}
    content |= {f"module.{name}": np.ones(1) for name in ("total_ops", "encoders.0.total_ops", "intro.total_params")}
    number, remark = taken(content)
    assert number == 1
    assert remark == (
        "without the prefix 'module.'; left out 3 counters (total_ops, total_params); "
        "left out 'n_averaged' and 1 more, not under that prefix"
    )


def test_another_network_beside_it_is_not_taken():
    critic = {f"layers.{i}.weight": np.ones(1) for i in range(100)} | {"intro.weight": np.ones(1)}
    assert taken({"discriminator": critic, "generator": weights(1)}) == (1, "took 'generator'")


@pytest.mark.parametrize("key", ["optimizer", "optim_g", "optimizer_states", "optim"])
def test_the_moments_of_an_optimizer_are_no_weights(key):
    assert taken({"net": weights(1), key: {"exp_avg": weights(2), "exp_avg_ema": weights(3)}})[0] == 1


def test_a_surplus_name_stays():
    """Whoever converts must say that it is surplus; nothing of the network's own dictionary is left out."""
    tensors, _ = select({"params": weights(1) | {"intro.scale": np.ones(1)}}, "w.pth", KNOWN)
    assert tensors.keys() == KNOWN | {"intro.scale"}


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"a": weights(1), "b": weights(2)}, None, r"holds several networks, 'a', 'b'; convert one with --key=NAME"),
        ({"ema": weights(1), "x": {"ema": weights(2)}}, None, r"holds several networks, 'ema', 'x\.ema'"),
        ({f"net{i}": weights(1) for i in range(50)}, None, r"'net5' and 44 more; convert"),
        ({"a": weights(1)}, "b", r"holds no dictionary of tensors 'b'; choose from 'a'"),
        (weights(1), "b", "choose from what has no key"),
        ({"\x1b[31m": weights(1), "b": weights(2)}, None, r"'\\x1b\[31m', 'b'"),
        ({}, None, "holds no dictionary of tensors"),
        (weights(1).popitem()[1], None, "holds no dictionary of tensors"),
        ([weights(1)], None, "holds no dictionary of tensors"),
    ],
)
def test_what_cannot_be_chosen_is_an_error(content, key, message):
    with pytest.raises(UserError, match=rf"w\.pth {message}|w\.pth .*{message}") as error:
        select(content, "w.pth", KNOWN, key)
    assert len(str(error.value)) < 200


def test_hostile_names_and_nesting_take_no_time():
    hostile = {"." * 10**6: np.ones(1), **{f"{'a.' * 1000}{i}.intro.weight": np.ones(1) for i in range(2000)}}
    with pytest.raises(UserError, match=r"holds several networks, 'a\.a.*' and 2 more") as error:
        select(hostile, "w.pth", KNOWN)
    assert len(str(error.value)) < 1000
    many = {f"{i}{'a' * 10**4}": {"intro.weight": np.ones(1)} for i in range(1000)}
    with pytest.raises(UserError, match="no dictionary of tensors"):
        select({"b" * 100: many}, "w.pth", KNOWN)
    deep = weights(1)
    for _ in range(10_000):
        deep = {"x": deep}
    with pytest.raises(UserError, match="no dictionary of tensors"):
        select(deep, "w.pth", KNOWN)
    holds_itself = weights(1)
    holds_itself |= {"self": holds_itself, "again": {"self": holds_itself}}
    assert taken(holds_itself) == (1, "")
