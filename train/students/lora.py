"""LoRA (Hu et al. 2021, arXiv 2106.09685) for a model with new tokens: adapters on its layers, and the new rows whole.

Adapters alone would leave the rows of semantic IDs as they began. peft's `trainable_token_indices` trains just these
rows, in embedding and head, tied or not; `modules_to_save` would train and store the whole of both, and with tied
weights silently leave the head as it was.
"""

import warnings
from typing import Any

from peft import LoraConfig, get_peft_model

from store.errors import InputError
from train.students.vocabulary import Vocabulary


def make_lora(model: Any, vocabulary: Vocabulary, *, rank: int = 16, alpha: int = 32) -> Any:
    """A peft model in which LoRA weights of all linear layers but the head, and the new rows, are all that moves.

    Its `merge_and_unload()` gives the plain model back, trained. rank, alpha: LoRA's, each layer's change being
    alpha / rank * B A.

    Raises InputError where the head has a bias, which peft would drop.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise InputError(f"{type(model).__name__} has a bias in its head, which LoRA with new tokens does not take")
    embedding = model.get_input_embeddings()
    names = [name for name, module in model.named_modules() if module is embedding or module is head]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        trainable_token_indices={name: list(vocabulary.new_rows) for name in names},
    )
    with warnings.catch_warnings():
        # peft asks transformers by an old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        lora = get_peft_model(model, config)
    # TRL multiplies by the head's weight itself and asks for its bias, which peft's wrapper does not pass on.
    lora.get_output_embeddings().register_parameter("bias", None)
    return lora
