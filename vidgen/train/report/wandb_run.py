"""A run in Weights & Biases, for those who ask for one: step scalars and validation videos."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidgen.errors import UserError
from vidgen.runtime.files import write_text

_ID = "wandb-id.txt"


class WandbRun:
    """A resumed training goes on in the same W&B run: its id is kept in the run directory.

    Scalars are drawn over our own `step`, so that steps done again after a crash are drawn where
    they belong. `WANDB_MODE=offline` writes to the run directory and needs no network.
    """

    def __init__(self, project: str, run_dir: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError(
                f"log.wandb is {project} and wandb is not installed: type "
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
        """The numbers of one step's record, named as in TensorBoard."""
        self._run.log({"step": record["step"], **scalars(record)})

    def validation(
        self, step: int, figures: Mapping[str, float], files: Mapping[str, Path]
    ) -> None:
        """Figures by their names in TensorBoard, and the video (or picture) of each title."""
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
    """A step's numbers by the names that TensorBoard and W&B show them under."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in ("step", "time") or isinstance(value, str):
            continue
        if isinstance(value, dict):
            found |= {f"{name}/{key}": item for key, item in value.items()}
        else:
            found[f"train/{name}"] = value
    return found
