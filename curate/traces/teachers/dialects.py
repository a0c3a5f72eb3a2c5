"""The dialect of the chat protocol that a server understands: which parameters it knows, and by which names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from curate.endpoints.failures import ServerFailure
from curate.traces.teachers.protocol import TeacherRequest


@dataclass(frozen=True, slots=True)
class Dialect:
    """The parameters of a request, for servers that do not know all of them.

    limit: the name of the parameter for the maximum number of tokens. seeded: whether a seed is sent.
    """

    response_format: Literal["json_schema", "json_object", "off"]
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seeded: bool = True

    def parameters(self, request: TeacherRequest) -> dict[str, Any]:
        """The parameters of a request that differ between dialects."""
        parameters: dict[str, Any] = {self.limit: request.max_tokens}
        if self.seeded:
            parameters["seed"] = request.seed
        if self.response_format == "json_schema":
            schema: Mapping[str, Any] = {"name": "rerank", "strict": True, "schema": dict(request.response_schema)}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.response_format == "json_object":
            parameters["response_format"] = {"type": "json_object"}
        return parameters


def may_concern_dialect(failure: ServerFailure) -> bool:
    """Whether simpler parameters could help.

    They cannot if the complaint is about length, content or a missing model.
    """
    if failure.status >= 500:
        # llama.cpp reports a schema that it cannot compile as a server error.
        return failure.about_format
    if failure.status not in (400, 422):
        return False
    if _named(Dialect("json_schema"), failure) is not None:
        return True
    return not (failure.about_content or failure.about_length or failure.about_completion_length)


def simpler_dialect(dialect: Dialect, failure: ServerFailure, *, keep_format: bool = False) -> Dialect | None:
    """Return the dialect to try after a server's complaint, or None if nothing simpler is left.

    A parameter that the complaint names is given up first. Otherwise the order is the response format, the seed, and
    the name `max_tokens`. Each step gives up one of them, so there are at most four steps. keep_format: never give up
    the response format.
    """
    named = _named(dialect, failure, keep_format=keep_format)
    if named is not None:
        return named
    if dialect.response_format != "off" and not keep_format:
        return _simpler_format(dialect)
    if dialect.seeded:
        return replace(dialect, seeded=False)
    return replace(dialect, limit="max_completion_tokens") if dialect.limit == "max_tokens" else None


def _named(dialect: Dialect, failure: ServerFailure, *, keep_format: bool = False) -> Dialect | None:
    """Return the dialect without the parameter that the complaint names, or None if it names none of them."""
    if (
        dialect.limit == "max_tokens"
        and "max_completion_tokens" in failure.about
        # Servers also name both parameters when a prompt is too long for the model.
        and re.search(r"unsupported|not supported|instead", failure.about, re.IGNORECASE)
    ):
        return replace(dialect, limit="max_completion_tokens")
    # It must be a name and not a word: "chia seed" may be part of a prompt that the complaint repeats.
    if dialect.seeded and (failure.param == "seed" or re.search(r"[\"'`.]seed\b", failure.words)):
        return replace(dialect, seeded=False)
    if dialect.response_format != "off" and failure.about_format and not keep_format:
        return _simpler_format(dialect)
    return None


def _simpler_format(dialect: Dialect) -> Dialect:
    return replace(dialect, response_format="json_object" if dialect.response_format == "json_schema" else "off")
