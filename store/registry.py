"""Registries of exchangeable parts of gr2. Each part is found by its name or as `module:object`.

A name is one of gr2's own, or the name of an entry point of an installed package. It is looked up only when it is used,
and nothing is imported before that. The store keeps names as the user gave them, so that a run, a verdict or a snapshot
leads back to the same object. A registry knows only which attributes its objects must have.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from store.errors import InputError
from store.installation import missing_package
from store.names import is_name

T = TypeVar("T")

_MODULE_AND_OBJECT = re.compile(r"(?=.{1,100}$)[\w.]+:[\w.]+")


class Registry(Generic[T]):
    """Objects of one kind by name, such as the rules.

    kind: the word for such an object in messages. group: the group of entry points. builtin: gr2's own objects, each as
    the object itself or as "module:object". shape: a class whose public attributes an object must have; None for a
    callable.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, T | str], shape: type | None = None) -> None:
        self.kind = kind
        self.group = group
        self.builtin = dict(builtin)
        self._shape = shape
        self._loaded: dict[str, T] = {}

    def names(self) -> list[str]:
        """The names of gr2's own objects, then those of entry points. A `module:object` is never listed."""
        return [*self.builtin, *sorted(entry_points(group=self.group).names - self.builtin.keys())]

    def find(self, name: str) -> T:
        """The object with this name, or at `module:object`.

        Raises InputError if there is no such object, if its module cannot be imported, or if the object lacks an
        attribute.
        """
        entry = self._loaded.get(name, self.builtin.get(name))
        if entry is None or isinstance(entry, str):
            loaded = self._load(name, entry or self._locate(name))
            self._check(name, loaded)
            entry = self._loaded[name] = cast("T", loaded)
        return entry

    def _locate(self, name: str) -> str:
        """The `module:object` of an object that is not one of gr2's own."""
        if is_name(name) or _MODULE_AND_OBJECT.fullmatch(name):
            if ":" in name:
                # Scripts have the folder of their interpreter on the path, but not the current folder. It is added at
                # the end, so that nothing in it hides an installed module.
                if (here := str(Path.cwd())) not in sys.path:
                    sys.path.append(here)
                return name
            targets = {f"{point.module}:{point.attr}" for point in entry_points(group=self.group, name=name)}
            if len(targets) > 1:
                raise InputError(
                    f"installed packages have several {self.kind}s called {name!r}; choose one of "
                    f"{', '.join(sorted(targets))}"
                )
            if targets:
                return targets.pop()
        raise InputError(
            f"no {self.kind} is called {name!r}; there are: {', '.join(self.names())}. To use your own, write "
            "module:object, such as my_package.my_module:my_object"
        )

    def _load(self, name: str, target: str) -> Any:
        module, _, path = target.partition(":")
        try:
            value: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                raise InputError(
                    f"{self.kind} {name!r}: there is no module {error.name}; Python looked in {', '.join(sys.path)}"
                ) from error
            if name in self.builtin:
                raise missing_package(f"{self.kind} {name}", error.name, "train") from error
            raise InputError(f"{self.kind} {name!r} needs {error.name}, which is not installed") from error
        except Exception as error:  # a user's module may raise anything
            raise InputError(
                f"{self.kind} {name!r}: module {module} cannot be imported: {_describe_error(error)}"
            ) from error
        for attribute in path.split(".") if path else ():
            if not hasattr(value, attribute):
                raise InputError(f"{self.kind} {name!r}: module {module} ({_file_of(module)}) has no {path}")
            value = getattr(value, attribute)
        return value

    def _check(self, name: str, value: object) -> None:
        if self._shape is not None:
            require_attributes(f"{name!r}", value, self.kind, self._shape)
        elif not callable(value):
            raise InputError(f"{name!r} is not a {self.kind}: it is {_describe(value)}, which cannot be called")


class Factories(Registry[Callable[..., T]]):
    """Callables by name that make objects of one kind, such as teachers.

    A factory is a class or a function. It is called with the arguments that its signature names. made: a class whose
    public attributes the made object must have.
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str], made: type) -> None:
        super().__init__(kind, group, builtin)
        self._made = made

    def arguments(self, name: str) -> tuple[str, ...]:
        """The names of the factory's arguments. Raises the errors of `find`."""
        return tuple(inspect.signature(self.find(name)).parameters)

    def make(self, name: str, context: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> T:
        """Call the factory with this name.

        context: arguments that are passed if the factory's signature names them. options: values that the user set,
        which the factory must accept; None means not set.

        Raises InputError if the factory does not accept an option or needs an argument that is not given, or if the
        made object lacks an attribute.
        """
        factory = self.find(name)
        given = {option: value for option, value in (options or {}).items() if value is not None}
        parameters = inspect.signature(factory).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for option in given:
            if option not in parameters and not takes_all:
                own = ", ".join(f"`{argument}`" for argument in parameters if argument not in context)
                raise InputError(f"{self.kind} {name!r} takes no `{option}`; it takes {own or 'no options'}")
        arguments = {argument: value for argument, value in context.items() if argument in parameters} | given
        for argument, parameter in parameters.items():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if argument not in arguments and parameter.default is parameter.empty and not variadic:
                raise InputError(f"{self.kind} {name!r} needs `{argument}`, which is not given")
        made = factory(**arguments)
        require_attributes(f"the result of {name!r}", made, self.kind, self._made)
        return made


def require_attributes(what: str, value: object, kind: str, shape: type) -> None:
    """Raise InputError if an object lacks a public attribute of a class. what: the object in the message."""
    public = dict.fromkeys(name for name in (*vars(shape), *inspect.get_annotations(shape)) if not name.startswith("_"))
    missing = [name for name in public if not hasattr(value, name)]
    if missing:
        raise InputError(f"{what} is not a {kind}: {_describe(value)} lacks {', '.join(missing)}")


def _describe(value: object) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"an object of {type(value).__qualname__}"


def _describe_error(error: Exception) -> str:
    """The error of a module and its place, which a SyntaxError already contains."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" ({place.filename}:{place.lineno})"
    return f"{type(error).__name__}: {error}{where}"


def _file_of(module: str) -> str:
    return str(getattr(sys.modules[module], "__file__", None) or "built in")
