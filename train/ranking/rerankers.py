"""Students as rankers of candidate lists, by generating a completion or by the logits of the first answer token.

Completions go through the same parser as everywhere. A completion that is not a permutation is invalid, and the
evaluation counts it. FIRST (arXiv 2406.15657) generates nothing: it sorts candidates by the logits of the first token
of the answer, so a single prefill gives a valid ranking, without reasoning. Many tokenizers write 10 as 1 and 0. The
first token then does not distinguish 1 from 10, and the tokens after it decide.

The beginning of an answer is made of tokens, not of text. A tokenizer may join the bracket to the number after it, or
put a space in between, so only the tokens of whole answers show what a student reads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from curate.evaluation.rankers.protocol import Ranked, read_ranking
from prompts.completion import NUMBERS, render_completion
from prompts.tasks import RerankTask
from prompts.templates import Template, load_template
from store import InputError, Store
from store.progress import Counted
from train.ranking.settings import StudentSettings
from train.runs import find_student, trained_on
from train.students.chat import ChatFormat
from train.students.permutations import PermutationGrammar, PermutationLogitsProcessor
from train.students.student import best_device, has_static_cache, load_student, most_tokens

DEFAULTS = StudentSettings()


@dataclass(frozen=True, slots=True)
class Student:
    """A loaded model with its name, its tokenizer's chat format, and the prompt template that it was trained on.

    batch_size: the number of lists that it reads at a time. chat_template_kwargs: the variables that were written into
    its chat template for this evaluation, if any.
    """

    name: str
    model: Any
    chat: ChatFormat
    template: Template
    batch_size: int = DEFAULTS.batch_size
    chat_template_kwargs: Mapping[str, Any] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine its prompts."""
        variables = {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
        return {"template": self.template.name, **variables}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return self.chat.tokenizer

    def prompt(self, task: RerankTask) -> str:
        """Return the task in the student's chat format, up to the point where the student begins to write."""
        return self.chat.prompt(self.template.render(task))

    def prompts(self, tasks: Sequence[RerankTask]) -> list[list[int]]:
        """Return the tokens of each prompt."""
        return self.chat.encode_prompts(self.template.render(task) for task in tasks)

    def names(self, task: RerankTask) -> list[Any]:
        """The name of each candidate in an answer: its semantic ID, or its number in the prompt."""
        sids = [candidate.item.sid for candidate in task.candidates]
        return list(range(1, len(sids) + 1)) if self.template.answer == NUMBERS else sids

    def direct_answers(self, task: RerankTask) -> list[list[int]]:
        """Return the tokens of an answer for each candidate.

        The answer has an empty explanation, and its ranking begins with the candidate.
        """
        names = self.names(task)
        # There is a second entry, because the tokens at the end of a name depend on the text after it.
        answers = [render_completion("", [name, names[0]]) for name in names]
        ids: list[list[int]] = self.chat.encode_answers(answers)["input_ids"]
        return ids

    def batches(self, rows: Sequence[Sequence[int]], max_tokens: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield batches of rows of similar length: their indices in `rows`, and the model's inputs (B, T).

        Raises InputError if the longest row and the `max_tokens` that follow exceed the model's positions.
        """
        # Rows of similar length need little padding. The indices let callers restore the order.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        longest, positions = max(map(len, rows), default=0), most_tokens(self.model)
        if longest + max_tokens > positions:
            raise InputError(
                f"the longest prompt of {self.name} has {longest:,} tokens; with answers of up to {max_tokens:,} that "
                f"is more than the model's {positions:,}: lower `max_tokens`, or choose a shorter template"
            )
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            width = len(rows[places[-1]])
            input_ids_B_T = torch.full((len(places), width), self.tokenizer.pad_token_id)
            attention_mask_B_T = torch.zeros_like(input_ids_B_T)
            # Generation continues at the right end, so rows are padded on the left.
            for row, place in enumerate(places):
                input_ids_B_T[row, width - len(rows[place]) :] = torch.tensor(rows[place])
                attention_mask_B_T[row, width - len(rows[place]) :] = 1
            yield (
                places,
                {
                    "input_ids": input_ids_B_T.to(self.model.device),
                    "attention_mask": attention_mask_B_T.to(self.model.device),
                },
            )


def open_student(
    store: Store,
    reference: str,
    template: str | None = None,
    *,
    batch_size: int = DEFAULTS.batch_size,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Student:
    """Load a student of the store by name, or a model by path or hub name, with its prompt template.

    template: replaces the template that the student was trained on, and appears in the student's name. It is required
    if the store does not know a single template for the model. chat_template_kwargs: variables of the chat template,
    for a model that was not trained with them.

    Raises InputError on an unknown model, if no template can be determined, or on a template that shows the target.
    """
    place = find_student(store, reference)
    name = reference if template is None else f"{reference}@{template}"
    if template is None:
        templates = trained_on(place).get("templates", [])
        if len(templates) != 1:
            raise InputError(
                f"student {reference!r} was trained on {len(templates)} templates; name one with `template`"
            )
        (template,) = templates
    prompt_template = load_template(template)
    if prompt_template.strategy == "targeted":
        raise InputError(f"template {template} shows the target to the student; choose one that does not")
    model, tokenizer = load_student(place, chat_template_kwargs=chat_template_kwargs)
    chat = ChatFormat.of(tokenizer)
    return Student(name, model.to(best_device()), chat, prompt_template, batch_size, chat_template_kwargs)


class Completion(NamedTuple):
    """An answer, the number of tokens that the student read before it began to write, and the number that it wrote."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class GeneratingRanker:
    """Generates a completion for each task by greedy decoding.

    reasoning: False starts the answer with an empty explanation, so that only the ranking is generated. max_tokens: the
    maximum length of a completion. permutation: whether the ranking is constrained to candidates that are not yet
    named, so that it is always valid. on_progress: receives a message after each batch.

    Raises InputError if `permutation` requires tokens that the tokenizer does not have (see `PermutationGrammar`).
    """

    student: Student
    reasoning: bool = True
    max_tokens: int = DEFAULTS.max_tokens
    on_progress: Callable[[str], None] = lambda _: None
    permutation: bool = False

    @property
    def name(self) -> str:
        """The student's name, with a suffix if it does not reason, and one if its rankings are constrained."""
        return (
            self.student.name
            + ("" if self.reasoning else " without reasoning")
            + (" by permutation" if self.permutation else "")
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine its rankings."""
        return {
            **self.student.settings,
            "reasoning": self.reasoning,
            "max_tokens": self.max_tokens,
            "decode": "permutation" if self.permutation else "free",
        }

    def rank(self, tasks: Sequence[RerankTask]) -> list[Ranked]:
        """Return one ranking per task. A completion that is not a permutation of the candidates is marked invalid."""
        return [
            read_ranking(text, task)._replace(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
            for task, (text, prompt_tokens, completion_tokens) in zip(tasks, self.complete(tasks), strict=True)
        ]

    @torch.inference_mode()
    def complete(self, tasks: Sequence[RerankTask]) -> list[Completion]:
        """Return the answers, one per task. Without reasoning, they include the given beginning."""
        student = self.student
        prompts = student.prompts(tasks)
        beginnings = [[] if self.reasoning else _beginning(student.direct_answers(task)) for task in tasks]
        completions = [Completion("", 0, 0)] * len(tasks)
        finished = 0
        end_ids = student.model.generation_config.eos_token_id
        end_ids = end_ids if isinstance(end_ids, list) else [end_ids]
        student.model.eval()
        options = cache_options(student.model)
        read = [[*prompt, *beginning] for prompt, beginning in zip(prompts, beginnings, strict=True)]
        names = [student.names(task) for task in tasks]
        grammar = PermutationGrammar(student.chat, (names[0][0], names[0][1])) if self.permutation and tasks else None
        for places, inputs in student.batches(read, self.max_tokens):
            output_B_T = student.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self.max_tokens,
                pad_token_id=student.tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList(
                    []
                    if grammar is None
                    else [
                        PermutationLogitsProcessor(
                            grammar,
                            [names[place] for place in places],
                            self.max_tokens,
                            [beginnings[place] for place in places],
                        )
                    ]
                ),
                **options,
            )
            # generate() repeats the prompt, which ends in the same column of every row.
            completions_B_T = output_B_T[:, inputs["input_ids"].shape[1] :].tolist()
            answers = [[*beginnings[place], *ids] for place, ids in zip(places, completions_B_T, strict=True)]
            decoded = student.tokenizer.batch_decode(answers, skip_special_tokens=True)
            for place, answer, ids in zip(places, decoded, completions_B_T, strict=True):
                # A row that has ended is padded until the longest row has ended.
                written = next((count for count, token in enumerate(ids, 1) if token in end_ids), len(ids))
                completions[place] = Completion(answer, len(read[place]), written)
            finished += len(places)
            message = f"{self.name}: {finished:,} of {len(tasks):,} lists, each shuffle counted as one"
            self.on_progress(Counted(message, finished, len(tasks)))
        return completions


def cache_options(model: Any) -> dict[str, Any]:
    """Return the options of `generate` that decide how keys and values are kept."""
    if has_static_cache(model):
        return {"cache_implementation": "static", "disable_compile": True}
    return {}


@dataclass(frozen=True, slots=True)
class FirstTokenRanker:
    """Sorts candidates by the probability that the ranking begins with their number.

    If each number begins with a different token, this is the order of the logits at the first position. Otherwise the
    log-probabilities of further tokens are added, up to the token that distinguishes a number from all others.

    Raises InputError if the template's answers are not numbers.
    """

    student: Student

    def __post_init__(self) -> None:
        if self.student.template.answer != NUMBERS:
            raise InputError(
                f"mode first-token ranks candidates by their numbers, but {self.student.template.name} answers with "
                "semantic IDs; use a template with `answer: numbers`"
            )

    @property
    def name(self) -> str:
        """The student's name with the suffix "first token"."""
        return f"{self.student.name} first token"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine its rankings."""
        return self.student.settings

    @torch.inference_mode()
    def rank(self, tasks: Sequence[RerankTask]) -> list[Ranked]:
        """Return one ranking per task, which is always a permutation of the candidates."""
        prompts = self.student.prompts(tasks)
        answers = [self.student.direct_answers(task) for task in tasks]
        scores = [[0.0] * len(task.candidates) for task in tasks]
        tokens_read = [0] * len(tasks)
        # Each group has a task, the places of candidates whose answers are alike so far, and the number of these
        # tokens.
        groups = [
            (number, list(range(len(task.candidates))), len(_beginning(answers[number])))
            for number, task in enumerate(tasks)
        ]
        while groups := [group for group in groups if len(group[1]) > 1]:
            read = [[*prompts[number], *answers[number][places[0]][:shared]] for number, places, shared in groups]
            tokens = [[answers[number][place][shared] for place in places] for number, places, shared in groups]
            for (number, _, _), ids in zip(groups, read, strict=True):
                tokens_read[number] += len(ids)
            parted = []
            for (number, places, shared), ids, log_probs in zip(
                groups, tokens, self._log_probs(read, tokens), strict=True
            ):
                by_token: dict[int, list[int]] = {}
                for place, token, log_prob in zip(places, ids, log_probs, strict=True):
                    scores[number][place] += log_prob
                    by_token.setdefault(token, []).append(place)
                parted += [(number, alike, shared + 1) for alike in by_token.values()]
            groups = parted
        return [
            # sorted() is stable, so ties keep the pre-ranker's order.
            Ranked(
                [task.candidates[place].item.item_id for place in sorted(range(len(row)), key=lambda k: -row[k])],
                prompt_tokens=count,
                completion_tokens=0,
            )
            for task, row, count in zip(tasks, scores, tokens_read, strict=True)
        ]

    def _log_probs(self, read: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the log-probability of each of a row's `tokens` after the tokens that were read, row by row."""
        student = self.student
        student.model.eval()
        rows: list[list[float]] = [[]] * len(read)
        for places, inputs in student.batches(read, 1):
            # generate() knows how each model counts positions after padding on the left, but a plain call does not.
            output = student.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=1,
                pad_token_id=student.tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
            # float64 keeps different logits different.
            for place, log_probs_V in zip(places, output.logits[0].double().log_softmax(-1), strict=True):
                rows[place] = log_probs_V[tokens[place]].tolist()
        return rows


def _beginning(answers: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that all answers to a task begin with. It is empty for one answer, which leaves no choice.

    >>> _beginning([[1, 2, 3], [1, 2, 4]])
    [1, 2]
    """
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*answers, strict=False)) if len(answers) > 1 else ()
    return [tokens[0] for tokens in alike]
