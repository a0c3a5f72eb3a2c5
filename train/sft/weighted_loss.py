"""Supervised fine-tuning on traces, with reasoning tokens weighted lower than answer tokens.

    L = -lambda_r sum log P(reasoning tokens) - lambda_o sum log P(answer tokens)    arXiv 2602.07774, stage 3

The sums run over the assistant's tokens, and L is divided by their number in the whole step, as in TRL. The paper asks
for lambda_r < lambda_o but publishes no values; the defaults are ours. TRL's SFTTrainer does the work. This module adds
one weight per token, which passes through packing beside the labels, and one multiplication in the forward pass. The
answer begins at the key "recommendations". A token that crosses this border belongs to the answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import orjson
import torch
from peft import PeftModel
from torch import Tensor
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from prompts.completion import EXPLANATION, RECOMMENDATIONS, render_completion
from store.errors import InputError
from store.settings import check, option
from train.ranking.model_selection import SelectingTrainer
from train.students.chat import ChatFormat

# The label that TRL and PyTorch leave out of the loss.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class SftLoss:
    """The loss weights of the tokens of a completion. reasoning_weight: lambda_r. answer_weight: lambda_o."""

    reasoning_weight: float = option(0.1, low=0.0)
    answer_weight: float = option(1.0, low=0.0)

    def __post_init__(self) -> None:
        check(self)


def encode_traces(
    rows: datasets.Dataset, tokenizer: Any, loss: SftLoss, *, max_tokens: int, reasoning: bool = True
) -> datasets.Dataset:
    """Tokenize the rows of an sft snapshot into the columns input_ids, labels and weights.

    max_tokens: the maximum length of a row, prompt and completion together. reasoning: False trains on the answer
    alone, with an empty explanation.

    Raises InputError if there are no rows, if a row is too long, or if the tokenizer does not return the offsets of its
    tokens in a text.
    """
    if len(rows) == 0:
        raise InputError("the split has no rows; publish a snapshot whose split has rows")
    if not tokenizer.is_fast:
        raise InputError(
            f"the model's tokenizer ({type(tokenizer).__name__}) does not give the positions of tokens in a text, "
            "which loss weights need; save it as a fast tokenizer, with a tokenizer.json"
        )
    chat = ChatFormat.of(tokenizer)
    encoded = rows.map(
        lambda batch: _encode(batch, chat, loss, reasoning=reasoning),
        batched=True,
        batch_size=512,
        remove_columns=rows.column_names,
        # A run encodes its rows once, so files in datasets' cache folder would only pile up.
        load_from_cache_file=False,
        keep_in_memory=True,
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    if (longest := max(lengths)) > max_tokens:
        over = sum(length > max_tokens for length in lengths)
        raise InputError(
            f"{over:,} of {len(lengths):,} rows are longer than {max_tokens:,} tokens, and the longest has "
            f"{longest:,}; raise `max_tokens`, or publish a snapshot with a shorter template"
        )
    return encoded


def _encode(batch: Mapping[str, Sequence[Any]], chat: ChatFormat, loss: SftLoss, *, reasoning: bool) -> dict[str, Any]:
    columns: dict[str, list[list[Any]]] = {"input_ids": [], "labels": [], "weights": []}
    texts = [completion[0]["content"] for completion in batch["completion"]]
    answers = texts if reasoning else [_without_reasoning(text) for text in texts]
    tokens = chat.encode_answers(answers, return_offsets_mapping=True)
    for prompt_ids, answer, ids, offsets in zip(
        chat.encode_prompts(batch["prompt"]), answers, tokens["input_ids"], tokens["offset_mapping"], strict=True
    ):
        # The last occurrence counts, because the reasoning may mention the key. Without the key everything is
        # reasoning.
        key = answer.rfind(f'"{RECOMMENDATIONS}"')
        border = key if key >= 0 else len(answer)
        columns["input_ids"].append([*prompt_ids, *ids])
        columns["labels"].append([IGNORED] * len(prompt_ids) + ids)
        # The test is `end > border` and not `start >= border`, because a token across the border belongs to the answer.
        weights = [loss.answer_weight if end > border else loss.reasoning_weight for _, end in offsets]
        columns["weights"].append([0.0] * len(prompt_ids) + weights)
    return dict(columns)


def _without_reasoning(completion: str) -> str:
    """Return the same answer with an empty explanation."""
    try:
        answer = orjson.loads(completion)
    except orjson.JSONDecodeError:
        # A completion in another format has no separable explanation and is trained on as it is.
        return completion
    if isinstance(answer, dict) and {EXPLANATION, RECOMMENDATIONS} <= answer.keys():
        return render_completion("", answer[RECOMMENDATIONS])
    return completion


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """TRL's collator for examples that also carry weights. It pads or concatenates weights exactly as labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of TRL's collator with a field weights of the same shape as labels."""
        batch: dict[str, Any] = super().torch_call(examples)
        rows = [torch.tensor(example["weights"]) for example in examples]
        if self.padding_free:
            # TRL concatenates all examples to one long row here.
            rows = [torch.cat(rows)]
        # Padding keeps weight 0.
        batch["weights"] = torch.zeros(batch["labels"].shape)
        for row, weights_T in enumerate(rows):
            batch["weights"][row, : len(weights_T)] = weights_T
        return batch


class EpochSampler(LengthGroupedSampler):
    """A length-grouping sampler whose order depends only on seed and epoch.

    A resumed training therefore continues in the order of its epoch, and all processes have the same order.
    transformers' own sampler draws from the global generator, which a checkpoint restores too late.

    epoch: a function that is called when an epoch begins, because accelerate's `set_epoch` does not reach a sampler
    whose batches are both skipped and shared between processes.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # NumPy mixes the pair into one seed. The sum seed + epoch would repeat the orders of the neighbouring seed.
        epoch_seed = np.random.default_rng((self._seed, self._epoch())).integers(2**63)
        self.generator = torch.Generator().manual_seed(int(epoch_seed))
        rows: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return rows


class WeightedSFTTrainer(SelectingTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer for datasets from `encode_traces`. If all weights are 1, its loss equals TRL's."""

    def __init__(
        self, model: Any, args: SFTConfig, train_dataset: datasets.Dataset, *, processing_class: Any, **others: Any
    ) -> None:
        # The rows are tokenized already, and TRL's preparation would drop the weights when it packs.
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if args.packing:
            assert args.max_length is not None
            # Packing is part of the preparation that is skipped above. pack_dataset packs the weights with the ids.
            train_dataset = pack_dataset(
                train_dataset, args.max_length, args.packing_strategy, {"keep_in_memory": True}
            )
        super().__init__(model, args, train_dataset=train_dataset, processing_class=processing_class, **others)
        # TRL accepts no custom collator when it packs, so this replaces the one that it created.
        self.data_collator = WeightedCollator(
            pad_token_id=processing_class.pad_token_id,
            padding_free=self.padding_free,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # The Trainer removes every column that is not listed here.
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "weights"]))  # type: ignore[has-type]

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        # state.epoch is restored from a checkpoint. It is a fraction, and None before the first step.
        seed = self.args.data_seed or self.args.seed
        return EpochSampler(sampler.batch_size, sampler.lengths, seed, lambda: int(self.state.epoch or 0))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **others: Any) -> Any:
        """Return TRL's loss with every log-probability multiplied by the weight of its token."""
        weights_B_T: Tensor = inputs.pop("weights")

        def weighted(**kwargs: Any) -> Any:
            start = _first_scored(kwargs["labels"])
            with _hidden_states_from(self.accelerator.unwrap_model(model), start):
                outputs = model(**{**kwargs, "labels": kwargs["labels"][:, start:]})
            # The log-probability at position t belongs to token t + 1, so the weights shift by one.
            outputs.log_probs = outputs.log_probs * weights_B_T[:, start + 1 :]
            return outputs

        # TRL calls its model and reads log_probs from the output. The wrapped call changes them before that.
        return super().compute_loss(weighted, inputs, *args, **others)


def _first_scored(labels_B_T: Tensor) -> int:
    """Return the position before the first token that any row of a batch is trained on.

    Without Triton, TRL's head projects every position, and most positions are prompts. Leaving them out makes a step of
    a tiny student a quarter shorter. On a GPU the result is 0, because TRL leaves prompts out itself there, and reading
    the labels would wait for the GPU.
    """
    if labels_B_T.device.type == "cuda":
        return 0
    is_scored_T = (labels_B_T != IGNORED).any(dim=0)
    # The result is one position earlier, because position t predicts token t + 1. argmax finds the first True of an
    # integer tensor.
    return max(int(is_scored_T.int().argmax()) - 1, 0)


@contextmanager
def _hidden_states_from(model: Any, start: int) -> Iterator[None]:
    """Make the backbone return its last hidden states from position `start` on, within the context."""
    if start == 0:
        yield
        return
    # LoRA wraps the causal model once more, and its base_model is not the backbone.
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model

    def shorten(_: Any, __: Any, outputs: Any) -> Any:
        outputs.last_hidden_state = outputs.last_hidden_state[:, start:]
        return outputs

    hook = causal.base_model.register_forward_hook(shorten)
    try:
        yield
    finally:
        hook.remove()
