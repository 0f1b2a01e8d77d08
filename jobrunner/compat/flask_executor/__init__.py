"""Flask-Executor's names over jobs, threads or processes: `from jobrunner.compat.flask_executor import Executor`."""

from jobrunner.compat.flask_executor.executor import Executor
from jobrunner.compat.flask_executor.futures import FutureCollection, FutureProxy

__all__ = ["Executor", "FutureCollection", "FutureProxy"]
