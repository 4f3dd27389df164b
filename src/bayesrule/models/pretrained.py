"""The pretrained models under ``model=``: one builder, and a name for each known checkpoint.

``model=hf model.checkpoint=<hub id or folder>`` takes any other one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bayesrule.errors import ConfigError
from bayesrule.models.lora import add_adapters, native_head
from bayesrule.models.registry import check_choice, register_model
from bayesrule.models.transformer import (
    DECODERS,
    PrefixNetwork,
    Transformer,
    cut_below,
    layers_of,
    set_dropout,
)
from bayesrule.pretrained import HASHED, PACKAGES, architecture, load_backbone, load_tokenizer
from bayesrule.pretrained.checkpoints import check_named
from bayesrule.seeding import child_seed

__all__ = ["build_transformer", "prefix_network", "reads_prompts", "tokenizer_of"]

HEADS = ("mean", "first", "native", "answer", "lm")
_POOLS = {"mean": "mean", "first": "first", "answer": "last"}
_AUTO = {
    "mean": "AutoModel",
    "first": "AutoModel",
    "answer": "AutoModelForCausalLM",
    "lm": "AutoModelForCausalLM",
}
_LETTERS = "ABCDEFGHIJ"


def build_transformer(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    checkpoint: str | None = None,
    revision: str | None = None,
    weights: str = "pretrained",
    head: str = "mean",
    answers: Sequence[str] | None = None,
    tune: str = "all",
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
    lora_targets: Sequence[str] = ("query", "value"),
    lora_layers: Sequence[int] | None = None,
    cached_prefix: int = 0,
    dropout: float | None = None,
    attention: str = "eager",
) -> nn.Module:
    """Build a `Transformer`.

    Args:
        input_shape: (T,) tokens, or (C, H, W).
        n_outputs: Classes, or tokens of the vocabulary for ``head=lm``.
        checkpoint: A package's name, a folder, or a hub id.
        revision: Commit of the hub repository.
        weights: ``pretrained``, ``random`` (the architecture, newly initialised) or ``tiny`` (two
            layers of width 64, for tests and dry runs).
        head: ``mean``, ``first``, ``native``, ``answer`` or ``lm``.
        answers: Words of the answers for ``head=answer``; None: the letters A, B, ...
        tune: What is learnt: ``all``, ``lora`` (adapters and head) or ``head``.
        lora_rank: Rank r of the adapters.
        lora_alpha: The adapters' outputs are scaled by alpha / r.
        lora_dropout: Dropout of the adapters' inputs, in training.
        lora_targets: Linear maps with adapters, by their path within a layer.
        lora_layers: Layers with adapters; None: all that are not in the cached prefix.
        cached_prefix: Layers k that are frozen and run once over the data.
        dropout: Probability for the checkpoint's own dropout layers; None: its own.
        attention: ``eager`` (derivatives of every order) or ``sdpa`` (faster, first order only).

    Raises:
        ConfigError: Options do not go together, or do not fit the model.
        DataUnavailable: Nothing serves the checkpoint.
    """
    check_choice("head", head, HEADS)
    if tune == "head" and head in ("answer", "lm"):
        raise ConfigError(f"model.head={head} has nothing to learn with model.tune=head")
    checkpoint = check_named(checkpoint, "hf")
    base = _base(checkpoint, revision, weights, head, n_outputs, attention, input_shape)
    if head == "native" and base.config.model_type in DECODERS:
        raise ConfigError(
            "model.head=native of a language model finds the last token by its padding token; use "
            "model.head=answer, or mean"
        )
    if dropout is not None:
        set_dropout(base, dropout)
    if head in ("mean", "first"):
        base.pooler = None  # not used; an unused parameter would be learnt without a gradient
    rows = _answer_head(base, checkpoint, weights, answers, n_outputs) if head == "answer" else None
    if cached_prefix:
        cut_below(base, cached_prefix)
    if rows is not None:
        base.set_output_embeddings(nn.Identity())  # the head below is all that is read of it
    backbone: nn.Module = base
    if tune == "lora":
        depth = len(layers_of(base)[1])
        layers = range(cached_prefix, depth) if lora_layers is None else lora_layers
        if any(index < cached_prefix for index in layers):
            raise ConfigError(
                f"model.lora_layers={list(layers)}: layers below "
                f"model.cached_prefix={cached_prefix} are frozen"
            )
        backbone = add_adapters(
            base,
            rank=lora_rank,
            alpha=lora_alpha,
            dropout=lora_dropout,
            targets=lora_targets,
            layers=layers,
            hub=PACKAGES[checkpoint].hub if checkpoint in PACKAGES else checkpoint,
            learn_head=head == "native",
        )
    elif tune == "head":
        base.requires_grad_(False)
        if head == "native":
            native_head(base)[1].requires_grad_(True)
    linear = rows
    if head in ("mean", "first"):
        linear = nn.Linear(int(base.config.hidden_size), n_outputs)
    return Transformer(backbone, linear, _POOLS.get(head), vocabulary=head == "lm").train()


def _base(
    checkpoint: str,
    revision: str | None,
    weights: str,
    head: str,
    n_outputs: int,
    attention: str,
    input_shape: tuple[int, ...],
) -> Any:
    """Return the Hugging Face model, with pretrained or random weights."""
    import transformers

    check_choice("weights", weights, ("pretrained", "random", "tiny"))
    images = len(input_shape) == 3
    kind = _AUTO.get(head) or (
        "AutoModelForImageClassification" if images else "AutoModelForSequenceClassification"
    )
    planning = torch.get_default_device().type == "meta"
    if weights == "pretrained" and not planning:
        labels = {"num_labels": n_outputs} if head == "native" else {}
        return load_backbone(
            checkpoint,
            kind,
            revision=revision,
            attn_implementation=attention,
            dtype=torch.float32,
            **labels,
        )
    size = input_shape[-1] if images else None
    config = architecture(checkpoint, tiny=weights == "tiny", image_size=size)
    if head == "native":
        config.num_labels = n_outputs
    with torch.random.fork_rng(devices=[]):  # one fixed stand-in, whatever the run's seed
        torch.default_generator.manual_seed(child_seed(0, "weights", checkpoint))
        base = getattr(transformers, kind).from_config(config, attn_implementation=attention)
    if head == "native":
        for module in native_head(base)[1].modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    return base


def _answer_head(
    base: Any, checkpoint: str, weights: str, answers: Sequence[str] | None, n_outputs: int
) -> nn.Linear:
    """Return the rows of the output embedding that belong to the answers, frozen.

    Raises:
        ConfigError: There are not as many answers as outputs, or two share a token.
    """
    words = list(answers) if answers is not None else list(_LETTERS[:n_outputs])
    if len(words) != n_outputs:
        raise ConfigError(
            f"model.answers={words}: the data have {n_outputs} answers (null: the letters A, B, "
            f"..., at most {len(_LETTERS)})"
        )
    embedding = base.get_output_embeddings().weight
    if embedding.is_meta or weights == "random":
        tokens = list(range(n_outputs))
    else:
        tokens = load_tokenizer(HASHED if weights == "tiny" else checkpoint).answer_tokens(words)
    head = nn.Linear(embedding.shape[1], n_outputs, bias=False)
    if not embedding.is_meta:
        with torch.no_grad():
            head.weight.copy_(embedding[tokens])
    return head.requires_grad_(False)


def prefix_network(cfg: Mapping[str, Any]) -> PrefixNetwork:
    """Return the frozen layers below ``cached_prefix`` of a model's configuration."""
    head = "answer" if cfg["head"] in ("answer", "lm") else "mean"
    checkpoint = check_named(cfg["checkpoint"], cfg["name"])
    base = _base(checkpoint, cfg["revision"], cfg["weights"], head, 1, cfg["attention"], (1,))
    return PrefixNetwork(base, int(cfg["cached_prefix"]))


def tokenizer_of(cfg: Mapping[str, Any]) -> str | None:
    """Return the name of the tokenizer of a model's configuration, None without one."""
    if "checkpoint" not in cfg:
        return None
    return HASHED if cfg["weights"] == "tiny" else cfg["checkpoint"]


def reads_prompts(cfg: Mapping[str, Any]) -> bool:
    """Return whether a model's configuration reads prompts rather than plain texts."""
    return cfg.get("head") in ("answer", "lm")


def _known(name: str, **fixed: Any) -> Callable[..., nn.Module]:
    """Register `build_transformer` under a name, with other defaults."""
    import functools
    import inspect

    signature = inspect.signature(build_transformer)
    parameters = [
        p.replace(default=fixed.get(p.name, p.default)) for p in signature.parameters.values()
    ]

    @functools.wraps(build_transformer)
    def builder(*args: Any, **options: Any) -> nn.Module:
        return build_transformer(*args, **{**fixed, **options})

    builder.__name__ = builder.__qualname__ = name
    builder.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return register_model(name)(builder)


_BERT = ("query", "value", "intermediate.dense", "output.dense")
_LLAMA = ("q_proj", "v_proj")

hf = _known("hf")
minilm = _known("minilm", checkpoint="minilm", lora_targets=_BERT)
roberta_base = _known("roberta_base", checkpoint="FacebookAI/roberta-base", head="native")
vit_pretrained = _known(
    "vit_pretrained",
    checkpoint="google/vit-base-patch16-224-in21k",
    head="native",
    lora_targets=("q_proj", "v_proj"),
)
smollm2_135m = _known("smollm2_135m", checkpoint="smollm2_135m", head="answer", lora_targets=_LLAMA)
llama2_7b = _known(
    "llama2_7b", checkpoint="meta-llama/Llama-2-7b-hf", head="answer", lora_targets=_LLAMA
)
