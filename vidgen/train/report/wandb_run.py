"""An optional Weights & Biases run: step scalars and validation videos."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidgen.errors import UserError
from vidgen.runtime.files import write_text

_ID = "wandb-id.txt"


class WandbRun:
    """A W&B run. A resumed training continues the same run: its id is stored in the run directory.

    Scalars use vidgen's `step` as their axis, so that steps repeated after a crash overlay the
    earlier ones. `WANDB_MODE=offline` writes to the run directory and needs no network.
    """

    def __init__(self, project: str, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"log.wandb is {project} but wandb is not installed: type "
                '`pip install "vidgen[wandb]"`, or set log.wandb=null'
            ) from None
        kept = run_dir / _ID
        if not kept.exists():
            write_text(kept, uuid.uuid4().hex + "\n")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=str(config.get("name") or run_dir.name),
            id=kept.read_text().strip(),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")

    def step(self, record: Mapping[str, Any]) -> None:
        """Log the numbers of one step's record, named as in TensorBoard."""
        self._run.log({"step": record["step"], **scalars(record)})

    def validation(
        self, step: int, figures: Mapping[str, float], files: Mapping[str, Path]
    ) -> None:
        """Log figures by their TensorBoard names, and the video (or image) of each title."""
        shown: dict[str, Any] = dict(figures)
        for title, path in files.items():
            if path.suffix == ".mp4":
                media = self._wandb.Video(str(path), caption=title, format="mp4")
            else:
                media = self._wandb.Image(str(path), caption=title)
            shown[f"validation/{title}"] = media
        if shown:
            self._run.log({"step": step, **shown})

    def close(self) -> None:
        self._run.finish()


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """A step's numbers by their TensorBoard and W&B names."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in ("step", "time") or isinstance(value, str):
            continue
        if isinstance(value, dict):
            found |= {f"{name}/{key}": item for key, item in value.items()}
        else:
            found[f"train/{name}"] = value
    return found
