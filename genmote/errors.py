"""Every error that genmote raises on purpose.

The tree (a user's mistake is one line on the terminal and exit status 2, never a traceback):

    GenmoteError                exit 1   something failed that the user did not cause
    ├── PullError               exit 2   a model could not be fetched; nothing half was left
    ├── TrainingError                    a training came to nothing: no number, no better than the base, a full disk
    └── UserError               exit 2   the input cannot be used as it is
        ├── SpecError                    a setting has a value that nothing supports
        ├── ModelNameError               no model of that name, or no file at that path
        ├── ModelFileError               a model file is damaged, truncated or not a model
        ├── ContextError                 the text does not fit the model's context
        ├── BudgetError                  the model does not fit the memory, or the deadline, that was given
        ├── OpsError                     unknown op set or instruction set, or its kernels are absent
        ├── NoJailError                  no control group with limits can be made here
        ├── GrammarError                 a JSON schema or grammar that cannot constrain anything
        ├── TemplateError                a chat template that is absent or does not render
        ├── ServeError                   the server cannot start as asked
        ├── SignalError                  a recording is damaged, or holds no such signal
        └── ExamplesError                a file of examples that nothing can be learnt from
"""

from __future__ import annotations


class GenmoteError(Exception):
    """Base of all errors; ``exit_status`` is what a command line program ends with."""

    exit_status = 1


class PullError(GenmoteError):
    exit_status = 2


class TrainingError(GenmoteError):
    """A training came to nothing: its loss is no number any more, what it keeps cannot be written, or what was learnt
    is no better than the base and would take a file's place."""


class UserError(GenmoteError):
    exit_status = 2


class SpecError(UserError):
    """A setting has a value that nothing supports."""


class ModelNameError(UserError):
    """No model of that name is known and no file lies at that path."""


class ModelFileError(UserError):
    """A model file is damaged, truncated, lies about its sizes, or is not a model file."""


class ContextError(UserError):
    """The text does not fit the model's context."""


class BudgetError(UserError):
    """The model does not fit the memory, or cannot meet the deadline, that was given."""

    def __init__(self, message: str, least_bytes: int | None = None) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes  # the smallest budget that does, where it is memory that lacks


class OpsError(UserError):
    """An op set or instruction set is unknown, or its kernels are absent here."""


class NoJailError(UserError):
    """No control group with limits can be made here, or no process may be put into one."""


class GrammarError(UserError):
    """A JSON schema or grammar cannot be compiled into a constraint."""


class TemplateError(UserError):
    """A chat template is absent or does not render."""


class ServeError(UserError):
    """The server cannot start or listen as asked."""


class SignalError(UserError):
    """A recording is damaged, or what is looked for is not in it."""


class ExamplesError(UserError):
    """A file of examples is damaged, or nothing can be learnt from it."""
