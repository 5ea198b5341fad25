"""In which order requests run. Nothing here runs them, and nothing here knows a model."""

from .lane import Lost as Lost
from .queue import BINDING as BINDING
from .queue import Queue as Queue
