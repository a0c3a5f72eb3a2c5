"""SQL that people write, on the store's read-only, locked-down connection."""

import duckdb
import polars as pl

from store import InputError, Store


def run_sql(store: Store, query: str) -> pl.DataFrame:
    """The rows of one statement. Raises InputError with DuckDB's own message, position included, where it fails."""
    with store.reading() as session:
        try:
            relation = session.connection.sql(query)
            if relation is None:
                raise InputError("the statement gives no rows; gr2 sql is for queries")
            rows: pl.DataFrame = relation.pl()
        except duckdb.Error as error:
            raise InputError(str(error).strip()) from error
    return rows
