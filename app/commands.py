"""Makes commands from functions: a parameter for a settings dataclass becomes the options of that dataclass.

Flags are known only here. Errors of the core name fields, and a command replaces the fields by its flags. Spellings of
gr2 0.1 are understood, with a warning.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import partial, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from app import former_spellings
from store.errors import Gr2Error, InputError
from store.settings import Option, options_of

Given = dict[str, Any]
"""The options that somebody typed, by field; the others keep the dataclass's defaults."""


class OptionsOf:
    """Names the settings of a parameter, as in `Annotated[Given, OptionsOf(EvalSettings)]`.

    names: the fields that become options; without names, all fields with a help text.
    """

    def __init__(self, settings: type, *names: str) -> None:
        options = {name: field_option for name, field_option in options_of(settings).items() if field_option.help}
        self._settings = settings
        self._options = {name: options[name] for name in names or options}

    def parameters(self) -> dict[str, "_Parameter"]:
        """The typer parameter of each field."""
        types = get_type_hints(self._settings)
        defaults = {field.name: None if field.default is MISSING else field.default for field in fields(self._settings)}
        return {
            name: _Parameter.of(name, field_option, types[name], defaults[name])
            for name, field_option in self._options.items()
        }


class _Parameter(NamedTuple):
    """A field as typer takes it. read: turns the typed text into the value of the field."""

    annotation: Any
    default: Any
    read: Callable[[Any], Any]

    @classmethod
    def of(cls, name: str, field_option: Option, kind: Any, default: Any) -> "_Parameter":
        bare = _without_none(kind)
        several, is_object, is_switch = get_origin(bare) is tuple, get_origin(bare) is Mapping, bare is bool
        read: Callable[[Any], Any] = _as_it_is
        if several:
            read = partial(_read_several, name, get_args(bare)[0])
            bare, default = str, ",".join(map(str, default)) if default else None
        if is_object:
            bare, read = str, partial(_read_object, name)
        flag = "--" + (field_option.flag or name).replace("_", "-")
        facts = [] if default is None or is_switch else [f"default: {default}"]
        if field_option.allowed and not field_option.choices:
            facts.append(field_option.allowed)
        option = typer.Option(
            # If the default is on, or depends on other settings, a flag is needed to turn the option off.
            f"{flag}/--no-{flag[2:]}" if is_switch and default is not False else flag,
            help=f"{field_option.help}  [{'; '.join(facts)}]" if facts else field_option.help,
            show_default=is_switch,
            metavar="JSON" if is_object else "|".join(field_option.choices) or None,
            rich_help_panel=field_option.group,
            autocompletion=(lambda: list(field_option.choices)) if field_option.choices else None,
        )
        return cls(Annotated[bare if default is not None else bare | None, option], default, read)


def _as_it_is(value: Any) -> Any:
    return value


def _read_several(name: str, kind: type, typed: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(each) for each in typed.split(","))
    except ValueError:
        raise InputError(f"`{name}` is {typed!r}; it must be whole numbers, separated by commas") from None


def _read_object(name: str, typed: str | None) -> Any:
    if typed is None:
        return None
    try:
        return json.loads(typed)
    except ValueError as error:
        # The typed text is not repeated, because it may contain a key.
        raise InputError(f"`{name}` is not JSON ({error}); it must be a JSON object") from None


def _without_none(kind: Any) -> Any:
    if not isinstance(kind, UnionType):
        return kind
    (bare,) = (each for each in get_args(kind) if each is not NoneType)
    return bare


class Command(TyperCommand):
    """A command that lists its options by group, names flags in its errors, and understands former spellings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace former spellings of options and of their values by today's."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        rest = super().parse_args(ctx, former_spellings.replace_flags(self.name or "", args))
        former_spellings.replace_values(ctx.params, self._flags())
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. If an error names a field in backticks, it names the flag instead."""
        try:
            return super().invoke(ctx)
        except Gr2Error as error:
            flags = self._flags()
            error.args = (re.sub(r"`(\w+)`", lambda name: flags.get(name[1], name[0]), str(error)),)
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group of options under its heading. typer does this only in Rich's frames."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                own = "Arguments" if param.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(param, "rich_help_panel", None) or own, []).append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def _flags(self) -> dict[str, str]:
        """The flag or metavar that users type for each parameter."""
        return {
            param.name: param.metavar or param.name.upper() if param.param_type_name == "argument" else param.opts[0]
            for param in self.params
            if param.name
        }


def add_command(group: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Add a function as a command. A parameter `Annotated[Given, OptionsOf(...)]` becomes options.

    The function gets the options that were typed. typer handles all other parameters. name: None means the name of the
    function.
    """
    group.command(name, cls=Command)(_expanded(function))


def _expanded(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function with a signature that typer understands."""
    own: dict[str, inspect.Parameter] = {}
    parts: dict[str, dict[str, _Parameter]] = {}
    for parameter in inspect.signature(function).parameters.values():
        part = {
            name: option
            for settings in getattr(parameter.annotation, "__metadata__", ())
            if isinstance(settings, OptionsOf)
            for name, option in settings.parameters().items()
        }
        if not part:
            own[parameter.name] = parameter.replace(kind=parameter.KEYWORD_ONLY)
            continue
        parts[parameter.name] = part
        for name, (annotation, default, _) in part.items():
            own[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    @wraps(function)
    def run(ctx: typer.Context, **values: Any) -> None:
        for part, part_parameters in parts.items():
            every = {name: values.pop(name) for name in part_parameters}
            values[part] = {
                name: part_parameters[name].read(value) for name, value in every.items() if _is_typed(ctx, name)
            }
        function(**values)

    context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    signature = inspect.Signature([context, *own.values()])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return run


def _is_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
