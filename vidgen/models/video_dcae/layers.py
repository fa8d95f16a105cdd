"""The layers of the Video DC-AE. Tensors are (B, C, T, H, W); convolutions are zero-padded."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm3d(nn.Module):
    """RMS norm over the channels of each position."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + self.eps)
        shape = (1, -1, 1, 1, 1)
        return torch.addcmul(self.bias.view(shape), normed.to(x.dtype), self.weight.view(shape))


class Conv3d(nn.Conv3d):
    """Calls oneDNN directly on the CPU; torch would use im2col for a single small video."""

    def forward(self, x: Tensor) -> Tensor:
        if not onednn_takes(x):
            return super().forward(x)
        padding: list[int] = list(self.padding)  # type: ignore[arg-type]
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups
        )


def onednn_takes(x: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # checked first: the rest cannot be traced
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def conv(
    inputs: int, outputs: int, kernel: int, *, groups: int = 1, bias: bool = True
) -> nn.Conv3d:
    return Conv3d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)


class ResBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1 = conv(width, width, 3)
        self.conv2 = conv(width, width, 3, bias=False)
        self.norm = RMSNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv2(F.silu(self.conv1(x))))
        return x + out


class LinearAttention(nn.Module):
    """ReLU attention over all positions at two scales, with linear cost."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.qkv = conv(width, 3 * width, 1, bias=False)  # rows: for each head q, k, v
        self.aggregate_near = conv(3 * width, 3 * width, 5, groups=3 * width, bias=False)
        self.aggregate_head = conv(
            3 * width, 3 * width, 1, groups=3 * width // head_dim, bias=False
        )
        self.proj = conv(2 * width, width, 1, bias=False)
        self.norm = RMSNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        wider = self.aggregate_head(self.aggregate_near(qkv))
        heads = torch.cat([qkv, wider], dim=1).flatten(2).unflatten(1, (-1, 3, self.head_dim))
        q, k, v = heads.unbind(2)  # (B, heads of both scales, head_dim, positions)
        out = linear_attention(q, k, v).flatten(1, 2).unflatten(2, x.shape[2:])
        normed: Tensor = self.norm(self.proj(out))
        return normed


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """sum_j (relu q_i . relu k_j) v_j / sum_j (relu q_i . relu k_j), over (..., D, positions)."""
    q, k = F.relu(q), F.relu(k)
    counted = F.pad(v, (0, 0, 0, 1), value=1.0)  # the row of ones sums the weights
    summed = ((counted @ k.transpose(-1, -2)) @ q).float()
    return (summed[..., :-1, :] / (summed[..., -1:, :] + 1e-15)).to(v.dtype)


class GatedConv(nn.Module):
    """Expand, depthwise convolution, gate, project."""

    def __init__(self, width: int):
        super().__init__()
        self.inverted = conv(width, 8 * width, 1)
        self.depth = conv(8 * width, 8 * width, 3, groups=8 * width)
        self.point = conv(4 * width, width, 1, bias=False)
        self.norm = RMSNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.depth(F.silu(self.inverted(x))).chunk(2, dim=1)
        out: Tensor = self.norm(self.point(value * F.silu(gate)))
        return out


class AttentionBlock(nn.Module):
    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.attention = LinearAttention(width, head_dim)
        self.mlp = GatedConv(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Downsample(nn.Module):
    """Strided convolution plus a space-to-channel shortcut that averages channels."""

    def __init__(self, inputs: int, outputs: int, frames: bool):
        super().__init__()
        self.outputs, self.frames = outputs, frames
        self.conv = Conv3d(inputs, outputs, 3, stride=(2 if frames else 1, 2, 2), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gathered = space_to_channels(x, self.frames and x.shape[2] > 1)
        out: Tensor = self.conv(x)
        return out + average_channels(gathered, self.outputs)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling and a convolution, plus a shortcut of repeated channels."""

    def __init__(self, inputs: int, outputs: int, frames: bool):
        super().__init__()
        self.outputs, self.frames = outputs, frames
        self.conv = conv(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.frames and x.shape[2] > 1  # an image stays an image
        near = F.interpolate(x, scale_factor=(2.0 if frames else 1.0, 2.0, 2.0), mode="nearest")
        repeated = repeat_channels(x, self.outputs * (8 if frames else 4))
        out: Tensor = self.conv(near)
        return out + channels_to_space(repeated, frames)


class ShuffleUpsample(nn.Module):
    """A convolution whose channels become positions, beside the same shortcut as `Upsample`."""

    def __init__(self, inputs: int, outputs: int, frames: bool):
        super().__init__()
        self.outputs, self.frames = outputs, frames
        self.conv = conv(inputs, outputs * (8 if frames else 4), 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        out = out + repeat_channels(x, out.shape[1])
        if self.frames and x.shape[2] == 1:  # an image stays an image
            out = out.unflatten(1, (self.outputs, 2, 4)).mean(dim=2).flatten(1, 2)
            return channels_to_space(out, False)
        return channels_to_space(out, self.frames)


class Project(nn.Module):
    """Convolution to or from the latents, plus a shortcut that averages or repeats channels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.outputs = outputs
        self.conv = conv(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        fewer = self.outputs < x.shape[1]
        shortcut = (average_channels if fewer else repeat_channels)(x, self.outputs)
        out: Tensor = self.conv(x)
        return out + shortcut


def average_channels(x: Tensor, outputs: int) -> Tensor:
    return x.unflatten(1, (outputs, -1)).mean(dim=2)


def repeat_channels(x: Tensor, outputs: int) -> Tensor:
    return x.repeat_interleave(outputs // x.shape[1], dim=1)


def space_to_channels(x: Tensor, frames: bool) -> Tensor:
    """2 x 2 pixels (and 2 frames) become channels, in (channel, frame, row, column) order."""
    t = 2 if frames else 1
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, t))  # B C T t H h W w
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def channels_to_space(x: Tensor, frames: bool) -> Tensor:
    """The inverse of `space_to_channels`."""
    t = 2 if frames else 1
    x = x.unflatten(1, (-1, t, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)  # B C T t H h W w
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def pixels_to_channels(x: Tensor, patch: int) -> Tensor:
    """Squares of patch x patch pixels become channels, in (channel, row, column) order."""
    if patch == 1:
        return x
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # B C T h p w q
    return x.permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)


def channels_to_pixels(x: Tensor, patch: int) -> Tensor:
    """The inverse of `pixels_to_channels`."""
    if patch == 1:
        return x
    x = x.unflatten(1, (-1, patch, patch)).permute(0, 1, 4, 5, 2, 6, 3)  # B C T h p w q
    return x.flatten(5, 6).flatten(3, 4)
