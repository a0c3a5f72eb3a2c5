"""Spellings of gr2 0.1 on the command line. Each still works until 0.3, with one line of warning."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import typer

from store.former_names import VALUES

FLAGS: dict[str, dict[str, str]] = {
    "trace": {"--policy": "--ruleset", "--accept": "--num-accepted"},
    "eval": {"--ways": "--modes"},
    "candidates": {"--from": "--scores"},
    "publish": {"--policy": "--ruleset", "--text": "--text-dir"},
    "sft": {"--order-weight": "--answer-weight", "--accumulation": "--gradient-accumulation-steps"},
    "dapo": {
        "--group": "--num-generations",
        "--prompts": "--prompts-per-batch",
        "--updates": "--num-iterations",
        "--accumulation": "--gradient-accumulation-steps",
        "--alpha": "--format-weight",
    },
}


def replace_flags(command: str, words: Sequence[str]) -> list[str]:
    """Return the words of a command line with today's flags."""
    today = []
    for word in words:
        flag, equals, value = word.partition("=")
        if new := FLAGS.get(command, {}).get(flag):
            _warn(flag, new)
            word = f"{new}{equals}{value}"  # noqa: PLW2901
        today.append(word)
    return today


def replace_values(params: MutableMapping[str, Any], flags: Mapping[str, str]) -> None:
    """Replace former names of values by today's. flags: the flag of each parameter."""
    for name in params.keys() & VALUES.keys():
        if not isinstance(params[name], str):
            continue
        former = params[name].split(",")
        today = [VALUES[name].get(value, value) for value in former]
        for old, new in zip(former, today, strict=True):
            if old != new:
                _warn(f"{flags[name]} {old}", f"{flags[name]} {new}")
        params[name] = ",".join(today)


def _warn(old: str, new: str) -> None:
    typer.echo(f"gr2: {old} is now {new}; the old name will be removed in 0.3", err=True)
