"""An early layer of a network kept close to DINOv2's features of the clip's frames.

Each video token of that layer passes through a small MLP, trained along, whose output is compared
with the features of the frames and the square of pixels behind the token. A generator adapts faster
to latents of another kind that way; an autoencoder has a head of its own on its encoder.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.models.autoencoder import Autoencoder
from vidgen.models.dinov2 import DINOv2
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit import MMDiTConfig, Seams
from vidgen.models.mmdit.capture import Capture
from vidgen.recipe.schema import AlignmentConfig, OptimConfig
from vidgen.runtime import checkpoint
from vidgen.runtime.parallel.zero import clip_grad_norm, fill
from vidgen.train.optim.optimizer import build_optimizer, set_learning_rate, state_tensors
from vidgen.train.ranks import Ranks

GROUP = "alignment"  # of a checkpoint


class Projection(nn.Sequential):
    """From the generator's width to the features': (..., width) to (..., features)."""

    def __init__(self, width: int, hidden: int, features: int) -> None:
        super().__init__(
            *(nn.Linear(width, hidden), nn.SiLU()),
            *(nn.Linear(hidden, hidden), nn.SiLU()),
            nn.Linear(hidden, features),
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        for layer in self:
            if isinstance(layer, nn.Linear):
                bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
                drawn = torch.empty(layer.weight.shape, device="cpu")
                fill(layer.weight, drawn.uniform_(-bound, bound, generator=generator))
                layer.bias.zero_()


class AlignmentHead:
    """DINOv2, and the projection that is trained beside a network, with its optimizer."""

    def __init__(
        self,
        config: AlignmentConfig,
        optim: OptimConfig,
        width: int,
        ranks: Ranks | None,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`ranks` shard the projection; without them every rank holds all of it."""
        assert config.path is not None
        self._config, self._clip = config, optim.clip
        self.weight, self._initial = config.weight, "new"
        self._features = DINOv2(config.path, device=device, dtype=dtype)
        with torch.device("meta"):
            self.projection = Projection(width, config.hidden, self._features.width)
        if ranks is not None:
            ranks.shard(self.projection, dtype)
        self.projection.to_empty(device=device)
        # The model's own weights are drawn with `seed`.
        self.projection.init_weights(torch.Generator().manual_seed(seed + 1))
        self._named = dict(self.projection.named_parameters())
        self._optimizer = build_optimizer(self._named.values(), optim)

    def load_projection(self, weights: str) -> None:
        """From the checkpoint of the run these weights are from, if it has one."""
        step = checkpoint.find_step(weights)
        if step is not None and GROUP in checkpoint.groups(step):
            checkpoint.load(step, {GROUP: self.tensors()[GROUP]})
            self._initial = f"from {step}"

    def describe(self) -> str:
        config = self._config
        return (
            f"alignment: {config.weight:g} x minus the cosine of layer {config.layer} to the "
            f"{self._features.width} features of {config.path}; projection {self._initial}"
        )

    def features(
        self, frames_BTHWC: Tensor, behind: list[slice], rows: int, columns: int
    ) -> Tensor:
        """DINOv2's (B, n, rows * columns, D), fp32: the mean over each run of frames in `behind`,
        which follow one another."""
        begin = behind[0].start
        frames = frames_BTHWC[:, begin : behind[-1].stop]
        found = self._features(frames.flatten(0, 1), rows, columns)
        found_BTND = found.view(*frames.shape[:2], rows * columns, -1).float()
        means = [found_BTND[:, s.start - begin : s.stop - begin].mean(dim=1) for s in behind]
        return torch.stack(means, dim=1)

    def finish_gradients(self) -> None:
        """Clipped apart, so that the generator's norm is its own."""
        clip_grad_norm(self._named.values(), self._clip)

    def update(self, lr: float) -> None:
        set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of their own: exported and sampled is the generator alone."""
        return {
            GROUP: {name: p.detach() for name, p in self._named.items()},
            f"{GROUP}_optim": state_tensors(self._named, self._optimizer),
        }


class Alignment(AlignmentHead):
    """Run the generator under `seams`, then ask for the `losses` of that forward pass."""

    def __init__(
        self,
        config: AlignmentConfig,
        optim: OptimConfig,
        model: MMDiTConfig,
        autoencoder: Autoencoder,
        ranks: Ranks,
        seams: Seams,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(
            config, optim, model.hidden_size, ranks, seed=seed, device=device, dtype=dtype
        )
        self._geometry = Geometry.of(autoencoder)
        self._capture = Capture(seams, config.layer)
        self.seams = self._capture.seams

    def losses(self, frames_BTHWC: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Of each sample (B,), the mean over its tokens of minus the cosine similarity.

        `grid` is that of the tokens. In a context group every rank compares its own tokens, looks
        at no frames but theirs, and gets the mean over all.
        """
        video_BVD, part = self._capture.take()
        projected_BVD = self.projection(video_BVD)
        wanted_BVD = self._wanted(frames_BTHWC, grid, part.video)
        alike_BV = F.cosine_similarity(projected_BVD.float(), wanted_BVD, dim=-1)
        alike_BV1: Tensor = part.gather(alike_BV[..., None])
        return -alike_BV1.mean(dim=(1, 2))

    def _wanted(self, frames_BTHWC: Tensor, grid: tuple[int, int, int], tokens: slice) -> Tensor:
        """The features behind a run of tokens, fp32: the mean over the frames of each latent."""
        _, rows, columns = grid
        size = rows * columns
        if tokens.start == tokens.stop:  # this rank has text alone
            return torch.zeros(
                len(frames_BTHWC), 0, self._features.width, device=frames_BTHWC.device
            )
        first, last = tokens.start // size, -(-tokens.stop // size)
        count = frames_BTHWC.shape[1]
        behind = [self._geometry.frames_behind(at, count) for at in range(first, last)]
        found_BVD = self.features(frames_BTHWC, behind, rows, columns).flatten(1, 2)
        return found_BVD[:, tokens.start - first * size : tokens.stop - first * size]
