"""Sampling and judging the proving ground's prompts: resumable, shared over ranks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.data.synthetic.scene_judge import judge_hash
from vidgen.evaluate.prove.methods import Method, applied
from vidgen.evaluate.prove.suite import FRAMES, SIDE, Item, measure
from vidgen.runtime import work
from vidgen.runtime.content_key import content_key
from vidgen.runtime.work import Counts, FailureLimit, JsonResults, Outcome, Outcomes
from vidgen.sample import Pipeline, make_requests
from vidgen.sample.output import write_sample
from vidgen.sample.pipeline import Video
from vidgen.sample.request import Request

GROUP = 16  # videos made in common passes
SHOWN = 8  # videos a method keeps for the page
FORMAT = 1  # of the results; a change makes kept ones void


@dataclass(frozen=True)
class Prover:
    """One model on one set of prompts; results are kept under `folder` by content key."""

    pipeline: Pipeline
    folder: Path
    items: Sequence[Item]

    def results(self) -> JsonResults:
        return JsonResults(self.folder / "results", {"format": FORMAT})

    def key(self, method: Method, item: Item) -> str:
        """Everything that decides the item's measures."""
        return content_key(
            {
                "weights": self.pipeline.weights_hash,
                "judge": judge_hash(),
                "request": self.request(method, item).record(),
                "model": [method.bits, method.drop, method.mask],
                "scene": repr(item.scene),
            }
        )

    def request(self, method: Method, item: Item) -> Request:
        prompt = item.prompt
        if method.captions != "own":
            prompt = "" if method.captions == "none" else self._other(item)
        how: dict[str, Any] = {"steps": method.steps, "solver": method.solver}
        if method.guidance is not None:
            how["guidance"] = method.guidance
        (request,) = make_requests(
            self.pipeline, [prompt], seed=item.seed, frames=FRAMES, height=SIDE, width=SIDE, **how
        )
        return request

    def _other(self, item: Item) -> str:
        """Another prompt of the set, as many objects or not."""
        at = self.items.index(item)
        return self.items[(at + len(self.items) // 2 + 1) % len(self.items)].prompt

    def run(
        self,
        method: Method,
        *,
        rank: int = 0,
        world: int = 1,
        progress: Callable[[work.Progress], None] | None = None,
    ) -> Counts:
        """Make what is missing of one method, this rank's share of it."""
        results = self.results()

        def process(share: Sequence[Item]) -> Outcomes:
            for start in range(0, len(share), GROUP):
                group = share[start : start + GROUP]
                keys = [self.key(method, item) for item in group]
                missing = [i for i, key in enumerate(keys) if results.get(key) is None]
                if missing:
                    for i, value in zip(
                        missing, self._measure(method, [group[i] for i in missing]), strict=True
                    ):
                        results.put(keys[i], value)
                for i in range(len(group)):
                    yield Outcome.COMPUTED if i in missing else Outcome.CACHED

        failures = FailureLimit(0, "prove", "prompts", lambda item: item.prompt)
        _ = self.pipeline.weights_hash  # of the whole model, before a method damages it
        with applied(method, self.pipeline):
            return work.run(
                self.items, process, failures=failures, rank=rank, world=world, progress=progress
            )

    def _measure(self, method: Method, group: Sequence[Item]) -> list[dict[str, Any]]:
        requests = [self.request(method, item) for item in group]
        began = time.perf_counter()
        videos = self.pipeline.generate(requests, together=True)
        seconds = (time.perf_counter() - began) / len(group)
        found = []
        for item, request, video in zip(group, requests, videos, strict=True):
            if item.number < SHOWN and item.seed == item.number:
                write_sample(
                    self.video_path(method, item),
                    video,
                    request,
                    self.pipeline.source,
                    self.pipeline.weights_hash,
                )
            found.append({**measure(video, item), "seconds": round(seconds, 4)})
        return found

    def video_path(self, method: Method, item: Item) -> Path:
        return self.folder / "videos" / method.name.replace(":", "_") / f"{item.number:03d}.mp4"

    def rows(self, method: Method) -> list[dict[str, Any]]:
        """The results of every item, in order; all ranks' shares must be done."""
        results = self.results()
        return [results.get(self.key(method, item)) for item in self.items]


def real_rows(
    items: Sequence[Item], takes: int, through: Callable[[Video], Video] | None = None
) -> list[list[dict[str, Any]]]:
    """Measures of real videos of the same scenes, one list a take; `through` a reconstruction."""
    from vidgen.evaluate.prove.suite import real_video

    return [
        [
            measure(video if through is None else through(video), item)
            for item in items
            for video in [real_video(item, take)]
        ]
        for take in range(takes)
    ]


def reconstructed(pipeline: Pipeline, video: Video) -> Video:
    """Through the autoencoder and back: the best that a generator of its latents can do."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(video)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        ae = pipeline.autoencoder
        out = ae.decode(ae.encode(x.to(pipeline.device), [0]))[0]
    pixels = ((out.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).numpy()
