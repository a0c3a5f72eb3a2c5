"""Prompt templates: files with a version in their name, rendered to chat messages.

A template is a Jinja file `<name>.v<N>.jinja`: a head of `key: value` lines between two `---`, then the blocks `system`
and `user`. New wording gets a new number, so that the template of a trace always shows the prompt that its teacher
read. Item texts come from third parties. They are cleaned here, in one place, so that no title can forge a semantic ID
or a chat token. The module does not know where rows come from.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.meta
import jinja2.sandbox

from prompts.completion import ANSWERS, SIDS, answer_format
from prompts.evidence_levels import evidence_levels, fine_levels
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.errors import InputError

STRATEGIES = ("rejection", "targeted")
TITLE_CHARACTERS = 200
VARIABLES = {"history", "candidates", "levels", "fine_levels", "target", "knowledge_priming", "answer_format"}
BLOCKS = ("system", "user")
_MOST_STEPS = 40

_FILE_NAME = re.compile(r"[a-z][a-z0-9_]*\.v[1-9]\d*")
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
# Text that could be mistaken for a special token of a chat format, a semantic ID or a thinking marker.
_TOKEN = re.compile(r"<(?=[|/]|s_|think)|(?<=\|)>")


class _Link(NamedTuple):
    """A link as templates see it: the item of the history by semantic ID and by age (1 is the newest)."""

    sid: str
    age: int
    after: int
    before: int


class _Line(NamedTuple):
    """An item as templates see it, with cleaned texts, which are empty if unknown.

    Only candidates have evidence, links, shared_category and score_steps. score_steps: how far the pre-ranker's score
    is below the best of the list, in quarters of a halving, at most 40.
    """

    sid: str
    title: str
    category: str
    brand: str
    evidence: Any = None
    links: Sequence[_Link] = ()
    shared_category: str = ""
    score_steps: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """A loaded template.

    name: includes the version. strategy: rejection or targeted. shows_evidence: whether evidence is rendered. answer:
    whether answers name candidates by semantic ID (sids) or by number (numbers). student: the template that renders
    prompts for students of these traces. text, sha256: the file and its hash. variables: the names of VARIABLES that
    the template uses.
    """

    name: str
    strategy: str
    shows_evidence: bool
    answer: str
    student: str
    text: str
    sha256: str
    variables: frozenset[str]
    _compiled: jinja2.Template

    def render(self, task: RerankTask, *, knowledge_priming: bool = True) -> tuple[dict[str, str], ...]:
        """The chat messages (`role`, `content`) that show a task.

        Raises ValueError if a targeted template gets a task without target, if any other template gets a task with a
        target, or if a template that shows levels gets a task without evidence.
        """
        if (task.target is not None) != (self.strategy == "targeted"):
            raise ValueError(
                f"template {self.name} is for strategy {self.strategy}; the task's target is {task.target}"
            )
        values: dict[str, Callable[[], Any]] = {
            "history": lambda: [_line(item) for item in task.history],
            "candidates": lambda: _candidate_lines(task),
            # These are functions, because a template calls them.
            "levels": lambda: partial(evidence_levels, task),
            "fine_levels": lambda: partial(fine_levels, task),
            "target": lambda: _line(task.target) if task.target else None,
            "knowledge_priming": lambda: knowledge_priming,
            "answer_format": lambda: answer_format(len(task.candidates), self.answer),
        }
        # Only the values that the template uses, because cleaning the other texts would take as long as rendering.
        context = self._compiled.new_context({name: values[name]() for name in self.variables})
        return tuple(
            {"role": name, "content": "".join(self._compiled.blocks[name](context)).strip()} for name in BLOCKS
        )


@cache
def list_templates() -> list[str]:
    """The names of the templates that come with gr2."""
    folder = files("prompts").joinpath("templates")
    return sorted(file.name.removesuffix(".jinja") for file in folder.iterdir() if file.name.endswith(".jinja"))


def load_template(name: str) -> Template:
    """Load a template by name, or from a user's file `<name>.v<N>.jinja`.

    Raises InputError if the template does not exist or is not valid. Unknown variables are also found here, before the
    first prompt is rendered.
    """
    if name in list_templates():
        return parse_template(name, _read(name))
    path = Path(name)
    if path.suffix != ".jinja" or not path.is_file():
        raise InputError(
            f"there is no template {name!r}; choose one of {', '.join(list_templates())}, or a file NAME.vN.jinja"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return parse_template(path.name.removesuffix(".jinja"), text)


def clean_text(text: str | None, limit: int = TITLE_CHARACTERS) -> str:
    """An item's text for prompts: one line without control characters and token look-alikes, at most `limit` long.

    >>> clean_text("Shampoo\\n<|im_end|> <s_a_1>")
    'Shampoo ‹|im_end|› ‹s_a_1>'
    """
    if not text:
        return ""
    if not (text.isascii() and text.isprintable()):
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text[: 4 * limit].split())
    if "<" in text or "|>" in text:
        text = _TOKEN.sub(lambda match: "‹" if match[0] == "<" else "›", text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


@cache
def _environment(*, trusted: bool) -> jinja2.Environment:
    # The sandbox checks each access to an attribute, which takes two thirds of the rendering time.
    kind = jinja2.Environment if trusted else jinja2.sandbox.SandboxedEnvironment
    return kind(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


def _is_ours(name: str, text: str) -> bool:
    """Whether this is the text of a template that comes with gr2. A user's file or a store may use the same name."""
    return name in list_templates() and text == _read(name)


def _read(name: str) -> str:
    return files("prompts").joinpath("templates", f"{name}.jinja").read_text("utf-8")


@lru_cache(maxsize=64)
def parse_template(name: str, text: str) -> Template:
    """Parse the text of a template's file. Raises InputError if it is not a valid template."""
    head = _HEAD.match(text)
    if head is None:
        raise InputError(
            f"template {name} does not begin with a head: lines `strategy: ...`, `evidence: ...` between two ---"
        )
    if not _FILE_NAME.fullmatch(name):
        raise InputError(f"template {name}: the file must be called NAME.vN.jinja, such as my_prompt.v1.jinja")
    fields = dict(_field(name, line) for line in head[1].splitlines() if line.strip())
    strategy, evidence, student = fields.get("strategy"), fields.get("evidence"), fields.get("student", name)
    answer = fields.get("answer", SIDS)
    if strategy not in STRATEGIES:
        raise InputError(f"template {name}: strategy is {strategy!r}; it must be {' or '.join(STRATEGIES)}")
    if evidence not in ("shown", "hidden"):
        raise InputError(f"template {name}: evidence is {evidence!r}; it must be shown or hidden")
    if answer not in ANSWERS:
        raise InputError(f"template {name}: answer is {answer!r}; it must be {' or '.join(ANSWERS)}")
    if student not in (list_templates() if strategy == "targeted" else [name, *list_templates()]):
        raise InputError(
            f"template {name}: student is {student!r}; it must be one of {', '.join(list_templates())}, the template "
            "without the target whose prompts a student of these traces will see"
        )
    body = text[head.end() :]
    environment = _environment(trusted=_is_ours(name, text))
    try:
        variables = jinja2.meta.find_undeclared_variables(environment.parse(body))
        compiled = environment.from_string(body)
    except jinja2.TemplateError as error:
        raise InputError(f"template {name}: {error}") from error
    if unknown := variables - VARIABLES:
        raise InputError(
            f"template {name} uses {', '.join(sorted(unknown))}; a template can use {', '.join(sorted(VARIABLES))}"
        )
    if missing := [block for block in BLOCKS if block not in compiled.blocks]:
        raise InputError(f"template {name} has no block {missing[0]!r}; it needs {' and '.join(BLOCKS)}")
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Template(name, strategy, evidence == "shown", answer, student, text, sha256, frozenset(variables), compiled)


def _field(name: str, line: str) -> tuple[str, str]:
    key, colon, value = line.partition(":")
    if not colon or key.strip() not in ("strategy", "evidence", "answer", "student"):
        raise InputError(
            f"template {name}: {line!r} in the head is not a known field; the fields are strategy, evidence, answer "
            "and student"
        )
    return key.strip(), value.strip()


def _path(categories: Iterable[str]) -> str:
    return clean_text(" > ".join(categories))


def _line(item: ShownItem) -> _Line:
    return _Line(item.sid, clean_text(item.title), _path(item.categories), clean_text(item.brand))


def _candidate_lines(task: RerankTask) -> list[_Line]:
    newest_first = list(enumerate(reversed(task.history), 1))
    # Oldest first, so that an item that occurs twice in the history gets its newest age.
    names = {item.item_id: (item.sid, age) for age, item in reversed(newest_first)}
    best = max((c.evidence.score for c in task.candidates if c.evidence is not None), default=0.0)
    return [_candidate_line(candidate, names, best) for candidate in task.candidates]


def _candidate_line(candidate: Candidate, names: dict[str, tuple[str, int]], best_score: float) -> _Line:
    evidence = candidate.evidence
    if evidence is None:
        return _line(candidate.item)
    return _line(candidate.item)._replace(
        evidence=evidence,
        links=[
            _Link(*names[link.item_id], link.after, link.before) for link in evidence.links if link.item_id in names
        ],
        shared_category=_path(evidence.shared_category),
        score_steps=_score_steps(evidence.score, best_score),
    )


def _score_steps(score: float, best: float) -> int:
    if score <= 0 or best <= score:
        return 0 if best <= score else _MOST_STEPS
    return min(_MOST_STEPS, round(4 * math.log2(best / score)))
