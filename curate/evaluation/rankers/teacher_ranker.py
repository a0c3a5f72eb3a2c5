"""Any teacher as a ranker, a language model behind an endpoint above all: one question a list, at temperature 0.

What the teacher is shown is a template's, and what it says is read by the parser of traces. An answer that is no order
of the candidates, or does not come, is not valid. Nothing of an answer is kept but the order.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from curate.evaluation.rankers.protocol import Ranked, read_ranking
from curate.traces.settings import REQUESTS, RequestSettings
from curate.traces.tasks import render_task
from curate.traces.teachers.protocol import RequestFailedError, Teacher, TeacherRequest
from prompts.completion import completion_schema
from prompts.tasks import RerankTask
from prompts.templates import Template
from store import InputError


class TeacherRanker:
    """Asks a teacher, `concurrency` lists at a time; it can be used once, since it closes the teacher.

    Raises InputError where the template shows the target.
    """

    def __init__(
        self, teacher: Teacher, template: Template, *, concurrency: int = REQUESTS.concurrency, max_tokens: int = 1024
    ) -> None:
        if template.strategy == "targeted":
            raise InputError(f"template {template.name} shows the target; an evaluation needs one that does not")
        self.name = f"{teacher.model}@{template.name}"
        self.settings: dict[str, Any] = {
            "teacher": teacher.name,
            "model": teacher.model,
            "template": template.name,
            "template_sha256": template.sha256,
            "max_tokens": max_tokens,
        }
        self._teacher = teacher
        self._template = template
        self._concurrency = RequestSettings(concurrency).concurrency

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Each order when it is its turn; later lists are asked about meanwhile.

        Raises TeacherError where the teacher cannot answer any request.
        """
        with asyncio.Runner() as runner:
            answers = runner.run(self._begin(tasks))
            try:
                for answer in answers:
                    yield runner.run(_wait_for(answer))
            finally:
                runner.run(self._end(answers))

    async def _begin(self, tasks: Sequence[RerankTask]) -> list[asyncio.Task[Ranked]]:
        room = asyncio.Semaphore(self._concurrency)
        return [asyncio.create_task(self._ask(task, room)) for task in tasks]

    async def _end(self, answers: Sequence[asyncio.Task[Ranked]]) -> None:
        for answer in answers:
            answer.cancel()
        # Collected, or asyncio would report each failure that nobody looked at.
        await asyncio.gather(*answers, return_exceptions=True)
        await self._teacher.close()

    async def _ask(self, task: RerankTask, room: asyncio.Semaphore) -> Ranked:
        async with room:
            shown, messages = render_task(self._template, task, knowledge_priming=True)
            request = TeacherRequest(
                trace_id="",
                messages=messages,
                task=shown,
                response_schema=completion_schema(shown.candidates, self._template.answer),
                sample_index=0,
                temperature=0.0,
                max_tokens=self.settings["max_tokens"],
                seed=0,
            )
            try:
                completion = await self._teacher.complete(request)
            except RequestFailedError:
                return Ranked((), valid=False)
        return read_ranking(completion.text, shown)


async def _wait_for(answer: asyncio.Task[Ranked]) -> Ranked:
    return await answer
