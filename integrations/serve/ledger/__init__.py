"""What was asked and what was answered, in a database, so that every request runs once."""

from .futures import Futures as Futures
from .ledger import Ledger as Ledger
from .records import LossRecord as LossRecord
from .records import ModelRecord as ModelRecord
from .records import ModelState as ModelState
from .records import Pruned as Pruned
from .records import Recovered as Recovered
from .records import SamplerRecord as SamplerRecord
from .records import SessionRecord as SessionRecord
from .records import Submission as Submission
