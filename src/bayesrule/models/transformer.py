"""Pretrained transformers with a head: full fine-tuning, low-rank adapters, or the head alone.

    h = backbone(tokens)             hidden states (B, T, D) of the last layer
    f = head(pool(h))                outputs (B, K)

Heads: ``mean`` and ``first`` put a new linear layer on the mean over tokens or on the first one;
``native`` is the checkpoint's own classification head (Hugging Face's sequence or image
classification model); ``answer`` reads the logits of K answer tokens after the last token of a
prompt, and nothing else of the vocabulary; ``lm`` gives next-token logits (B, T, V).

With a cached prefix k the frozen layers below k are run once over the data (`PrefixNetwork`), and
the network takes their outputs (`hidden`) in place of tokens: the same function, since frozen
layers without dropout give the same states every time.

Parameters that are not learnt keep the checkpoint's bits and are not part of a posterior or a
checkpoint of a run: the configuration names them (`Transformer.fixed`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from bayesrule.errors import ConfigError

__all__ = ["PrefixNetwork", "Transformer", "cut_below", "layers_of", "set_dropout"]

_WITH_POSITIONS = ("bert", "gpt2")  # their positions are an embedding: one row per item
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")


class Transformer(nn.Module):
    """A Hugging Face model, bare or with adapters, and a head.

    Args:
        backbone: The Hugging Face model, or a PEFT model around one.
        head: A linear layer over the pooled state; None where the backbone gives the outputs.
        pool: ``mean``, ``first`` or ``last``; how a head reads the hidden states.
        vocabulary: Whether the outputs are next-token logits.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Linear | None,
        pool: str | None,
        *,
        vocabulary: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        self.vocabulary = vocabulary
        if head is not None:
            self.head = head

    @property
    def fixed(self) -> frozenset[str]:
        """Names of the parameters that keep the values the configuration gives them."""
        return frozenset(name for name, p in self.named_parameters() if not p.requires_grad)

    @property
    def base(self) -> Any:
        """The Hugging Face model itself."""
        get = getattr(self.backbone, "get_base_model", None)
        return self.backbone if get is None else get()

    def features(
        self,
        input: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return the pooled state (B, D) that the head sees; arguments as for `forward`."""
        keywords = self._keywords(input, input_ids, attention_mask, hidden)
        h_BTD = self.base.base_model(**keywords).last_hidden_state
        if self.pool == "first":
            return h_BTD[:, 0]
        mask_BT = attention_mask
        if mask_BT is None:
            return h_BTD.mean(1) if self.pool == "mean" else h_BTD[:, -1]
        if self.pool == "mean":
            weight_BT = mask_BT.to(h_BTD.dtype) / mask_BT.sum(1, keepdim=True)
            return torch.einsum("bt,btd->bd", weight_BT, h_BTD)
        last_B = mask_BT.sum(1) - 1  # texts are filled on the right
        chosen = last_B[:, None] == torch.arange(h_BTD.shape[1], device=h_BTD.device)
        return torch.einsum("bt,btd->bd", chosen.to(h_BTD.dtype), h_BTD)

    def forward(
        self,
        input: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return the outputs (B, K), or (B, T, V) of a language model.

        Args:
            input: Tokens (B, T) or images (B, C, H, W), without a mask.
            input_ids: Tokens (B, T).
            attention_mask: 1 for tokens, 0 for filling, (B, T).
            hidden: Outputs of the cached prefix (B, T, D), in place of tokens.
        """
        if self.pool is not None:
            return self.head(
                self.features(
                    input, input_ids=input_ids, attention_mask=attention_mask, hidden=hidden
                )
            )
        keywords = self._keywords(input, input_ids, attention_mask, hidden)
        logits: Tensor = self.backbone(**keywords).logits
        return logits

    def _keywords(
        self,
        input: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        hidden: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return what the backbone is called with."""
        return backbone_keywords(self.base, input, input_ids, attention_mask, hidden)


def backbone_keywords(
    base: Any,
    input: Tensor | None,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    hidden: Tensor | None,
) -> dict[str, Any]:
    """Return the keyword arguments of a Hugging Face model for one batch."""
    if hidden is not None:
        keywords: dict[str, Any] = {"inputs_embeds": hidden}
    elif input_ids is not None:
        keywords = {"input_ids": input_ids}
    else:
        assert input is not None
        keywords = {base.main_input_name: input}
    tokens = next(iter(keywords.values()))
    if attention_mask is not None:
        keywords["attention_mask"] = _additive(attention_mask, base, tokens)
    if base.config.model_type in _WITH_POSITIONS:
        B, T = tokens.shape[:2]
        keywords["position_ids"] = torch.arange(T, device=tokens.device).expand(B, T)
    if getattr(base.config, "use_cache", False):
        keywords["use_cache"] = False
    return keywords


def _additive(mask_BT: Tensor, base: Any, tokens: Tensor) -> Tensor:
    """Return the mask that is added to attention scores, (B, 1, T, T), where its form is known.

    Hugging Face's own masks look at the values of a batch and choose a path by them, which
    `torch.func.vmap` cannot follow; this one is the same function of every batch.
    """
    kind = base.config.model_type
    if kind not in (*ENCODERS, *DECODERS):
        return mask_BT
    T = mask_BT.shape[1]
    seen = mask_BT[:, None, None, :].bool().expand(-1, 1, T, T)
    if kind in DECODERS:
        seen = seen & torch.ones(T, T, dtype=torch.bool, device=mask_BT.device).tril()
    dtype = tokens.dtype if tokens.is_floating_point() else base.dtype
    zero = torch.zeros((), dtype=dtype, device=mask_BT.device)
    return torch.where(seen, zero, torch.finfo(dtype).min)


def layers_of(base: Any) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the layers of a Hugging Face model.

    Raises:
        ConfigError: It has no list of as many layers as its configuration says.
    """
    depth = int(base.config.num_hidden_layers)
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ConfigError(
        f"{type(base).__name__} has no list of {depth} layers, so model.cached_prefix and "
        "model.lora_layers have no meaning for it"
    )


def set_dropout(model: nn.Module, p: float) -> None:
    """Set the probability of every dropout layer."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = p


class _Given(nn.Module):
    """In the place of an embedding: gives the states that came as ``inputs_embeds``."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **rest: Any) -> Any:
        """Return the states."""
        return inputs_embeds


class _Through(nn.Module):
    """In the place of a layer below the cached prefix: gives on what it gets."""

    def forward(self, hidden_states: Tensor, *args: Any, **rest: Any) -> Tensor:
        """Return the states."""
        return hidden_states


def cut_below(base: Any, k: int) -> None:
    """Take the embeddings and the layers below `k` out of a model, in place.

    What is left maps the inputs of layer k, given as ``inputs_embeds``, to the same outputs.

    Raises:
        ConfigError: There are no k layers, or the model takes no states in place of tokens.
    """
    _, layers = layers_of(base)
    if not 0 < k < len(layers):
        raise ConfigError(
            f"model.cached_prefix={k}: the model has {len(layers)} layers, and one at least must "
            f"be learnt (0 to {len(layers) - 1})"
        )
    for index in range(k):
        layers[index] = _Through()
    core = base.base_model
    if hasattr(core, "embeddings"):  # encoders: tokens, positions and a norm
        if core.main_input_name != "input_ids":
            raise ConfigError(f"model.cached_prefix is for texts, not for {type(base).__name__}")
        core.embeddings = _Given()
    elif hasattr(core, "embed_tokens"):  # decoders with rotary positions
        core.embed_tokens = _Given()
    else:
        raise ConfigError(
            f"model.cached_prefix knows no way to give {type(base).__name__} hidden states"
        )


class _Reached(Exception):
    """Carries the hidden states that layer k was called with."""


class PrefixNetwork(nn.Module):
    """The frozen layers below `k`: tokens to the hidden states that layer k sees.

    Args:
        base: The Hugging Face model.
        k: Number of layers.
    """

    def __init__(self, base: Any, k: int) -> None:
        super().__init__()
        self.base = base
        self.k = k
        self.requires_grad_(False)
        self.eval()
        layers_of(base)[1][k].register_forward_pre_hook(self._stop, with_kwargs=True)

    @staticmethod
    def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    @torch.no_grad()
    def forward(
        self,
        input: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, D)."""
        keywords = backbone_keywords(self.base, input, input_ids, attention_mask, None)
        try:
            self.base.base_model(**keywords)
        except _Reached as reached:
            states: Tensor = reached.args[0]
            return states
        raise RuntimeError("the model never called its layer k")
