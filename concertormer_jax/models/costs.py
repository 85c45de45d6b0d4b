"""What a network costs: parameters and multiply-accumulates (MACs), and the operations of any traced function.

MACs are counted by hand, for every part, in two accountings. The full one has every convolution and matrix product. The
paper's counter has those but the two products of the Concertino's CDC, and also one MAC for each number that a bias is
added to and two for each that a mean reads. Restormer's paper has convolutions alone. A traced function is counted by
its products and convolutions, and as XLA counts it.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from concertormer_jax.models.architecture import groups_with_cdc
from concertormer_jax.models.blocks import feed_forward_channels
from concertormer_jax.models.concerto_attention import ConcertoSelfAttention
from concertormer_jax.models.concertormer import Concertormer
from concertormer_jax.models.restormer import Restormer
from concertormer_jax.ops import concerto
from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime.peaks import FLOAT32, SHORT, TF32

PROJECTIONS, CDC, SCA = "projections", "communication (CDC)", "channel attention (SCA)"
MLP, NORMS, CONVOLUTIONS = "gated MLP", "norms", "convolutions"
OUTSIDE = "outside the stages"


@dataclasses.dataclass(frozen=True)
class Cost:
    """parameters; macs: of every convolution and matrix product; paper_macs: as the network's own paper counts."""

    parameters: int = 0
    macs: int = 0
    paper_macs: int = 0

    def __add__(self, other):
        return Cost(
            *(one + two for one, two in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )

    def __mul__(self, times: int):
        return Cost(*(value * times for value in dataclasses.astuple(self)))


def total(costs) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())


def convolution(
    pixels: int, inputs: int, outputs: int, kernel: int = 1, *, bias: bool = False, groups: int = 1
) -> Cost:
    """A convolution, or a pointwise projection, that gives `pixels` pixels of `outputs` channels."""
    weights = kernel**2 * inputs * outputs // groups
    biased = outputs if bias else 0
    return Cost(weights + biased, pixels * weights, pixels * (weights + biased))


def norm(channels: int) -> Cost:
    """Scale and bias of a layer norm; neither accounting counts its arithmetic."""
    return Cost(parameters=2 * channels)


def attention(
    pixels: int,
    inputs: int,
    hidden: int,
    heads: int,
    groups: tuple[str, ...],
    communication: str,
    sca: bool,
    block: int,
) -> dict[str, Cost]:
    """Of `ConcertoSelfAttention` by part: its projections, each group, CDC and SCA.

    pixels: of the map; inputs: channels of the features; hidden: of the result; block: side of a block in pixels.
    """
    share, positions = hidden // len(groups), block**2
    channels, blocks = share // heads, pixels // positions

    def product(macs, parameters=0):
        return Cost(parameters, macs, macs)

    parts = {PROJECTIONS: convolution(pixels, inputs, 3 * hidden)}
    for group in groups:
        attended = channels if group.endswith("channel") or group == concerto.TRANSPOSED else positions
        temperature = 0 if group == concerto.WINDOW else heads
        parts[group] = product(2 * pixels * attended * share, temperature)  # q k^T, and the maps times v
    for group in groups_with_cdc(groups, communication):
        entries = channels**2 if group.endswith("channel") else positions**2  # of a map
        if group.startswith("ripieno"):
            cost = product(9 * heads**2 * blocks * entries, 9 * heads**2)
        else:
            weights = (heads * (positions if group == "concertino_channel" else channels)) ** 2
            cost = Cost(weights, weights * entries, 0)
        parts[CDC] = parts.get(CDC, Cost()) + cost
    if sca:
        gate = convolution(1, hidden, hidden, bias=True)
        parts[SCA] = gate + Cost(paper_macs=2 * hidden * pixels)
    return parts


def _block(module: Concertormer, pixels: int, width: int, heads: int) -> dict[str, Cost]:
    """One `models.blocks.Block`."""
    architecture, hidden = module.architecture, width * int(module.expansion)
    parts = {NORMS: norm(width)}
    if architecture.groups:
        parts |= attention(
            pixels,
            width,
            hidden,
            heads,
            architecture.groups,
            architecture.communication,
            architecture.sca,
            architecture.block_px,
        )
    if architecture.two_stage:
        parts[PROJECTIONS] += convolution(pixels, hidden, width)
        parts[NORMS] += norm(width)
        hidden = feed_forward_channels(width, int(module.expansion))
    parts[MLP] = (
        convolution(pixels, width, 2 * hidden)
        + convolution(pixels, hidden, hidden, kernel=3, groups=hidden)
        + convolution(pixels, hidden, width)
    )
    if architecture.groups and not architecture.two_stage:
        parts[MLP] += convolution(pixels, hidden, hidden)
    return parts


def concertormer(module: Concertormer, height: int, width: int) -> dict[str, dict[str, Cost]]:
    """{stage: {part: cost}} of a picture of height x width pixels; the stages as in the parameter tree, in order.

    Everything between the stages is in `OUTSIDE`. The picture is padded as the network does; without TLC.
    """
    architecture = module.architecture
    # Positions of level 0, each of which holds unshuffle**2 pixels.
    picture = padded_size(height, module.multiple) * padded_size(width, module.multiple) // module.unshuffle**2
    picture_channels = 3 * module.unshuffle**2

    def stage(level, blocks, heads, cross):
        channels = module.width * 2**level
        parts = {part: cost * blocks for part, cost in _block(module, picture // 4**level, channels, heads).items()}
        if cross:
            parts[NORMS] += norm(channels)
        return parts

    costs, outside = {}, Cost()
    pictures_cross = architecture.multiscale_input and bool(architecture.groups)
    levels = range(module.levels)
    for level in levels:
        costs[f"encoders_{level}"] = stage(
            level, module.encoder_blocks[level], module.encoder_heads[level], pictures_cross and level > 0
        )
        channels, pixels = module.width * 2**level, picture // 4 ** (level + 1)
        outside += convolution(pixels, channels, 2 * channels, kernel=2, bias=True)
        if architecture.multiscale_input:
            outside += convolution(pixels, picture_channels, 2 * channels, kernel=3, bias=True)
    costs["middle"] = stage(module.levels, module.middle_blocks, module.middle_heads, pictures_cross)
    for index, level in enumerate(reversed(levels)):
        channels, pixels = module.width * 2**level, picture // 4**level
        outside += convolution(pixels // 4, 2 * channels, picture_channels, kernel=3, bias=True)
        outside += convolution(pixels // 4, 2 * channels, 4 * channels)
        if architecture.skip == "concatenation":
            outside += convolution(pixels, 2 * channels, channels)
        costs[f"decoders_{index}"] = stage(
            level, module.decoder_blocks[index], module.decoder_heads[index], architecture.skip == "cross_attention"
        )
    outside += convolution(picture, picture_channels, module.width, kernel=3, bias=True)
    outside += convolution(picture, module.width, picture_channels, kernel=3, bias=True)
    return {**costs, OUTSIDE: {CONVOLUTIONS: outside}}


def _transformer_block(module: Restormer, pixels: int, width: int, heads: int) -> dict[str, Cost]:
    """One `models.restormer.TransformerBlock`."""
    csa, hidden = ConcertoSelfAttention, int(width * module.expansion)
    if module.attention == "concerto":
        parts = attention(pixels, width, width, heads, csa.groups, csa.communication, csa.sca, csa.block_px)
    else:
        parts = attention(pixels, width, width, heads, (concerto.TRANSPOSED,), "none", False, csa.block_px)
        parts[PROJECTIONS] += convolution(pixels, 3 * width, 3 * width, kernel=3, groups=3 * width)
    for part, cost in parts.items():
        if part in concerto.GROUPS:  # products
            parts[part] = dataclasses.replace(cost, paper_macs=0)
        if part == SCA:  # without its mean and bias
            parts[part] = dataclasses.replace(cost, paper_macs=cost.macs)
    parts[PROJECTIONS] += convolution(pixels, width, width)
    mlp = convolution(pixels, width, 2 * hidden) + convolution(pixels, hidden, width)
    mlp += convolution(pixels, 2 * hidden, 2 * hidden, kernel=3, groups=2 * hidden)
    return {NORMS: Cost(parameters=width * (4 if module.norm_bias else 2)), **parts, MLP: mlp}


def restormer(module: Restormer, height: int, width: int) -> dict[str, dict[str, Cost]]:
    """As `concertormer`."""
    picture = padded_size(height, module.multiple) * padded_size(width, module.multiple)

    def stage(level, channels, blocks, heads):
        block = _transformer_block(module, picture // 4**level, channels, heads)
        return {part: cost * blocks for part, cost in block.items()}

    costs, outside = {}, convolution(picture, 3, module.width, kernel=3)
    levels = range(module.levels)
    for level in levels:
        channels = module.width * 2**level
        costs[f"encoders_{level}"] = stage(level, channels, module.encoder_blocks[level], module.encoder_heads[level])
        outside += convolution(picture // 4**level, channels, channels // 2, kernel=3)
    channels = module.width * 2**module.levels
    costs["middle"] = stage(module.levels, channels, module.middle_blocks, module.middle_heads)
    for index, level in enumerate(reversed(levels)):
        outside += convolution(picture // 4 ** (level + 1), channels, 2 * channels, kernel=3)
        if level > 0:
            outside += convolution(picture // 4**level, channels, channels // 2)
            channels //= 2
        costs[f"decoders_{index}"] = stage(level, channels, module.decoder_blocks[index], module.decoder_heads[index])
    costs["refinement"] = stage(0, channels, module.refinement_blocks, module.decoder_heads[-1])
    outside += convolution(picture, channels, 3, kernel=3)
    return {**costs, OUTSIDE: {CONVOLUTIONS: outside}}


_BY_NETWORK = {Concertormer: concertormer, Restormer: restormer}


def costs_of(module, height: int, width: int) -> dict[str, dict[str, Cost]]:
    """{stage: {part: cost}} of any network of this package, as `concertormer` gives them."""
    return _BY_NETWORK[type(module)](module, height, width)


def flops(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> int:
    """Return the floating-point operations of all matrix products and convolutions, two for each multiply-accumulate.

    A scan counts as often as it runs, what `jax.shard_map` maps as often as there are devices, a loop of unknown length
    once, and a conditional as its costliest branch. The count depends on the platform for which the function was
    traced, since the forms of an operation differ.
    """
    return sum(flops_by_precision(jaxpr).values())


def flops_by_precision(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Counter[str]:
    """Return what `flops` counts as {precision of the products, one of those of `runtime.peaks`: FLOPs}."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    found: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = _array(equation.invars[0]).shape
            size = 2 * _array(equation.outvars[0]).size * math.prod(shape[axis] for axis in contracted)
            found[_precision(equation)] += size
        elif name == "conv_general_dilated":
            kernel = _array(equation.invars[1])
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            found[_precision(equation)] += 2 * _array(equation.outvars[0]).size * kernel.size // outputs
        elif name == "cond":
            found += max((flops_by_precision(branch) for branch in equation.params["branches"]), key=Counter.total)
        else:
            times = equation.params["length"] if name == "scan" else 1
            if name == "shard_map":
                times = equation.params["mesh"].size
            for inner in _inner(equation.params):
                found.update({key: times * size for key, size in flops_by_precision(inner).items()})
    return found


def _precision(product: core.JaxprEqn) -> str:
    """How exactly a matrix product or convolution multiplies."""
    if max(_array(operand).dtype.itemsize for operand in product.invars) < 4:
        return SHORT
    asked = product.params["precision"]
    exactly = isinstance(asked, tuple) and jax.lax.Precision.DEFAULT not in asked
    return FLOAT32 if exactly else TF32


def _array(variable: Any) -> Any:
    """The shape and type of an equation's input or output."""
    return variable.aval


def counted_by_xla(traced: jax.stages.Traced) -> dict[str, float]:
    """Return the floating-point operations that XLA counts before it optimises: {stage: FLOPs}, with "" for the rest.

    XLA counts element-wise operations as well, and the body of a loop once; here a stage's scan counts as often as it
    runs. The name of a stage is that of the module that it is in.
    """
    return _counted_by_xla(traced)[1]


def _counted_by_xla(traced: jax.stages.Traced) -> tuple[float, dict[str, float]]:
    """The FLOPs with every stage's block counted once, and those of `counted_by_xla`."""
    once = traced.lower().cost_analysis()["flops"]
    found = {"": once}
    for equation in _stages(traced.jaxpr.jaxpr):
        name = str(equation.source_info.name_stack).rpartition("/")[2]
        body = equation.params["jaxpr"]
        body_once, inside = _counted_by_xla(jax.jit(core.jaxpr_as_fun(body)).trace(*body.in_avals))
        found[name] = found.get(name, 0.0) + equation.params.get("length", 1) * sum(inside.values())
        found[""] -= body_once
    return once, found


def _stages(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The outermost scans of a function and its calls of `blocks.run_blocks`, which is a scan or a single block."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" or equation.params.get("name") == "run_blocks":
            yield equation
        else:
            for inner in _inner(equation.params):
                yield from _stages(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def _inner(params: dict[str, Any]) -> Iterator[core.ClosedJaxpr | core.Jaxpr]:
    """The functions that an equation calls."""
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
            yield value
