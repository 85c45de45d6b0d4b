"""What a network is made of, apart from its size."""

import dataclasses

from concertormer_jax.ops import concerto

COMMUNICATION = ("both", "spatial", "channel", "none")
SKIPS = ("cross_attention", "sum", "concatenation")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The settings that the ablations vary; the defaults are those of the released network.

    Raises ValueError for settings that are unknown or do not fit together.

    groups: of the attention, names from `ops.concerto.GROUPS`, with equal parts of the hidden channels; () for none.
    communication: which groups have CDC: "both" kinds, "spatial", "channel" or "none".
    sca: simplified channel attention of the attention's result.
    shift: every other block of a stage has its attention's blocks moved by half their size.
    block_px: side of the attention's blocks in pixels.
    two_stage: attention and then a separate feed-forward network, each with its own norm and residual, in place of one
        stage with the gated-dconv MLP. The feed-forward network is the block of a network without attention, with
        `blocks.feed_forward_channels` hidden channels.
    multiscale_input: the picture enters at every scale; otherwise at the finest only.
    skip: how the encoder's features enter the decoder: by "cross_attention" (keys and values of a stage's first block),
        "sum", or "concatenation" and a pointwise convolution. The picture of a coarser scale enters by cross-attention,
        or as a sum where there is no attention.
    """

    groups: tuple[str, ...] = concerto.CONCERTO
    communication: str = "both"
    sca: bool = True
    shift: bool = True
    block_px: int = 8
    two_stage: bool = False
    multiscale_input: bool = True
    skip: str = "cross_attention"

    def __post_init__(self):
        require_groups(self.groups)
        require_communication(self.communication)
        require_block(self.block_px)
        if self.skip not in SKIPS:
            raise ValueError(f"skip={self.skip!r} is unknown; choose one of {', '.join(SKIPS)}")
        if not self.groups and self.skip == "cross_attention":
            raise ValueError("skip='cross_attention' needs attention; choose sum or concatenation, or name groups")
        if not self.groups and self.two_stage:
            raise ValueError("two_stage=True needs attention for its first stage; name groups")


def require_groups(groups: tuple[str, ...]) -> None:
    """Raise ValueError unless `groups` are different names of attention groups."""
    if unknown := [group for group in groups if group not in concerto.GROUPS]:
        raise ValueError(f"groups: {unknown[0]!r} is unknown; choose from {', '.join(concerto.GROUPS)}")
    if len(set(groups)) < len(groups):
        raise ValueError(f"groups={groups} must not name a group twice")


def require_communication(communication: str) -> None:
    """Raise ValueError for an unknown value of the setting."""
    if communication not in COMMUNICATION:
        raise ValueError(f"communication={communication!r} is unknown; choose one of {', '.join(COMMUNICATION)}")


def require_block(block_px: int) -> None:
    """Raise ValueError for a block that cannot be shifted by half its side."""
    if block_px < 2 or block_px % 2:
        raise ValueError(f"block_px={block_px} must be a positive even number of pixels")


def groups_with_cdc(groups: tuple[str, ...], communication: str) -> tuple[str, ...]:
    """Those of `groups` that have CDC under the setting; `window` and `transposed` never do."""
    return tuple(
        group for group in groups if group in concerto.CONCERTO and (communication == "both" or communication in group)
    )
