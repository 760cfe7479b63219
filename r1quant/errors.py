"""Every error a user can meet.

    R1QuantError                 message, hint, exit_code, kind
    ├── RecipeError         2    the options, or their fit to the model, are wrong
    ├── ResumeError         2    a run directory or output holds something else
    ├── CheckpointError     3    the model files cannot be used
    ├── RecordError         3    a record does not hold what its kind of record holds
    ├── CalibrationError    3    the calibration or test text cannot be used
    ├── NumericError        3    NaN or Inf where numbers are needed
    ├── OutOfSpaceError     3    the disk cannot hold the result
    ├── PlatformError       3    r1quant does not run on this system
    ├── UploadError         3    the Hub did not take what was sent
    └── MissingDependency   4    an optional package is not installed

A message says in one line what is wrong, a hint says in one line what to do.
"""

from __future__ import annotations


class R1QuantError(Exception):
    """Base of all errors that are shown to a user without a traceback."""

    exit_code = 3

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def kind(self) -> str:
        return type(self).__name__

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}"


class RecipeError(R1QuantError):
    exit_code = 2


class ResumeError(R1QuantError):
    exit_code = 2


class CheckpointError(R1QuantError):
    exit_code = 3


class RecordError(R1QuantError):
    exit_code = 3


class CalibrationError(R1QuantError):
    exit_code = 3


class NumericError(R1QuantError):
    exit_code = 3

    @classmethod
    def overflow(cls, what: str) -> NumericError:
        """what: which numbers, and "hold" or "holds"."""
        return cls(
            f"{what} NaN or Inf on the calibration text",
            "use --dtype float32; if that does not help, the model itself overflows on this text",
        )


class OutOfSpaceError(R1QuantError):
    exit_code = 3


class PlatformError(R1QuantError):
    exit_code = 3


class UploadError(R1QuantError):
    exit_code = 3


class MissingDependency(R1QuantError):
    exit_code = 4
