"""The errors that gr2 raises on purpose. The command line prints them as one line and exits.

    Gr2Error                 exit 1: a failure that the user's input did not cause
    ├── InputError           exit 2: a file, name or option is wrong
    ├── StoreError           the store cannot be read or written
    │   └── StoreBusyError   another process holds it
    ├── SnapshotError        a snapshot is damaged, or must not be published
    └── TeacherError         exit 2: the teacher cannot answer any request (wrong key, URL or model)

A bad trace is never an error: it is a row with a reason. A message names a setting by its field, in backticks:
`max_attempts`. The command line shows the flag in its place.
"""


class Gr2Error(Exception):
    """Base of all errors raised on purpose. The message says what happened, the value seen and what to do."""

    exit_code = 1


class InputError(Gr2Error):
    """A file, name or option is wrong. Nothing was written."""

    exit_code = 2


class StoreError(Gr2Error):
    """The store cannot be read or written."""


class StoreBusyError(StoreError):
    """Another process held the store for longer than the maximum wait."""


class SnapshotError(Gr2Error):
    """A snapshot is damaged, or its selection must not be published."""


class TeacherError(Gr2Error):
    """The teacher cannot answer any request: a wrong key, URL or model. It stops the run at once."""

    exit_code = 2
