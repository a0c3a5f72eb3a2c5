"""Recognises the columns of a file by names that common dumps use, and by names that a user gives in `columns`.

It turns rows of fields and objects into rows under gr2's column names. Values are converted in
`curate.datasets.values`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from curate.datasets.files import fail, parquet_columns, read_delimited_rows, read_parquet_rows, shorten
from curate.datasets.values import split_categories
from store import InputError

# The preferred names come first. They are in lower case, without blanks, underscores, hyphens and the part after a
# colon (RecBole writes the type there).
_ITEM_IDS = (
    *("itemid", "parentasin", "asin", "movieid", "productid", "articleid", "bookid", "businessid", "videoid"),
    *("trackid", "songid", "artistid", "gameid", "appid", "newsid", "recipeid", "animeid", "isbn", "sku"),
    *("item", "product", "movie", "book", "video", "track", "iid"),
)
_PRODUCT_TITLES = (
    *("itemtitle", "itemname", "movietitle", "producttitle", "productname", "prodname", "booktitle", "videotitle"),
    *("gametitle", "appname", "songtitle", "songname", "tracktitle", "trackname", "businessname", "keyphrase"),
)
_CATEGORIES = (
    *("categories", "category", "genres", "genre", "class", "categorycode", "categoryname", "producttypename"),
    *("productgroupname", "firstlevelcategoryname", "tags", "tag", "topics", "feat", "maincategory"),
)
_BRANDS = ("brand", "brandname", "store", "manufacturer", "publisher", "developer", "author", "artistname", "artist")
ITEM_NAMES = {
    "item_id": (*_ITEM_IDS, "id"),
    "title": ("title", "name", *_PRODUCT_TITLES, "caption"),
    "categories": _CATEGORIES,
    "brand": _BRANDS,
    "description": ("description", "detaildesc"),
}
INTERACTION_NAMES = {
    "user_id": (
        *("userid", "reviewerid", "visitorid", "customerid", "memberid", "playerid", "uid", "username", "user"),
        *("customer", "visitor", "sessionid", "session"),
    ),
    "item_id": _ITEM_IDS,
    "position": ("position", "order"),
    # Finer times come first.
    "timestamp": (
        *("timestampns", "timens", "timestampus", "timeus", "timestampms", "timems", "timestamp", "unixreviewtime"),
        *("unixtime", "ts", "eventtime", "eventtimestamp", "time", "datetime", "createdat", "dateadded", "reviewtime"),
        *("reviewdate", "clicktime", "date", "tdat", "day", "sortingtimestamp"),
    ),
    "rating": ("rating", "overall", "stars", "score"),
}
# Item columns that a log may have when there is no file of items. A bare "title" is not among them, because it may be
# the title of a review.
LOG_ITEM_NAMES: dict[str, tuple[str, ...]] = {
    "title": _PRODUCT_TITLES,
    "categories": _CATEGORIES,
    "brand": ("brand", "brandname", "manufacturer"),
    "description": (),
}
_SEPARATORS = {"categories": "|;,", "genres": "|;,", "tags": "|;,", "tag": "|;,", "topics": "|;,", "categorycode": "."}
_ORDER = ("timestamp", "position")

Rows = Iterator[tuple[int, dict[str, Any]]]
"""The line number of each row, from 1, and its values under gr2's column names.

Absent values are missing or None. Values have the types of the file (texts, numbers, times, lists). They are converted
and checked later.
"""


class Match(NamedTuple):
    """The meaning of a column.

    column: gr2's name. place: how well the name fits; the lowest is best. separators: what separates categories in a
    text.
    """

    column: str
    place: int
    separators: str = ""


@dataclass(frozen=True, slots=True)
class GivenColumns:
    """Column names that a user gave.

    pairs: gr2's name and the user's name. used: the user's names that some file has; it fills up while files are read.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    used: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, pairs: Sequence[str]) -> "GivenColumns":
        """Parse pairs such as `user_id=visitorid`. Raises InputError on any other text."""
        known = {**INTERACTION_NAMES, **ITEM_NAMES}
        columns = []
        for pair in pairs:
            ours, equals, theirs = (part.strip() for part in pair.partition("="))
            if not equals or not theirs or ours not in known:
                raise InputError(
                    f"`columns` has {pair!r}; each pair must be OURS=THEIRS, such as user_id=visitorid, where OURS is "
                    f"one of {', '.join(known)}"
                )
            columns.append((ours, theirs))
        return cls(tuple(columns))

    def check_used(self, paths: Sequence[Path]) -> None:
        """Raise InputError if no file had one of the names, because it is probably misspelt."""
        for ours, theirs in self.pairs:
            if theirs not in self.used:
                places = " or ".join(map(str, paths))
                raise InputError(f"`columns` has {ours}={theirs}, but there is no column {theirs!r} in {places}")


class Columns:
    """The column names of one file.

    names: the known names of each of gr2's columns. required: the columns that every row must have. given: names from
    the user, which replace the known ones. item_id keeps its known names too, because its name may differ between the
    two files. A given name may be a path into a JSON object, such as product.id.
    """

    def __init__(
        self, names: Mapping[str, Sequence[str]], required: Sequence[str], given: GivenColumns | None = None
    ) -> None:
        given = given or GivenColumns()
        self.required = required
        self._used = given.used
        self._given = {theirs: ours for ours, theirs in given.pairs if ours in names}
        replaced = set(self._given.values()) - {"item_id"}
        self._names = {ours: () if ours in replaced else known for ours, known in names.items()}
        self._needs_order = "timestamp" in names and "user_id" in required
        self._paths = [(theirs, theirs.split(".")) for theirs in self._given if "." in theirs]

    def find(self, name: str) -> Match | None:
        """The meaning of a column with this name, or None if the name is unknown."""
        name = str(name)
        bare = name.strip().strip('"')
        ours = self._given.get(name) or self._given.get(bare) or self._given.get(bare.split(":", 1)[0])
        normal = _normal(name)
        separators = " " if name.endswith(":token_seq") else ""
        separators = _SEPARATORS.get(normal, "") + ("," if separators else "") + separators
        if ours is not None:
            self._used.update({name, bare, bare.split(":", 1)[0]} & self._given.keys())
            return Match(ours, -1, separators)
        for ours, known in self._names.items():
            if normal in known:
                return Match(ours, known.index(normal), separators)
        return None

    def choose(self, path: Path, header: Sequence[str]) -> dict[str, tuple[int, str]]:
        """The index in the header and the separators, for each of gr2's columns that the header has.

        Raises InputError if a required column is missing, or if two columns fit equally well.
        """
        best: dict[str, tuple[int, int, str]] = {}
        for index, name in enumerate(header):
            match = self.find(name)
            if match is None:
                continue
            known = best.get(match.column)
            if known is not None and known[0] == match.place:
                other = header[known[1]]
                fail(
                    path,
                    1,
                    f"there are two columns for {match.column}, {other!r} and {name!r}; "
                    + ("rename one of them" if other == name else f"choose one with `columns`: {match.column}={name}"),
                )
            if known is None or match.place < known[0]:
                best[match.column] = (match.place, index, match.separators)
        self._check(path, 1, best, header, "no column ")
        self._check_given(path, header)
        return {column: (index, separators) for column, (_, index, separators) in best.items()}

    def _check(
        self, path: Path, line: int, columns: Mapping[str, Any], header: Sequence[object], no: str = "no "
    ) -> None:
        for column in self.required:
            if column not in columns:
                names = [theirs for theirs, ours in self._given.items() if ours == column]
                named = f" called {names[0]!r}, which `columns` gives" if names else ""
                fail(
                    path,
                    line,
                    f"{no}{column}{named}; the columns are {_list(header)}; name it with `columns`: {column}=THEIRS",
                )
        if self._needs_order and not any(column in columns for column in _ORDER):
            fail(
                path,
                line,
                "neither timestamp nor position; one of them must give the order of a user's interactions; the columns "
                f"are {_list(header)}; name it with `columns`: timestamp=THEIRS",
            )

    def _check_given(self, path: Path, header: Sequence[object]) -> None:
        """Raise InputError if the user gave a name that the file does not have."""
        for theirs, ours in self._given.items():
            if ours != "item_id" and theirs not in self._used:
                fail(path, 1, f"no column {theirs!r}, which `columns` gives; the columns are {_list(header)}")

    def rows_of_objects(self, path: Path, rows: Rows) -> Rows:
        """Rows from objects, whose keys may differ from row to row.

        Raises InputError if a row lacks a required column.
        """
        matches: dict[str, Match | None] = {}
        sources: dict[str, str] = {}
        first = True
        for number, row in rows:
            values: dict[str, Any] = {}
            places: dict[str, int] = {}
            for key, value in row.items():
                if key not in matches:
                    matches[key] = self.find(key)
                match = matches[key]
                if match is None or value is None or value in ("", []):
                    continue
                column, place, separators = match
                if place < places.get(column, 99):
                    if separators and column == "categories" and isinstance(value, str):
                        value = split_categories(value, separators)  # noqa: PLW2901
                    values[column], places[column], sources[column] = value, place, key
            for theirs, path_to in self._paths:
                if (value := _follow(row, path_to)) is not None:
                    values[self._given[theirs]] = value
                    self._used.add(theirs)
            self._check(path, number, values, [*row])
            if first:
                first = False
                # The identifier columns of the first row are used for the whole file, even if later rows have other
                # ones too.
                for column in self.required:
                    if (source := sources.get(column)) and (match := matches[source]):
                        matches[source] = match._replace(place=-1)
            yield number, values
        self._check_given(path, [*matches])

    def rows_of_parquet(self, path: Path) -> Rows:
        """Rows of a Parquet file. Only the recognised columns are read."""
        names = parquet_columns(path)
        if any(path_to[0] in names for _, path_to in self._paths):
            yield from self.rows_of_objects(path, read_parquet_rows(path))
            return
        chosen = self.choose(path, names)
        by_name = {names[index]: (column, separators) for column, (index, separators) in chosen.items()}
        for number, row in read_parquet_rows(path, list(by_name)):
            values = {}
            for name, value in row.items():
                column, separators = by_name[name]
                if separators and column == "categories" and isinstance(value, str):
                    value = split_categories(value, separators)  # noqa: PLW2901
                values[column] = value
            yield number, values

    def rows_under_header(self, path: Path, delimiter: str) -> Rows:
        """Rows of a delimited file with a header.

        Raises InputError if a required column is missing, or if no row follows the header.
        """
        rows = read_delimited_rows(path, delimiter)
        _, header = next(rows)
        chosen = self.choose(path, header)
        columns = [(column, index) for column, (index, _) in chosen.items()]
        separated = chosen["categories"][1] if "categories" in chosen else ""
        empty = True
        for number, fields in rows:
            empty = False
            row: dict[str, Any] = {column: fields[index] for column, index in columns}
            if separated:
                row["categories"] = split_categories(row["categories"], separated)
            yield number, row
        if empty:
            fail(path, 1, "there are no rows after the header")


def _normal(name: str) -> str:
    bare = str(name).split(":", 1)[0].strip().strip('"').lower()
    return bare.replace("_", "").replace(" ", "").replace("-", "")


def _follow(row: Any, path: Sequence[str]) -> Any:
    """The value at the end of a path through nested objects, or None if there is none."""
    for key in path:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _list(names: Sequence[object]) -> str:
    return shorten(", ".join(map(str, names)), 400).strip("'\"")
