"""T5 and CLIP with tiny random weights: shapes, padding, and errors."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from vidgen.errors import UserError
from vidgen.models.text.config import TextConfig
from vidgen.models.text.t5_clip import T5ClipText

transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the text extra is not installed")

WORDS = ["<pad>", "</s>", "<unk>", "<s>", "a", "red", "circle", "moving", "left"]
CPU = torch.device("cpu")


def save_tokenizer(folder: Path, pad: str, template: str) -> None:
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    t5, clip = tmp_path_factory.mktemp("t5"), tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    shape = transformers.T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    transformers.T5EncoderModel(shape).save_pretrained(t5)
    save_tokenizer(t5, "<pad>", "$A </s>")
    shape = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        bos_token_id=3,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.CLIPTextModel(shape).save_pretrained(clip)
    save_tokenizer(clip, "</s>", "<s> $A </s>")
    return TextConfig(
        kind="t5_clip",
        t5_path=str(t5),
        clip_path=str(clip),
        length=10,
        token_width=16,
        pooled_width=12,
    )


@pytest.fixture(scope="module")
def encoder(config: TextConfig) -> T5ClipText:
    return T5ClipText(config, device=CPU, dtype=torch.float32)


def test_sizes_and_that_captions_matter(encoder: T5ClipText) -> None:
    features = encoder.encode(["a red circle", "a circle moving left", ""])
    assert features.tokens_BLD.shape == (3, encoder.length, encoder.token_width) == (3, 10, 16)
    assert features.pooled_BD.shape == (3, encoder.pooled_width) == (3, 12)
    assert not features.tokens_BLD.requires_grad
    assert not features.tokens_BLD.is_inference()  # the trainer saves it for a backward pass
    for rows in (features.tokens_BLD, features.pooled_BD):
        assert not torch.allclose(rows[0], rows[1])
        assert not torch.allclose(rows[0], rows[2])


def test_a_caption_s_features_do_not_depend_on_its_neighbours(encoder: T5ClipText) -> None:
    together = encoder.encode(["a red circle", "left left left left left"])
    alone = encoder.encode(["a red circle"])
    torch.testing.assert_close(together.tokens_BLD[:1], alone.tokens_BLD)
    torch.testing.assert_close(together.pooled_BD[:1], alone.pooled_BD)


def test_t5_attends_to_padding(encoder: T5ClipText, config: TextConfig) -> None:
    model = transformers.T5EncoderModel.from_pretrained(config.t5_path)
    ids = torch.tensor([[4, 5, 6, 1] + [0] * 6])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        masked = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    found = encoder.encode(["a red circle"]).tokens_BLD
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[:, :4], masked[:, :4], atol=1e-3)


def test_clip_pools_at_the_end_of_the_caption(encoder: T5ClipText, config: TextConfig) -> None:
    model = transformers.CLIPTextModel.from_pretrained(config.clip_path)
    ids = torch.tensor([[3, 4, 5, 6, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state[:, 4]
    torch.testing.assert_close(encoder.encode(["a red circle"]).pooled_BD, expected)


def test_a_cut_caption_is_logged_once(config: TextConfig, caplog: pytest.LogCaptureFixture) -> None:
    encoder = T5ClipText(config, device=CPU, dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        encoder.encode(["circle moving left a red"])
        assert not caplog.records
        encoder.encode(["a " * 10])
        encoder.encode(["a " * 10])
    assert [record.getMessage() for record in caplog.records] == [
        "a caption is longer than 10 T5 tokens and was truncated"
    ]


def test_the_dtype_is_the_callers(config: TextConfig) -> None:
    features = T5ClipText(config, device=CPU, dtype=torch.bfloat16).encode(["a"])
    assert features.tokens_BLD.dtype == features.pooled_BD.dtype == torch.bfloat16


def test_widths_must_agree(config: TextConfig) -> None:
    with pytest.raises(UserError, match=r"gives width 16, text\.token_width is 32; set text\.tok"):
        T5ClipText(replace(config, token_width=32), device=CPU, dtype=torch.float32)
    with pytest.raises(UserError, match=r"gives width 12, text\.pooled_width is 32"):
        T5ClipText(replace(config, pooled_width=32), device=CPU, dtype=torch.float32)


def test_what_is_not_there_is_said(config: TextConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text\.t5_path=/nowhere/t5: no such folder"):
        T5ClipText(replace(config, t5_path="/nowhere/t5"), device=CPU, dtype=torch.float32)
    with pytest.raises(UserError, match=r"text\.clip_path=.*cannot be loaded"):
        T5ClipText(replace(config, clip_path=str(tmp_path)), device=CPU, dtype=torch.float32)


def test_weights_that_lack_a_tensor_are_refused(config: TextConfig, tmp_path: Path) -> None:
    model = transformers.T5EncoderModel.from_pretrained(config.t5_path)
    state = model.state_dict()
    state.pop("encoder.block.1.layer.1.DenseReluDense.wo.weight")
    model.save_pretrained(tmp_path, state_dict=state)
    save_tokenizer(tmp_path, "<pad>", "$A </s>")
    with pytest.raises(UserError, match=r"lacks 'encoder\.block\.1.*wo\.weight' and 0 more"):
        T5ClipText(replace(config, t5_path=str(tmp_path)), device=CPU, dtype=torch.float32)


def test_config_sizes_follow_the_kind() -> None:
    config = TextConfig(kind="t5_clip", t5_path="a", clip_path="b")
    assert (config.length, config.token_width, config.pooled_width) == (512, 4096, 768)
    assert TextConfig(kind="t5_clip", t5_path="a", clip_path="b", length=256).length == 256
    assert TextConfig().kind == "builtin"
    with pytest.raises(ValidationError, match="needs t5_path and clip_path"):
        TextConfig(kind="t5_clip")
