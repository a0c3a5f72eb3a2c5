"""Students as rankers: what a language model makes of candidate lists, by generating or by its first token alone.

A completion is read by the one parser; what is no permutation is not valid, and the evaluation counts it. FIRST
(arXiv 2406.15657) writes nothing: candidates are ordered by the logits of the first token of an answer, so that one
prefill gives a valid order, without reasoning.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curate.evaluation.rankers.protocol import Ranked, Ranker, read_ranking
from prompts.completion import NUMBERS, render_completion
from prompts.tasks import RerankTask
from prompts.templates import Template, load_template
from store import InputError, Store
from train.ranking.settings import StudentSettings
from train.runs import find_student, trained_on
from train.students.student import best_device, load_student

BATCH = 64
DEFAULTS = StudentSettings()
# An answer up to where its order begins, without reasoning.
DIRECT = render_completion("", [])[: -len("]}")]


@dataclass(frozen=True, slots=True)
class Student:
    """A model that is asked: its name, itself, its tokenizer, and the prompt that it was trained on."""

    name: str
    model: Any
    tokenizer: Any
    template: Template

    def prompt(self, task: RerankTask) -> str:
        """The task as the student reads it, up to where it begins to write."""
        messages = list(self.template.render(task))
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask (B, T), padded on the left."""
        tokens = self.tokenizer(
            list(texts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )
        return {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def batches(self, tasks: Sequence[RerankTask], ending: str = "") -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Places of tasks of about the same length, and what the model reads of them."""
        texts = [self.prompt(task) + ending for task in tasks]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            yield places, self.read([texts[place] for place in places])


def open_student(store: Store, reference: str, template: str | None = None) -> Student:
    """A student of the store by name, or a model by path or hub name, with the prompt that it was trained on.

    template: another prompt, which the student's name then tells; needed where the store does not know the one that it
    was trained on.

    Raises InputError on an unknown model, where no template can be told, and on one that shows the target.
    """
    place = find_student(store, reference)
    name = reference if template is None else f"{reference}@{template}"
    if template is None:
        known = trained_on(place).get("templates", [])
        if len(known) != 1:
            raise InputError(f"student {reference!r} was trained on {len(known)} templates; name one with `template`")
        (template,) = known
    shown = load_template(template)
    if shown.strategy == "targeted":
        raise InputError(f"template {template} shows the target; a student is asked by one that does not")
    model, tokenizer = load_student(place)
    return Student(name, model.to(best_device()), tokenizer, shown)


@dataclass(frozen=True, slots=True)
class GeneratingRanker:
    """Writes a completion for each task, greedily. reasoning: False begins the answer with an empty explanation."""

    student: Student
    reasoning: bool = True
    max_tokens: int = DEFAULTS.max_tokens

    @property
    def name(self) -> str:
        """Of the student, and whether it reasons."""
        return self.student.name + ("" if self.reasoning else " without reasoning")

    @property
    def settings(self) -> dict[str, Any]:
        """What its orders depend on."""
        return {
            "template": self.student.template.name,
            "reasoning": self.reasoning,
            "max_tokens": self.max_tokens,
        }

    def rank(self, tasks: Sequence[RerankTask]) -> list[Ranked]:
        """The orders that it writes."""
        beginning = "" if self.reasoning else DIRECT
        return [
            read_ranking(beginning + text, task)
            for task, text in zip(tasks, self.complete(tasks, beginning), strict=True)
        ]

    @torch.inference_mode()
    def complete(self, tasks: Sequence[RerankTask], beginning: str = "") -> list[str]:
        """What the student writes after the prompt and `beginning`."""
        student = self.student
        texts = [""] * len(tasks)
        student.model.eval()
        for places, read in student.batches(tasks, beginning):
            written = student.model.generate(
                **read, do_sample=False, max_new_tokens=self.max_tokens, pad_token_id=student.tokenizer.pad_token_id
            )
            answers = student.tokenizer.batch_decode(written[:, read["input_ids"].shape[1] :], skip_special_tokens=True)
            for place, answer in zip(places, answers, strict=True):
                texts[place] = answer
        return texts


@dataclass(frozen=True, slots=True)
class FirstTokenRanker:
    """Orders candidates by the logits of their numbers where the order begins.

    Raises InputError where the template's answers are not numbers, or a number is not one token.
    """

    student: Student

    def __post_init__(self) -> None:
        if self.student.template.answer != NUMBERS:
            raise InputError(
                f"the first token ranks candidates by their numbers, and {self.student.template.name} answers with "
                "semantic IDs; use a template with `answer: numbers`"
            )

    @property
    def name(self) -> str:
        """Of the student, and that it writes nothing."""
        return f"{self.student.name} first token"

    @property
    def settings(self) -> dict[str, Any]:
        """What its orders depend on."""
        return {"template": self.student.template.name}

    @torch.inference_mode()
    def rank(self, tasks: Sequence[RerankTask]) -> list[Ranked]:
        """Always permutations."""
        student = self.student
        student.model.eval()
        most = max((len(task.candidates) for task in tasks), default=0)
        ids_K = [self._number_token(number) for number in range(1, most + 1)]
        ranked: list[Ranked | None] = [None] * len(tasks)
        for places, read in student.batches(tasks, DIRECT):
            logits_B_K = student.model(**read, logits_to_keep=1).logits[:, -1, ids_K]
            for place, logits_K in zip(places, logits_B_K, strict=True):
                candidates = tasks[place].candidates
                best_first = logits_K[: len(candidates)].argsort(descending=True, stable=True).tolist()
                ranked[place] = Ranked([candidates[index].item.item_id for index in best_first])
        return [found for found in ranked if found is not None]

    def _number_token(self, number: int) -> int:
        ids = self.student.tokenizer.encode(str(number), add_special_tokens=False)
        if len(ids) != 1:
            raise InputError(f"{number} is {len(ids)} tokens for {self.student.name}; ranking by one token needs one")
        return int(ids[0])


def student_rankers(
    store: Store,
    reference: str,
    modes: Sequence[str],
    *,
    template: str | None = DEFAULTS.template,
    max_tokens: int = DEFAULTS.max_tokens,
) -> list[Ranker]:
    """A student as one ranker for each of the modes in which it may answer. Raises what `open_student` does."""
    StudentSettings(tuple(modes), max_tokens, template)
    student = open_student(store, reference, template)
    rankers: dict[str, Callable[[], Ranker]] = {
        "reasoning": lambda: GeneratingRanker(student, reasoning=True, max_tokens=max_tokens),
        "direct": lambda: GeneratingRanker(student, reasoning=False, max_tokens=max_tokens),
        "first-token": lambda: FirstTokenRanker(student),
    }
    return [rankers[mode]() for mode in modes]
