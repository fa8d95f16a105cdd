"""One request from noise to latents: branches, modulation, seams and ranks put together."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vidgen.diffusion.guidance import Branches
from vidgen.diffusion.sampler import Point, Progress, integrate, passes
from vidgen.diffusion.solvers import Watch
from vidgen.models.mmdit import MMDiT, ModulationTable, Seams
from vidgen.models.mmdit.model import call_block
from vidgen.sample.hooks import Hooks, Moment, RunBlock, State, StateStore, hooked
from vidgen.sample.parallel import Team, bounds, share_branches, split_tokens

LookUp = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Grid:
    """Sizes of one request in latents and in tokens: frames, rows, columns."""

    latent: tuple[int, int, int]
    tokens: tuple[int, int, int]


@dataclass(frozen=True)
class Inputs:
    """What the passes of a request share. B is 1, so that no request rounds another's, but where
    requests alike in all but text, seed and references are asked to be made together."""

    grid: tuple[int, int, int]  # tokens
    times: Sequence[float]
    branches: Sequence[Branches]  # of each step
    solver: str
    # By branch: text tokens, pooled text, and the condition's tokens where the model takes them.
    text: Mapping[str, Tensor]
    pooled: Mapping[str, Tensor]
    cond: Mapping[str, Tensor | None]
    guidance: Tensor | None  # (B,), for a distilled model


@dataclass(frozen=True)
class Denoiser:
    model: MMDiT
    dtype: torch.dtype
    team: Team
    hooks: Hooks
    states: StateStore
    run_block: RunBlock = call_block

    def run(
        self,
        inputs: Inputs,
        noise_BVD: Tensor,
        progress: Progress | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        modulation = self._modulation(inputs, noise_BVD.device)
        with self.states.request() as (number, state):

            def evaluate(point: Point, x_BVD: Tensor) -> Mapping[str, Tensor]:
                x = x_BVD.to(self.dtype)

                def one(branch: str) -> Tensor:
                    moment = self._moment(inputs, point, branch, number, state)
                    return self._velocity(inputs, moment, x, modulation(point.t, branch))

                return share_branches(self.team.branch, point.branches, one, like=x)

            return integrate(
                evaluate,
                noise_BVD,
                inputs.times,
                inputs.branches,
                solver=inputs.solver,
                progress=progress,
                watch=watch,
            )

    def _velocity(
        self, inputs: Inputs, moment: Moment, x_BVD: Tensor, modulation: LookUp
    ) -> Tensor:
        run = hooked(self.hooks, moment, self.run_block)
        if self.team.context is not None:
            blocks = len(self.model.double_blocks) + len(self.model.single_blocks)
            text = inputs.text[moment.branch].shape[1]
            run = split_tokens(self.team.context, run, blocks, text, x_BVD.shape[1])
        velocity: Tensor = self.model(
            x_BVD,
            grid=inputs.grid,
            txt=inputs.text[moment.branch],
            vec=inputs.pooled[moment.branch],
            t=torch.full((len(x_BVD),), moment.t, device=x_BVD.device),
            cond=inputs.cond[moment.branch],
            guidance=inputs.guidance,
            seams=Seams(run_block=run, modulation=modulation),
        )
        return velocity

    def _moment(
        self, inputs: Inputs, point: Point, branch: str, number: int, state: State
    ) -> Moment:
        text = inputs.text[branch].shape[1]
        if self.team.context is not None:
            rank, size = dist.get_rank(self.team.context), dist.get_world_size(self.team.context)
            starts = bounds(text, size)
            text = starts[rank + 1] - starts[rank]
        return Moment(
            request=number,
            number=point.number,
            step=point.step,
            steps=len(inputs.branches),
            t=point.t,
            branch=branch,
            grid=inputs.grid,
            text_length=text,
            state=state,
        )

    def _modulation(self, inputs: Inputs, device: torch.device) -> Callable[[float, str], LookUp]:
        """Modulation of every pass, tabulated: its weights, a quarter of all, are read once."""

        def key(t: float, branch: str) -> tuple[float, str]:
            # Branches that read the same text have the same modulation.
            return t, "text" if branch == "text" else "none"

        rows: dict[tuple[float, str], int] = {}
        for t, step in passes(inputs.times, inputs.solver):
            for branch in inputs.branches[step].weights:
                rows.setdefault(key(t, branch), len(rows))
        batch = len(inputs.pooled["text"])
        times = torch.tensor([t for t, _ in rows], device=device)
        table = ModulationTable.of(
            self.model,
            self.model.conditioning(
                torch.cat([inputs.pooled[branch] for _, branch in rows]),
                times.repeat_interleave(batch),
                None if inputs.guidance is None else inputs.guidance.repeat(len(rows)),
            ),
        )

        def look_up(t: float, branch: str) -> LookUp:
            row = rows[key(t, branch)]
            return table.rows(slice(row * batch, (row + 1) * batch))

        return look_up


def table_bytes(model: MMDiT, steps: int, itemsize: int) -> int:
    """At most: two texts, and two times a step."""
    config = model.config
    chunks = 12 * config.depth + 3 * config.depth_single_blocks + 2
    return 4 * steps * chunks * config.hidden_size * itemsize


def token_grid(latent: tuple[int, int, int], patch: int) -> tuple[int, int, int]:
    return latent[0], latent[1] // patch, latent[2] // patch


def normal_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """On the CPU, so that a seed means the same video on every device."""
    count = math.prod(shape)
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).view(shape)
