"""LoRA (Hu et al. 2021, arXiv 2106.09685) for a model with new tokens: adapters on its layers, and full new rows.

Adapters alone would leave the embeddings of semantic IDs at their initial values. peft's `trainable_token_indices`
trains just these rows of embedding and head, whether tied or not. `modules_to_save` would train and store both
matrices as a whole, and with tied weights it would silently leave the head unchanged.
"""

import warnings
from typing import Any

from peft import LoraConfig, get_peft_model

from store.errors import InputError
from train.students.vocabulary import Vocabulary


def make_lora(model: Any, vocabulary: Vocabulary | None, *, rank: int = 16, alpha: int = 32) -> Any:
    """Return a peft model that trains only the LoRA weights of all linear layers except the head, and the new rows.

    `merge_and_unload()` of the result returns the trained plain model. vocabulary: None if there are no new rows. rank,
    alpha: LoRA changes each layer by alpha / rank * B A.

    Raises InputError if there are new rows and the head has a bias, which peft would drop.
    """
    head = model.get_output_embeddings()
    if vocabulary is not None and getattr(head, "bias", None) is not None:
        raise InputError(
            f"{type(model).__name__} has a bias in its head, which LoRA with new tokens does not support; "
            "train all weights instead"
        )
    embedding = model.get_input_embeddings()
    # Both names are listed even if the weights are tied, because peft then keeps the two in step.
    names = [name for name, module in model.named_modules() if module is embedding or module is head]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        trainable_token_indices={name: list(vocabulary.new_rows) for name in names} if vocabulary else None,
    )
    with warnings.catch_warnings():
        # peft uses a deprecated name of transformers.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        lora = get_peft_model(model, config)
    # TRL multiplies by the head's weight itself and reads its bias, which peft's wrapper does not forward.
    lora.get_output_embeddings().register_parameter("bias", None)
    return lora
