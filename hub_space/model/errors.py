"""The errors this project raises on purpose.

Every message names the file (and row, column or key), what was wrong and what would be right.
"""


class Gaze2ReportError(Exception):
    """Base class of every error that the project raises on purpose."""


class InputError(Gaze2ReportError, ValueError):
    """An image, gaze recording, text or other input of a user cannot be used."""


class DataError(Gaze2ReportError, ValueError):
    """A data set, or a record of one, is not what its layout promises."""


class RecipeError(Gaze2ReportError, ValueError):
    """A training recipe has an unknown key, a wrong value or parts that contradict each other."""


class ModelError(Gaze2ReportError, RuntimeError):
    """A model folder or checkpoint cannot be used."""


__all__ = ["Gaze2ReportError", "InputError", "DataError", "RecipeError", "ModelError"]
