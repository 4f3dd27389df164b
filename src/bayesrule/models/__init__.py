"""Networks: plain `torch.nn.Module`s built from a flat mapping of options.

Vision and table models map floats ``(B, ...)`` to outputs ``(B, K)``; language models map token
indices ``(B, T)`` to logits ``(B, T, V)``. All of them have ``features(x)``, the input of the last
linear map, and none works in place, so `torch.func.functional_call`, `grad` and `vmap` apply
(batch normalisation in training mode excepted: it mixes the items of a batch).
"""

from bayesrule.models.build import build_model, count_parameters, learnt_state
from bayesrule.models.dropout import insert_dropout, mc_dropout_mode
from bayesrule.models.gpt import load_hf_gpt2
from bayesrule.models.norms import FilterResponseNorm2d
from bayesrule.models.pretrained import prefix_network, reads_prompts, tokenizer_of
from bayesrule.models.registry import model_names, model_options, register_model

__all__ = [
    "FilterResponseNorm2d",
    "build_model",
    "count_parameters",
    "insert_dropout",
    "learnt_state",
    "load_hf_gpt2",
    "mc_dropout_mode",
    "model_names",
    "model_options",
    "prefix_network",
    "reads_prompts",
    "register_model",
    "tokenizer_of",
]
