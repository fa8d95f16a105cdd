"""Sampling many requests: each video is made, then written, before the next one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from vidgen.data.read.video import written_suffix
from vidgen.errors import UserError
from vidgen.runtime.observe.timer import StepTimer
from vidgen.sample.job import Job
from vidgen.sample.output import RunSummary, agreed, free_names, make_folder, write_sample
from vidgen.sample.parallel import ALONE, Team
from vidgen.sample.pipeline import Pipeline, SamplingOptions
from vidgen.sample.preview import PreviewFile, Projection
from vidgen.sample.request import Request


def sample_to_folder(
    pipeline: Pipeline,
    requests: Sequence[Request],
    out: str | Path,
    *,
    crf: int = 18,
    preview: bool = False,
    team: Team = ALONE,
) -> list[Path]:
    """Make and write every request, with a progress bar and a summary of this run beside them.

    Of several teams each makes its share; every rank calls this with the same requests and gets
    all the paths.
    """
    if not 0 <= crf <= 51:
        raise UserError(f"crf {crf}: expected 0 (lossless) to 51 (worst)")
    folder = make_folder(out)
    jobs = [pipeline.check(request) for request in requests]  # all, before the first takes its time
    suffixes = [written_suffix(request.frames) for request in requests]
    paths = agreed(free_names(folder, suffixes))
    mine = list(zip(jobs, paths, strict=True))[team.index :: team.count]

    timer = StepTimer(pipeline.device)
    with timer.phase("text"):
        features = pipeline.features([job for job, _ in mine])
    summary = RunSummary(pipeline, paths[0] if paths else folder / "none", timer.lap())
    colours = Projection.fit(pipeline.autoencoder, pipeline.device) if preview else None
    writes_summary = team.leads and team.index == 0
    total = sum(sum(job.passes) for job, _ in mine)
    with tqdm(total=total, unit="pass", desc="sample", disable=not writes_summary) as bar:
        for job, path in mine:
            with _preview_beside(path, colours if team.leads else None) as look:

                def advance(done: int, steps: int, job: Job = job) -> None:
                    # In passes of the model: the bar moves evenly and its estimate holds
                    bar.update(job.passes[done - 1])

                options = SamplingOptions(
                    progress=advance,
                    preview=look,
                    timer=timer,
                    team=team,
                )
                video = pipeline.video(job, features, options)
                with timer.phase("write"):
                    if team.leads:
                        about = (job.request, pipeline.source, pipeline.weights_hash)
                        write_sample(path, video, *about, crf=crf)
            summary.add(path, job, timer.lap())
            if writes_summary:
                summary.write()
    if team.count > 1 and team.leads:
        summary.gather(team)
    if writes_summary:
        summary.write()
    return paths


@contextmanager
def _preview_beside(path: Path, colours: Projection | None) -> Iterator[PreviewFile | None]:
    """A picture of the video while it forms, removed afterwards."""
    if colours is None:
        yield None
        return
    look = PreviewFile(colours, path.with_suffix(".preview.png"))
    try:
        yield look
    finally:
        look.remove()
