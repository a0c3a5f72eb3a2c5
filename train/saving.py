"""A trained model as a plain one: adapters merged, shards gathered, all weights in float32.

Students are saved this way, and vLLM receives new weights this way. Merging in bfloat16 would round away most of what a
short training changed. The trained model stays as it is: peft's own merging would be undone after each transfer, which
changes a bfloat16 base a little every time.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.integrations import gather_params_ctx
from torch import Tensor
from torch.distributed.tensor import DTensor

# Parameters of adapters, which a plain model does not have.
_ADAPTER = re.compile(r"\b(lora_|trainable_tokens_)")
# What peft's and torch's wrappers put into the names of parameters.
_WRAPPERS = re.compile(r"\b(base_layer|token_adapter|_checkpoint_wrapped_module)\.")
# `train.students.lora` makes a single adapter, which gets peft's default name.
_NAME = "default"


def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and whole weights of the plain causal model, one after the other. Tied weights come once.

    model: plain or with adapters of `train.students.lora`, whole or sharded by FSDP2 or ZeRO-3. If it is sharded, all
    processes must iterate to the end.
    """
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, weight in causal.named_parameters():
        if _ADAPTER.search(name):
            continue
        layer = causal.get_submodule(name.rpartition(".base_layer.")[0]) if ".base_layer." in name else None
        # ZeRO-3 gathers what it is told to; without it, this does nothing.
        with gather_params_ctx([weight] if layer is None else list(layer.parameters()), modifier_rank=None):
            yield _WRAPPERS.sub("", name), _merge(_gather(weight), layer if name.endswith(".weight") else None)


def save_plain(model: Any, folder: Path | None) -> None:
    """Save the plain model in the format of transformers, in float32.

    model: as for `plain_weights`; all processes must call it. folder: None in processes that do not write.
    """
    weights = {name: weight.cpu() for name, weight in plain_weights(model) if folder is not None}
    if folder is None:
        return
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    parameters = {name for name, _ in causal.named_parameters(remove_duplicate=False)}
    buffers = {
        _WRAPPERS.sub("", name): buffer
        for name, buffer in causal.state_dict(keep_vars=True).items()
        if name not in parameters and not _ADAPTER.search(name)
    }
    causal.save_pretrained(folder, state_dict=weights | buffers)
    # transformers writes the precision of the model in memory, and loads weights in the precision that it reads.
    config = folder / "config.json"
    config.write_bytes(
        orjson.dumps({**orjson.loads(config.read_bytes()), "dtype": "float32"}, option=orjson.OPT_INDENT_2)
    )


def _merge(weight: Tensor, layer: Any) -> Tensor:
    """A weight in float32, with what its layer's adapter adds or replaces."""
    merged = weight.float()
    # Any, because peft's types do not say what its layers hold.
    adapter: Any = layer
    if isinstance(layer, LoraLayer):
        change = _gather(adapter.lora_B[_NAME].weight).float() @ _gather(adapter.lora_A[_NAME].weight).float()
        # GPT-2 keeps its matrices transposed.
        merged = merged + adapter.scaling[_NAME] * (change.T if adapter.fan_in_fan_out else change)
    if isinstance(layer, TrainableTokensLayer):
        rows = torch.tensor(adapter.token_indices[_NAME], device=merged.device)
        merged = merged.index_copy(0, rows, _gather(adapter.trainable_tokens_delta[_NAME]).float())
    return merged


def _gather(weight: Tensor) -> Tensor:
    whole: Tensor = weight.detach()
    return whole.full_tensor() if isinstance(whole, DTensor) else whole
