"""Prompts: templates, semantic IDs as text, and the parser of completions. It knows no teachers and no database."""

from prompts.completion import (
    ParsedCompletion,
    ParseFailure,
    ParseReason,
    completion_schema,
    parse_completion,
    render_completion,
)
from prompts.semantic_ids import find_sids, parse_sid, render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem
from prompts.templates import Template, list_templates, load_template

__all__ = [
    "Candidate",
    "ParseFailure",
    "ParseReason",
    "ParsedCompletion",
    "RerankTask",
    "ShownItem",
    "Template",
    "completion_schema",
    "find_sids",
    "list_templates",
    "load_template",
    "parse_completion",
    "parse_sid",
    "render_completion",
    "render_sid",
]
