"""Reads each prompt once for all completions of its group.

The completions of a group begin with the same prompt, which is often several times as long as they are. The keys and
values of the prompt are the same for all of them. A model therefore computes them once, and the completions read them,
both in generation and, with gradients, in training. For groups of eight whose prompts are five times as long as their
completions, a quarter of the tokens is left.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from trl import GRPOTrainer

from train.students.student import has_static_cache


def can_share(model: Any) -> bool:
    """Whether a model's cache keeps all tokens with gradients, and only distances between tokens matter to the model.

    Models with checkpointing keep no cache, and sliding windows drop tokens.
    """
    config = model.config
    checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    rotates = bool(getattr(config, "rope_parameters", None))
    return rotates and not checkpoints and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}


def read_prompts(model: Any, ids_B_P: Tensor, mask_B_P: Tensor, *, skip_padding: bool = False) -> Any:
    """Return a DynamicCache of B rows with all tokens of their prompts except the last.

    Each distinct prompt is read once.

    model: `can_share` must be true for it. ids_B_P: padded on the left. skip_padding: whether positions begin with the
    first token that is not padding, as in `generate`. Returns None if no prompt occurs twice.
    """
    length = ids_B_P.shape[1]
    both_U_2P, places_B = torch.unique(torch.cat([ids_B_P, mask_B_P], dim=1), dim=0, return_inverse=True)
    if len(both_U_2P) == len(ids_B_P) or length < 2:
        return None
    ids_U_P, mask_U_P = both_U_2P[:, : length - 1], both_U_2P[:, length:-1]
    positions_U_P = (mask_U_P.cumsum(dim=1) - 1).clamp_min(0) if skip_padding else None
    cache = DynamicCache(config=model.config)
    model(
        input_ids=ids_U_P,
        attention_mask=mask_U_P,
        position_ids=positions_U_P,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    # Gradients flow back through the selected rows.
    cache.batch_select_indices(places_B)
    return cache


def sharing_prompts(model: Any, completion_length: int) -> Callable[..., Any]:
    """Return the model as a function of rows: prompts, padded on the left, and `completion_length` further tokens.

    The function returns logits, or log-probabilities, only of the last token of each prompt and of the completion.
    """
    start = -completion_length - 1

    def call(*, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **others: Any) -> Any:
        cache = read_prompts(model, input_ids[:, : start + 1], attention_mask[:, : start + 1])
        if cache is not None:
            input_ids, others = input_ids[:, start:], {**others, "past_key_values": cache, "use_cache": True}
            labels = labels if labels is None else labels[:, start:]
        if labels is not None:
            others["labels"] = labels
        return model(input_ids=input_ids, attention_mask=attention_mask, **others)

    return call


@contextmanager
def generating_by(model: Any, generate: Callable[..., Any]) -> Iterator[None]:
    """Let the model generate by another function within the context, for options that TRL has no argument for."""
    own_generate = vars(model).get("generate")
    model.generate = generate
    try:
        yield
    finally:
        if own_generate is None:
            # This makes the method of the class visible again.
            del model.generate
        else:
            model.generate = own_generate


def _generate(
    model: Any, generate: Callable[..., Any], input_ids: Tensor, attention_mask: Tensor, **others: Any
) -> Any:
    cache = read_prompts(model, input_ids, attention_mask, skip_padding=True) if can_share(model) else None
    if cache is not None:
        others["past_key_values"] = cache
        if has_static_cache(model):
            new_tokens = others["generation_config"].max_new_tokens
            others["past_key_values"] = static = StaticCache(model.config, input_ids.shape[1] + new_tokens)
            for place, layer in enumerate(cache.layers):
                static.update(layer.keys, layer.values, place)
    return generate(input_ids=input_ids, attention_mask=attention_mask, **others)


class SharedPromptsTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer, which reads each prompt of a batch once and not once per completion.

    Numbers are the same except for rounding, and with share_prompts=False identical to the bit. With several processes,
    models that `can_share` excludes, images or the auxiliary loss of mixtures of experts, TRL's own method is used.
    """

    def __init__(self, *args: Any, share_prompts: bool = True, **others: Any) -> None:
        super().__init__(*args, **others)
        # DDP and FSDP expect one forward pass before each backward pass.
        self._share_prompts = share_prompts and self.accelerator.num_processes == 1 and not self.aux_loss_enabled

    def shared(self, model: Any, completion_length: int) -> Callable[..., Any]:
        """Return the model in the form in which it should be called for rows of prompts and completions."""
        if self._share_prompts and can_share(model):
            return sharing_prompts(model, completion_length)
        return model  # type: ignore[no-any-return]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **others: Any
    ) -> Any:
        # Values that belong to tokens, such as images, would have to be split like the tokens.
        alone = {name for name, value in others.items() if value is not None} <= {
            "batch_size",
            "compute_entropy",
            "compute_aux_loss",
        }
        called = self.shared(model, logits_to_keep) if alone else model
        return super()._get_per_token_logps_and_entropies(
            called, input_ids, attention_mask, logits_to_keep, *args, **others
        )

    def _generate_single_turn(self, *args: Any, **others: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if not self._share_prompts:
            return super()._generate_single_turn(*args, **others)
        with generating_by(model, partial(_generate, model, model.generate)):
            return super()._generate_single_turn(*args, **others)
