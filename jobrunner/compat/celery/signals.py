"""Owns the signals that code connects to, under Celery's names and with Celery's arguments.

It must not send them: producers, the tracer and the worker's processes do. Which one is sent where is in
`docs/reference/compat-celery.md`; those that are never sent say so here.
"""

from __future__ import annotations

from jobrunner.compat.celery.utils.dispatch import Signal

# -- in the process that sends a task
before_task_publish = Signal(
    {"body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy"}, name="before_task_publish"
)
after_task_publish = Signal({"body", "exchange", "routing_key", "headers"}, name="after_task_publish")

# -- in the process that runs it
task_prerun = Signal({"task_id", "task", "args", "kwargs"}, name="task_prerun")
task_postrun = Signal({"task_id", "task", "args", "kwargs", "retval", "state"}, name="task_postrun")
task_success = Signal({"result", "runtime"}, name="task_success")
task_retry = Signal({"request", "reason", "einfo"}, name="task_retry")
task_failure = Signal({"task_id", "exception", "args", "kwargs", "traceback", "einfo"}, name="task_failure")
task_internal_error = Signal(
    {"task_id", "args", "kwargs", "request", "exception", "traceback", "einfo"}, name="task_internal_error"
)
task_revoked = Signal({"request", "terminated", "signum", "expired"}, name="task_revoked")

# -- in the worker's own process, before its children are forked and after they are gone
celeryd_init = Signal({"instance", "conf", "options"}, name="celeryd_init")
celeryd_after_setup = Signal({"instance", "conf"}, name="celeryd_after_setup")
import_modules = Signal(name="import_modules")
worker_init = Signal(name="worker_init")
worker_ready = Signal(name="worker_ready")
worker_shutdown = Signal(name="worker_shutdown")
setup_logging = Signal({"loglevel", "logfile", "format", "colorize"}, name="setup_logging")
after_setup_logger = Signal({"logger", "loglevel", "logfile", "format", "colorize"}, name="after_setup_logger")
after_setup_task_logger = Signal({"logger", "loglevel", "logfile", "format", "colorize"}, name="after_setup_task_logger")

# -- in each child
worker_process_init = Signal(name="worker_process_init")
worker_process_shutdown = Signal({"pid", "exitcode"}, name="worker_process_shutdown")

# -- never sent: a task is not received before it runs, and an unknown one stays queued; rejected messages and brokers do not exist;
# schedules are not there yet
task_received = Signal({"request"}, name="task_received")
task_rejected = Signal({"message", "exc"}, name="task_rejected")
task_unknown = Signal({"message", "exc", "name", "id"}, name="task_unknown")
task_sent = Signal({"task_id", "task", "args", "kwargs", "eta", "taskset"}, name="task_sent")
worker_before_create_process = Signal(name="worker_before_create_process")
worker_shutting_down = Signal({"sig", "how", "exitcode"}, name="worker_shutting_down")
heartbeat_sent = Signal(name="heartbeat_sent")
beat_init = Signal(name="beat_init")
beat_embedded_init = Signal(name="beat_embedded_init")
eventlet_pool_started = Signal(name="eventlet_pool_started")
eventlet_pool_preshutdown = Signal(name="eventlet_pool_preshutdown")
eventlet_pool_postshutdown = Signal(name="eventlet_pool_postshutdown")
eventlet_pool_apply = Signal({"target", "args", "kwargs"}, name="eventlet_pool_apply")
user_preload_options = Signal({"app", "options"}, name="user_preload_options")

NEVER_SENT = (
    task_received, task_rejected, task_unknown, task_sent, worker_before_create_process, worker_shutting_down, heartbeat_sent, beat_init,
    beat_embedded_init, eventlet_pool_started, eventlet_pool_preshutdown, eventlet_pool_postshutdown, eventlet_pool_apply,
    user_preload_options,
)  # fmt: skip
"""A worker that finds receivers of these says so in its table."""
