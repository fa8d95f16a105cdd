"""T5 tokens and CLIP's pooled vector, the text the published video models were trained on."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.errors import UserError
from vidgen.models.text.config import TextConfig
from vidgen.models.text.encoder import TextFeatures

log = logging.getLogger(__name__)


class T5ClipText:
    """T5's last hidden states of `length` tokens, and CLIP's state at the end of the caption.

    As in training of the published models, captions are padded to the full length and no attention
    mask is used, so T5 attends to padding. Longer captions are truncated; for T5 this is logged
    once, for CLIP's 77 tokens it is usual.
    """

    def __init__(self, config: TextConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        assert config.t5_path is not None
        assert config.clip_path is not None
        transformers = _transformers()
        self.length = config.length
        self.token_width = config.token_width
        self.pooled_width = config.pooled_width
        self._device = device
        self._cut_seen = False

        t5, clip = _Hub(config.t5_path, "t5_path"), _Hub(config.clip_path, "clip_path")
        # Compare widths before reading gigabytes.
        t5_shape = t5.load(transformers.T5Config)
        clip_shape = clip.load(transformers.CLIPTextConfig)
        _check_width("token_width", t5, t5_shape.d_model, config.token_width)
        _check_width("pooled_width", clip, clip_shape.hidden_size, config.pooled_width)
        self._clip_length: int = clip_shape.max_position_embeddings
        self._t5_tokens = t5.load(transformers.AutoTokenizer)
        self._clip_tokens = clip.load(transformers.AutoTokenizer)
        self._t5 = t5.load_model(transformers.T5EncoderModel, dtype).to(device)
        self._clip = clip.load_model(transformers.CLIPTextModel, dtype).to(device)

    @torch.no_grad()
    def encode(self, captions: list[str]) -> TextFeatures:
        t5_ids = self._ids(self._t5_tokens, captions, self.length)
        clip_ids = self._ids(self._clip_tokens, captions, self._clip_length)
        if not self._cut_seen and self._is_cut(captions):
            self._cut_seen = True
            log.warning("a caption is longer than %d T5 tokens and was truncated", self.length)
        return TextFeatures(
            tokens_BLD=self._t5(input_ids=t5_ids).last_hidden_state,
            pooled_BD=self._clip(input_ids=clip_ids).pooler_output,
        )

    def _ids(self, tokenizer: Any, captions: list[str], length: int) -> Tensor:
        batch = tokenizer(
            captions, max_length=length, padding="max_length", truncation=True, return_tensors="pt"
        )
        ids: Tensor = batch["input_ids"]
        return ids.to(self._device)

    def _is_cut(self, captions: list[str]) -> bool:
        # A token is at least one character, so most captions need not be tokenised again.
        long = [caption for caption in captions if len(caption) >= self.length]
        return bool(long) and any(
            len(ids) > self.length for ids in self._t5_tokens(long)["input_ids"]
        )


class _Hub:
    """A pretrained model in a local folder or on the hub."""

    def __init__(self, name: str, field: str) -> None:
        folder = Path(name).expanduser()
        self.name, self.field = name, field
        self.local = folder.is_dir()
        self.where = str(folder) if self.local else name
        if not self.local and (name.startswith((".", "/", "~")) or name.count("/") != 1):
            raise UserError(
                f"text.{field}={name}: no such folder; expected one, or a hub name such as "
                f"google/t5-v1_1-xxl"
            )
        # Without it transformers would use a default config.
        if self.local and not (folder / "config.json").is_file():
            raise UserError(f"text.{field}={name}: cannot be loaded: it holds no config.json")

    def load(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.where, local_files_only=self.local, **options)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"text.{self.field}={self.name}: cannot be loaded: {first}") from error

    def load_model(self, kind: Any, dtype: torch.dtype) -> Any:
        model, loaded = self.load(kind, dtype=dtype, output_loading_info=True)
        # By default transformers initialises missing tensors randomly.
        if missing := sorted(loaded["missing_keys"]):
            raise UserError(
                f"text.{self.field}={self.name}: lacks '{missing[0]}' and {len(missing) - 1} more "
                f"tensors of {kind.__name__}"
            )
        return model.eval().requires_grad_(False)


def _check_width(field: str, hub: _Hub, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"text.{hub.field}={hub.name} gives width {found}, text.{field} is {expected}; "
            f"set text.{field}={found}"
        )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            'T5 and CLIP need the transformers package: pip install "vidgen[text]"'
        ) from error
    return transformers
