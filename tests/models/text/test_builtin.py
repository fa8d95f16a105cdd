"""The built-in text encoder: words are fixed vectors, in every process and at every position."""

import pytest
import torch

from vidgen.errors import UserError
from vidgen.models.text.builtin import BuiltinText
from vidgen.models.text.config import TextConfig

CONFIG = TextConfig(length=6, token_width=256, pooled_width=512)


@pytest.fixture
def encoder() -> BuiltinText:
    return BuiltinText(CONFIG)


def test_shapes_and_scale(encoder: BuiltinText) -> None:
    features = encoder.encode(["a red circle", "two words"])
    assert features.tokens_BLD.shape == (2, encoder.length, encoder.token_width)
    assert features.pooled_BD.shape == (2, encoder.pooled_width)
    assert features.pooled_BD.std() == pytest.approx(1, abs=0.15)
    assert features.tokens_BLD.std() == pytest.approx(1.25**0.5, abs=0.15)


def test_a_caption_means_the_same_whatever_stands_beside_it(encoder: BuiltinText) -> None:
    torch.manual_seed(1)
    alone = encoder.encode(["A red, circle!"])
    torch.manual_seed(2)  # nothing is drawn from the global state
    beside = BuiltinText(CONFIG).encode(["x y z", "a red circle"])
    assert torch.equal(alone.tokens_BLD[0], beside.tokens_BLD[1])
    assert torch.equal(alone.pooled_BD[0], beside.pooled_BD[1])


def test_the_vectors_are_the_same_on_every_machine(encoder: BuiltinText) -> None:
    """Trained weights depend on them: these numbers may never change."""
    features = encoder.encode(["red"])
    expected = torch.tensor([-0.40405637, -0.3262774, -0.96447653])
    torch.testing.assert_close(features.pooled_BD[0, :3], expected, atol=1e-5, rtol=0)


def test_places_and_words_are_told_apart(encoder: BuiltinText) -> None:
    features = encoder.encode(["left right", "right left"])
    one, other = features.tokens_BLD
    assert not torch.allclose(one[0], one[1])
    assert not torch.allclose(one[0], other[1])  # the same word at another place
    torch.testing.assert_close(one[0] - encoder.positions_LD[0], other[1] - encoder.positions_LD[1])
    torch.testing.assert_close(one[2:], other[2:])  # padding
    torch.testing.assert_close(*features.pooled_BD)  # pooled: a bag of words


def test_digits_and_words_of_any_script_count(encoder: BuiltinText) -> None:
    captions = ["", "24", "25", "кот", "пёс", "猫", "café", "caf"]
    pooled = encoder.encode(captions).pooled_BD
    apart = torch.cdist(pooled, pooled) + 100 * torch.eye(len(captions))
    assert apart.min() > 10


def test_the_empty_caption_is_the_null_condition(encoder: BuiltinText) -> None:
    null = encoder.encode(["", " .,!"])
    assert torch.equal(null.tokens_BLD[0], null.tokens_BLD[1])
    assert torch.equal(null.pooled_BD, torch.zeros(2, 512))


def test_too_many_words_are_refused(encoder: BuiltinText) -> None:
    assert encoder.encode(["one two three four five six"]).tokens_BLD.isfinite().all()
    with pytest.raises(UserError, match=r"7 words.*takes at most 6 \(text\.length\).*'one two"):
        encoder.encode(["fine", "one two three four five six seven"])


def test_a_token_with_context_carries_the_words_before_it():
    config = TextConfig(length=8, token_width=512, pooled_width=64, context=3)
    encoder = BuiltinText(config)
    one, other, far = encoder.encode(
        ["a red circle", "a blue circle", "red one two three circle"]
    ).tokens_BLD
    assert not torch.allclose(one[2], other[2])  # "circle" after another colour
    assert torch.equal(one[0], other[0])
    plain = BuiltinText(TextConfig(length=8, token_width=512, pooled_width=64))
    same, changed = plain.encode(["a red circle", "a blue circle"]).tokens_BLD
    assert torch.equal(same[2], changed[2])
    assert torch.allclose(far[4], encoder.encode(["blue one two three circle"]).tokens_BLD[0, 4])


def test_an_ordered_pooled_vector_tells_who_does_what():
    words = ["red circle blue square", "blue circle red square"]
    bag = BuiltinText(TextConfig(length=8, pooled_width=64)).encode(words).pooled_BD
    ordered = (
        BuiltinText(TextConfig(length=8, pooled_width=64, ordered=True)).encode(words).pooled_BD
    )
    assert torch.allclose(bag[0], bag[1], atol=1e-6)
    assert not torch.allclose(ordered[0], ordered[1], atol=0.1)
