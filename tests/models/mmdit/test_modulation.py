"""Precomputed modulation gives the same output without the layers' weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidgen.models.mmdit import (
    PRESETS,
    MMDiT,
    MMDiTConfig,
    ModulationTable,
    Seams,
    modulation_layers,
)

CONFIG = MMDiTConfig(
    in_channels=8, hidden_size=32, num_heads=2, depth=2, depth_single_blocks=2,
    axes_dim=(4, 6, 6), vec_in_dim=6, context_in_dim=10, cond_embed=False,
)  # fmt: skip
GRID = (1, 3, 4)


def parts(guidance: bool) -> tuple[MMDiT, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    torch.manual_seed(0)
    model = MMDiT(replace(CONFIG, guidance_embed=guidance)).eval()
    x, txt, vec = torch.randn(2, 12, 8), torch.randn(2, 5, 10), torch.randn(2, 6)
    times = torch.tensor([1.0, 0.6, 0.2])
    return model, x, txt, vec, times, torch.full((2,), 4.0) if guidance else None


def table_of(model: MMDiT, vec: Tensor, times: Tensor, guidance: Tensor | None) -> ModulationTable:
    """Rows: step by step, the samples of the batch within each."""
    with torch.no_grad():
        vecs = [model.conditioning(vec, t.expand(len(vec)), guidance) for t in times]
    return ModulationTable.of(model, torch.cat(vecs))


@pytest.mark.parametrize("guidance", [False, True])
def test_the_output_is_the_same_with_the_layers_weights_gone(guidance: bool) -> None:
    model, x, txt, vec, times, scale = parts(guidance)
    given = {"grid": GRID, "txt": txt, "vec": vec, "guidance": scale}
    with torch.no_grad():
        expected = [model(x, t=t.expand(2), **given) for t in times]
        table = table_of(model, vec, times, scale)
        for layer in modulation_layers(model).values():
            layer.to("meta")
        for step, t in enumerate(times):
            rows = table.rows(slice(2 * step, 2 * step + 2))
            out = model(x, t=t.expand(2), **given, seams=Seams(modulation=rows))
            torch.testing.assert_close(out, expected[step], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)  # the rows do differ


def test_a_compiled_model_reads_the_table_without_a_graph_break() -> None:
    model, x, txt, vec, times, _ = parts(False)
    table = table_of(model, vec, times, None)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for step, t in enumerate(times):
            given = {"grid": GRID, "txt": txt, "vec": vec, "t": t.expand(2)}
            rows = table.rows(torch.tensor([2 * step, 2 * step + 1]))
            out = compiled(x, **given, seams=Seams(modulation=rows))
            torch.testing.assert_close(out, model(x, **given), rtol=1e-5, atol=1e-6)


def test_rows_for_another_batch_are_refused() -> None:
    model, x, txt, vec, times, _ = parts(False)
    rows = table_of(model, vec, times, None).rows(slice(0, 1))
    with pytest.raises(ValueError, match="1 rows of modulation for 2 samples"):
        model(x, grid=GRID, txt=txt, vec=vec, t=torch.ones(2), seams=Seams(modulation=rows))


def test_what_the_published_model_can_leave_behind() -> None:
    """27 % of the weights; their place is taken by a million numbers a row."""
    with torch.device("meta"):
        model = MMDiT(PRESETS["opensora_v2"])
        table = ModulationTable.of(model, torch.empty(150, 3072, dtype=torch.float32))
    layers = sum(p.numel() for m in modulation_layers(model).values() for p in m.parameters())
    assert layers / sum(p.numel() for p in model.parameters()) == pytest.approx(0.273, abs=0.001)
    assert table.nbytes == 150 * 4 * 3072 * (19 * 12 + 38 * 3 + 2)
