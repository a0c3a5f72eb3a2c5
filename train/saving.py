"""Turns a trained model into a plain one: adapters merged, shards gathered, all weights in float32.

Students are saved this way, and vLLM receives new weights this way. Merging in bfloat16 would round away most of the
changes of a short training. The trained model itself does not change. peft's own merging would have to be undone after
each transfer, which changes a bfloat16 base a little every time.
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
# Parts of parameter names that come from the wrappers of peft and torch.
_WRAPPERS = re.compile(r"\b(base_layer|token_adapter|_checkpoint_wrapped_module)\.")
# `train.students.lora` makes a single adapter, which gets peft's default name.
_NAME = "default"


def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and whole weights of the plain causal model, one at a time. Tied weights come once.

    model: plain or with adapters of `train.students.lora`, whole or sharded by FSDP2 or ZeRO-3. If it is sharded, all
    processes must iterate to the end.
    """
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, weight in causal.named_parameters():
        if _ADAPTER.search(name):
            continue
        layer = causal.get_submodule(name.rpartition(".base_layer.")[0]) if ".base_layer." in name else None
        # ZeRO-3 gathers only the given parameters. Without ZeRO-3, this does nothing.
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
    # transformers writes the precision of the model in memory to the config, and loads weights in that precision.
    config = folder / "config.json"
    config.write_bytes(
        orjson.dumps({**orjson.loads(config.read_bytes()), "dtype": "float32"}, option=orjson.OPT_INDENT_2)
    )


def _merge(weight: Tensor, layer: Any) -> Tensor:
    """A weight in float32, including the changes of its layer's adapter."""
    merged = weight.float()
    # Any, because peft's types do not declare the contents of its layers.
    adapter: Any = layer
    if isinstance(layer, LoraLayer):
        change = _gather(adapter.lora_B[_NAME].weight).float() @ _gather(adapter.lora_A[_NAME].weight).float()
        # GPT-2 stores its matrices transposed.
        merged = merged + adapter.scaling[_NAME] * (change.T if adapter.fan_in_fan_out else change)
    if isinstance(layer, TrainableTokensLayer):
        rows = torch.tensor(adapter.token_indices[_NAME], device=merged.device)
        merged = merged.index_copy(0, rows, _gather(adapter.trainable_tokens_delta[_NAME]).float())
    return merged


def _gather(weight: Tensor) -> Tensor:
    whole: Tensor = weight.detach()
    return whole.full_tensor() if isinstance(whole, DTensor) else whole
