"""The multimodal diffusion transformer: text and video tokens under joint attention.

Read it top to bottom: embeddings, a dual-stream block (text and video keep their own weights and
meet in attention), a single-stream block (one set of weights for both), then the whole.

Shapes: B batch, T text tokens, V video tokens, L = T + V with text first, D width, H heads,
P half a head's width.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.models.mmdit.config import MMDiTConfig
from vidgen.runtime import ops
from vidgen.runtime.attention import attention
from vidgen.runtime.parallel.zero import fill

Stream = tuple[Tensor, ...]  # (text_BTD, video_BVD) in dual-stream blocks, (joint_BLD,) in single


def compute_modulation(layer: nn.Module, vec_BD: Tensor) -> Tensor:
    result: Tensor = layer(vec_BD)
    return result


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass shares."""

    vec_BD: Tensor  # timestep and pooled text (and guidance): what modulation is computed from
    cos_LP: Tensor
    sin_LP: Tensor
    attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    modulation: Callable[[nn.Module, Tensor], Tensor] = compute_modulation

    def modulate_with(self, layer: nn.Module, chunks: int) -> Stream:
        """Shifts, scales and gates of a modulation layer, each (B, D)."""
        return self.modulation(layer, self.vec_BD).chunk(chunks, dim=-1)


def call_block(index: int, block: nn.Module, stream: Stream, context: Context) -> Stream:
    result: Stream = block(*stream, context)
    return result


@dataclass(frozen=True)
class Part:
    """The tokens that this process computes, and how they meet those of others."""

    text: slice
    video: slice
    attention: Callable[[Tensor, Tensor, Tensor], Tensor] | None  # None: that of the seams
    gather: Callable[[Tensor], Tensor]  # this part's video tokens to all of them

    def rope(self, table_LP: Tensor, text_length: int) -> Tensor:
        text, video = table_LP[:text_length], table_LP[text_length:]
        return torch.cat((text[self.text], video[self.video]))


def whole(batch: int, text_length: int, video_length: int) -> Part:
    """Every token here: one process to a sample."""
    return Part(slice(0, text_length), slice(0, video_length), None, lambda video: video)


@dataclass(frozen=True)
class Seams:
    """Where other code hooks in without subclassing.

    `attention` takes q, k, v (B, L, H, head) and picks backend and mask. `run_block` is called for
    every block in order: recompute, offload, caching, capture or injection of the residual.
    `modulation` gives a modulation layer's output, which a `ModulationTable` holds ready. `split`
    takes the numbers of samples, text and video tokens; it says which tokens are computed here.
    """

    attention: Callable[[Tensor, Tensor, Tensor], Tensor] = attention
    run_block: Callable[[int, nn.Module, Stream, Context], Stream] = call_block
    modulation: Callable[[nn.Module, Tensor], Tensor] = compute_modulation
    split: Callable[[int, int, int], Part] = whole


PLAIN = Seams()


def sincos_embedding(t_B: Tensor, width: int = 256) -> Tensor:
    """Timestep in [0, 1] to (B, width): cosines, then sines, of 1000 t at falling frequencies.

    1000 t is rounded to the dtype of t: a bf16 t gives what Open-Sora's public code computes.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t_B.device)
    angles = (1000.0 * t_B).float()[:, None] * torch.exp(-math.log(10_000.0) / half * index)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MLPEmbedder(nn.Module):
    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.in_layer = nn.Linear(in_width, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x_BD: Tensor) -> Tensor:
        hidden = F.silu(self.in_layer(x_BD.to(self.in_layer.weight.dtype)))
        out: Tensor = self.out_layer(hidden)
        return out


class Modulation(nn.Module):
    """`chunks` vectors a sample side by side, from the SiLU of the conditioning vector."""

    def __init__(self, width: int, chunks: int):
        super().__init__()
        self.lin = nn.Linear(width, chunks * width)

    def forward(self, vec_BD: Tensor) -> Tensor:
        out: Tensor = self.lin(F.silu(vec_BD))
        return out


class HeadScale(nn.Module):
    """Weight of the RMS norm over a head."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_dim))


class QKNorm(nn.Module):
    """The two scales; the norm itself is part of the ops that make q and k."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.query_norm = HeadScale(head_dim)
        self.key_norm = HeadScale(head_dim)

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.query_norm.scale, self.key_norm.scale


class StreamAttention(nn.Module):
    """One stream's projections into and out of the joint attention."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        width = config.hidden_size
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(width, width)


def mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), GELU(), nn.Linear(hidden, width))


class GELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu_tanh(x)


class DualStreamBlock(nn.Module):
    def __init__(self, config: MMDiTConfig):
        super().__init__()
        width, hidden = config.hidden_size, config.mlp_hidden
        self.num_heads = config.num_heads
        self.img_mod = Modulation(width, 6)
        self.img_attn = StreamAttention(config)
        self.img_mlp = mlp(width, hidden)
        self.txt_mod = Modulation(width, 6)
        self.txt_attn = StreamAttention(config)
        self.txt_mlp = mlp(width, hidden)

    def forward(self, txt_BTD: Tensor, img_BVD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        txt_mod = context.modulate_with(self.txt_mod, 6)
        img_mod = context.modulate_with(self.img_mod, 6)

        txt_qkv = self.txt_attn.qkv(ops.modulate(txt_BTD, txt_mod[0], txt_mod[1]))
        img_qkv = self.img_attn.qkv(ops.modulate(img_BVD, img_mod[0], img_mod[1]))
        q_scales, k_scales = zip(self.txt_attn.norm(), self.img_attn.norm(), strict=True)
        q, k, v = ops.joint_qkv(
            (txt_qkv, img_qkv), q_scales, k_scales, context.cos_LP, context.sin_LP, self.num_heads
        )
        txt, img = ops.split_streams(context.attention(q, k, v), txt_BTD.shape[1])

        return (
            self._finish(txt_BTD, txt, txt_mod, self.txt_attn, self.txt_mlp),
            self._finish(img_BVD, img, img_mod, self.img_attn, self.img_mlp),
        )

    @staticmethod
    def _finish(
        x: Tensor, attended: Tensor, mod: Stream, attn: StreamAttention, mlp: nn.Module
    ) -> Tensor:
        _, _, gate1, shift2, scale2, gate2 = mod
        x, normed = ops.gated_residual_modulate(x, attn.proj(attended), gate1, shift2, scale2)
        return ops.gated_residual(x, mlp(normed), gate2)


class SingleStreamBlock(nn.Module):
    """Attention and MLP side by side: one projection in, one out."""

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        width, hidden = config.hidden_size, config.mlp_hidden
        self.num_heads = config.num_heads
        self.linear1 = nn.Linear(width, 3 * width + hidden)  # rows: q, k, v, mlp
        self.linear2 = nn.Linear(width + hidden, width)
        self.norm = QKNorm(config.head_dim)
        self.modulation = Modulation(width, 3)

    def forward(self, x_BLD: Tensor, context: Context) -> tuple[Tensor]:
        shift, scale, gate = context.modulate_with(self.modulation, 3)
        packed = self.linear1(ops.modulate(x_BLD, shift, scale))
        q_scale, k_scale = self.norm()
        q, k, v, mlp = ops.qkv_mlp(
            packed, q_scale, k_scale, context.cos_LP, context.sin_LP, self.num_heads
        )
        attended = context.attention(q, k, v)
        out = self.linear2(ops.attention_mlp(attended, packed, mlp))
        return (ops.gated_residual(x_BLD, out, gate),)


class FinalLayer(nn.Module):
    def __init__(self, config: MMDiTConfig):
        super().__init__()
        width = config.hidden_size
        self.linear = nn.Linear(width, config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BVD: Tensor, context: Context) -> Tensor:
        shift, scale = context.modulate_with(self.adaLN_modulation, 2)
        out: Tensor = self.linear(ops.modulate(x_BVD, shift, scale))
        return out


class MMDiT(nn.Module):
    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.img_in = nn.Linear(config.in_channels, width)
        self.txt_in = nn.Linear(config.context_in_dim, width)
        self.time_in = MLPEmbedder(256, width)
        self.vector_in = MLPEmbedder(config.vec_in_dim, width)
        if config.guidance_embed:
            self.guidance_in = MLPEmbedder(256, width)
        if config.cond_embed:
            self.cond_in = nn.Linear(config.cond_channels, width)
        self.double_blocks = nn.ModuleList(DualStreamBlock(config) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(config) for _ in range(config.depth_single_blocks)
        )
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        x_BVD: Tensor,
        *,
        grid: tuple[int, int, int],
        txt: Tensor,
        vec: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        guidance: Tensor | None = None,
        seams: Seams = PLAIN,
    ) -> Tensor:
        """Velocity (B, V, in_channels) of noisy tokens over a (frames, rows, columns) token grid.

        txt (B, T, context_in_dim), vec (B, vec_in_dim), t (B,) in [0, 1] with 1 pure noise,
        cond (B, V, cond_channels) when the model has `cond_embed`, guidance (B,) when it has
        `guidance_embed`.
        """
        self._check(x_BVD, grid, cond, guidance)
        part = seams.split(txt.shape[0], txt.shape[1], x_BVD.shape[1])
        img = self.img_in(x_BVD[:, part.video])
        if cond is not None:
            img = img + self.cond_in(cond[:, part.video])
        vec_BD = self.conditioning(vec, t, guidance)
        text = self.txt_in(txt[:, part.text])

        tables = ops.rope_tables(
            grid, self.config.axes_dim, self.config.theta, txt.shape[1], device=x_BVD.device
        )
        cos, sin = (part.rope(table, txt.shape[1]) for table in tables)
        context = Context(vec_BD, cos, sin, part.attention or seams.attention, seams.modulation)
        stream: Stream = (text, img)
        for index, block in enumerate(self.double_blocks):
            stream = seams.run_block(index, block, stream, context)
        stream = (torch.cat(stream, dim=1),)
        for index, block in enumerate(self.single_blocks, start=len(self.double_blocks)):
            stream = seams.run_block(index, block, stream, context)
        out: Tensor = self.final_layer(stream[0][:, text.shape[1] :], context)
        return part.gather(out)

    def conditioning(self, vec: Tensor, t: Tensor, guidance: Tensor | None = None) -> Tensor:
        """What every modulation of a sample is computed from: (B, D)."""
        vec_BD: Tensor = self.time_in(sincos_embedding(t)) + self.vector_in(vec)
        if guidance is not None:
            vec_BD = vec_BD + self.guidance_in(sincos_embedding(guidance))
        return vec_BD

    def _check(
        self,
        x: Tensor,
        grid: tuple[int, int, int],
        cond: Tensor | None,
        guidance: Tensor | None,
    ) -> None:
        if x.shape[1:] != (math.prod(grid), self.config.in_channels):
            raise ValueError(
                f"tokens {tuple(x.shape)}: expected (B, {math.prod(grid)}, "
                f"{self.config.in_channels}) for grid {grid}"
            )
        for name, given, wanted in (
            ("cond", cond is not None, self.config.cond_embed),
            ("guidance", guidance is not None, self.config.guidance_embed),
        ):
            if given != wanted:
                verb = "needs" if wanted else "does not take"
                raise ValueError(f"this model {verb} `{name}` ({name}_embed is {wanted})")
        # A condition of one token or one sample would be broadcast over the others.
        wanted_cond = (*x.shape[:2], self.config.cond_channels)
        if cond is not None and cond.shape != wanted_cond:
            raise ValueError(f"cond {tuple(cond.shape)}: expected {wanted_cond}")

    @torch.no_grad()
    def init_weights(
        self, generator: torch.Generator | None = None, only: Collection[str] | None = None
    ) -> None:
        """For training from scratch: every block starts as the identity, the output as zero.

        `only` names parameters whose layers are initialised; None means all of them.
        """
        for name, module in self.named_modules():
            if only is not None and not any(
                f"{name}.{own}" in only for own, _ in module.named_parameters(recurse=False)
            ):
                continue
            if isinstance(module, nn.Linear):
                zero = name.endswith(
                    ("mod.lin", "modulation.lin", "adaLN_modulation.1")
                ) or name in ("cond_in", "final_layer.linear")
                if zero:
                    module.weight.zero_()
                else:
                    bound = math.sqrt(6 / (module.in_features + module.out_features))
                    # On the CPU and whole: a seed means the same on every device and split.
                    shape, dtype = module.weight.shape, module.weight.dtype
                    drawn = torch.empty(shape, dtype=dtype, device="cpu")
                    fill(module.weight, drawn.uniform_(-bound, bound, generator=generator))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, HeadScale):
                module.scale.fill_(1.0)


def patchify(latent_BCTHW: Tensor, patch: int) -> Tensor:
    """Latents to tokens: (t h w) order, each token (c, row in patch, column in patch)."""
    x = latent_BCTHW.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # B C T h p w q
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def unpatchify(tokens_BVD: Tensor, grid: tuple[int, int, int], patch: int) -> Tensor:
    """The inverse of `patchify`; `grid` counts tokens."""
    x = tokens_BVD.unflatten(2, (-1, patch, patch)).unflatten(1, grid)  # B T h w C p q
    return x.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)
