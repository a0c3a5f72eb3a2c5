from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

from prompts.completion import ParsedCompletion, parse_completion, render_completion
from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem
from store import InputError
from tests.train.strangers import CHATML, DIGITS, JOINED, METASPACE, make_tokenizer
from train.students.chat import ChatFormat
from train.students.permutations import (
    Name,
    PermutationGrammar,
    PermutationLogitsProcessor,
    allowed_tokens,
    constrained_log_probs,
)

NUMBERS: tuple[Name, ...] = tuple(range(1, 11))
KINDS = {"numbers": NUMBERS, "semantic IDs": tuple(render_sid([code, 7 - code]) for code in range(6))}


def task_of(names: Sequence[Name]) -> RerankTask:
    sids = [f"item-{name}" if isinstance(name, int) else name for name in names]
    return RerankTask((), tuple(Candidate(ShownItem(sid, sid)) for sid in sids))


def is_permutation(text: str, names: Sequence[Name]) -> bool:
    task = task_of(names)
    parsed = parse_completion(text, task)
    return (
        isinstance(parsed, ParsedCompletion)
        and not parsed.unknown
        and sorted(parsed.ranking) == sorted(candidate.item.item_id for candidate in task.candidates)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [0, 1, 7, 60])
def test_every_answer_of_a_student_that_knows_nothing_is_a_permutation(
    kind: str, room: int, student: tuple[Any, Any]
) -> None:
    model, tokenizer = student
    names = KINDS[kind]
    grammar = PermutationGrammar(ChatFormat.of(tokenizer), (names[0], names[1]))
    most = grammar.most_tokens(names) + 8 + room
    prompt = tokenizer("2 candidates", return_tensors="pt", add_special_tokens=False)["input_ids"].expand(48, -1)
    torch.manual_seed(room)
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        temperature=1.5,
        max_new_tokens=most,
        pad_token_id=tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList([PermutationLogitsProcessor(grammar, [names] * 48, most)]),
    )
    texts = tokenizer.batch_decode(output[:, prompt.shape[1] :], skip_special_tokens=True)
    assert [text for text in texts if not is_permutation(text, names)] == []
    orders = {parse_completion(text, task_of(names)).ranking for text in texts}  # type: ignore[union-attr]
    # Nothing but the candidates' being named decides the order.
    assert len(orders) > 40
    assert len({ranking[0] for ranking in orders}) == len(names)


@torch.no_grad()
def test_the_rankings_of_a_student_are_one_distribution(student: tuple[Any, Any]) -> None:
    model, tokenizer = student
    chat = ChatFormat.of(tokenizer)
    names = (1, 10, 2, 3)
    grammar = PermutationGrammar(chat, (1, 2))
    prompt = chat.encode_prompts([[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]])[0]
    answers = chat.encode_answers([render_completion("", order) for order in permutations(names)])["input_ids"]
    # What all of these answers begin with: the choice of an empty explanation is no part of the ranking.
    begun = next(place for place, column in enumerate(zip(*answers, strict=False)) if len(set(column)) > 1)
    total = 0.0
    for answer in answers:
        ids = answer[: answer.index(chat.end_id) + 1]
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 0.7
        (allowed,) = allowed_tokens(grammar, [names], [ids], 200)
        log_probs, entropies = constrained_log_probs(grammar, logits, torch.tensor(ids), allowed)
        total += float(log_probs[begun:].sum().exp())
        for tokens, log_prob, entropy in zip(allowed, log_probs, entropies, strict=True):
            # What could not have been another token has nothing to learn.
            assert (tokens is not None and len(tokens) == 1) == (entropy.abs() < 1e-6)
            assert torch.isfinite(log_prob)
            if tokens is not None and len(tokens) == 1:
                assert float(log_prob) == pytest.approx(0, abs=1e-6)
    assert total == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_what_training_computes_is_what_sampling_used(student: tuple[Any, Any]) -> None:
    model, tokenizer = student
    grammar = PermutationGrammar(ChatFormat.of(tokenizer), (1, 2))
    prompt = tokenizer("2 candidates", return_tensors="pt", add_special_tokens=False)["input_ids"].expand(6, -1)
    torch.manual_seed(1)
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        max_new_tokens=80,
        pad_token_id=tokenizer.pad_token_id,
        logits_processor=LogitsProcessorList([PermutationLogitsProcessor(grammar, [NUMBERS] * 6, 80)]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    sampled = torch.stack(output.scores, 1).log_softmax(-1)
    end_id = ChatFormat.of(tokenizer).end_id
    for row, written in enumerate(output.sequences[:, prompt.shape[1] :].tolist()):
        ids = written[: written.index(end_id) + 1]
        (allowed,) = allowed_tokens(grammar, [NUMBERS], [ids], 80)
        logits = model(torch.tensor([prompt[row].tolist() + ids])).logits[0, prompt.shape[1] - 1 : -1]
        log_probs, _ = constrained_log_probs(grammar, logits, torch.tensor(ids), allowed)
        expected = sampled[row, range(len(ids)), ids]
        torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=1e-4)


def test_forced_tokens_have_no_gradient_and_others_that_of_the_allowed_ones(student: tuple[Any, Any]) -> None:
    _, tokenizer = student
    grammar = PermutationGrammar(ChatFormat.of(tokenizer), (1, 2))
    torch.manual_seed(0)
    logits = torch.randn(2, len(tokenizer), requires_grad=True)
    log_probs, _ = constrained_log_probs(grammar, logits, torch.tensor([5, 7]), [[5], [7, 9]])
    log_probs.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0
    assert set(logits.grad[1].nonzero()[:, 0].tolist()) == {7, 9}
    chance = float(torch.sigmoid((logits[1, 7] - logits[1, 9]).detach()))
    np.testing.assert_allclose(logits.grad[1, [7, 9]].tolist(), [1 - chance, chance - 1], rtol=1e-5)


@pytest.mark.parametrize("pieces", [DIGITS, METASPACE], ids=["digits", "metaspace"])
def test_other_tokenizers_write_permutations_too(pieces: Any) -> None:
    tokenizer = make_tokenizer(pieces, special=("<|im_start|>", "<|im_end|>"), template=CHATML)
    grammar = PermutationGrammar(ChatFormat.of(tokenizer), (1, 2))
    # Without a model: any allowed token, the more often the closing of the explanation.
    rng = np.random.default_rng(0)
    for _ in range(20):
        state, ids, most = grammar.start(NUMBERS), [], grammar.most_tokens(NUMBERS) + 30
        end_id = ChatFormat.of(tokenizer).end_id
        while not ids or ids[-1] != end_id:
            allowed = grammar.allowed(state, most - len(ids))
            choices = grammar.inside.tolist() if allowed is None else allowed
            ids.append(int(rng.choice(choices)))
            state = grammar.advance(state, ids[-1])
        assert len(ids) <= most
        assert is_permutation(tokenizer.decode(ids, skip_special_tokens=True), NUMBERS)


def test_a_tokenizer_that_joins_names_with_their_brackets_is_refused() -> None:
    tokenizer = make_tokenizer(JOINED, special=("<|im_start|>", "<|im_end|>"), template=CHATML)
    with pytest.raises(InputError, match="the tokenizer joins parts of an answer"):
        PermutationGrammar(ChatFormat.of(tokenizer), (1, 2))


def test_a_completion_must_have_room_for_a_ranking(student: tuple[Any, Any]) -> None:
    grammar = PermutationGrammar(ChatFormat.of(student[1]), (1, 2))
    with pytest.raises(InputError, match="`max_tokens` is 20, but a permutation of 10 candidates takes up to"):
        PermutationLogitsProcessor(grammar, [NUMBERS], 20)
