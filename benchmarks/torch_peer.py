"""The peer to race against: Concertormer in plain, eager PyTorch.

It was written from the description of the network, as one would write it in PyTorch without thinking about speed, and
shares no code with concertormer_jax. Parameters carry the published names and shapes, so that it reads released
weights. `python -m benchmarks.check_peer` compares it with the numbers of the released model.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 8  # side of a block in pixels
POSITIONS = BLOCK * BLOCK
SHIFT_MASK = -100.0


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every pixel of [B, C, H, W]."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        normalised = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], self.weight, self.bias, eps=1e-6)
        return normalised.permute(0, 3, 1, 2)


def to_blocks(features, heads):
    """[B, hidden, H, W], channels in the order (head, group, i), to four groups of [B, heads, n, positions, c]."""
    batch, hidden, height, width = features.shape
    channels = hidden // (4 * heads)
    rows, columns = height // BLOCK, width // BLOCK
    blocks = features.reshape(batch, heads, 4, channels, rows, BLOCK, columns, BLOCK)
    blocks = blocks.permute(2, 0, 1, 4, 6, 5, 7, 3)
    return blocks.reshape(4, batch, heads, rows * columns, POSITIONS, channels).unbind(0)


def from_blocks(blocks, rows, columns):
    """[B, heads, n, positions, c] to [B, heads * c, H, W]."""
    batch, heads, _, _, channels = blocks.shape
    blocks = blocks.reshape(batch, heads, rows, columns, BLOCK, BLOCK, channels).permute(0, 1, 6, 2, 4, 3, 5)
    return blocks.reshape(batch, heads * channels, rows * BLOCK, columns * BLOCK)


@functools.lru_cache(maxsize=16)
def shift_mask(rows, columns, device, dtype):
    """[n, positions, positions]: added to the logits between pixels from opposite sides of the border."""
    region = torch.zeros(rows * BLOCK, columns * BLOCK, device=device)
    region[-BLOCK // 2 :] += 1
    region[:, -BLOCK // 2 :] += 2
    # Inside the last row (and column) of blocks both halves meet; everywhere else a block lies in one region.
    region = region.reshape(rows, BLOCK, columns, BLOCK).permute(0, 2, 1, 3).reshape(rows * columns, POSITIONS)
    return ((region[:, :, None] != region[:, None, :]) * SHIFT_MASK).to(dtype)


def starts(size, window):
    """Where the windows of the test-time local converter begin along an axis."""
    count = -(-size // window)
    step = window if count == 1 else -(-(size - window) // (count - 1))
    return [min(i * step, size - window) for i in range(count)]


class Attention(nn.Module):
    """Concerto self-attention and gated-dconv MLP.

    `tlc_window`: side in pixels of this level's windows for the test-time local converter, or None. `windows_together`:
    all windows in one batch, which spares a GPU launches, or one after the other, which takes far less memory.
    """

    def __init__(self, width, heads, expansion, shifted):
        super().__init__()
        hidden = width * expansion
        channels = hidden // (4 * heads)
        self.heads, self.shifted = heads, shifted
        self.tlc_window, self.windows_together = None, True
        self.temperature = nn.Parameter(torch.ones(4, heads, 1, 1, 1))
        self.r_talking = nn.Parameter(torch.empty(heads, channels, channels, heads))
        self.g_talking = nn.Parameter(torch.empty(heads, POSITIONS, POSITIONS, heads))
        nn.init.kaiming_normal_(self.r_talking, a=5**0.5)
        nn.init.kaiming_normal_(self.g_talking, a=5**0.5)
        self.b_talking = nn.Conv3d(heads, heads, (3, 3, 1), padding=(1, 1, 0), bias=False)
        self.l_talking = nn.Conv3d(heads, heads, (3, 3, 1), padding=(1, 1, 0), bias=False)
        self.to_quz = nn.Conv2d(width, 3 * hidden, 1, bias=False)
        self.to_kv = nn.Conv2d(width, 2 * hidden, 1, bias=False)
        self.dw_u = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.project = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=False)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, hidden, 1))

    def over_blocks(self, convolution, logits, rows, columns):
        """A 3x3 convolution over the grid of blocks. logits: [B, heads, n, A, A]."""
        batch, heads, _, *entries = logits.shape
        mixed = convolution(logits.reshape(batch, heads, rows, columns, -1))
        return mixed.reshape(batch, heads, rows * columns, *entries)

    def attend(self, q, k, v):
        """q, k, v: [B, hidden, H, W]. Returns the attention's result times its channel attention, alike."""
        rows, columns = q.shape[2] // BLOCK, q.shape[3] // BLOCK
        if self.shifted:
            q, k, v = (torch.roll(part, (-BLOCK // 2, -BLOCK // 2), dims=(2, 3)) for part in (q, k, v))
        q, k, v = (to_blocks(part, self.heads) for part in (q, k, v))

        # Ripieno, spatial: [B, m, n, positions, c]
        logits = F.normalize(q[0], dim=-1) @ F.normalize(k[0], dim=-1).transpose(-2, -1) * self.temperature[0]
        logits = self.over_blocks(self.b_talking, logits, rows, columns)
        if self.shifted:
            logits = logits + shift_mask(rows, columns, logits.device, logits.dtype)
        rs = logits.softmax(dim=-1) @ v[0]

        # Ripieno, channel: [B, m, n, c, positions]
        queries, keys, values = (part[1].transpose(-2, -1) for part in (q, k, v))
        logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-2, -1) * self.temperature[1]
        logits = self.over_blocks(self.l_talking, logits, rows, columns)
        rc = (logits.softmax(dim=-1) @ values).transpose(-2, -1)

        # Concertino, channel: [B, m, positions, c, n]
        queries, keys, values = (part[2].permute(0, 1, 3, 4, 2) for part in (q, k, v))
        logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-2, -1) * self.temperature[2]
        logits = torch.einsum("bspij,splt->btlij", logits, self.g_talking)
        cc = (logits.softmax(dim=-1) @ values).permute(0, 1, 4, 2, 3)

        # Concertino, spatial: [B, m, c, positions, n]
        queries, keys, values = (part[3].permute(0, 1, 4, 3, 2) for part in (q, k, v))
        logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-2, -1) * self.temperature[3]
        logits = torch.einsum("bscij,scdt->btdij", logits, self.r_talking)
        cs = (logits.softmax(dim=-1) @ values).permute(0, 1, 4, 3, 2)

        output = torch.cat([from_blocks(part, rows, columns) for part in (rs, rc, cc, cs)], dim=1)
        if self.shifted:
            output = torch.roll(output, (BLOCK // 2, BLOCK // 2), dims=(2, 3))
        return output * self.sca(output)

    def attend_on_windows(self, q, k, v):
        """`attend` on overlapping windows, averaged where they overlap."""
        height, width = q.shape[2:]
        h, w = min(height, self.tlc_window), min(width, self.tlc_window)
        places = [
            (..., slice(top, top + h), slice(left, left + w)) for top in starts(height, h) for left in starts(width, w)
        ]
        if self.windows_together:
            cut = (torch.cat([part[place] for place in places]) for part in (q, k, v))
            windows = self.attend(*cut).chunk(len(places))
        else:
            windows = (self.attend(q[place], k[place], v[place]) for place in places)
        total = torch.zeros_like(q)
        count = torch.zeros(height, width, device=q.device, dtype=q.dtype)
        for window, place in zip(windows, places, strict=True):
            total[place] += window
            count[place] += 1
        return total / count

    def forward(self, x, y):
        q, u, z = self.to_quz(x).chunk(3, dim=1)
        k, v = self.to_kv(y).chunk(2, dim=1)
        attended = self.attend(q, k, v) if self.tlc_window is None else self.attend_on_windows(q, k, v)
        return self.project_out((self.project(attended) + self.dw_u(u)) * z)


class Block(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, width, heads, expansion, index):
        super().__init__()
        self.norm = ChannelNorm(width)
        self.m = Attention(width, heads, expansion, shifted=index % 2 == 1)

    def forward(self, x):
        normalised = self.norm(x)
        return x + self.m(normalised, normalised)


class CrossBlock(nn.Module):
    """The first half of the channels attends to the second, and continues alone."""

    def __init__(self, width, heads, expansion):
        super().__init__()
        self.norm1 = ChannelNorm(width)
        self.norm2 = ChannelNorm(width)
        self.m = Attention(width, heads, expansion, shifted=False)

    def forward(self, inputs):
        x, y = inputs.chunk(2, dim=1)
        return x + self.m(self.norm1(x), self.norm2(y))


def stage(width, heads, blocks, expansion, cross):
    first = [CrossBlock(width, heads, expansion)] if cross else []
    return nn.Sequential(*first, *(Block(width, heads, expansion, index) for index in range(len(first), blocks)))


class ConcertormerPeer(nn.Module):
    """images [B, 3, H, W] in [0, 1] to the outputs of all scales, coarsest first, the restored images last."""

    def __init__(self, width, encoder_blocks, middle_blocks, decoder_blocks, encoder_heads, middle_heads,
                 decoder_heads, expansion=2, unshuffle=1, tlc_window=None, windows_together=True):  # fmt: skip
        super().__init__()
        self.unshuffle, picture = unshuffle, 3 * unshuffle**2
        levels = len(encoder_blocks)
        widths = [width * 2**level for level in range(levels + 1)]
        self.intro = nn.Conv2d(picture, width, 3, padding=1)
        self.ending = nn.Conv2d(width, picture, 3, padding=1)
        self.intros, self.endings, self.downs, self.ups = (nn.ModuleList() for _ in range(4))
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level in range(levels):
            below = widths[level + 1]
            self.encoders.append(
                stage(widths[level], encoder_heads[level], encoder_blocks[level], expansion, cross=level > 0)
            )
            self.downs.append(nn.Conv2d(widths[level], below, 2, stride=2))
            self.intros.append(nn.Conv2d(picture, below, 3, padding=1))
        self.middle_blks = stage(widths[levels], middle_heads, middle_blocks, expansion, cross=True)
        for index, level in enumerate(reversed(range(levels))):
            below = widths[level + 1]
            self.endings.append(nn.Conv2d(below, picture, 3, padding=1))
            self.ups.append(nn.Sequential(nn.Conv2d(below, 2 * below, 1, bias=False), nn.PixelShuffle(2)))
            self.decoders.append(
                stage(widths[level], decoder_heads[index], decoder_blocks[index], expansion, cross=True)
            )
        if tlc_window is not None:
            stages = [*enumerate(self.encoders), (levels, self.middle_blks), *enumerate(reversed(self.decoders))]
            for level, blocks in stages:
                for block in blocks:
                    block.m.tlc_window = tlc_window // (unshuffle * 2**level)
                    block.m.windows_together = windows_together

    def forward(self, images):
        height, width = images.shape[2:]
        multiple = BLOCK * self.unshuffle * 2 ** len(self.encoders)
        padded = F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="reflect")
        pyramid = [padded] + [downsample(padded, 2 ** (i + 1)) for i in range(len(self.encoders))]
        pyramid = [F.pixel_unshuffle(picture, self.unshuffle) for picture in pyramid]

        x, skips = self.intro(pyramid[0]), []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            skips.append(x)
            x = torch.cat([self.downs[level](x), self.intros[level](pyramid[level + 1])], dim=1)
        x = self.middle_blks(x)
        outputs = []
        for index, decoder in enumerate(self.decoders):
            outputs.append(self.picture(self.endings[index](x), pyramid[len(self.encoders) - index]))
            x = decoder(torch.cat([self.ups[index](x), skips.pop()], dim=1))
        outputs.append(self.picture(self.ending(x), pyramid[0])[:, :, :height, :width])
        return outputs

    def picture(self, difference, degraded):
        """What is restored at one scale. degraded: what came in there, as `difference` with pixels as channels."""
        return F.pixel_shuffle(difference + degraded, self.unshuffle)


def downsample(images, factor):
    """Bilinear reduction with half-pixel centres and no antialiasing."""
    return F.interpolate(images, scale_factor=1 / factor, mode="bilinear", align_corners=False)


def multiscale_loss(outputs, target):
    """The sum over the scales of mean |difference| + 0.1 * mean |spectrum of the difference|."""
    total = 0
    for power, output in enumerate(reversed(outputs)):
        scaled = target if power == 0 else downsample(target, 2**power)
        difference = output.to(target.dtype) - scaled  # the spectrum needs more than bfloat16
        total = total + difference.abs().mean() + 0.1 * torch.fft.rfft2(difference).abs().mean()
    return total


class Trainer:
    """AdamW after clipping, one cosine over `steps`, as the recipe has it."""

    def __init__(self, network, compiled=None, steps=10, autocast=None):
        """compiled: a compiled form of `network` that computes its outputs, None for `network` itself.

        autocast: (device type, dtype) of the forward pass, None for that of the weights.
        """
        self.network, self.autocast = network, autocast
        self.forward = network if compiled is None else compiled
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.9), eps=1e-8, weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps, eta_min=1e-7)

    def step(self, images, target):
        """One step on [B, 3, H, W] in [0, 1]. Returns (loss, norm of the gradient before clipping), as tensors."""
        self.optimizer.zero_grad()
        if self.autocast is None:
            outputs = self.forward(images)
        else:
            with torch.autocast(*self.autocast):
                outputs = self.forward(images)
        loss = multiscale_loss(outputs, target)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 0.01)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach(), norm


def load_state(network, state):
    """Load {published name: array}; raises RuntimeError naming what is missing, surplus or misshapen."""
    network.load_state_dict({name: torch.as_tensor(array) for name, array in state.items()}, strict=True)
    return network
