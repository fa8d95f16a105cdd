"""Launch scripts, as far as they go without a cluster: what they would start, and with what."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from vidgen.cli.main import parse
from vidgen.recipe.reader import read_recipe
from vidgen.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
WORDS = ("recipes/stage1.yaml", "data.manifest=my clips.parquet")


def shim(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def started(tmp_path: Path, script: str, *words: str, **environment: str) -> list[str]:
    """The words that torchrun is given."""
    said = tmp_path / "said"
    shim(tmp_path, "torchrun", f'printf "%s\\n" "$@" > {said}')
    shim(tmp_path, "srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    shim(tmp_path, "scontrol", "printf 'node7\\nnode8\\n'")
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        check=True,
        cwd=ROOT,
        env={"PATH": path, **environment},
    )
    return said.read_text().splitlines()


def check_command(words: list[str]) -> None:
    """Everything after torchrun's own options is a vidgen command that it would accept."""
    at = words.index("-m")
    assert words[at : at + 3] == ["-m", "vidgen", "train"]
    args, _ = parse("train", words[at + 3 :])
    recipe = read_recipe(ROOT / args.recipe, args.overrides, Recipe)
    assert recipe.name == "stage1"
    assert recipe.data.manifest.endswith("clips.parquet")
    assert any(word.startswith("--max-restarts") for word in words[:at])


@pytest.mark.parametrize("script", ["torchrun.sh", "slurm.sbatch"])
def test_scripts_are_shell(script: str) -> None:
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    refused = subprocess.run(["bash", str(LAUNCH / script)], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "no recipe; type:" in refused.stderr


def test_one_machine(tmp_path: Path) -> None:
    words = started(tmp_path, "torchrun.sh", *WORDS)
    assert words[:2] == ["--nproc-per-node", "gpu"]
    check_command(words)
    assert started(tmp_path, "torchrun.sh", *WORDS, GPUS="4")[1] == "4"


def test_slurm(tmp_path: Path) -> None:
    words = started(
        tmp_path,
        "slurm.sbatch",
        *WORDS,
        SLURM_JOB_NODELIST="node[7-8]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_GPUS_ON_NODE="8",
        SLURM_JOB_ID="31",
    )
    check_command(words)
    options = dict(zip(words[0::2], words[1::2], strict=False))
    assert options["--nnodes"] == "2"
    assert options["--nproc-per-node"] == "8"
    assert options["--rdzv-endpoint"] == "node7:29500"
    assert options["--rdzv-id"] == "31-0"
    text = (LAUNCH / "slurm.sbatch").read_text()
    for wanted in ("--ntasks-per-node=1", "--signal=TERM@", "--requeue"):
        assert f"#SBATCH {wanted}" in text  # one torchrun a node; time to save; goes on


def test_kubeflow() -> None:
    runtime, job = yaml.safe_load_all((LAUNCH / "kubeflow.yaml").read_text())
    assert {each["apiVersion"] for each in (runtime, job)} == {"trainer.kubeflow.org/v1alpha1"}
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    trainer: dict[str, Any] = job["spec"]["trainer"]
    assert trainer["command"][0] == "torchrun"
    check_command(trainer["command"][1:] + trainer["args"])
    template = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
    labels = template["metadata"]["labels"]
    assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    pod = template["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert "/dev/shm" in mounted
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= volumes
