"""Messages of long work to whoever started it."""


class Notice(str):
    """A message that people should find again when the work is done, where others give way to the next one."""

    __slots__ = ()


class Counted(str):
    """A message that also says how far the work is, so that a view can tell how long the rest will take.

    done, total: in whatever the work is counted in; 0 <= done <= total.
    """

    done: int
    total: int

    def __new__(cls, text: str, done: int, total: int) -> "Counted":
        message = super().__new__(cls, text)
        message.done, message.total = done, total
        return message
