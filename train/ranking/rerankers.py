"""Students as rankers of candidate lists, by generating a completion or by the logits of the first answer token.

Completions go through the same parser as everywhere. One that is not a permutation is invalid, and the evaluation
counts it. FIRST (arXiv 2406.15657) generates nothing: it sorts candidates by the logits of the first token of the
answer, so a single prefill gives a valid ranking, without reasoning.
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
from store.progress import Counted
from train.ranking.settings import StudentSettings
from train.runs import find_student, trained_on
from train.students.student import best_device, load_student

BATCH = 64
DEFAULTS = StudentSettings()
# The beginning of an answer with an empty explanation, up to the first candidate.
DIRECT = render_completion("", [])[: -len("]}")]


@dataclass(frozen=True, slots=True)
class Student:
    """A loaded model with its name, its tokenizer, and the prompt template that it was trained on."""

    name: str
    model: Any
    tokenizer: Any
    template: Template

    def prompt(self, task: RerankTask) -> str:
        """The task in the student's chat format, up to the point where the student begins to write."""
        messages = list(self.template.render(task))
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask (B, T), padded on the left."""
        # The chat template has written the special tokens. Generation continues at the right end, so pad on the left.
        tokens = self.tokenizer(
            list(texts), add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )
        return {name: tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def batches(self, tasks: Sequence[RerankTask], ending: str = "") -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Batches of tasks with prompts of similar length: their indices in `tasks`, and the model's inputs.

        ending: text to append to each prompt, as the beginning of the answer.
        """
        # Similar lengths need little padding. The indices let callers restore the order.
        texts = [self.prompt(task) + ending for task in tasks]
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            yield places, self.read([texts[place] for place in places])


def open_student(store: Store, reference: str, template: str | None = None) -> Student:
    """Load a student of the store by name, or a model by path or hub name, with its prompt template.

    template: replaces the template that the student was trained on, and appears in the student's name. It is required
    if the store does not know a single template for the model.

    Raises InputError on an unknown model, if no template can be determined, or on a template that shows the target.
    """
    place = find_student(store, reference)
    name = reference if template is None else f"{reference}@{template}"
    if template is None:
        known = trained_on(place).get("templates", [])
        if len(known) != 1:
            raise InputError(f"student {reference!r} was trained on {len(known)} templates; name one with `template`")
        (template,) = known
    prompt_template = load_template(template)
    if prompt_template.strategy == "targeted":
        raise InputError(f"template {template} shows the target to the student; choose one that does not")
    model, tokenizer = load_student(place)
    return Student(name, model.to(best_device()), tokenizer, prompt_template)


@dataclass(frozen=True, slots=True)
class GeneratingRanker:
    """Generates a completion for each task by greedy decoding.

    reasoning: False starts the answer with an empty explanation, so that only the ranking is generated. max_tokens: the
    maximum length of a completion. on_progress: receives a message after each batch.
    """

    student: Student
    reasoning: bool = True
    max_tokens: int = DEFAULTS.max_tokens
    on_progress: Callable[[str], None] = lambda _: None

    @property
    def name(self) -> str:
        """The student's name, with a suffix if it does not reason."""
        return self.student.name + ("" if self.reasoning else " without reasoning")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that its rankings depend on."""
        return {
            "template": self.student.template.name,
            "reasoning": self.reasoning,
            "max_tokens": self.max_tokens,
        }

    def rank(self, tasks: Sequence[RerankTask]) -> list[Ranked]:
        """One ranking per task. A completion that is not a permutation of the candidates is marked invalid."""
        beginning = "" if self.reasoning else DIRECT
        # The parser needs the whole answer, so the part that the student did not write is put in front again.
        return [
            read_ranking(beginning + text, task)
            for task, text in zip(tasks, self.complete(tasks, beginning), strict=True)
        ]

    @torch.inference_mode()
    def complete(self, tasks: Sequence[RerankTask], beginning: str = "") -> list[str]:
        """The texts that the student generates after the prompt and `beginning`, one per task."""
        student = self.student
        texts = [""] * len(tasks)
        finished = 0
        student.model.eval()
        options = _cache_options(student.model)
        for places, inputs in student.batches(tasks, beginning):
            output_B_T = student.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=self.max_tokens,
                pad_token_id=student.tokenizer.pad_token_id,
                **options,
            )
            # generate() repeats the prompt, which ends in the same column of every row.
            completions_B_T = output_B_T[:, inputs["input_ids"].shape[1] :]
            answers = student.tokenizer.batch_decode(completions_B_T, skip_special_tokens=True)
            for place, answer in zip(places, answers, strict=True):
                texts[place] = answer
            finished += len(places)
            message = f"{self.name}: {finished:,} of {len(tasks):,} lists, each shuffle counted as one"
            self.on_progress(Counted(message, finished, len(tasks)))
        return texts


def _cache_options(model: Any) -> dict[str, Any]:
    """How `generate` should keep keys and values.

    By default it copies all of them for each new token, which is a third of the time of a small model on a CPU. A
    static cache is allocated once; transformers has it for models that can be compiled.
    """
    if model.device.type == "cpu" and getattr(model, "_can_compile_fullgraph", False):
        return {"cache_implementation": "static", "disable_compile": True}
    return {}


@dataclass(frozen=True, slots=True)
class FirstTokenRanker:
    """Sorts candidates by the logits of their numbers at the first position of the ranking.

    Raises InputError if the template's answers are not numbers. `rank` raises it if a number is not a single token.
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
        """The settings that its rankings depend on."""
        return {"template": self.student.template.name}

    @torch.inference_mode()
    def rank(self, tasks: Sequence[RerankTask]) -> list[Ranked]:
        """One ranking per task, which is always a permutation of the candidates."""
        student = self.student
        student.model.eval()
        most = max((len(task.candidates) for task in tasks), default=0)
        ids_K = [self._number_token(number) for number in range(1, most + 1)]
        ranked: list[Ranked | None] = [None] * len(tasks)
        for places, inputs in student.batches(tasks, DIRECT):
            # Padding is on the left, so the last position is the end of every prompt.
            logits_B_K = student.model(**inputs, logits_to_keep=1).logits[:, -1, ids_K]
            for place, logits_K in zip(places, logits_B_K, strict=True):
                candidates = tasks[place].candidates
                # A shorter list has no use for the higher numbers. Stable: ties keep the pre-ranker's order.
                best_first = logits_K[: len(candidates)].argsort(descending=True, stable=True).tolist()
                ranked[place] = Ranked([candidates[index].item.item_id for index in best_first])
        return [ranking for ranking in ranked if ranking is not None]

    def _number_token(self, number: int) -> int:
        ids = self.student.tokenizer.encode(str(number), add_special_tokens=False)
        if len(ids) != 1:
            raise InputError(
                f"the tokenizer of {self.student.name} splits {number} into {len(ids)} tokens, but mode first-token "
                "needs one token per number; use another mode"
            )
        return int(ids[0])


def student_rankers(
    store: Store,
    reference: str,
    modes: Sequence[str],
    *,
    template: str | None = DEFAULTS.template,
    max_tokens: int = DEFAULTS.max_tokens,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Ranker]:
    """One ranker per mode, all over the same loaded student.

    modes: any of `train.ranking.settings.MODES`. Raises InputError on an unknown mode, and under the same conditions as
    `open_student`.
    """
    StudentSettings(tuple(modes), max_tokens, template)
    student = open_student(store, reference, template)
    rankers: dict[str, Callable[[], Ranker]] = {
        "reasoning": lambda: GeneratingRanker(student, True, max_tokens, on_progress),
        "direct": lambda: GeneratingRanker(student, False, max_tokens, on_progress),
        "first-token": lambda: FirstTokenRanker(student),
    }
    return [rankers[mode]() for mode in modes]
