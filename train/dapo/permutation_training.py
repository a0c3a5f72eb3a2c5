"""Dynamic sampling whose completions are permutations by construction (`train.students.permutations`).

TRL samples with the student's own policy and trains on its log-probabilities. Here both belong to the constrained
policy, which is renormalised over the tokens that were allowed. The ratio of the first update of a batch is therefore
1, a token without an alternative has log-probability 0 and no gradient, and the entropy is that of real choices.

This needs the logits of the whole vocabulary, while TRL's own trainer computes log-probabilities in tiles.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from store.errors import InputError
from train.dapo.dynamic_sampling import DynamicSamplingTrainer
from train.dapo.shared_prompts import generating_by
from train.students.chat import ChatFormat
from train.students.permutations import (
    Name,
    PermutationGrammar,
    PermutationLogitsProcessor,
    allowed_tokens,
    constrained_log_probs,
)


class PermutationTrainer(DynamicSamplingTrainer):
    """A DynamicSamplingTrainer that samples, and learns from, permutations of each prompt's candidates.

    names_of: returns the names of the candidates of a row of the training data, as answers write them, in any order.

    Raises InputError if the tokenizer has no separate tokens for the names, if a completion is too short for a ranking,
    or if another process generates.
    """

    def __init__(self, *args: Any, names_of: Callable[[Mapping[str, Any]], Sequence[Name]], **others: Any) -> None:
        super().__init__(*args, **others)
        if self.use_vllm:
            raise InputError("a vLLM server cannot constrain completions to permutations; generate in this process")
        if self.aux_loss_enabled:
            raise InputError(
                "constrained decoding does not know the auxiliary loss of mixtures of experts; turn it off"
            )
        self._name_candidates = names_of
        names = names_of(self.train_dataset[0])
        self._grammar = PermutationGrammar(ChatFormat.of(self._tokenizer), (names[0], names[1]))
        self._grammar.check(names, self.max_completion_length)
        # The keys are the tokens of the prompts, because TRL passes nothing else on.
        self._names_of_prompt: dict[tuple[int, ...], tuple[Name, ...]] = {}
        self._inputs: list[dict[str, Any]] = []

    def _sample(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._inputs = inputs
        return super()._sample(inputs)

    def sample_completions(self, examples: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Sample like DynamicSamplingTrainer, constrained like a rollout."""
        self._inputs = [dict(example) for example in examples for _ in range(self.num_generations)]
        return super().sample_completions(examples)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        tokenized = super()._tokenize_prompts(prompts)
        for example, ids in zip(self._inputs, tokenized[0], strict=True):
            self._names_of_prompt[tuple(ids)] = tuple(self._name_candidates(example))
        return tokenized

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **others: Any) -> Any:
        names = [self._names_of_prompt[tuple(ids)] for ids in prompt_ids]
        processor = PermutationLogitsProcessor(self._grammar, names, self.max_completion_length)
        model = self.accelerator.unwrap_model(self.model_wrapped)
        with generating_by(model, partial(model.generate, logits_processor=LogitsProcessorList([processor]))):
            return super()._generate_single_turn(prompt_ids, *args, **others)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Replace TRL's method for the constrained policy.

        Log-probabilities and entropies are (B, T), and 0 at padding.
        """
        size = batch_size or len(input_ids)
        parts = [
            self._score(model, input_ids[at : at + size], attention_mask[at : at + size], logits_to_keep)
            for at in range(0, len(input_ids), size)
        ]
        log_probs, entropies = (torch.cat(both) for both in zip(*parts, strict=True))
        return log_probs, entropies if compute_entropy else None, None

    def _score(self, model: Any, ids_B_T: Tensor, mask_B_T: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        with self.accelerator.autocast():
            called = self.shared(model, kept)
            logits_B_T_V = called(input_ids=ids_B_T, attention_mask=mask_B_T, logits_to_keep=kept + 1).logits
        # The logits of a token are one place before it. The last ones predict the token after the completion.
        logits_B_T_V = logits_B_T_V[:, -kept - 1 : -1] / self.temperature
        real_B_T = mask_B_T.bool()
        prompts = [ids[real].tolist() for ids, real in zip(ids_B_T[:, :-kept], real_B_T[:, :-kept], strict=True)]
        completions = [ids[real].tolist() for ids, real in zip(ids_B_T[:, -kept:], real_B_T[:, -kept:], strict=True)]
        names = [self._names_of_prompt[tuple(prompt)] for prompt in prompts]
        allowed = allowed_tokens(self._grammar, names, completions, self.max_completion_length)
        counted_B_T = real_B_T[:, -kept:]
        log_probs_N, entropies_N = constrained_log_probs(
            self._grammar,
            logits_B_T_V[counted_B_T],
            ids_B_T[:, -kept:][counted_B_T],
            [tokens for row in allowed for tokens in row],
        )
        empty_B_T = torch.zeros(counted_B_T.shape, dtype=log_probs_N.dtype, device=log_probs_N.device)
        return empty_B_T.masked_scatter(counted_B_T, log_probs_N), empty_B_T.masked_scatter(counted_B_T, entropies_N)
