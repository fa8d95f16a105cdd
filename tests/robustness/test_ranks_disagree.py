"""Ranks that were started differently end at once, all with the same line that names the key."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vidgen.errors import UserError
from vidgen.train.supervise import run_facts
from vidgen.train.supervise.agreement import listed

OVERRIDES = (
    *("optim.lr=1e-4", "optim.clip=2", "seed=7", "conditions.drop_tokens=0.5", "train.steps=7"),
    *("checkpoint.every=2", "model.depth=2", "parallel.zero=3", "parallel.context=2"),
)
VARIABLES = ("VIDGEN_OPS=reference", "VIDGEN_ATTENTION=sdpa", "VIDGEN_CPU=baseline")
MANIFESTS = ("text", "path", "num_frames", "fps", "rows", "missing")
OTHERS = ("code", "torch", "--fresh", "--stop-after")


def _meet(rank: int, folder: Path, number: int) -> None:
    """Join the world of case `number`, at a port that rank 0 chooses."""
    file = folder / f"port-{number}"
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            file.with_suffix(".tmp").write_text(str(probe.getsockname()[1]))
        file.with_suffix(".tmp").rename(file)
    while not file.exists():
        time.sleep(0.01)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": file.read_text(),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
    }


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


def _other_manifest(folder: Path, manifest: str, how: str) -> None:
    """A copy in this rank's own folder that differs in one respect."""
    from pyarrow import parquet

    from vidgen.data.index.manifest import write_manifest

    rows = parquet.read_table(manifest).to_pylist()
    for row in rows:
        row["path"] = str(Path(manifest).parent / row["path"])
    if how == "text":
        rows[3]["text"] += "!"
    if how == "path":
        rows[3], rows[6] = rows[6], rows[3]
    if how == "num_frames":
        rows[-1]["num_frames"] -= 1
    if how == "fps":
        rows[-1]["fps"] = 12.0
    if how == "rows":
        rows = rows[:-3]
    if how != "missing":
        write_manifest(folder / "manifest.parquet", rows)


def _disagree(
    rank: int, world: int, folder: Path, recipe_file: str, manifest: str
) -> dict[str, str]:
    """What this rank ends with in each case."""
    import torch.distributed as dist

    from vidgen.recipe.reader import read_recipe
    from vidgen.recipe.schema import Recipe
    from vidgen.train import Trainer

    here = folder / f"home-{rank}"  # paths in the recipe are equal, what they name is not
    here.mkdir()
    os.chdir(here)
    said: dict[str, str] = {}
    for number, case in enumerate((*OVERRIDES, *VARIABLES, *MANIFESTS, *OTHERS)):
        _meet(rank, folder, number)
        other = rank == 1
        overrides = ["data.manifest=manifest.parquet", "run_dir=run"]
        how = case if other and case in MANIFESTS else "same"
        (here / "manifest.parquet").unlink(missing_ok=True)
        _other_manifest(here, manifest, how)
        environment = dict(os.environ)
        code, version = run_facts.code_digest, run_facts._version
        stop_after = 2
        if other and case in OVERRIDES:
            overrides.append(case)
        if other and case in VARIABLES:
            os.environ.update([case.split("=")])
        if other and case == "code":
            code = lambda _: "changed"  # noqa: E731
        if other and case == "torch":
            version = lambda _: "9.9"  # noqa: E731
        if other and case == "--stop-after":
            stop_after = 3
        recipe = read_recipe(recipe_file, overrides, Recipe)
        with (
            _patched(run_facts, "code_digest", code),
            _patched(run_facts, "_version", version),
        ):
            try:
                trainer = Trainer(recipe, fresh=other and case == "--fresh")
                trainer.run(stop_after=stop_after)
                said[case] = "no error"
            except UserError as error:
                said[case] = str(error)
        os.environ.clear()
        os.environ.update(environment)
        if dist.is_initialized():
            dist.destroy_process_group()
    return said


@pytest.mark.slow
def test_every_rank_ends_with_one_line(
    ranks: Callable[..., list[Any]], recipe_file: Path, shapes_manifest: Path
) -> None:
    first, second = ranks(_disagree, 2, str(recipe_file), str(shapes_manifest))
    assert first == second
    assert {line for line in first.values() if "\n" in line} == set()
    for case in (*OVERRIDES, *VARIABLES):
        key, _, value = case.partition("=")
        line = first[case]
        assert f"the ranks of this run differ in {key}: " in line, line
        assert " on rank 0, " in line
        assert " on rank 1; start every rank" in line
        shown = line.partition(" on rank 0, ")[2].partition(" on rank 1")[0]
        assert shown == value or float(shown) == float(value)
    for name in ("text", "path", "num_frames", "fps"):
        assert f"differ in the manifest's {name}: " in first[name]
    assert "differ in the manifest's " in first["rows"]
    assert first["missing"].startswith("rank 1: manifest manifest.parquet is not a file")
    assert "differ in vidgen's code: " in first["code"]
    assert "changed on rank 1" in first["code"]
    assert "differ in the version of torch: " in first["torch"]
    assert "differ in option --fresh: false on rank 0, true on rank 1" in first["--fresh"]
    assert "differ in --stop-after: 2 on rank 0, 3 on rank 1" in first["--stop-after"]


def test_the_code_digest_sees_every_file(tmp_path: Path) -> None:
    found = []
    for number, (name, text) in enumerate(
        [("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 1"), ("sub/a.py", "x = 1")]
    ):
        file = tmp_path / str(number) / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        (tmp_path / str(number) / "data.txt").write_text(str(number))
        found.append(run_facts.code_digest(tmp_path / str(number)))
    assert len(set(found)) == 4
    moved = tmp_path / "moved"
    (tmp_path / "0").rename(moved)
    assert run_facts.code_digest(moved) == found[0]


def test_many_ranks_and_keys_stay_one_line() -> None:
    same = {"a": "1", "b": "1", **{f"key{n}": "0" for n in range(20)}}
    facts = [dict(same) for _ in range(12)]
    run_facts.check_equal(facts)
    for rank in (3, 4, 5, 9):
        facts[rank] = {key: "2" * 100 for key in same}
    with pytest.raises(UserError) as caught:
        run_facts.check_equal(facts)
    line = str(caught.value)
    assert "differ in a: 1 on ranks 0-2, 6-8, 10-11, 2222" in line
    assert "... on ranks 3-5, 9 (and so do b, key0, " in line
    assert len(line) < 400
    assert listed([4]) == "rank 4"
