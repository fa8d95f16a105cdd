import pytest
import torch

from vidgen.runtime import ops

SHAPES = [(1, 1, 1, 1, 3), (2, 3, 5, 7, 3), (1, 2, 16, 24, 1)]


def frames(shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def exact(u8, mean, std, flip=None):
    mean, std = (torch.tensor(v, dtype=torch.float64).expand(u8.shape[-1]) for v in (mean, std))
    out = ((u8.double() / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    return out if flip is None else torch.where(flip.view(-1, 1, 1, 1, 1), out.flip(-1), out)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_nearest_number_of_the_type(laws, shape, dtype):
    u8 = frames(shape)
    found = ops.video_to_input(u8, 0.5, 0.5, dtype)
    assert found.is_contiguous()
    assert torch.equal(found, exact(u8, 0.5, 0.5).to(dtype))


def test_numbers_per_channel(laws, dtype):
    u8 = frames((2, 3, 5, 7, 3))
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    found = ops.video_to_input(u8, mean, std, dtype)
    assert torch.equal(found, exact(u8, mean, std).to(dtype))


def test_flip(laws):
    u8, flip = frames((3, 2, 4, 5, 3)), torch.tensor([True, False, True])
    found = ops.video_to_input(u8, 0.5, 0.5, torch.float32, flip)
    assert torch.equal(found, exact(u8, 0.5, 0.5, flip).float())


def test_crop_is_read_in_place(laws):
    u8 = frames((2, 6, 9, 11, 3))[:, 1:4, 2:7, 3:8]
    found = ops.video_to_input(u8, 0.5, 0.5, torch.float32)
    assert torch.equal(found, exact(u8, 0.5, 0.5).float())


def test_channels_first_storage(laws):
    u8 = frames((2, 3, 4, 5, 6)).permute(0, 2, 3, 4, 1)
    found = ops.video_to_input(u8, 0.5, 0.5, torch.float32)
    assert torch.equal(found, exact(u8, 0.5, 0.5).float())


def test_threads(kernel_laws):
    kernel_laws.same_bits_for_any_thread_count(
        lambda u8: ops.video_to_input(u8, 0.5, 0.5, torch.bfloat16), [frames((2, 9, 8, 8, 3))]
    )


def test_compile(laws):
    def normalised(u8):
        return ops.video_to_input(u8, 0.5, 0.5, torch.bfloat16)

    laws.compiles_without_a_break(normalised, [frames((1, 2, 4, 4, 3))])


def test_opcheck(kernel_laws):
    arguments = (
        frames((1, 2, 4, 4, 3)),
        [0.5] * 3,
        [0.5] * 3,
        torch.bfloat16,
        torch.tensor([True]),
    )
    torch.library.opcheck(torch.ops.vidgen.video_to_input.default, arguments)


def test_a_later_call_makes_no_table(kernel_laws, monkeypatch, device):
    """A CUDA graph captures a call that has run before: nothing comes from the host's memory."""
    frames = torch.randint(0, 256, (1, 2, 4, 6, 3), dtype=torch.uint8)
    first = ops.video_to_input(frames, 0.25, 0.75, torch.float32)

    def refuse(*given, **options):
        raise AssertionError("a tensor is made of numbers of the host")

    monkeypatch.setattr(torch, "tensor", refuse)
    assert torch.equal(ops.video_to_input(frames, 0.25, 0.75, torch.float32), first)
    monkeypatch.undo()
    if device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = ops.video_to_input(frames, 0.25, 0.75, torch.float32)
        graph.replay()
        assert torch.equal(captured, first)


def test_float64():
    u8 = frames((1, 2, 4, 4, 3))
    assert torch.equal(ops.video_to_input(u8, 0.5, 0.5, torch.float64), exact(u8, 0.5, 0.5))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="expected uint8"):
        ops.video_to_input(torch.zeros(1, 2, 4, 4, 3), 0.5, 0.5, torch.float32)
    with pytest.raises(ValueError, match="2 values of std for 3 channels"):
        ops.video_to_input(frames((1, 2, 4, 4, 3)), 0.5, [0.5, 0.5], torch.float32)


@pytest.mark.parametrize("width", [64, 96, 77])
def test_a_large_result(kernel_laws, dtype, width):
    """Kernels may store more than 16 MiB past the caches, and look pixels up in registers."""
    count = (18 << 20) // (3 * 128 * width * dtype.itemsize) + 1
    u8, flip = frames((2, -(-count // 2), 128, width, 3)), torch.tensor([True, False])
    mean, std = (0.1, 0.5, 0.9), (0.3, 0.5, 0.7)
    found = ops.video_to_input(u8, mean, std, dtype, flip)
    assert found.nbytes > 16 << 20
    with ops.use("reference"):
        assert torch.equal(found, ops.video_to_input(u8, mean, std, dtype, flip))
