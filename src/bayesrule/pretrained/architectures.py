"""Architectures of known checkpoints, as numbers: planning needs no file and no hub.

The numbers are those of the published ``config.json`` of each. `tiny` keeps an architecture's kind
and makes it two layers of width 64: random weights for dry runs, smoke tests and unit tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.errors import DataUnavailable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["KNOWN", "TINY_VOCABULARY", "architecture"]

TINY_VOCABULARY = 1024
_TINY_DEPTH, _TINY_WIDTH, _TINY_HEADS = 2, 64, 4

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": (
        "bert",
        {
            "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6,
            "num_attention_heads": 12, "intermediate_size": 1536,
        },
    ),
    "smollm2_135m": (
        "llama",
        {
            "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
            "max_position_embeddings": 8192, "tie_word_embeddings": True,
        },
    ),
    "FacebookAI/roberta-base": (
        "roberta",
        {
            "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072, "type_vocab_size": 1,
            "max_position_embeddings": 514, "pad_token_id": 1, "bos_token_id": 0,
            "eos_token_id": 2,
        },
    ),
    "google/vit-base-patch16-224-in21k": (
        "vit",
        {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "image_size": 224, "patch_size": 16,
        },
    ),
    "meta-llama/Llama-2-7b-hf": (
        "llama",
        {
            "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008,
            "max_position_embeddings": 4096,
        },
    ),
}  # fmt: skip
"""Model type and its numbers by checkpoint."""


def architecture(
    checkpoint: str, *, tiny: bool = False, image_size: int | None = None
) -> PretrainedConfig:
    """Return the Hugging Face configuration of a checkpoint.

    Args:
        checkpoint: A name of `KNOWN`, a local folder, or a hub id.
        tiny: Two layers of width 64 and a small vocabulary instead.
        image_size: Height and width of the images, for `tiny`.

    Raises:
        DataUnavailable: It is not known here, and neither a folder nor the hub has it.
    """
    from transformers import AutoConfig

    if checkpoint in KNOWN and not Path(checkpoint).is_dir():
        kind, numbers = KNOWN[checkpoint]
        found = AutoConfig.for_model(kind, **numbers)
    else:
        try:
            found = AutoConfig.from_pretrained(checkpoint)
        except OSError as error:
            raise DataUnavailable(
                f"the architecture of {checkpoint} is not known here, and neither a folder nor the "
                f"hub has it ({str(error).splitlines()[0]})"
            ) from error
    return _tiny(found, image_size) if tiny else found


def _tiny(found: PretrainedConfig, image_size: int | None) -> PretrainedConfig:
    from transformers import AutoConfig

    numbers: dict[str, Any] = {
        "hidden_size": _TINY_WIDTH,
        "num_hidden_layers": _TINY_DEPTH,
        "num_attention_heads": _TINY_HEADS,
        "intermediate_size": 2 * _TINY_WIDTH,
    }
    if hasattr(found, "num_key_value_heads"):
        numbers["num_key_value_heads"] = _TINY_HEADS // 2
    if hasattr(found, "vocab_size"):
        numbers |= {"vocab_size": TINY_VOCABULARY, "max_position_embeddings": 1024}
        numbers |= {"tie_word_embeddings": found.tie_word_embeddings}
    if hasattr(found, "type_vocab_size"):
        numbers["type_vocab_size"] = found.type_vocab_size
    if image_size is not None and hasattr(found, "patch_size"):
        numbers |= {"image_size": image_size, "patch_size": min(found.patch_size, image_size // 2)}
    return AutoConfig.for_model(found.model_type, **numbers)
