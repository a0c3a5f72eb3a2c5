"""Supervised fine-tuning on traces: reasoning tokens weigh less than those of the order.

    L = -lambda_r sum log P(reasoning tokens) - lambda_o sum log P(order tokens)    arXiv 2602.07774, stage 3

over what the assistant says, divided, as TRL does, by how many such tokens the whole step has. lambda_r < lambda_o is
the paper's; its values are not published and are ours. TRL's SFTTrainer does the work: ours are a weight for each
token, which travels beside the labels through packing, and one multiplication in the one forward pass. The order begins
with the key "recommendations"; a token that stands across that border belongs to the order.
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

IGNORED = -100


@dataclass(frozen=True, slots=True)
class SftLoss:
    """What a token of a completion weighs. reasoning_weight: lambda_r. answer_weight: lambda_o."""

    reasoning_weight: float = option(0.1, low=0.0)
    answer_weight: float = option(1.0, low=0.0)

    def __post_init__(self) -> None:
        check(self)


def encode_traces(
    rows: datasets.Dataset, tokenizer: Any, loss: SftLoss, *, max_tokens: int, reasoning: bool = True
) -> datasets.Dataset:
    """Rows of a snapshot of kind sft as input_ids, labels and weights.

    max_tokens: the longest row allowed, prompt and completion. reasoning: False teaches the order alone, with an empty
    explanation.

    Raises InputError on no row, a row that is too long, or a chat template that renders a prompt in another way before
    a completion than alone.
    """
    if len(rows) == 0:
        raise InputError("the split has no rows; publish a snapshot that has some")
    encoded = rows.map(
        lambda batch: _encode(batch, tokenizer, loss, reasoning=reasoning),
        batched=True,
        batch_size=512,
        remove_columns=rows.column_names,
        load_from_cache_file=False,
        keep_in_memory=True,
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    if (longest := max(lengths)) > max_tokens:
        over = sum(length > max_tokens for length in lengths)
        raise InputError(
            f"{over:,} of {len(lengths):,} rows are longer than {max_tokens:,} tokens, the longest has {longest:,}; "
            "raise `max_tokens` up to what the model takes, or publish a snapshot with a shorter template"
        )
    return encoded


def _encode(batch: Mapping[str, Sequence[Any]], tokenizer: Any, loss: SftLoss, *, reasoning: bool) -> dict[str, Any]:
    columns: dict[str, list[list[Any]]] = {"input_ids": [], "labels": [], "weights": []}
    texts, starts, borders = [], [], []
    for prompt, completion in zip(batch["prompt"], batch["completion"], strict=True):
        answer = completion[0]["content"] if reasoning else _without_reasoning(completion[0]["content"])
        before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        at = whole.rfind(answer)
        if not whole.startswith(before) or at < 0:
            raise InputError(
                "the tokenizer's chat template renders a prompt in another way alone than before an answer; training "
                "would show the model other prompts than it will get"
            )
        key = answer.rfind(f'"{RECOMMENDATIONS}"')
        texts.append(whole)
        starts.append(len(before))
        borders.append(at + (key if key >= 0 else len(answer)))
    tokens = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    for ids, offsets, start, border in zip(tokens["input_ids"], tokens["offset_mapping"], starts, borders, strict=True):
        said = [first >= start for first, _ in offsets]
        columns["input_ids"].append(ids)
        columns["labels"].append([token if is_said else IGNORED for token, is_said in zip(ids, said, strict=True)])
        columns["weights"].append(
            [
                0.0 if not is_said else loss.answer_weight if end > border else loss.reasoning_weight
                for (_, end), is_said in zip(offsets, said, strict=True)
            ]
        )
    return dict(columns)


def _without_reasoning(completion: str) -> str:
    """The same order with an empty explanation."""
    try:
        answer = orjson.loads(completion)
    except orjson.JSONDecodeError:
        return completion
    if isinstance(answer, dict) and {EXPLANATION, RECOMMENDATIONS} <= answer.keys():
        return render_completion("", answer[RECOMMENDATIONS])
    return completion


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """Pads, or lays side by side, weights as TRL does labels."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """What TRL's collator gives, and weights of the shape of the labels."""
        batch: dict[str, Any] = super().torch_call(examples)
        rows = [torch.tensor(example["weights"]) for example in examples]
        if self.padding_free:
            rows = [torch.cat(rows)]
        batch["weights"] = torch.zeros(batch["labels"].shape)
        for row, weights_T in enumerate(rows):
            batch["weights"][row, : len(weights_T)] = weights_T
        return batch


class EpochSampler(LengthGroupedSampler):
    """Rows of similar length together, in an order that hangs on seed and epoch alone.

    So a resumed training goes on in the order of its epoch, and all processes share it; transformers' own sampler draws
    from the global generator, which a checkpoint brings back too late. epoch: asked at the beginning of each one, since
    accelerate's `set_epoch` does not reach a sampler whose batches are both skipped and shared between processes.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        drawn = np.random.default_rng((self._seed, self._epoch())).integers(2**63)
        self.generator = torch.Generator().manual_seed(int(drawn))
        rows: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return rows


class WeightedSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer over what `encode_traces` gives; with weights of 1 its loss is TRL's own."""

    def __init__(
        self, model: Any, args: SFTConfig, train_dataset: datasets.Dataset, *, processing_class: Any, **others: Any
    ) -> None:
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if args.packing:
            assert args.max_length is not None
            train_dataset = pack_dataset(
                train_dataset, args.max_length, args.packing_strategy, {"keep_in_memory": True}
            )
        super().__init__(model, args, train_dataset=train_dataset, processing_class=processing_class, **others)
        # TRL takes no collator of others when it packs, so ours replaces the one that it made.
        self.data_collator = WeightedCollator(
            pad_token_id=processing_class.pad_token_id,
            padding_free=self.padding_free,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, "weights"]))  # type: ignore[has-type]

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        # The state, which a checkpoint brings back, counts epochs in fractions, from None on.
        seed = self.args.data_seed or self.args.seed
        return EpochSampler(sampler.batch_size, sampler.lengths, seed, lambda: int(self.state.epoch or 0))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **others: Any) -> Any:
        """TRL's loss, of log-probabilities that were multiplied by their tokens' weights."""
        weights_B_T: Tensor = inputs.pop("weights")

        def weighted(**kwargs: Any) -> Any:
            start = _first_scored(kwargs["labels"])
            with _hidden_states_from(self.accelerator.unwrap_model(model), start):
                outputs = model(**{**kwargs, "labels": kwargs["labels"][:, start:]})
            # The log-probability at one place is of the token at the next.
            outputs.log_probs = outputs.log_probs * weights_B_T[:, start + 1 :]
            return outputs

        return super().compute_loss(weighted, inputs, *args, **others)


def _first_scored(labels_B_T: Tensor) -> int:
    """The place before the first token that any row of a batch learns.

    Where there is no Triton, TRL's head projects every position, of which prompts are most: leaving them out makes a
    step of a tiny student a quarter shorter. On a GPU it leaves them out itself, and looking would wait for the GPU.
    """
    if labels_B_T.device.type == "cuda":
        return 0
    learned_T = (labels_B_T != IGNORED).any(dim=0)
    return max(int(learned_T.int().argmax()) - 1, 0)


@contextmanager
def _hidden_states_from(model: Any, start: int) -> Iterator[None]:
    """Within it, the backbone gives its last hidden states from a place on."""
    if start == 0:
        yield
        return
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model

    def shorten(_: Any, __: Any, outputs: Any) -> Any:
        outputs.last_hidden_state = outputs.last_hidden_state[:, start:]
        return outputs

    hook = causal.base_model.register_forward_hook(shorten)
    try:
        yield
    finally:
        hook.remove()
