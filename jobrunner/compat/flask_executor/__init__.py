"""Flask-Executor's names over jobs, threads or processes: `from jobrunner.compat.flask_executor import Executor`."""

from jobrunner.compat.flask_executor.executor import Executor
from jobrunner.compat.flask_executor.futures import FutureCollection, FutureProxy

__all__ = ["Executor", "FutureCollection", "FutureProxy"]
__version__ = "1.0.0"  # of the interface: there are programs that ask
