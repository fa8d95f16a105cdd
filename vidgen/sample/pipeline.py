"""From prompts to videos: text, noise, guided integration, decoding."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidgen.diffusion import flow
from vidgen.diffusion.conditions import (
    caption,
    condition_channels,
    frames_needed,
    given_latents,
)
from vidgen.diffusion.config import ConditionName
from vidgen.diffusion.guidance import Branches, GuidanceConfig, plan
from vidgen.diffusion.sampler import SOLVERS, Progress
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder, latent_grid
from vidgen.models.build import build_autoencoder, build_text, check_parts_fit
from vidgen.models.mmdit import MMDiT, load_weights, patchify, unpatchify
from vidgen.models.mmdit.layouts import Layout
from vidgen.models.text.encoder import TextEncoder
from vidgen.runtime import checkpoint, parallel
from vidgen.sample.references import read_references
from vidgen.sample.system import System


@dataclass(frozen=True)
class Request:
    """Everything that decides one video."""

    prompt: str
    seed: int
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    guidance_img: float
    fps: float
    motion_score: float | None
    negative: str = ""
    condition: ConditionName = "t2v"
    ref: tuple[str, ...] = ()

    def shared(self) -> "Request":
        """What the requests of one batch must have in common."""
        return replace(self, prompt="", seed=0, negative="", ref=())


class Pipeline:
    """A trained model with the parts around it; it keeps no state between requests."""

    def __init__(
        self,
        system: System,
        model: MMDiT,
        autoencoder: Autoencoder,
        text: TextEncoder,
        device: torch.device,
        dtype: torch.dtype,
        source: str,
    ) -> None:
        check_parts_fit(system.model, autoencoder, text)
        self.system, self.model = system, model.eval().requires_grad_(False)
        self.autoencoder, self.text = autoencoder, text
        self.device, self.dtype, self.source = device, dtype, source

    @staticmethod
    def from_checkpoint(path: str | Path, device: str = "auto") -> "Pipeline":
        """A run directory, whose newest checkpoint is taken, or one step's directory.

        The moving average of the weights is used where the run kept one.
        """
        step = _find_step(Path(path))
        system = System.of(checkpoint.read_objects(step)["recipe"])
        group = "ema" if "ema" in checkpoint.groups(step) else "model"
        weights = checkpoint.read_tensors(step, group)
        return Pipeline._build(system, weights, "vidgen", device, f"{system.name} {step.name}")

    @staticmethod
    def from_weights(
        path: str | Path, recipe: Mapping[str, Any], device: str = "auto"
    ) -> "Pipeline":
        """Published weights (a file or a folder), and the recipe that names the other parts.

        The recipe is given as plain mappings: `to_dict(read_recipe("stage2.yaml", [], Recipe))`.
        """
        system = System.of(recipe)
        return Pipeline._build(system, str(path), None, device, f"{system.name} {Path(path).name}")

    @staticmethod
    def _build(
        system: System,
        weights: str | dict[str, Tensor],
        layout: Layout | None,
        device: str,
        source: str,
    ) -> "Pipeline":
        where = parallel.choose_device(device)
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        with torch.device("meta"):
            model = MMDiT(system.model)
        load_weights(model.to(dtype), weights, layout=layout, device=where)
        return Pipeline(
            system,
            model,
            build_autoencoder(system.autoencoder, where, dtype),
            build_text(system.text, where, dtype),
            where,
            dtype,
            source,
        )

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = None,
        full_guidance: bool = False,
    ) -> list[NDArray[np.uint8]]:
        """Videos (T, H, W, 3) of requests that share everything but prompt, seed and reference.

        A video depends on its own request alone, never on its neighbours in the batch.
        """
        if not requests:
            return []
        one = requests[0]
        if any(request.shared() != one.shared() for request in requests):
            raise ValueError("requests of one batch may differ in prompt, seed and reference only")
        grid = self._check(one)
        patch = self.system.model.patch_size
        tokens = (grid[0], grid[1] // patch, grid[2] // patch)
        latent_shape = (self.autoencoder.latent_channels, *grid)
        noise = torch.stack([_noise(request.seed, latent_shape) for request in requests])
        mask, given = self._references(requests, grid)

        text = {
            "text": self._features([self._caption(r, r.prompt) for r in requests]),
            "image": self._features([self._caption(r, r.negative) for r in requests]),
        }
        text["none"] = text["image"]
        shown = patchify(condition_channels(mask, given), patch).to(self.dtype)
        hidden = torch.zeros_like(shown)
        cond = {"text": shown, "image": shown, "none": hidden}

        def evaluate(branch: str, x_BVD: Tensor, t: float) -> Tensor:
            txt, vec = text[branch]
            t_B = torch.full((len(requests),), t, device=self.device)
            config = self.system.model
            velocity: Tensor = self.model(
                x_BVD.to(self.dtype),
                grid=tokens,
                txt=txt,
                vec=vec,
                t=t_B,
                cond=cond[branch] if config.cond_embed else None,
                guidance=torch.full_like(t_B, one.guidance) if config.guidance_embed else None,
            )
            return velocity

        times = flow.timesteps(one.steps, flow.shift_alpha(self.system.flow, grid))
        branches = self.branches(one, tokens, full=full_guidance)
        solve = SOLVERS[self.system.sample.solver]
        x = solve(evaluate, patchify(noise.to(self.device), patch), times, branches, progress)
        latents = unpatchify(x, tokens, patch)
        latents = torch.where(mask.bool(), given, latents)  # what was given is kept as it is
        return [self._decode(latent, one.frames) for latent in latents]

    def branches(
        self, request: Request, tokens: tuple[int, int, int], *, full: bool = False
    ) -> list[Branches]:
        """Which guidance branches each step runs; the token grid is (frames, rows, columns)."""
        if self.system.model.guidance_embed:  # a distilled model reads the scale as an input
            return [Branches({"text": 1.0})] * request.steps
        sample = self.system.sample
        config = GuidanceConfig(
            text=request.guidance,
            image=request.guidance_img,
            oscillate_text=sample.oscillate_text,
            oscillate_image=sample.oscillate_img,
            oscillate_after=sample.oscillate_after,
            # As published: for a given image, not for a given clip.
            dynamic_image=sample.dynamic_img and request.condition.startswith("i2v"),
        )
        has_image = request.condition != "t2v"
        return plan(config, request.steps, tokens, has_image=has_image, full=full)

    def _check(self, request: Request) -> tuple[int, int, int]:
        try:
            grid = latent_grid(
                self.autoencoder,
                request.frames,
                request.height,
                request.width,
                self.system.model.patch_size,
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        if request.steps < 1:
            raise UserError(f"steps {request.steps}: expected 1 or more")
        if not 0 < request.fps < math.inf:
            raise UserError(f"fps {request.fps:g}: expected a number above 0")
        if request.condition != "t2v":
            if not self.system.model.cond_embed:
                raise UserError(
                    f"this model takes no image or video (model.cond_embed is false), so it "
                    f"cannot sample {request.condition}; leave --condition out"
                )
            needed = frames_needed(request.condition, self.autoencoder)
            if request.frames < needed:
                raise UserError(
                    f"{request.condition} needs at least {needed} frames, not {request.frames}"
                )
        return grid

    def _references(
        self, requests: Sequence[Request], grid: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        masks, latents = [], []
        for r in requests:
            pieces = read_references(
                r.condition, r.ref, self.autoencoder, (r.height, r.width), self.device
            )
            mask, given = given_latents(r.condition, pieces, self.autoencoder, grid, r.seed)
            masks.append(mask.to(self.device))
            latents.append(given.float().to(self.device))
        return torch.stack(masks), torch.stack(latents)

    def _features(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        features = self.text.encode(captions)
        return features.tokens_BLD.to(self.dtype), features.pooled_BD.to(self.dtype)

    def _caption(self, request: Request, text: str) -> str:
        if not text or not self.system.conditions.suffix:
            return text
        return caption(text, request.fps, request.motion_score)

    def _decode(self, latent_CTHW: Tensor, frames: int) -> NDArray[np.uint8]:
        video = self.autoencoder.decode(latent_CTHW[None])[0, :, :frames]
        pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        result: NDArray[np.uint8] = pixels.permute(1, 2, 3, 0).cpu().numpy()
        return result


def _noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """On the CPU, so that a seed means the same video on every device."""
    count = math.prod(shape)
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).view(shape)


def _find_step(path: Path) -> Path:
    for root in (path / "checkpoints", path):
        if newest := checkpoint.latest(root):
            return newest
    if (path / "manifest.json").is_file():
        return path
    raise UserError(
        f"{path} is no run and no checkpoint: expected a run directory (with checkpoints/step-...)"
        " or one step's directory; for published weights add --recipe recipes/stage3.yaml"
    )
