"""Blocks that come late, through a copy engine that copies when it likes: the same bits."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vidgen.errors import UserError
from vidgen.models.mmdit import MMDiT, MMDiTConfig, ModulationTable, Seams, load_weights
from vidgen.models.mmdit.model import call_block
from vidgen.runtime.memory import Lane, SimulatedEngine
from vidgen.sample.streaming import BlockStream, choose_streamed

CPU = torch.device("cpu")
CONFIG = MMDiTConfig(
    in_channels=16,
    hidden_size=32,
    num_heads=2,
    depth=3,
    depth_single_blocks=4,
    axes_dim=(4, 6, 6),
    vec_in_dim=8,
    context_in_dim=8,
)
GRID = (2, 3, 2)
Open = Callable[..., tuple[MMDiT, BlockStream]]


@pytest.fixture
def whole() -> MMDiT:
    model = MMDiT(CONFIG).requires_grad_(False)
    for param in model.parameters():
        param.copy_(0.2 * torch.randn(param.shape))
    return model


@pytest.fixture
def streaming(whole: MMDiT) -> Iterator[Open]:
    opened: list[BlockStream] = []

    def make(seed: int = 0, latency_s: float = 0.0) -> tuple[MMDiT, BlockStream]:
        with torch.device("meta"):
            model = MMDiT(CONFIG)
        lane = Lane("cpu", engine=SimulatedEngine(seed, latency_s))
        stream = BlockStream(model, CPU, torch.float32, lane)
        opened.append(stream)
        load_weights(model, dict(whole.state_dict()), layout="vidgen")
        return model, stream

    yield make
    for stream in opened:
        stream.close()


def inputs(seed: int = 0, text: int = 5) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x_BVD": random(1, 12, 16),
        "grid": GRID,
        "txt": random(1, text, 8),
        "vec": random(1, 8),
        "t": torch.rand(1, generator=generator),
        "cond": random(1, 12, CONFIG.cond_channels),
    }


def run(model: MMDiT, given: dict[str, Any], stream: BlockStream | None = None) -> torch.Tensor:
    table = ModulationTable.of(model, model.conditioning(given["vec"], given["t"]))
    seams = Seams(modulation=table.rows(slice(0, 1)))
    if stream is not None:
        seams = Seams(modulation=table.rows(slice(0, 1)), run_block=stream.run_block)
    with torch.no_grad():
        found: torch.Tensor = model(**given, seams=seams)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", ["least", "half", "all"])
def test_streamed_blocks_give_the_same_bits(
    whole: MMDiT, streaming: Open, seed: int, part: str
) -> None:
    model, stream = streaming(seed)
    total, largest = sum(stream.sizes), max(stream.sizes)
    room = {"least": 2 * largest, "half": total // 2 + largest, "all": total}[part]
    streamed = stream.keep(room)
    assert (streamed == 0) == (part == "all")
    assert stream.device_bytes <= room
    assert streamed < len(stream.sizes) or part == "least"
    for n in range(3):  # passes follow each other, over what the one before has left in the slots
        given = inputs(n, text=5 + n)
        assert torch.equal(run(model, given, stream), run(whole, given))


def test_copies_that_take_their_time(whole: MMDiT, streaming: Open) -> None:
    model, stream = streaming(3, latency_s=0.002)
    stream.keep(2 * max(stream.sizes))
    given = inputs()
    assert torch.equal(run(model, given, stream), run(whole, given))


def test_room_may_change_between_requests_and_be_given_back(whole: MMDiT, streaming: Open) -> None:
    model, stream = streaming()
    given = inputs()
    for room in (2 * max(stream.sizes), sum(stream.sizes), 3 * max(stream.sizes)):
        stream.keep(room)
        assert torch.equal(run(model, given, stream), run(whole, given))
        stream.release()
        assert stream.device_bytes == 0
    with pytest.raises(ValueError, match="call it first"):
        run(model, given, stream)


def test_a_block_that_is_left_out_does_not_upset_the_order(whole: MMDiT, streaming: Open) -> None:
    """As when a cache stands in for it."""
    model, stream = streaming(1)
    stream.keep(2 * max(stream.sizes))
    given = inputs()

    def skipping(run_block: Any, odd: bool) -> Any:
        def call(index: int, block: Any, tokens: Any, context: Any) -> Any:
            if index % 2 == odd:
                return tokens
            return run_block(index, block, tokens, context)

        return call

    for odd in (False, True, False):
        found = model(**given, seams=Seams(run_block=skipping(stream.run_block, odd)))
        expected = whole(**given, seams=Seams(run_block=skipping(call_block, odd)))
        assert torch.equal(found, expected)


def test_the_modules_own_parameters_stay_the_hosts(streaming: Open) -> None:
    model, stream = streaming()
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    stream.keep(2 * max(stream.sizes))
    run(model, inputs(), stream)
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}


def test_modulation_takes_no_room_on_the_device(streaming: Open) -> None:
    model, stream = streaming()
    tabulated = sum(p.nbytes for n, p in model.named_parameters() if "mod" in n)
    around = sum(p.nbytes for n, p in model.named_parameters() if "blocks" not in n)
    final = sum(p.nbytes for n, p in model.named_parameters() if "adaLN_modulation" in n)
    assert stream.around_bytes == around - final
    everything = sum(p.nbytes for p in model.parameters())
    padding = 256 * sum(len(list(b.parameters())) for b in model.double_blocks)
    padding += 256 * sum(len(list(b.parameters())) for b in model.single_blocks)
    held = sum(stream.sizes) + stream.around_bytes
    assert everything - tabulated <= held <= everything - tabulated + padding


def test_streamed_blocks_are_few_and_far_apart() -> None:
    sizes = [10] * 12
    assert choose_streamed(sizes, 120) == []
    for room in range(20, 120):
        streamed = choose_streamed(sizes, room)
        assert 10 * (12 - len(streamed)) + 20 <= room
        gaps = [b - a for a, b in zip(streamed, [*streamed[1:], streamed[0] + 12], strict=True)]
        assert max(gaps) - min(gaps) <= 1
    assert len(choose_streamed(sizes, 119)) == 3  # two slots hold two of them
    with pytest.raises(UserError, match=r"need at least 0\.0 GB"):
        choose_streamed(sizes, 19)
