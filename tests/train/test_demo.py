"""The steps that train the shipped model, at a small size."""

import json

import torch

from vidgen import demo
from vidgen.data.synthetic.scenes.dataset import Kind
from vidgen.data.synthetic.scenes.world import FINE
from vidgen.models.video_dcae import VideoDCAE, load_weights
from vidgen.recipe import library
from vidgen.recipe.autoencoder import AutoencoderRecipe
from vidgen.recipe.reader import read_recipe
from vidgen.train import demo as steps


def recipe(tmp_path):
    return read_recipe(
        library.folder() / "demo_autoencoder.yaml",
        [f"train.init_from={tmp_path / 'start.safetensors'}", f"run_dir={tmp_path / 'run'}"],
        AutoencoderRecipe,
    )


def test_the_autoencoder_starts_far_from_random(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "START_CLIPS", 8)
    own = recipe(tmp_path)
    steps.write_start(own)
    start, random = (VideoDCAE(own.autoencoder) for _ in range(2))
    random.init_weights(torch.Generator().manual_seed(0))
    load_weights(start, tmp_path / "start.safetensors")
    gain = steps.reconstruction_psnr(start, 7, 2) - steps.reconstruction_psnr(random, 7, 2)
    assert gain > 8
    before = (tmp_path / "start.safetensors").stat().st_mtime_ns
    steps.write_start(own)  # an interrupted run keeps what there is
    assert (tmp_path / "start.safetensors").stat().st_mtime_ns == before


def test_data_that_is_there_is_not_written_again(tmp_path):
    data = (("tiny", "train", FINE, (Kind(64, 8, 2),)),)
    written = []
    for _ in range(2):
        steps.write_data(tmp_path, 7, lambda: written.append(1), data)
    assert len(written) == 2


def test_the_record_has_hashes_recipes_and_logs(tmp_path):
    own = recipe(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "ms": 3}\n{"validation": 1}\n')
    folder = tmp_path / "out"
    folder.mkdir()
    for name in (demo.GENERATOR, demo.AUTOENCODER):
        (folder / name).write_bytes(name.encode())
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    (tmp_path / "data" / "tiny" / "dataset.json").write_text('{"pixels_sha256": "ab"}')
    steps.write_record(folder, tmp_path / "data", {"ae": own}, "vidgen demo", {"threads": 1})
    record = json.loads((folder / "record.json").read_text())
    assert record["data"] == {"tiny": {"pixels_sha256": "ab"}}
    assert len(record["weights"]) == 2
    assert "demo_autoencoder" in record["recipes"]["ae"]
    assert (folder / "logs" / "ae.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_the_recipes_fit_together():
    first, last = (read_recipe(library.folder() / f"{n}.yaml") for n in ("demo_first", "demo"))
    assert first.model == last.model
    assert first.autoencoder == last.autoencoder
    assert last.train.init_from == f"{first.run_dir}/checkpoints/step-{steps.FIRST_STEPS:09d}"
    names = {name for name, *_ in steps.DATA}
    for own in (first, last):
        assert own.data.manifest.split("/")[-2] in names
