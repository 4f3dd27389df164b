"""Low-rank adapters of a pretrained model: supervised learning that leaves an adapter to share.

Any posterior of the repository is learnt over the adapters (and a head, if there is one). Beside
the run's posterior, the folder ``adapter/`` holds

    adapter_model.safetensors, adapter_config.json    the mean, which PEFT alone loads
    head.safetensors                                  the mean of a head that the base model lacks
    posterior.safetensors, posterior.json             q by PEFT's names, in the order of the adapter

and a mixture (an ensemble) has a folder ``adapter-0``, ``adapter-1``, ... for each component.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bayesrule.config import Config
from bayesrule.errors import ConfigError
from bayesrule.models.lora import ADAPTER, adapter_tensors, peft_key
from bayesrule.models.transformer import Transformer
from bayesrule.posteriors import Mixture, Posterior, save_posterior
from bayesrule.tasks.problem import Learnt
from bayesrule.tasks.supervised import Supervised
from bayesrule.tasks.task import Context

__all__ = ["LoRA", "save_adapter"]

_HEAD = "head."


class LoRA(Supervised):
    """Supervised learning of adapters; see the module for what it leaves."""

    def check(self, config: Config) -> None:
        """Refuse a model without adapters.

        Raises:
            ConfigError: Naming what to choose.
        """
        tune = config["model"].get("tune")
        if tune != "lora":
            what = f"model.tune={tune}" if tune else f"model={config['model']['name']}"
            raise ConfigError(
                f"task=lora learns low-rank adapters, and {what} has none: choose model.tune=lora "
                "with a pretrained model (minilm, smollm2_135m, hf, ...), or task=supervised"
            )

    def keep(self, context: Context, learnt: Learnt) -> None:
        """Save the adapter with its posterior."""
        model, q = learnt.model, learnt.posterior
        assert isinstance(model, Transformer)
        if not isinstance(q, Mixture):
            save_adapter(context.folder.path / "adapter", model, q)
            return
        for k, component in enumerate(q.components):
            save_adapter(context.folder.path / f"adapter-{k}", model, component)


def save_adapter(folder: Path, model: Transformer, q: Posterior) -> None:
    """Write an adapter that PEFT loads, and the posterior beside it.

    Args:
        folder: Made if missing.
        model: The network with adapters.
        q: A posterior over some of its parameters; the others are in its buffers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = q.mean_state()
    ordered = {name: state[name] for name, _ in model.named_parameters() if name in state}
    save_file(adapter_tensors(model, ordered), folder / "adapter_model.safetensors")
    adapted: Any = model.backbone
    options = copy.deepcopy(adapted.peft_config[ADAPTER])
    options.inference_mode = True
    options.save_pretrained(str(folder))
    head = {name: t.detach().cpu() for name, t in ordered.items() if name.startswith(_HEAD)}
    if head:
        save_file(head, folder / "head.safetensors")
    names = {name: peft_key(name) or name for name in ordered}
    save_posterior(q.renamed(names), folder)
