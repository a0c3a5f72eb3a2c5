"""Which semantic IDs and whose candidate lists a command works on, where the user named none."""

from collections.abc import Sequence

from store import InputError, Session


def choose_sources(session: Session, dataset: str, sid_version: str | None, pre_ranker: str | None) -> tuple[str, str]:
    """The semantic IDs that tasks show, by default the newest, and whose candidate lists, by default the only ones.

    Raises InputError, also where lists of several pre-rankers are there and none is named.
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


def choose_sids(session: Session, dataset: str, wanted: str | None) -> str:
    """A version of semantic IDs that is fit for training, by default the newest. Raises InputError."""
    return choose(
        "semantic-ID version fit for training",
        wanted,
        [name for (name,) in session.rows("sid_version_names", dataset=dataset)],
        f"run gr2 sids {dataset} first",
    )


def choose(what: str, wanted: str | None, known: Sequence[str], where_none: str) -> str:
    """The wanted one of `known`, or the first where none is wanted. Raises InputError."""
    if not known:
        raise InputError(f"there is no {what} yet; {where_none}")
    if wanted is None:
        return known[0]
    if wanted not in known:
        raise InputError(f"no {what} is called {wanted!r}; there are: {', '.join(known)}")
    return wanted
