"""Chooses the semantic IDs and candidate lists for a command if the user did not name them."""

from collections.abc import Sequence

from store import InputError, Session


def choose_sources(session: Session, dataset: str, sid_version: str | None, pre_ranker: str | None) -> tuple[str, str]:
    """The semantic-ID version that tasks show, and the pre-ranker whose candidate lists are used.

    By default they are the newest version that is fit for training, and the only pre-ranker. Raises InputError if one
    of them does not exist, or if there are several pre-rankers and none is named.
    """
    pre_rankers = [name for (name,) in session.rows("pre_ranker_names", dataset=dataset)]
    if pre_ranker is None and len(pre_rankers) > 1:
        raise InputError(f"{dataset!r} has candidate lists by {', '.join(pre_rankers)}; choose one with `pre_ranker`")
    return (
        choose_sids(session, dataset, sid_version),
        choose(
            "pre-ranker",
            pre_ranker,
            pre_rankers,
            f"run gr2 candidates {dataset} first",
        ),
    )


def choose_sids(session: Session, dataset: str, version: str | None) -> str:
    """A semantic-ID version that is fit for training, by default the newest. Raises InputError if it does not exist."""
    return choose(
        "semantic-ID version fit for training",
        version,
        [name for (name,) in session.rows("sid_version_names", dataset=dataset)],
        f"run gr2 sids {dataset} first",
    )


def choose(what: str, name: str | None, names: Sequence[str], where_none: str) -> str:
    """The entry `name` of `names`, or the first entry if `name` is None. Raises InputError if there is none."""
    if not names:
        raise InputError(f"there is no {what} yet; {where_none}")
    if name is None:
        return names[0]
    if name not in names:
        raise InputError(f"no {what} is called {name!r}; there are: {', '.join(names)}")
    return name
