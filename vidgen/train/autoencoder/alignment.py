"""A stage of the Video DC-AE's encoder kept close to DINOv2's features of the clip's frames."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vidgen.models.geometry import Geometry
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.train.objectives.alignment import AlignmentHead


class AutoencoderAlignment(AlignmentHead):
    def __init__(self, recipe: AutoencoderRecipe, device: torch.device, dtype: torch.dtype) -> None:
        stage, widths = recipe.alignment.layer, recipe.autoencoder.widths
        width = widths[min(stage, len(widths) - 1)]  # a stage ends with the next one's width
        super().__init__(
            recipe.alignment,
            recipe.optim,
            width,
            None,
            seed=recipe.seed,
            device=device,
            dtype=dtype,
        )
        halved = recipe.autoencoder.down_frames[:stage]
        self._frames = 2 ** sum(halved)  # behind one position of the stage

    def losses(self, stage_BCTHW: Tensor, frames_BTHWC: Tensor) -> Tensor:
        """Of each clip (B,), the mean over the stage's positions of minus the cosine similarity
        with the features of the same grid."""
        positions, rows, columns = stage_BCTHW.shape[2:]
        geometry = Geometry(compression=(self._frames, 1, 1), causal=False)
        count = frames_BTHWC.shape[1]
        behind = [geometry.frames_behind(at, count) for at in range(positions)]
        wanted_BTND = self.features(frames_BTHWC, behind, rows, columns)
        projected_BTND = self.projection(stage_BCTHW.permute(0, 2, 3, 4, 1).flatten(2, 3))
        alike_BTN = F.cosine_similarity(projected_BTND.float(), wanted_BTND, dim=-1)
        return -alike_BTN.mean(dim=(1, 2))
