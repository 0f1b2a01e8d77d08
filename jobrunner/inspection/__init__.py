"""Owns the read-only verbs: list, count and show jobs, queues, workers, and the state of the whole. CLI and web use nothing else.

It must not write: every read is a READ ONLY transaction with a time limit.
"""

from jobrunner.inspection.detail import MAX_ATTEMPTS, get_job
from jobrunner.inspection.glances import VIEWS, Glance, View, glance
from jobrunner.inspection.groups import Group, TopicRow, list_topics
from jobrunner.inspection.health import Pulse, Status, UnservedTask
from jobrunner.inspection.lists import COUNT_CAP, DEFAULT_LIMIT, MAX_LIMIT, count_jobs, count_states, list_jobs
from jobrunner.inspection.logs import DEFAULT_LINES, LEVELS, MAX_LINES, LogPage, LogRow, job_logs
from jobrunner.inspection.messages import DeadMessage, count_messages, list_dead_messages
from jobrunner.inspection.overview import list_queues, list_workers, pulse, registered_tasks, status
from jobrunner.inspection.reading import READ_TIMEOUT, reading, translated
from jobrunner.inspection.recent import ErrorGroup, Lately, Percentiles, Throughput
from jobrunner.inspection.runs import DEFAULT_RUNS, MAX_RUNS, CronHistory, Missed, WorkerRunRow, cron_history, list_worker_runs
from jobrunner.inspection.values import (
    AttemptRow,
    Count,
    JobDetail,
    JobRow,
    Page,
    QueueRow,
    Reason,
    RunningJob,
    WorkerRow,
    ago,
)

__all__ = [
    "COUNT_CAP",
    "DEFAULT_LIMIT",
    "DEFAULT_LINES",
    "DEFAULT_RUNS",
    "LEVELS",
    "MAX_ATTEMPTS",
    "MAX_LIMIT",
    "MAX_LINES",
    "MAX_RUNS",
    "READ_TIMEOUT",
    "VIEWS",
    "AttemptRow",
    "Count",
    "CronHistory",
    "DeadMessage",
    "ErrorGroup",
    "Glance",
    "Group",
    "JobDetail",
    "JobRow",
    "Lately",
    "LogPage",
    "LogRow",
    "Missed",
    "Page",
    "Percentiles",
    "Pulse",
    "QueueRow",
    "Reason",
    "RunningJob",
    "Status",
    "Throughput",
    "TopicRow",
    "UnservedTask",
    "View",
    "WorkerRow",
    "WorkerRunRow",
    "ago",
    "count_jobs",
    "count_messages",
    "count_states",
    "cron_history",
    "get_job",
    "glance",
    "job_logs",
    "list_dead_messages",
    "list_jobs",
    "list_queues",
    "list_topics",
    "list_worker_runs",
    "list_workers",
    "pulse",
    "reading",
    "registered_tasks",
    "status",
    "translated",
]
