"""`vidgen quickstart`: the whole system at a small size, from clips to judged videos."""

import argparse
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen.cli.arguments import count
from vidgen.errors import UserError
from vidgen.recipe.reader import dump_yaml, read_recipe
from vidgen.runtime import files
from vidgen.version import __version__

if TYPE_CHECKING:
    from vidgen.data.synthetic.judge import Verdict
    from vidgen.data.synthetic.shapes import Scene
    from vidgen.recipe.schema import Recipe
    from vidgen.sample import Pipeline, Request

EXAMPLE = """\
  vidgen quickstart
  vidgen quickstart train.steps=200 checkpoint.every=50     # a quick look, nothing well learnt

exit status: 0 when the videos reach the targets for colour, direction and shape, 1 when they are
below one of them, 2 when the command cannot run
"""

TARGETS = {"colour": 0.95, "direction": 0.90, "shape": 0.60}
BELOW_TARGET = 1  # exit status: everything ran, and the model does not follow its prompts
FRAMES = 17
EXTRA_HELD_OUT = 2  # more videos of each held-out scene than of the others
SAMPLE_BATCH = 16
# What a quickstart leaves in its folder, besides the data.
PRODUCTS = (
    *("checkpoints", "metrics.jsonl", "recipe.yaml", "tensorboard"),
    *("samples", "control", "summary.json", "report.html"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="values of the recipe to replace"
    )
    parser.add_argument(
        "--recipe", default="quickstart", metavar="RECIPE", help="a name or a YAML file"
    )
    parser.add_argument(
        "--clips", metavar="N", type=count, default=16, help="17-frame clips of each scene"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="begin anew where an interrupted one could go on"
    )


def run(args: argparse.Namespace) -> int:
    recipe = read_recipe(args.recipe, args.overrides)
    missed = Quickstart(recipe, args.recipe, args.overrides, args.clips, args.fresh).run()
    if not missed:
        return 0
    print(f"vidgen: the quickstart is below its target: {'; '.join(missed)}", file=sys.stderr)
    return BELOW_TARGET


class Quickstart:
    """Each phase prints one line when it begins and one when it ends, with its seconds."""

    def __init__(
        self,
        recipe: "Recipe",
        path: str,
        overrides: Sequence[str],
        clips: int,
        fresh: bool = False,
    ) -> None:
        self.recipe, self.clips, self.fresh = recipe, clips, fresh
        self.command = [path, *overrides]
        self.folder = Path(recipe.run_dir)
        self.phases: list[tuple[str, float]] = []

    def run(self) -> list[str]:
        """What is below its target."""
        if (self.folder / "report.html").exists():
            print(f"{self.folder} holds a finished quickstart; it is replaced")
            self.remove_products()
        elif self.fresh:
            self.remove_products()
        with self.phase("data"):
            self.make_data()
        with self.phase("train, and be killed half way"):
            killed_at = self.train_until_killed()
        with self.phase("resume from the checkpoint and finish"):
            resumed_at = self.train_to_the_end()
        with self.phase("sample and judge"):
            results = self.sample_and_judge()
        summary = self.summarise(results, killed_at, resumed_at)
        self.report(summary, results)
        self.say(summary)
        return below_target(summary)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        print(f"[{len(self.phases) + 1}/4] {name} ...", flush=True)
        began = time.monotonic()
        yield
        self.phases.append((name, time.monotonic() - began))
        print(f"[{len(self.phases)}/4] {name}: {self.phases[-1][1]:.0f} s", flush=True)

    def remove_products(self) -> None:
        """Nothing else: the folder is the user's to name."""
        for path in (self.folder / name for name in PRODUCTS):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # 1. Data

    def make_data(self) -> None:
        from tqdm import tqdm

        from vidgen.data.synthetic.shapes import HELD_OUT, SCENES, write_dataset

        manifest = Path(self.recipe.data.manifest)
        note = manifest.with_name("quickstart.json")  # beside data of our own making
        asked = {"clips": self.clips, "seed": self.recipe.seed, "vidgen": __version__}
        if manifest.exists():
            made = json.loads(note.read_text()) if note.exists() else None
            if made in (asked, None):
                print(f"{manifest} is there already{'' if made else '; it is used as it is'}")
                return
            manifest.unlink()
        files.write_text(note, json.dumps(asked))
        clips = ((17, self.clips), (33, max(1, self.clips // 5)))
        total = (len(SCENES) - len(HELD_OUT)) * sum(n for _, n in clips)
        with tqdm(total=total, unit="clip", desc="write clips") as bar:
            write_dataset(manifest.parent, clips=clips, seed=self.recipe.seed, progress=bar.update)

    # 2. and 3. Training, in processes of its own, as a user starts it

    def train_until_killed(self) -> int | None:
        """SIGKILL after the checkpoint nearest to half way; the step that was reached."""
        from vidgen.runtime import checkpoint

        every, steps = self.recipe.checkpoint.every, self.recipe.train.steps
        half = max(every, round(steps / 2 / every) * every)
        saved = self.folder / "checkpoints"
        if checkpoint.steps(saved):
            print("an earlier run was interrupted; its checkpoint is used")
            return None
        child = self._start_training()
        with self._minding(child):
            while child.poll() is None:
                time.sleep(0.1)
                if half in checkpoint.steps(saved) and self._last_step() > half:
                    child.kill()
                    child.wait()
                    print(f"killed at step {self._last_step()}, with checkpoint {half} saved")
                    return self._last_step()
        self._check(child)
        return None  # it was done before it could be killed

    def train_to_the_end(self) -> int:
        from vidgen.runtime import checkpoint

        found = checkpoint.steps(self.folder / "checkpoints")
        resumed_at = found[-1] if found else 0
        child = self._start_training()
        with self._minding(child):
            child.wait()
        self._check(child)
        return resumed_at

    def _start_training(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", "vidgen", "train", *self.command])

    @contextmanager
    def _minding(self, child: "subprocess.Popen[bytes]") -> Iterator[None]:
        """Ctrl-C reaches the child too: let it save before leaving. SIGTERM is passed on."""

        def leave(number: int, frame: object) -> None:
            raise SystemExit(128 + number)

        before = signal.signal(signal.SIGTERM, leave)
        try:
            yield
        except KeyboardInterrupt:
            child.wait()
            print("the same `vidgen quickstart` goes on from there", flush=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
            if child.poll() is None:
                child.terminate()
                child.wait()

    def _check(self, child: "subprocess.Popen[bytes]") -> None:
        if child.returncode:
            raise UserError(
                f"training ended with exit code {child.returncode}; its message stands above"
            )

    def _last_step(self) -> int:
        from vidgen.train.report.metrics import read_metrics

        records = read_metrics(self.folder)
        return int(records[-1]["step"]) if records else 0

    # 4. Sampling and judging

    def sample_and_judge(self) -> dict[str, list["Judged"]]:
        from vidgen.data.synthetic.shapes import HELD_OUT, SCENES
        from vidgen.sample import Pipeline

        pipeline = Pipeline.from_checkpoint(self.folder, self.recipe.train.device)
        scenes = [*SCENES, *(scene for scene in HELD_OUT for _ in range(EXTRA_HELD_OUT))]
        asked = [scene.caption for scene in scenes]
        return {
            "prompted": self._judge_all(pipeline, scenes, asked, "samples"),
            # The same model, blind: what the judge gives when the prompt is not read.
            "control": self._judge_all(pipeline, scenes, [""] * len(scenes), "control"),
        }

    def _judge_all(
        self,
        pipeline: "Pipeline",
        scenes: Sequence["Scene"],
        prompts: Sequence[str],
        name: str,
    ) -> list["Judged"]:
        from tqdm import tqdm

        from vidgen.data.synthetic.judge import judge
        from vidgen.sample import make_requests
        from vidgen.sample.output import write_sample

        requests = [
            make_requests(pipeline, [prompt], seed=number, frames=FRAMES)[0]
            for number, prompt in enumerate(prompts)
        ]
        judged: list[Judged] = []
        with tqdm(total=len(requests), unit="video", desc=name) as bar:
            for start in range(0, len(requests), SAMPLE_BATCH):
                group = requests[start : start + SAMPLE_BATCH]
                videos = pipeline.generate(group, together=True)
                for request, video in zip(group, videos, strict=True):
                    scene = scenes[len(judged)]
                    path = self.folder / name / f"{len(judged):02d}.mp4"
                    write_sample(path, video, request, pipeline.source, pipeline.weights_hash)
                    judged.append(Judged(scene, request, path, judge(video)))
                bar.update(len(group))
        return judged

    # 5. What came of it

    def summarise(
        self, results: dict[str, list["Judged"]], killed_at: int | None, resumed_at: int
    ) -> dict[str, Any]:
        from vidgen.train.report.metrics import read_metrics

        prompted, records = results["prompted"], read_metrics(self.folder)
        peaks = [
            resource.getrusage(who).ru_maxrss * 1024 / 2**30
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        summary = {
            "command": " ".join(["vidgen quickstart", *self.command[1:]]),
            "adherence": scores(prompted),
            "trained_on": scores([j for j in prompted if not j.held_out]),
            "held_out": scores([j for j in prompted if j.held_out]),
            "control": scores(results["control"]),
            "targets": TARGETS,
            "loss": records[-1]["loss"],
            "steps": records[-1]["step"],
            "killed_at": killed_at,
            "resumed_at": resumed_at,
            "seconds": {name: round(seconds, 1) for name, seconds in self.phases},
            "peak_memory_gib": round(max(peaks), 2),
            "environment": environment(),
        }
        files.write_text(self.folder / "summary.json", json.dumps(summary, indent=1))
        return summary

    def report(self, summary: dict[str, Any], results: dict[str, list["Judged"]]) -> None:
        from vidgen.page.charts import Mark
        from vidgen.train.report.page import Adherence, VideoEntry, write_report

        def column(title: str, key: str, control: bool = False) -> Adherence:
            found = dict(summary[key])
            return Adherence(title, found, found.pop("videos"), control=control)

        entries = [
            VideoEntry(
                j.path,
                j.scene.caption,
                j.verdict.matches(j.scene),
                j.verdict.seen(),
                tags=["held out"] if j.held_out else [],
                size=(j.request.height, j.request.width),
            )
            for j in sorted(results["prompted"], key=lambda j: not j.held_out)
        ]
        marks = [Mark(summary["resumed_at"], "killed, resumed")] if summary["killed_at"] else []
        write_report(
            self.folder,
            title="vidgen quickstart",
            subtitle="A small model trained on moving shapes, killed half way, resumed, sampled "
            "and judged by pixels alone.",
            facts={
                "colour right": f"{summary['adherence']['colour']:.0%}",
                "direction right": f"{summary['adherence']['direction']:.0%}",
                "shape right": f"{summary['adherence']['shape']:.0%}",
                "videos": len(entries),
                "steps": summary["steps"],
                "peak memory": f"{summary['peak_memory_gib']:.1f} GiB",
            },
            phases=self.phases,
            videos=entries,
            adherence=[
                column("all prompts", "adherence"),
                column("held-out combinations", "held_out"),
                column("text dropped", "control", control=True),
            ],
            targets=TARGETS,
            environment=summary["environment"],
            recipe=dump_yaml(self.recipe),
            marks=marks,
        )

    def say(self, summary: dict[str, Any]) -> None:
        print(f"{'':<24}{'colour':>8}{'direction':>11}{'shape':>8}{'videos':>8}")
        for title, key in (
            ("all prompts", "adherence"),
            ("held-out combinations", "held_out"),
            ("control: text dropped", "control"),
        ):
            row = summary[key]
            print(
                f"{title:<24}{row['colour']:>8.0%}{row['direction']:>11.0%}{row['shape']:>8.0%}"
                f"{row['videos']:>8}"
            )
        print(f"report: {self.folder / 'report.html'}")


class Judged:
    """One sampled video, what was asked of it and what the judge saw."""

    def __init__(self, scene: "Scene", request: "Request", path: Path, verdict: "Verdict") -> None:
        self.scene, self.request, self.path, self.verdict = scene, request, path, verdict

    @property
    def held_out(self) -> bool:
        from vidgen.data.synthetic.shapes import HELD_OUT

        return self.scene in HELD_OUT


def scores(judged: Sequence[Judged]) -> dict[str, Any]:
    """The fraction right of each attribute, and of how many videos."""
    matches = [j.verdict.matches(j.scene) for j in judged]
    rates = {name: round(sum(m[name] for m in matches) / len(matches), 4) for name in TARGETS}
    return {**rates, "videos": len(judged)}


def below_target(summary: dict[str, Any]) -> list[str]:
    found = summary["adherence"]
    return [
        f"{name} {found[name]:.1%}, expected {goal:.0%}"
        for name, goal in TARGETS.items()
        if found[name] < goal
    ]


def environment() -> dict[str, Any]:
    from vidgen.runtime import ops
    from vidgen.runtime.observe import hardware

    chosen = {f"op {row.op}": row.implementation for row in ops.table() if row.chosen}
    found = hardware.cpu()
    return {**hardware.versions(), "cpu": found["name"], "cores": found["cores"], **chosen}
