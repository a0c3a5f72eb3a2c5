"""Uses any teacher as a ranker, such as a language model behind an endpoint: one request per list, at temperature 0.

A template renders the prompts, and the parser of traces reads the answers. An answer that is not a permutation of the
candidates is invalid. So is a failed request, which keeps its error. Only the ranking of an answer is kept.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curate.evaluation.rankers.protocol import Ranked, read_ranking
from curate.traces.settings import REQUESTS, RequestSettings
from curate.traces.tasks import render_task
from curate.traces.teachers.openai_compatible import OpenAITeacher
from curate.traces.teachers.protocol import RequestFailedError, Teacher, TeacherRequest, commonest_errors
from curate.traces.teachers.settings import OpenAISettings
from prompts.completion import completion_schema
from prompts.tasks import RerankTask
from prompts.templates import Template, load_template
from store import InputError, TeacherError

# If this many first requests all fail, the ranker would probably not answer the others either.
MAX_FIRST_FAILURES = 20


class TeacherRanker:
    """A ranker that sends `concurrency` lists at a time to a teacher.

    It can be used once, because it closes the teacher at the end.

    Raises InputError if the template shows the target.
    """

    def __init__(
        self, teacher: Teacher, template: Template, *, concurrency: int = REQUESTS.concurrency, max_tokens: int = 1024
    ) -> None:
        if template.strategy == "targeted":
            raise InputError(f"template {template.name} shows the target to the ranker; choose one that does not")
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
        """Return the rankings in the order of the tasks.

        Requests for later tasks run while the caller handles earlier ones.

        Raises TeacherError if the teacher cannot answer any request, or if the first MAX_FIRST_FAILURES requests all
        failed.
        """
        errors: Counter[str] = Counter()
        # A runner keeps one event loop, and with it the running requests, alive between two results.
        with asyncio.Runner() as runner:
            answers = runner.run(self._begin(tasks))
            try:
                for count, answer in enumerate(answers, 1):
                    ranked = runner.run(_wait_for(answer))
                    if ranked.error is not None:
                        errors[ranked.error] += 1
                    # From the first answer on, every failure may concern its request alone.
                    if errors.total() == count == min(MAX_FIRST_FAILURES, len(tasks)):
                        raise TeacherError(_describe_silence(self.name, errors))
                    yield ranked
            finally:
                runner.run(self._end(answers))

    async def _begin(self, tasks: Sequence[RerankTask]) -> list[asyncio.Task[Ranked]]:
        room = asyncio.Semaphore(self._concurrency)
        return [asyncio.create_task(self._ask(task, room)) for task in tasks]

    async def _end(self, answers: Sequence[asyncio.Task[Ranked]]) -> None:
        for answer in answers:
            answer.cancel()
        # Without this, asyncio would print a warning for each failure whose result nobody read.
        await asyncio.gather(*answers, return_exceptions=True)
        await self._teacher.close()

    async def _ask(self, task: RerankTask, room: asyncio.Semaphore) -> Ranked:
        async with room:
            shown_task, messages = render_task(self._template, task, knowledge_priming=True)
            request = TeacherRequest(
                trace_id="",
                messages=messages,
                task=shown_task,
                response_schema=completion_schema(shown_task.candidates, self._template.answer),
                sample_index=0,
                temperature=0.0,
                max_tokens=self.settings["max_tokens"],
                seed=0,
            )
            try:
                completion = await self._teacher.complete(request)
            except RequestFailedError as error:
                return Ranked((), valid=False, error=str(error))
        return read_ranking(completion.text, shown_task)._replace(
            prompt_tokens=completion.prompt_tokens, completion_tokens=completion.completion_tokens
        )


def _describe_silence(name: str, errors: Counter[str]) -> str:
    (error, times), *_ = commonest_errors(errors)
    return (
        f"{name} answered none of the first {errors.total():,} requests; check the endpoint. The commonest error "
        f"({times:,} times): {error}"
    )


async def _wait_for(answer: asyncio.Task[Ranked]) -> Ranked:
    return await answer


def make_endpoint_ranker(
    model: str,
    template: str,
    concurrency: int,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_retries: int | None = None,
    structured_output: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
) -> TeacherRanker:
    """Make a ranker of the model behind an OpenAI-compatible endpoint. None leaves a setting at its default.

    Raises the errors of OpenAISettings, OpenAITeacher and TeacherRanker.
    """
    options = {
        "base_url": base_url,
        "api_key_env": api_key_env,
        "headers": headers,
        "timeout_s": timeout_s,
        "max_retries": max_retries,
        "structured_output": structured_output,
        "extra_body": extra_body,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    teacher = OpenAITeacher(OpenAISettings(model=model, **given))
    return TeacherRanker(teacher, load_template(template), concurrency=concurrency)
