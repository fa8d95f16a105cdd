"""From noise to latents: for each step its guidance branches, the model, and the solver."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidgen.diffusion.guidance import Branches
from vidgen.diffusion.solvers import SOLVERS, evaluation_times, steps
from vidgen.models.mmdit import MMDiT, ModulationTable, Seams
from vidgen.models.mmdit.model import call_block
from vidgen.sample.hooks import NO_HOOKS, Hooks, ModelPass, RunBlock, State, hooked
from vidgen.sample.parallel import ALONE, Team, gather_branches, own_branches

LookUp = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Inputs:
    """What the passes of a request share. B is 1, so that no request rounds another's, except where
    requests that differ only in text, seed and references are made together."""

    grid: tuple[int, int, int]  # tokens
    times: Sequence[float]  # from 1 to 0
    branches: Sequence[Branches]  # of each step
    solver: str
    # By branch: text tokens, pooled text, and the condition's tokens where the model takes them.
    text: Mapping[str, Tensor]
    pooled: Mapping[str, Tensor]
    cond: Mapping[str, Tensor | None]
    guidance: Tensor | None  # (B,), for a distilled model
    time_dtype: torch.dtype = torch.float32  # in which the model reads times; steps are exact

    def __post_init__(self) -> None:
        if len(self.times) != len(self.branches) + 1:
            raise ValueError(f"{len(self.times)} times for {len(self.branches)} steps")


@dataclass(frozen=True)
class StepState:
    """Where a run is after a step."""

    done: int  # steps
    t: float
    x_BVD: Tensor  # fp32: half-precision steps would not add up
    slope_BVD: Tensor  # of the step

    @property
    def clean_BVD(self) -> Tensor:
        """Where the run would end from here, going straight."""
        return self.x_BVD - self.t * self.slope_BVD


@dataclass(frozen=True)
class Denoiser:
    model: MMDiT
    dtype: torch.dtype
    team: Team = ALONE
    hooks: Hooks = NO_HOOKS
    run_block: RunBlock = call_block

    def steps(
        self, inputs: Inputs, noise_BVD: Tensor, request: int, state: State
    ) -> Iterator[StepState]:
        """Yields after each step. `request` and `state` are the hooks' (`StateStore.request`)."""
        x, solver = noise_BVD.float(), SOLVERS[inputs.solver]
        modulation = TabulatedModulation(self.model, inputs, x.device)
        evaluation = 0
        for step in steps(inputs.times):
            branches = inputs.branches[step.index].on(x)
            slopes: list[Tensor] = []
            for _ in range(solver.evaluations):
                x_t, t = solver.point(step, x, slopes)
                x_t = x_t.to(self.dtype)
                velocity: dict[str, Tensor] = {}
                for branch in own_branches(self.team.branch, branches.names):
                    current = ModelPass(
                        request=request,
                        evaluation=evaluation,
                        step=step.index,
                        steps=len(inputs.branches),
                        t=t,
                        branch=branch,
                        grid=inputs.grid,
                        text_length=self.team.text_tokens(
                            inputs.text[branch].shape[1], math.prod(inputs.grid)
                        ),
                        state=state,
                    )
                    velocity[branch] = self._velocity(inputs, current, x_t, modulation)
                velocity = gather_branches(self.team.branch, branches.names, velocity, like=x_t)
                slopes.append(branches.combine({name: v.float() for name, v in velocity.items()}))
                evaluation += 1
            slope = solver.slope(step, slopes)
            x = x + step.length * slope
            yield StepState(step.index + 1, step.end, x, slope)

    def _velocity(
        self,
        inputs: Inputs,
        current: ModelPass,
        x_BVD: Tensor,
        modulation: "TabulatedModulation",
    ) -> Tensor:
        """One pass of the model; the hooks decide at each block whether it runs."""
        seams = Seams(
            run_block=hooked(self.hooks, current, self.run_block),
            modulation=modulation.of(current),
        )
        velocity: Tensor = self.model(
            x_BVD,
            grid=inputs.grid,
            txt=inputs.text[current.branch],
            vec=inputs.pooled[current.branch],
            t=torch.full((len(x_BVD),), current.t, dtype=inputs.time_dtype, device=x_BVD.device),
            cond=inputs.cond[current.branch],
            guidance=inputs.guidance,
            seams=self.team.seams(seams, self.model, self.dtype.itemsize),
        )
        return velocity


class TabulatedModulation:
    """Modulation of every pass of a request: its weights, a quarter of all, are read once."""

    def __init__(self, model: MMDiT, inputs: Inputs, device: torch.device) -> None:
        self._rows: dict[tuple[float, str], int] = {}
        for t, step in evaluation_times(inputs.times, inputs.solver):
            for branch in inputs.branches[step].names:
                self._rows.setdefault(self._key(t, branch), len(self._rows))
        self._batch = len(inputs.pooled["text"])
        # Rows are found by the exact time, and hold what the model reads at the rounded one
        times = torch.tensor([t for t, _ in self._rows], dtype=inputs.time_dtype, device=device)
        self._table = ModulationTable.of(
            model,
            model.conditioning(
                torch.cat([inputs.pooled[branch] for _, branch in self._rows]),
                times.repeat_interleave(self._batch),
                None if inputs.guidance is None else inputs.guidance.repeat(len(self._rows)),
            ),
        )

    @staticmethod
    def _key(t: float, branch: str) -> tuple[float, str]:
        # Branches that read the same text have the same modulation
        return t, "text" if branch == "text" else "none"

    def of(self, current: ModelPass) -> LookUp:
        row = self._rows[self._key(current.t, current.branch)]
        return self._table.rows(slice(row * self._batch, (row + 1) * self._batch))


def table_bytes(model: MMDiT, steps: int, itemsize: int) -> int:
    """At most: two texts, and two times a step."""
    config = model.config
    chunks = 12 * config.depth + 3 * config.depth_single_blocks + 2
    return 4 * steps * chunks * config.hidden_size * itemsize


def normal_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """On the CPU, so that a seed means the same video on every device."""
    count = math.prod(shape)
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).view(shape)
