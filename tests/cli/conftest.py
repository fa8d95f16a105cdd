from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """\
name: small
run_dir: {folder}/run
model: {{preset: tiny, in_channels: 64, vec_in_dim: 8, context_in_dim: 8}}
autoencoder: {{kind: block_dct}}
text: {{length: 4, token_width: 8, pooled_width: 8}}
data:
  manifest: clips.parquet
  buckets: {{64px: {{1: {{batch: 2}}, 5-17: {{batch: 1}}}}}}
train: {{steps: 10}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


@pytest.fixture
def vidgen(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line here: (status, stdout, stderr)."""

    def call(*argv: str | Path) -> tuple[int, str, str]:
        from vidgen.cli.main import main

        capsys.readouterr()
        status = main([str(text) for text in argv])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call
