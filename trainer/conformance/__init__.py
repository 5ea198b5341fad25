"""The conformance kit for models: one call checks that lossbook runs a model rightly, and says how it runs it."""

from .checks import CHECKS
from .report import ModelCheck, ModelReport
from .run import check_model

__all__ = ["CHECKS", "ModelCheck", "ModelReport", "check_model"]
