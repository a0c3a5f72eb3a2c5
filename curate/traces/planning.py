"""Turns candidate lists into the requests that a run has to send: their prompts, their ids, and which are still open.

The store says which samples are missing. Resuming a run, or asking for more samples later, is therefore the same as
starting one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import polars as pl

from curate.datasets.catalogue import find_dataset
from curate.datasets.sources import choose_sources
from curate.traces.records import STUDENT
from curate.traces.rules import RULE_NAMES, check_rule_names
from curate.traces.rulesets import Ruleset, describe_unjudged, find_ruleset, unjudged_traces
from curate.traces.settings import SamplingSettings
from curate.traces.tasks import ListedTask, load_tasks, locate_lists, places_of, render_list
from curate.traces.teachers.protocol import FOR_GOOD, Teacher, TeacherRequest
from prompts.completion import completion_schema
from prompts.tasks import RerankTask
from prompts.templates import Template, load_template
from store import InputError, Session, Store

PROMPT_BATCH = 1_000
ID_DIGITS = 32


DEFAULT_TEMPLATES = {"rejection": "rerank_evidence.v1", "targeted": "rerank_targeted.v1"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A run with all of its defaults resolved."""

    settings: SamplingSettings
    template: Template
    sid_version: str
    pre_ranker: str
    ruleset: Ruleset
    teacher: str
    model: str

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that judge the traces: gr2's own, and any others that the ruleset names."""
        return tuple(dict.fromkeys((*RULE_NAMES, *self.ruleset.rules)))

    @property
    def claim(self) -> str:
        """The name of the lock under which only one process at a time may ask for these samples."""
        # The name covers everything that tells samples apart. It leaves out limits, because runs that differ only in
        # their limits would ask for the same samples.
        facts = [
            self.settings.dataset,
            self.settings.split,
            self.template.name,
            self.sid_version,
            self.pre_ranker,
            self.teacher,
            self.model,
            self.settings.temperature,
        ]
        return "sampling-" + _digest(facts)[:16]


@dataclass(frozen=True, slots=True)
class OpenPrompt:
    """A prompt that needs more samples: the indexes without an answer, and the number of accepted answers so far."""

    prompt_id: str
    listed: ListedTask
    shown: RerankTask
    messages: tuple[dict[str, str], ...]
    open_indexes: tuple[int, ...]
    accepted: int

    def request(self, plan: Plan, sample_index: int) -> TeacherRequest:
        """The request for one sample. The same sample gets the same trace id in every run."""
        settings = plan.settings
        # The prompt id is part of the identity: two users with the same items would otherwise share their traces.
        trace_id = _digest(
            [
                self.prompt_id,
                self.messages,
                plan.template.name,
                plan.teacher,
                plan.model,
                settings.temperature,
                settings.max_tokens,
                sample_index,
            ]
        )
        return TeacherRequest(
            trace_id=trace_id,
            messages=self.messages,
            task=self.shown,
            response_schema=completion_schema(self.shown.candidates, plan.template.answer),
            sample_index=sample_index,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            # Shifted, because some servers accept only seeds that fit a signed 32-bit integer.
            seed=int(trace_id[:8], 16) >> 1,
            list_id=self.listed.list_id,
        )


def plan_sampling(store: Store, teacher: Teacher, settings: SamplingSettings) -> Plan:
    """Resolve every default. Raises InputError if the store lacks something, and names the command that makes it."""
    template = load_template(settings.template or DEFAULT_TEMPLATES.get(settings.strategy or "rejection", ""))
    if settings.strategy is not None and settings.strategy != template.strategy:
        raise InputError(
            f"template {template.name} is for strategy {template.strategy!r}, not {settings.strategy!r}; "
            "leave one of them out"
        )
    if template.strategy == "targeted" and settings.lists != "with-target":
        raise InputError(f"template {template.name} shows the target, so `lists` must be with-target")
    if teacher.name == STUDENT:
        raise InputError(f"a teacher must not be called {STUDENT!r}, because rollouts of students are; rename it")
    with store.reading() as session:
        find_dataset(session, settings.dataset)
        sid_version, pre_ranker = choose_sources(session, settings.dataset, settings.sid_version, settings.pre_ranker)
        ruleset = find_ruleset(session, settings.ruleset)
        check_rule_names(ruleset.rules)
        _check_verdicts(session, settings.dataset, ruleset)
    return Plan(settings, template, sid_version, pre_ranker, ruleset, teacher.name, teacher.model)


def _check_verdicts(session: Session, dataset: str, ruleset: Ruleset) -> None:
    """Raise InputError if verdicts are missing. The run would otherwise pay again for traces that are accepted."""
    missing = unjudged_traces(session, dataset).filter(ruleset=ruleset.name, version=ruleset.version)
    if missing.height:
        raise InputError(f"{describe_unjudged(missing)[0]}, or this run would ask for accepted traces again")


@dataclass(slots=True)
class PromptTable:
    """The prompts that a run has already seen in the store, so that it need not search the whole table for each batch.

    rows: the number of prompts that the run has looked at. added: the prompts that other runs stored since this run was
    planned.
    """

    rows: int
    added: set[str] = field(default_factory=set)


def find_open_lists(store: Store, plan: Plan) -> tuple[pl.DataFrame, PromptTable]:
    """Find the lists that need samples.

    Columns: list_id, answered (indexes), accepted, has_prompt (whether the store has their prompt), and chosen_lists
    (the number of lists of the run). The lists come in the order in which they lie in the store, with the columns that
    `places_of` needs. A batch therefore reads its own part of the store and not all of it.
    """
    settings = plan.settings
    with store.reading() as session:
        lists = session.frame(
            "open_lists",
            dataset=settings.dataset,
            split=settings.split,
            pre_ranker=plan.pre_ranker,
            with_target=settings.lists != "without-target",
            without_target=settings.lists != "with-target",
            # DuckDB's limit takes no null. This number is larger than any store has lists.
            limit=settings.limit if settings.limit is not None else 2**62,
            sid_version=plan.sid_version,
            template=plan.template.name,
            template_sha256=plan.template.sha256,
            knowledge_priming=settings.knowledge_priming,
            teacher=plan.teacher,
            model=plan.model,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            rules=plan.ruleset.rules,
            num_accepted=settings.num_accepted,
            max_attempts=settings.max_attempts,
            for_good=[] if settings.retry_refused else list(FOR_GOOD),
        )
        ((rows,),) = session.rows("count_prompts")
        return locate_lists(session, lists), PromptTable(rows)


def open_prompts(store: Store, plan: Plan, lists: pl.DataFrame, table: PromptTable) -> list[OpenPrompt]:
    """Render the prompts of open lists, and store the new ones. Call it with at most PROMPT_BATCH lists.

    Raises StoreBusyError if the store stays busy; the call may be repeated.
    """
    with store.reading() as session:
        tasks = load_tasks(
            session, plan.settings.dataset, plan.sid_version, lists["list_id"].to_list(), within=places_of(lists)
        )
    prompts = [
        _open_prompt(plan, tasks[list_id], answered, accepted)
        for list_id, answered, accepted in lists.select("list_id", "answered", "accepted").iter_rows()
    ]
    unknown = [prompt for prompt, known in zip(prompts, lists["has_prompt"], strict=True) if not known]
    if unknown:
        with store.writing() as session:
            # Other runs may need the same prompts: the claim is for one teacher.
            added = {prompt_id for (prompt_id,) in session.rows("prompts_since", rows=table.rows)} | table.added
            if new := [_row(plan, prompt) for prompt in unknown if prompt.prompt_id not in added]:
                session.insert("append_prompts", pl.DataFrame(new))
            ((rows,),) = session.rows("count_prompts")
        # Remember the prompts only once they are committed.
        table.rows, table.added = rows, added
    return prompts


def _open_prompt(plan: Plan, listed: ListedTask, answered: Sequence[int], accepted: int) -> OpenPrompt:
    shown, messages = render_list(plan.template, listed, knowledge_priming=plan.settings.knowledge_priming)
    prompt_id = prompt_id_of(
        listed.list_id,
        plan.template.name,
        plan.template.sha256,
        plan.sid_version,
        knowledge_priming=plan.settings.knowledge_priming,
    )
    open_indexes = tuple(index for index in range(plan.settings.max_attempts) if index not in answered)
    return OpenPrompt(prompt_id, listed, shown, messages, open_indexes, accepted)


def _row(plan: Plan, prompt: OpenPrompt) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "list_id": prompt.listed.list_id,
        "dataset": plan.settings.dataset,
        "sid_version": plan.sid_version,
        "template": plan.template.name,
        "template_sha256": plan.template.sha256,
        "strategy": plan.template.strategy,
        "knowledge_priming": plan.settings.knowledge_priming,
        "messages": orjson.dumps(prompt.messages).decode(),
    }


def prompt_id_of(list_id: str, template: str, sha256: str, sid_version: str, *, knowledge_priming: bool) -> str:
    """The id of a prompt. It depends on how a list is shown, and not on which teacher answers."""
    return _digest([list_id, template, sha256, sid_version, knowledge_priming])


def _digest(facts: Sequence[Any]) -> str:
    return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:ID_DIGITS]
