"""From prompts to videos: text, noise, guided integration, decoding."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidgen.config import to_dict
from vidgen.diffusion import flow
from vidgen.diffusion.conditions import (
    caption,
    condition_channels,
    frames_needed,
    given_latents,
)
from vidgen.diffusion.guidance import Branches, GuidanceConfig, plan
from vidgen.diffusion.sampler import Progress
from vidgen.diffusion.solvers import SOLVERS
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder, latent_grid
from vidgen.models.build import build_autoencoder, build_text, check_parts_fit
from vidgen.models.mmdit import MMDiT, load_weights, patchify, unpatchify
from vidgen.models.mmdit.model import call_block
from vidgen.models.text.encoder import TextEncoder, TextFeatures
from vidgen.runtime import checkpoint, parallel
from vidgen.runtime.observe.timer import StepTimer
from vidgen.sample.denoise import Denoiser, Grid, Inputs, normal_noise, table_bytes, token_grid
from vidgen.sample.hooks import NO_HOOKS, Hooks, RunBlock, StateStore
from vidgen.sample.lazy import Part
from vidgen.sample.memory import plan_memory
from vidgen.sample.parallel import ALONE, Team
from vidgen.sample.references import read_references
from vidgen.sample.request import Request
from vidgen.sample.streaming import BlockStream
from vidgen.sample.system import System
from vidgen.sample.weights import find_step, fingerprint

Video = NDArray[np.uint8]  # (T, H, W, 3)
# Told after each step: steps done, and the latents (C, t, h, w) the video would end at from there.
Preview = Callable[[int, Tensor], None]
Features = Mapping[str, TextFeatures]  # by caption, in host memory, a batch of one each


class Pipeline:
    """A trained model with the parts around it; it keeps no state between requests."""

    def __init__(
        self,
        system: System,
        model: Part[MMDiT],
        autoencoder: Part[Autoencoder],
        text: Part[TextEncoder],
        *,
        device: torch.device,
        dtype: torch.dtype,
        source: str,
        memory: int | None = None,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        """`memory` is the most bytes of the device to use; parts then take turns in it."""
        check_parts_fit(system.model, autoencoder.get(), system.text)
        self.system = system
        self._model, self._autoencoder, self._text = model, autoencoder, text
        self.device, self.dtype, self.source = device, dtype, source
        self.memory, self.hooks = memory, hooks
        self.states = StateStore()
        self.stream: BlockStream | None = None
        self.memory_said = ""  # what was done to stay within it
        self._autoencoder_config = system.autoencoder
        self._weights_hash = ""

    @staticmethod
    def from_checkpoint(
        path: str | Path,
        device: str | torch.device = "auto",
        *,
        memory: int | None = None,
    ) -> "Pipeline":
        """A run directory, whose newest checkpoint is taken, or one step's directory.

        The moving average of the weights is used where the run kept one. `memory` is the most
        bytes of the device to use.
        """
        step = find_step(Path(path))
        system = System.of(checkpoint.read_objects(step)["recipe"])
        group = "ema" if "ema" in checkpoint.groups(step) else "model"
        return Pipeline._build(
            system, str(step), group, device, f"{system.name} {step.name}", memory
        )

    @staticmethod
    def from_weights(
        path: str | Path,
        recipe: Mapping[str, Any],
        device: str | torch.device = "auto",
        *,
        memory: int | None = None,
    ) -> "Pipeline":
        """Published weights (a file or a folder), and the recipe that names the other parts.

        The recipe is given as plain mappings: `to_dict(read_recipe("stage2.yaml", [], Recipe))`.
        """
        system = System.of(recipe)
        source = f"{system.name} {Path(path).name}"
        return Pipeline._build(system, str(path), "model", device, source, memory)

    @staticmethod
    def _build(
        system: System,
        weights: str,
        group: str,
        device: str | torch.device,
        source: str,
        memory: int | None,
        text: Part[TextEncoder] | None = None,
    ) -> "Pipeline":
        where = parallel.choose_device(device) if isinstance(device, str) else device
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32

        def model() -> MMDiT:
            with torch.device("meta"):
                found = MMDiT(system.model)
            found.to(dtype)
            if memory is not None:
                pipeline.stream = BlockStream(found, where, dtype)
            load_weights(found, weights, device=where, group=group)
            return found.eval().requires_grad_(False)

        pipeline = Pipeline(
            system,
            Part(model),
            Part(lambda: build_autoencoder(system.autoencoder, where, dtype)),
            text or Part(lambda: build_text(system.text, where, dtype)),
            device=where,
            dtype=dtype,
            source=source,
            memory=memory,
        )
        if memory is None:
            pipeline.model  # noqa: B018  weights that do not fit are refused before text is read
        return pipeline

    def painter(self, weights: str | Path, autoencoder: Mapping[str, Any]) -> "Pipeline":
        """FLUX.1's image model in the same transformer, reading the same text as this model.

        `autoencoder` is as in a recipe: {"kind": "flux_ae", "path": "ae.safetensors"}.
        """
        own = to_dict(self.system)
        recipe = {
            **{key: own[key] for key in ("text", "data", "flow")},
            "name": "flux",
            "model": "flux_dev",
            "autoencoder": dict(autoencoder),
            "conditions": {"suffix": False},  # an image has no frame rate
        }
        return Pipeline._build(
            System.of(recipe),
            str(weights),
            "model",
            self.device,
            f"flux {Path(weights).name}",
            self.memory,
            text=self._text,
        )

    def close(self) -> None:
        """Give all memory back."""
        for part in (self._model, self._autoencoder, self._text):
            part.drop()
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    @property
    def model(self) -> MMDiT:
        return self._model.get()

    @property
    def autoencoder(self) -> Autoencoder:
        return self._autoencoder.get()

    @property
    def weights_hash(self) -> str:
        """Tells apart the weights that videos were made with, whatever file held them."""
        if not self._weights_hash:
            self._weights_hash = fingerprint(self.model)
        return self._weights_hash

    @torch.no_grad()
    def features(self, requests: Sequence[Request]) -> Features:
        """What the text encoder makes of every caption, each by itself.

        Where memory is limited the encoder leaves afterwards: give it all requests at once.
        """
        captions = {c: None for r in requests for c in self._captions(r)}
        if self.stream is not None:
            self.stream.release()
        encoder = self._text.get()
        found = {}
        for text in captions:
            one = encoder.encode([text])
            found[text] = TextFeatures(one.tokens_BLD.cpu(), one.pooled_BD.cpu())
        if self.memory is not None:
            del encoder
            self._text.drop()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return found

    def generate(
        self,
        requests: Sequence[Request],
        *,
        together: bool = False,
        progress: Progress | None = None,
        full_guidance: bool = False,
    ) -> list[Video]:
        """Videos (T, H, W, 3) of any requests, one after another.

        A video depends on its own request alone: the same bits whatever is made beside it.
        `together` makes requests that differ in text, seed and references only in common passes:
        a small model is then several times as fast, and its videos are the same to rounding.
        """
        for request in requests:
            self.check(request)
        if together and len({request.shared() for request in requests}) > 1:
            raise ValueError("requests made together may differ in text, seed and references only")
        features = self.features(requests)
        groups = [list(requests)] if together and requests else [[request] for request in requests]
        return [
            video
            for group in groups
            for video in self._videos(
                group, features, progress=progress, full_guidance=full_guidance
            )
        ]

    def video(
        self,
        request: Request,
        features: Features,
        *,
        progress: Progress | None = None,
        preview: Preview | None = None,
        timer: StepTimer | None = None,
        team: Team = ALONE,
    ) -> Video:
        """One video, its captions encoded beforehand."""
        (video,) = self._videos(
            [request], features, progress=progress, preview=preview, timer=timer, team=team
        )
        return video

    @torch.no_grad()
    def _videos(
        self,
        requests: Sequence[Request],
        features: Features,
        *,
        progress: Progress | None = None,
        preview: Preview | None = None,
        timer: StepTimer | None = None,
        team: Team = ALONE,
        full_guidance: bool = False,
    ) -> list[Video]:
        one = requests[0]
        grid = self.check(one)

        def phase(name: str) -> AbstractContextManager[None]:
            return contextlib.nullcontext() if timer is None else timer.phase(name)

        with phase("references"):
            pairs = [self._references(request, grid) for request in requests]
            mask, given = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        with phase("load"):
            denoiser = Denoiser(
                self.model,
                self.dtype,
                team,
                self.hooks,
                self.states,
                self._fit(one, grid) or call_block,
            )
        patch = self.system.model.patch_size

        def watch(done: int, t: float, x: Tensor, v: Tensor) -> None:
            if preview is not None:
                latent = unpatchify(x - t * v, grid.tokens, patch)
                preview(done, torch.where(mask.bool(), given, latent)[0])

        with phase("denoise"):
            shape = (self.autoencoder.latent_channels, *grid.latent)
            noise = torch.stack([normal_noise(request.seed, shape) for request in requests])
            inputs = self._inputs(requests, grid, mask, given, features, full_guidance)
            x = denoiser.run(inputs, patchify(noise.to(self.device), patch), progress, watch)
            latents = unpatchify(x, grid.tokens, patch)
            latents = torch.where(mask.bool(), given, latents)  # what was given stays as it is
        with phase("decode"):
            if self.stream is not None:
                self.stream.release()
            return [self._decode(latent[None], one.frames) for latent in latents]

    def _inputs(
        self,
        requests: Sequence[Request],
        grid: Grid,
        mask: Tensor,
        given: Tensor,
        features: Features,
        full: bool,
    ) -> Inputs:
        config, one = self.system.model, requests[0]
        captions = [self._captions(request) for request in requests]
        said, unsaid = ([features[c] for c in column] for column in zip(*captions, strict=True))
        by_branch = {"text": said, "image": unsaid, "none": unsaid}

        def placed(tensors: list[Tensor]) -> Tensor:
            return torch.cat(tensors).to(self.device, self.dtype)

        cond: dict[str, Tensor | None] = dict.fromkeys(by_branch)
        if config.cond_embed:
            shown = patchify(condition_channels(mask, given), config.patch_size).to(self.dtype)
            cond = {"text": shown, "image": shown, "none": torch.zeros_like(shown)}
        scale = None
        if config.guidance_embed:
            scale = torch.full((len(requests),), one.guidance, device=self.device)
        return Inputs(
            grid=grid.tokens,
            times=flow.timesteps(one.steps, flow.shift_alpha(self.system.flow, grid.latent)),
            branches=self.branches(one, grid.tokens, full=full),
            solver=one.solver,
            text={name: placed([f.tokens_BLD for f in fs]) for name, fs in by_branch.items()},
            pooled={name: placed([f.pooled_BD for f in fs]) for name, fs in by_branch.items()},
            cond=cond,
            guidance=scale,
        )

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

    def check(self, request: Request) -> Grid:
        """The request's sizes; refuses in one line what this model cannot make."""
        patch = self.system.model.patch_size
        try:
            latent = latent_grid(
                self.autoencoder, request.frames, request.height, request.width, patch
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        if request.steps < 1:
            raise UserError(f"steps {request.steps}: expected 1 or more")
        if not 0 < request.fps < math.inf:
            raise UserError(f"fps {request.fps:g}: expected a number above 0")
        if request.solver not in SOLVERS:
            raise UserError(f"solver {request.solver!r}: there are {', '.join(SOLVERS)}")
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
        return Grid(latent, token_grid(latent, patch))

    def _fit(self, request: Request, grid: Grid) -> RunBlock | None:
        """Make room on the device for this shape of video; says what that took."""
        if self.memory is None:
            return None
        model, stream = self.model, self.stream
        assert stream is not None
        parts = [self.autoencoder] if isinstance(self.autoencoder, nn.Module) else []
        around = stream.around_bytes + sum(p.nbytes for part in parts for p in part.parameters())
        fitted = plan_memory(
            self.memory,
            self.system.model,
            self.system.autoencoder,
            grid=grid.tokens,
            text_length=self.system.text.length,
            video=(request.frames, request.height, request.width),
            around_bytes=around,
            table_bytes=table_bytes(model, request.steps, self.dtype.itemsize),
            dtype=self.dtype,
        )
        if fitted.autoencoder != self._autoencoder_config:
            self._autoencoder_config = fitted.autoencoder
            self._autoencoder = Part(
                lambda: build_autoencoder(fitted.autoencoder, self.device, self.dtype)
            )
        streamed = stream.keep(fitted.block_bytes)
        self.memory_said = fitted.said(len(stream.sizes), streamed)
        return stream.run_block

    def _references(self, request: Request, grid: Grid) -> tuple[Tensor, Tensor]:
        size = (request.height, request.width)
        pieces = read_references(
            request.condition, request.ref, self.autoencoder, size, self.device
        )
        mask, given = given_latents(
            request.condition, pieces, self.autoencoder, grid.latent, request.seed
        )
        return mask[None].to(self.device), given[None].float().to(self.device)

    def _captions(self, request: Request) -> tuple[str, str]:
        """What the model is asked for, and what it is to move away from."""

        def full(text: str) -> str:
            if not text or not self.system.conditions.suffix:
                return text
            return caption(text, request.fps, request.motion_score)

        return full(request.prompt), full(request.negative)

    def _decode(self, latents_BCTHW: Tensor, frames: int) -> Video:
        video = self.autoencoder.decode(latents_BCTHW)[0, :, :frames]
        pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        result: Video = pixels.permute(1, 2, 3, 0).cpu().numpy()
        return result
