"""A filter of traces, for the pages of the app, label queues and snapshots.

A filter is a value. It can be compared, written into a link and read back, and stored in the settings of a queue or in
a manifest. The condition for each of its fields is in `store/sql/trace_filter.sql`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import duckdb

from curate.traces.rules import RULE_NAMES
from curate.traces.rulesets import find_ruleset
from store import InputError, Session
from store.former_names import renamed
from store.labels import Label

ANSWERED = "answered"
NOT_JUDGED = "not_judged"
# The values of `label` that are not labels.
LABEL_STATES = ("any", "none", "split")
LABELS = (*LABEL_STATES, Label.GOOD.value, Label.BAD.value, Label.UNSURE.value, Label.SKIP.value)
# The fields that select traces by their source. A filter without any of them selects the traces of teachers.
_NAMES_A_SOURCE = ("teacher", "model", "run_id", "step", "kept")


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """Which traces to take. A field that is None does not filter.

    The rollouts of students are traces too, and are taken only if the filter asks for them: by teacher (`student`),
    model, run_id, step or kept.

    passes, fails: a ruleset, as NAME or NAME@VERSION. rule, reason: the rule and the reason of any failed verdict.
    first_failed_rule: the first rule of the ruleset strict that the trace fails, "answered" if the request failed, or
    "not_judged" if a verdict is missing. copied: whether the answer repeats the order of the candidates. target_rank,
    predicted_rank: the rank of the target before and after re-ranking, 0 if it is absent. label: anybody's current
    label, or one of LABEL_STATES ("split" means that some say good and some say bad). annotator: a person who labelled
    the trace. min_pass_rate, max_pass_rate: bounds of the pass rate over all attempts of the same teacher, model and
    temperature at the same prompt. since, until: bounds of created_at, in UTC; until is exclusive. text: a text in the
    reasoning, or else in the completion or error, in any case. pattern: the same with a regular expression (RE2). step:
    the step of the training that sampled the rollout. kept: whether the training learned from the rollout.
    """

    dataset: str | None = None
    split: str | None = None
    strategy: str | None = None
    template: str | None = None
    teacher: str | None = None
    model: str | None = None
    temperature: float | None = None
    passes: str | None = None
    fails: str | None = None
    rule: str | None = None
    reason: str | None = None
    first_failed_rule: str | None = None
    copied: bool | None = None
    target_rank: int | None = None
    predicted_rank: int | None = None
    label: str | None = None
    annotator: str | None = None
    min_pass_rate: float | None = None
    max_pass_rate: float | None = None
    run_id: str | None = None
    user_id: str | None = None
    list_id: str | None = None
    prompt_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    pattern: str | None = None
    step: int | None = None
    kept: bool | None = None

    @property
    def where(self) -> tuple[str, ...]:
        """The names of the filter's conditions, for Session.frame and Session.rows."""
        conditions = tuple(f"where_{name}" for name in self.parameters)
        return (
            conditions
            if any(name in self.parameters for name in _NAMES_A_SOURCE)
            else ("where_by_teachers", *conditions)
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the filter's conditions: every field that is not None."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    @property
    def reads_texts(self) -> bool:
        """Whether the filter searches texts, which takes seconds among millions of traces."""
        return self.text is not None or self.pattern is not None

    def to_query(self) -> dict[str, str]:
        """Return the filter as query parameters of a link; `from_query` reads them back.

        >>> TraceFilter(split="valid", copied=False).to_query()
        {'split': 'valid', 'copied': 'no'}
        """
        return {name: _to_text(value) for name, value in self.parameters.items()}

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> "TraceFilter":
        """Read the filter that `to_query` wrote, and ignore other parameters. Raises InputError on an invalid value."""
        query = renamed(query)
        return cls(
            **{field.name: _from_text(field.name, query[field.name]) for field in fields(cls) if query.get(field.name)}
        )


_NUMBERS = ("temperature", "min_pass_rate", "max_pass_rate")
_WHOLE_NUMBERS = ("target_rank", "predicted_rank", "step")
_ANSWERS = ("copied", "kept")
_TIMES = ("since", "until")


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _from_text(name: str, text: str) -> Any:
    try:
        if name in _ANSWERS:
            return {"yes": True, "no": False}[text]
        if name in _NUMBERS:
            number = float(text)
            # float() accepts "nan" and "inf"; the second call raises the ValueError that is reported below.
            return number if math.isfinite(number) else float("not finite")
        if name in _WHOLE_NUMBERS:
            return int(text)
        if name in _TIMES:
            return read_time(text)
    except (KeyError, ValueError):
        raise InputError(f"the filter says {name}={text!r}, which is not valid; correct it or leave it out") from None
    if name == "label" and text not in LABELS:
        raise InputError(f"the filter says {name}={text!r}; it must be one of {', '.join(LABELS)}")
    return text


def read_time(text: str) -> datetime:
    """Return an ISO 8601 time as the store keeps times: in UTC and without a zone. Raises ValueError on other text.

    >>> read_time("2026-11-25 08:00+02:00")
    datetime.datetime(2026, 11, 25, 6, 0)
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def check_filter(session: Session, chosen: TraceFilter) -> None:
    """Raise InputError on an unknown ruleset or rule, and on a pattern that is not a regular expression.

    A rule is known if it is gr2's own, if it has judged a trace, or if a ruleset names it. A rule named as
    module:object is never imported here, because anybody can put one into a link.
    """
    for ruleset in (chosen.passes, chosen.fails):
        if ruleset is not None:
            find_ruleset(session, ruleset)
    for name, rule in (("rule", chosen.rule), ("first_failed_rule", chosen.first_failed_rule)):
        known = (ANSWERED, *RULE_NAMES, NOT_JUDGED)
        if rule is not None and rule not in known:
            known = (*known, *(other for (other,) in session.rows("rules_of_store") if other not in known))
            if rule not in known:
                raise InputError(f"the filter says {name}={rule!r}; it must be one of {', '.join(known)}")
    if chosen.pattern is not None:
        try:
            session.rows("check_pattern", pattern=chosen.pattern)
        except duckdb.InvalidInputException as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{chosen.pattern!r} is not a regular expression: {problem}") from error
