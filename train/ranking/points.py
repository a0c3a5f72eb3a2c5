"""Students that rate candidates by points, which are read as probabilities.

A trace of a scorecard or of LambdaMART gives points to each candidate, such as `1 p18 2 p14`, and then an order. To
generate the order takes as many tokens again and can fail, although the points determine it already. The probabilities
of all points of a candidate say more than the one value that is written: their expected value does not depend on which
of two neighbours is slightly more likely. The first token of the order, read after the points, is a second opinion.

The numbers of the candidates and all text between them are given, so that the student writes only points and every
ranking is valid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from curate.evaluation.rankers.protocol import Ranked
from prompts.completion import NUMBERS, render_completion
from prompts.tasks import RerankTask
from store import InputError
from store.progress import Counted
from train.ranking.rerankers import Student

# Points have at most two digits.
POINTS = range(100)


@dataclass(frozen=True)
class AnswerForm:
    """An answer in which only the points are open.

    ids_T: the tokens of an answer up to the first number of its order, with placeholder points. places_K: the places of
    the points in it. values_V, tokens_V: the points that are one token, and that token. numbers_K: the tokens of the
    numbers that the order can begin with, or None if they are not one token each.
    """

    ids_T: list[int]
    places_K: list[int]
    values_V: Tensor
    tokens_V: list[int]
    numbers_K: list[int] | None


def answer_form(student: Student, candidates: int) -> AnswerForm:
    """Return the form of the student's answers to this many candidates.

    Raises InputError if its points are not one token.
    """

    def encode(points: int, first: int = 1) -> list[int]:
        explanation = " ".join(f"{number} p{points}" for number in range(1, candidates + 1))
        answer = render_completion(explanation, [first, *(n for n in range(1, candidates + 1) if n != first)])
        ids: list[int] = student.chat.encode_answers([answer])["input_ids"][0]
        return ids

    by_value = {points: encode(points) for points in POINTS}
    # A tokenizer that has never seen rare points may split them into several tokens. A tokenizer that splits numbers
    # into digits splits all points except the first ten, and is refused below.
    length = min(map(len, by_value.values()))
    by_value = {points: ids for points, ids in by_value.items() if len(ids) == length}
    places = [place for place, tokens in enumerate(zip(*by_value.values(), strict=True)) if len(set(tokens)) > 1]
    if len(places) != candidates or max(by_value) < 10:
        raise InputError(
            f"the tokenizer of {student.name} does not write points as one token each; modes with points are for "
            "students that learned from a teacher that gives points"
        )
    ids = next(iter(by_value.values()))
    firsts = [encode(next(iter(by_value)), first) for first in range(1, candidates + 1)]
    # This is the first token in which the orders differ.
    border = next(place for place, tokens in enumerate(zip(*firsts, strict=False)) if len(set(tokens)) > 1)
    numbers = [tokens[border] for tokens in firsts]
    return AnswerForm(
        ids[:border],
        places,
        torch.tensor(list(by_value), dtype=torch.float64),
        [tokens[places[0]] for tokens in by_value.values()],
        numbers if len(set(numbers)) == candidates else None,
    )


class Scores(NamedTuple):
    """The scores that a student gives to the candidates of one task.

    points_K: expected points. firsts_K: log-probabilities of the first number of the order; 0 if only points are read.
    read, written: the numbers of tokens that the student read before it began to write, and that it wrote.
    """

    points_K: Tensor
    firsts_K: Tensor
    read: int
    written: int


# What is read, as part of the name of a ranker.
_READS = {"points": "points", "first": "first token after points", "both": "points and first token"}


@dataclass(frozen=True)
class PointsRanker:
    """Sorts candidates by the expected value of their points, by the first token of the order after them, or by both.

    reads: "points", "first" or "both". With "both", the two are standardised within each list and added.

    Raises InputError if the template's answers are not numbers, and the errors of `answer_form`.
    """

    student: Student
    reads: str = "points"
    on_progress: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        if self.student.template.answer != NUMBERS:
            raise InputError(
                f"modes with points rank candidates by number, but {self.student.template.name} answers with semantic "
                "IDs; use a template with `answer: numbers`"
            )

    @property
    def name(self) -> str:
        """The student's name, followed by what is read."""
        return f"{self.student.name} {_READS[self.reads]}"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine its rankings."""
        return {**self.student.settings, "reads": self.reads}

    def rank(self, tasks: Sequence[RerankTask]) -> list[Ranked]:
        """Return one ranking per task, which is always a permutation of the candidates. Ties keep the input order."""
        return [self.ranking(task, scores) for task, scores in zip(tasks, self.scores(tasks), strict=True)]

    def ranking(self, task: RerankTask, scores: Scores) -> Ranked:
        """Return the ranking of one task by its scores."""
        scores_K = {"points": scores.points_K, "first": scores.firsts_K}.get(self.reads)
        if scores_K is None:
            scores_K = _standardised(scores.points_K) + _standardised(scores.firsts_K)
        order = torch.argsort(scores_K, descending=True, stable=True).tolist()
        ranked = Ranked([task.candidates[k].item.item_id for k in order])
        return ranked._replace(prompt_tokens=scores.read, completion_tokens=scores.written)

    @torch.inference_mode()
    def scores(self, tasks: Sequence[RerankTask]) -> list[Scores]:
        """Return the scores of each task's candidates."""
        student, results = self.student, [Scores(torch.zeros(0), torch.zeros(0), 0, 0)] * len(tasks)
        student.model.eval()
        prompts = student.prompts(tasks)
        sizes = sorted({len(task.candidates) for task in tasks})
        forms = {candidates: answer_form(student, candidates) for candidates in sizes}
        finished = 0
        for candidates, form in forms.items():
            chosen = [number for number, task in enumerate(tasks) if len(task.candidates) == candidates]
            reads_first, numbers_K = self.reads != "points", form.numbers_K or []
            if reads_first and not numbers_K:
                raise InputError(
                    f"the tokenizer of {student.name} does not write each number as one token; use mode points"
                )
            # The tokens before the first points are read with the prompt.
            begin, end = form.places_K[0], len(form.ids_T) if reads_first else form.places_K[-1]
            rows = [[*prompts[number], *form.ids_T[:begin]] for number in chosen]
            for places, inputs in student.batches(rows, end - begin):
                logits_B_K_V, firsts_B_V = _write_points(student.model, form, end, **inputs)
                # float64 keeps different logits different. _B: rows, _K: candidates, _V: values of points.
                points_B_K = (logits_B_K_V.double().softmax(-1) @ form.values_V.to(logits_B_K_V.device)).cpu()
                firsts_B_K = torch.zeros_like(points_B_K)
                if firsts_B_V is not None:
                    firsts_B_K = firsts_B_V.double().log_softmax(-1)[:, numbers_K].cpu()
                for row, place in enumerate(places):
                    results[chosen[place]] = Scores(points_B_K[row], firsts_B_K[row], len(rows[place]), end - begin + 1)
                finished += len(places)
                message = f"{self.name}: {finished:,} of {len(tasks):,} lists, each shuffle counted as one"
                self.on_progress(Counted(message, finished, len(tasks)))
        return results


def _write_points(
    model: Any, form: AnswerForm, end: int, *, input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Let a model write the most likely points of each candidate into an answer, up to the answer's token `end`.

    input_ids: prompts with the answer up to its first points, padded on the left. Returns the logits of all values at
    each place (B, K, V), and the logits of the whole vocabulary at `end`, or None if the answer ends with the last
    points. The tokens between two places are given, so they are read together with the points before them.
    """
    cache = DynamicCache(config=model.config)
    tokens_V = torch.tensor(form.tokens_V, device=input_ids.device)
    ids_B_T, mask_B_T, points = input_ids, attention_mask, []
    for place, following in pairwise([*form.places_K, end]):
        logits_B_V = _read(model, cache, ids_B_T, mask_B_T)
        points.append(logits_B_V[:, tokens_V])
        given = form.ids_T[place + 1 : following]
        written_B_1 = tokens_V[points[-1].argmax(-1)][:, None]
        ids_B_T = torch.cat([written_B_1, written_B_1.new_tensor(given).expand(len(written_B_1), -1)], dim=1)
        mask_B_T = torch.cat([mask_B_T, torch.ones_like(ids_B_T)], dim=1)
    last_B_V = _read(model, cache, ids_B_T, mask_B_T) if end > form.places_K[-1] else None
    return torch.stack(points, dim=1), last_B_V


def _read(model: Any, cache: DynamicCache, ids_B_T: Tensor, mask_B_T: Tensor) -> Tensor:
    """Read further tokens of each row, and return the logits of the next token. mask_B_T: covers all tokens so far."""
    # Positions count as in `generate`, from the first token that is not padding.
    positions_B_T = (mask_B_T.cumsum(dim=1) - 1).clamp_min(0)[:, -ids_B_T.shape[1] :]
    logits: Tensor = model(
        input_ids=ids_B_T,
        attention_mask=mask_B_T,
        position_ids=positions_B_T,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits[:, -1]


def _standardised(scores_K: Tensor) -> Tensor:
    """Return scores with mean 0 and standard deviation 1 within a list.

    They are all 0 if the scores are all the same.
    """
    centred_K = scores_K - scores_K.mean()
    return centred_K / centred_K.square().mean().sqrt().clamp_min(1e-9)
