"""Rulesets: named, versioned lists of rules that decide which traces are accepted.

A ruleset is a row of the store. Its versions are kept for good. Traces, queues and snapshots name the version under
which they were made, so that a snapshot can be rebuilt after its ruleset has changed. Only stored verdicts decide
whether a trace passes a ruleset. `unjudged_traces` says where verdicts are missing, and `gr2 verify` adds them.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl

from curate.traces.rules import check_rule_names
from store import InputError, Session, Store
from store.former_names import VALUES
from store.names import check_name
from store.values import utc_now

MOST_DESCRIPTION = 500


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One version of a ruleset.

    rules: their names, which may be none; the first rule that a trace fails is its reason.
    """

    name: str
    version: int
    rules: tuple[str, ...]
    description: str

    @property
    def reference(self) -> str:
        """The ruleset as NAME@VERSION.

        >>> Ruleset("strict", 2, (), "").reference
        'strict@2'
        """
        return f"{self.name}@{self.version}"


def find_ruleset(session: Session, reference: str) -> Ruleset:
    """Find a ruleset by NAME, in the version in force, or by NAME@VERSION. Raises InputError if there is none."""
    name, _, version = reference.partition("@")
    name = VALUES["ruleset"].get(name, name)
    if version and not version.isdecimal():
        raise InputError(f"{reference!r} names no ruleset: write NAME or NAME@VERSION, such as strict@1")
    rows = session.rows("find_ruleset", name=name, version=int(version) if version else None)
    if not rows:
        known = ", ".join(known for (known,) in session.rows("ruleset_names"))
        raise InputError(f"no ruleset is called {reference!r}; there are: {known}")
    ((name, number, rules, description),) = rows
    return Ruleset(name, number, tuple(rules), description)


def list_rulesets(store: Store, *, all_versions: bool = False) -> pl.DataFrame:
    """The rulesets, by name and with the newest version first: name, version, rules, description, created_at (UTC)."""
    with store.reading() as session:
        return session.frame("ruleset_list", all_versions=all_versions)


def read_ruleset(path: Path) -> tuple[str, tuple[str, ...], str]:
    """Read name, rules and description of a ruleset from a TOML file.

    Raises InputError with the file and the mistake.
    """
    try:
        facts = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file: {error}") from error
    if foreign := sorted(facts.keys() - {"name", "rules", "description"}):
        raise InputError(f"{path}: unknown keys {', '.join(foreign)}; a ruleset has name, rules and description")
    name, rules, description = facts.get("name"), facts.get("rules"), facts.get("description", "")
    if not (isinstance(name, str) and isinstance(description, str) and isinstance(rules, list)) or not all(
        isinstance(rule, str) for rule in rules
    ):
        raise InputError(
            f'{path}: a ruleset needs name = "..." and rules = ["...", ...]; description = "..." is optional'
        )
    return name, tuple(rules), description


def write_ruleset(ruleset: Ruleset) -> str:
    """A ruleset as the TOML text that `read_ruleset` reads."""
    # A JSON string is also a TOML string.
    quoted = [orjson.dumps(rule).decode() for rule in ruleset.rules]
    rules = "".join(f"    {rule},\n" for rule in quoted)
    return (
        f"# {ruleset.reference}\n"
        f"name = {orjson.dumps(ruleset.name).decode()}\n"
        f"description = {orjson.dumps(ruleset.description).decode()}\n"
        f"rules = [\n{rules}]"
    )


def add_ruleset(store: Store, name: str, rules: Sequence[str], description: str = "") -> tuple[Ruleset, bool]:
    """Store a ruleset as version 1, or as the next version of its name. Also returns whether this version is new.

    If the newest version has the same rules and description, nothing is added. Raises InputError on an unusable name,
    on an unknown rule, and if a rule is named twice.
    """
    check_name("ruleset", name)
    if name in VALUES["ruleset"]:
        raise InputError(f"{name!r} is what gr2 0.1 called {VALUES['ruleset'][name]!r}; choose another name")
    if len(description) > MOST_DESCRIPTION:
        raise InputError(f"the description has {len(description):,} characters; at most {MOST_DESCRIPTION} are allowed")
    rules = check_rule_names(rules)
    if twice := sorted({rule for rule in rules if rules.count(rule) > 1}):
        raise InputError(f"the rules name {', '.join(twice)} more than once; name each rule once")
    with store.writing() as session:
        rows = session.rows("find_ruleset", name=name, version=None)
        newest = Ruleset(name, rows[0][1], tuple(rows[0][2]), rows[0][3]) if rows else None
        added = Ruleset(name, newest.version + 1 if newest else 1, rules, description)
        if newest and (newest.rules, newest.description) == (rules, description):
            return newest, False
        row = {
            "name": name,
            "version": added.version,
            "rules": list(rules),
            "description": description,
            "created_at": utc_now(),
        }
        session.insert("append_rulesets", pl.DataFrame([row], schema_overrides={"rules": pl.List(pl.String)}))
    return added, True


def pin_rulesets(session: Session, versions: dict[str, int]) -> None:
    """Make the views of this session use these versions of rulesets. Raises InputError if the store lacks one.

    A rebuild of an old snapshot needs this. Other sessions keep using the newest versions.
    """
    for name, version in versions.items():
        find_ruleset(session, f"{name}@{version}")
    session.execute("pin_rulesets", names=list(versions), versions=list(versions.values()))


def versions_in_force(session: Session, names: Sequence[str]) -> dict[str, int]:
    """The version of each named ruleset that the views of this session use."""
    return dict(session.rows("ruleset_versions", names=list(names)))


def unjudged_traces(session: Session, dataset: str | None = None) -> pl.DataFrame:
    """Where verdicts are missing: dataset, ruleset, version, rule, traces (their number).

    dataset: None means all datasets. A ruleset does not accept a trace that lacks a verdict of one of its rules.
    """
    return session.frame("unjudged_traces", dataset=dataset)


def describe_unjudged(missing: pl.DataFrame) -> list[str]:
    """A sentence for each row of `unjudged_traces`, with the command that adds the verdicts."""
    return [
        f"{traces:,} traces of {dataset} have no verdict of rule {rule}, so ruleset {ruleset}@{version} does not "
        f"accept them: run gr2 verify {dataset}"
        for dataset, ruleset, version, rule, traces in missing.iter_rows()
    ]
