"""Values in the form that the store keeps: times in UTC without a zone, and text that every database accepts."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time in UTC without a zone, as DuckDB's TIMESTAMP."""
    return datetime.now(UTC).replace(tzinfo=None)


def storable_text(text: str) -> str:
    """The text with each lone surrogate, which is not a character, and each NUL replaced by U+FFFD.

    >>> storable_text("a\\ud800b")
    'a\\ufffdb'
    """
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    # Tools that read the store's files in C end a text at a NUL.
    return text.replace("\0", "\ufffd")
