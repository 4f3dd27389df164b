"""Pretrained checkpoints: where weights, architectures and tokenizers come from.

`models` builds networks on them and `data` reads text with their tokenizers, so this room lies
below both. A checkpoint is named by a package of weights (``minilm``, ``smollm2_135m``), a local
folder, or a Hugging Face hub id.
"""

from bayesrule.pretrained.architectures import architecture
from bayesrule.pretrained.checkpoints import (
    PACKAGES,
    checkpoint_folder,
    checkpoint_version,
    load_backbone,
    missing_package,
)
from bayesrule.pretrained.tokenizers import HASHED, TextTokenizer, load_tokenizer

__all__ = [
    "HASHED",
    "PACKAGES",
    "TextTokenizer",
    "architecture",
    "checkpoint_folder",
    "checkpoint_version",
    "load_backbone",
    "load_tokenizer",
    "missing_package",
]
