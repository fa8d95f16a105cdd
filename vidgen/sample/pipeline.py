"""From prompts to videos: text, noise, guided integration, decoding."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vidgen.config import to_dict
from vidgen.errors import UserError
from vidgen.models.autoencoder import Autoencoder
from vidgen.models.build import build_autoencoder, build_text, check_parts_fit
from vidgen.models.geometry import Geometry
from vidgen.models.mmdit import MMDiT, load_weights, patchify, unpatchify
from vidgen.models.mmdit.model import call_block
from vidgen.models.text.encoder import TextEncoder
from vidgen.recipe import Recipe, for_sampling
from vidgen.runtime import checkpoint, parallel
from vidgen.runtime.lazy import Lazy
from vidgen.runtime.observe.timer import StepTimer
from vidgen.sample.denoise import Denoiser, normal_noise, table_bytes
from vidgen.sample.hooks import NO_HOOKS, Hooks, RunBlock, StateStore
from vidgen.sample.inputs import Features, encode_captions, encode_references, make_inputs
from vidgen.sample.job import Job, check
from vidgen.sample.memory import MemoryNeeds, plan_memory
from vidgen.sample.parallel import ALONE, Team
from vidgen.sample.request import Request
from vidgen.sample.streaming import BlockStream
from vidgen.sample.weights import fingerprint

Video = NDArray[np.uint8]  # (T, H, W, 3)
Progress = Callable[[int, int], None]  # after each step: steps done, steps in all
# After each step: steps done, and the latents (C, t, h, w) where the video would end from there.
Preview = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Parts:
    """The models of a pipeline, each built when it is first needed."""

    model: Lazy[MMDiT]
    autoencoder: Lazy[Autoencoder]
    text: Lazy[TextEncoder]


@dataclass(frozen=True)
class SamplingOptions:
    """What to report while a video forms, and which ranks make it: not what it shows."""

    progress: Progress | None = None
    preview: Preview | None = None
    timer: StepTimer | None = None
    team: Team = ALONE
    full_guidance: bool = False  # every branch at every step: the same video to rounding

    def phase(self, name: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.timer is None else self.timer.phase(name)


class Pipeline:
    """A trained model with the models around it; it keeps no state between requests."""

    def __init__(
        self,
        recipe: Recipe,
        parts: Parts,
        *,
        device: torch.device,
        dtype: torch.dtype,
        source: str,
        memory: int | None = None,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        """`memory` limits the bytes of the device to use; models then take turns in it."""
        check_parts_fit(recipe.model, parts.autoencoder.get(), recipe.text)
        self.recipe = recipe
        self._model, self._autoencoder, self._text = parts.model, parts.autoencoder, parts.text
        self.device, self.dtype, self.source = device, dtype, source
        self.memory, self.hooks = memory, hooks
        self.states = StateStore()
        self.stream: BlockStream | None = None
        self.memory_report = ""  # what was done to stay within it
        self._autoencoder_config = recipe.autoencoder
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
        step = checkpoint.find_step(path)
        if step is None:
            raise UserError(
                f"{path} is no run and no checkpoint: expected a run directory (with checkpoints/"
                "step-...) or one step's directory; for published weights add --recipe stage3"
            )
        stored = checkpoint.read_objects(step)
        if "recipe" not in stored:
            raise UserError(
                f"{step} holds imported weights and no recipe: name one, such as --recipe stage3"
            )
        recipe = for_sampling(stored["recipe"])
        group = "ema" if "ema" in checkpoint.groups(step) else "model"
        source = f"{recipe.name} {step.name}"
        return Pipeline._build(recipe, str(step), group, device, source, memory)

    @staticmethod
    def from_weights(
        path: str | Path,
        recipe: Recipe | Mapping[str, Any],
        device: str | torch.device = "auto",
        *,
        memory: int | None = None,
    ) -> "Pipeline":
        """Published weights (a file or a folder), and the recipe that names the other parts.

        The recipe is `read_recipe("stage2")`, or plain mappings with the same keys.
        """
        if not isinstance(recipe, Recipe):
            recipe = for_sampling(recipe)
        source = f"{recipe.name} {Path(path).name}"
        return Pipeline._build(recipe, str(path), "model", device, source, memory)

    @staticmethod
    def _build(
        recipe: Recipe,
        weights: str,
        group: str,
        device: str | torch.device,
        source: str,
        memory: int | None,
        text: Lazy[TextEncoder] | None = None,
    ) -> "Pipeline":
        where = parallel.choose_device(device) if isinstance(device, str) else device
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32

        def model() -> MMDiT:
            with torch.device("meta"):
                found = MMDiT(recipe.model)
            found.to(dtype)
            if memory is not None:
                pipeline.stream = BlockStream(found, where, dtype)
            load_weights(found, weights, device=where, group=group)
            return found.eval().requires_grad_(False)

        pipeline = Pipeline(
            recipe,
            Parts(
                Lazy(model),
                Lazy(lambda: build_autoencoder(recipe.autoencoder, where, dtype)),
                text or Lazy(lambda: build_text(recipe.text, where, dtype)),
            ),
            device=where,
            dtype=dtype,
            source=source,
            memory=memory,
        )
        if memory is None:
            pipeline.model  # noqa: B018  weights that do not fit are refused before text is read
        return pipeline

    def image_pipeline(
        self,
        weights: str | Path,
        autoencoder: Mapping[str, Any],
        kind: str = "flux_dev",
        shift: str | float = "flux",
    ) -> "Pipeline":
        """FLUX.1's image model in the same transformer, reading the same text as this model.

        `autoencoder` is as in a recipe: {"kind": "flux_ae", "path": "ae.safetensors"}. `kind` is
        flux_dev or flux_schnell; `shift` is of its timesteps, as `flow.shift` in a recipe.
        """
        own = to_dict(self.recipe)
        flux = {
            **{key: own[key] for key in ("text", "data")},
            "name": "flux",
            "model": kind,
            "flow": {"shift": shift},
            "autoencoder": dict(autoencoder),
            "conditions": {"suffix": False},  # an image has no frame rate
        }
        return Pipeline._build(
            for_sampling(flux),
            str(weights),
            "model",
            self.device,
            f"flux {Path(weights).name}",
            self.memory,
            text=self._text,
        )

    def close(self) -> None:
        """Free all memory."""
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
    def geometry(self) -> Geometry:
        return Geometry.of(self.autoencoder, self.recipe.model.patch_size)

    @property
    def weights_hash(self) -> str:
        """Identifies the weights, independently of the file and layout they were loaded from."""
        if not self._weights_hash:
            self._weights_hash = fingerprint(self.model)
        return self._weights_hash

    def check(self, request: Request) -> Job:
        """The one place where a request is checked; refuses in one line what cannot be made."""
        return check(self.recipe, self.autoencoder, request)

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
        `together` makes requests that differ only in text, seed and references in common passes:
        a small model is then several times as fast, and its videos are the same to rounding.
        """
        jobs = [self.check(request) for request in requests]
        if together and len({request.shared() for request in requests}) > 1:
            raise ValueError("requests made together may differ in text, seed and references only")
        features = self.features(jobs)
        groups = [jobs] if together and jobs else [[job] for job in jobs]
        options = SamplingOptions(progress, full_guidance=full_guidance)
        return [video for group in groups for video in self._videos(group, features, options)]

    @torch.no_grad()
    def features(self, jobs: Sequence[Job]) -> Features:
        """Text features of every caption.

        With limited memory the encoder is dropped afterwards: pass all jobs at once.
        """
        if self.stream is not None:
            self.stream.release()
        found = encode_captions(self.recipe, self._text.get(), jobs)
        if self.memory is not None:
            self._text.drop()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return found

    def video(
        self, job: Job, features: Features, options: SamplingOptions = SamplingOptions()
    ) -> Video:
        """One video, its captions encoded beforehand."""
        (video,) = self._videos([job], features, options)
        return video

    @torch.no_grad()
    def _videos(
        self, jobs: Sequence[Job], features: Features, options: SamplingOptions
    ) -> list[Video]:
        """References -> noise -> denoise, step by step -> decode."""
        job, patch = jobs[0], self.recipe.model.patch_size
        with options.phase("references"):
            given = encode_references(self.recipe, self.autoencoder, jobs, self.device)
        with options.phase("load"):
            denoiser = Denoiser(
                self.model, self.dtype, options.team, self.hooks, self._fit(job) or call_block
            )
        with options.phase("denoise"), self.states.request() as (number, state):
            shape = (self.autoencoder.latent_channels, *job.latent)
            noise = torch.stack([normal_noise(each.request.seed, shape) for each in jobs])
            x = patchify(noise.to(self.device), patch)
            inputs = make_inputs(
                self.recipe, jobs, features, given, self.dtype, full_guidance=options.full_guidance
            )
            for step in denoiser.steps(inputs, x, number, state):
                x = step.x_BVD
                if options.progress is not None:
                    options.progress(step.done, job.request.steps)
                if options.preview is not None:
                    clean = given.over(unpatchify(step.clean_BVD, job.tokens, patch))
                    options.preview(step.done, clean[0])
            latents = given.over(unpatchify(x, job.tokens, patch))
        with options.phase("decode"):
            if self.stream is not None:
                self.stream.release()
            return [self._decode(latent[None], job.request.frames) for latent in latents]

    def _fit(self, job: Job) -> RunBlock | None:
        """Make room on the device for this shape of video; `memory_report` tells how."""
        if self.memory is None:
            return None
        model, stream = self.model, self.stream
        assert stream is not None
        parts = [self.autoencoder] if isinstance(self.autoencoder, nn.Module) else []
        around = stream.around_bytes + sum(p.nbytes for part in parts for p in part.parameters())
        request = job.request
        needs = MemoryNeeds(
            video=(request.frames, request.height, request.width),
            tokens=job.tokens,
            text_length=self.recipe.text.length,
            around_bytes=around,
            table_bytes=table_bytes(model, request.steps, self.dtype.itemsize),
        )
        fitted = plan_memory(
            self.memory, self.recipe.model, self.recipe.autoencoder, needs, self.dtype
        )
        if fitted.autoencoder != self._autoencoder_config:
            self._autoencoder_config = fitted.autoencoder
            self._autoencoder = Lazy(
                lambda: build_autoencoder(fitted.autoencoder, self.device, self.dtype)
            )
        streamed = stream.keep(fitted.block_bytes)
        self.memory_report = fitted.describe(len(stream.sizes), streamed)
        return stream.run_block

    def _decode(self, latents_BCTHW: Tensor, frames: int) -> Video:
        video = self.autoencoder.decode(latents_BCTHW)[0, :, :frames]
        pixels = ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        result: Video = pixels.permute(1, 2, 3, 0).cpu().numpy()
        return result
