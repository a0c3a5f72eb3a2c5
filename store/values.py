"""Values as the store keeps them: times in UTC without a zone, text that every database takes."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """This moment in UTC, without a zone: DuckDB's TIMESTAMP."""
    return datetime.now(UTC).replace(tzinfo=None)


def storable_text(text: str) -> str:
    """The text with each lone surrogate, which is no character, as U+FFFD.

    >>> storable_text("a\\ud800b")
    'a\\ufffdb'
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
