"""The ratings are complete, and each says in one sentence what to do."""

from __future__ import annotations

import re

import click
import pytest

from jobrunner.cli.celery_flags import IGNORED, REFUSED
from jobrunner.cli.celery_worker import celery_worker
from jobrunner.cli.migrate_check import _RATINGS, _WAYS
from jobrunner.compat.celery.conf import SETTINGS
from jobrunner.compat.celery.conf import Rating as Becomes
from jobrunner.migrating.celery_flags import FLAGS, SPELLINGS, flag
from jobrunner.migrating.celery_settings import NAMES, OLD_NAMES, setting_of
from jobrunner.migrating.ratings import WAYS, Rating, all_rules, find


def rule_of(*key):
    """The rule that is found, which must be there."""
    rule = find(*key)
    assert rule is not None, key
    return rule


MUST = {
    "task option": """name bind base max_retries default_retry_delay autoretry_for dont_autoretry_for retry_backoff retry_backoff_max retry_jitter
        retry_kwargs throws ignore_result store_errors_even_if_ignored track_started time_limit soft_time_limit acks_late reject_on_worker_lost
        retry_on_worker_lost acks_on_failure acks_on_timeout queue priority expires rate_limit serializer compression pydantic typing send_events
        trail resultrepr_maxsize""",
    "call": """delay apply_async apply run send_task delay_on_commit apply_async_on_commit s si signature set clone link link_error chunks map starmap
        replace add_to_chord stamp retry update_state""",
    "call option": """args kwargs countdown eta expires queue priority task_id headers retry link link_error ignore_result time_limit soft_time_limit
        retry_policy connection producer serializer compression exchange routing_key exc max_retries throw""",
    "canvas": "chain group chord | chunks signature",
    "request": """id retries args kwargs eta expires hostname delivery_info headers is_eager called_directly root_id parent_id correlation_id timelimit
        get""",
    "result": """AsyncResult id task_id state status result info traceback ready successful failed get wait forget revoke children parent collect
        date_done name args kwargs worker retries queue then GroupResult ResultSet results join completed_count save restore""",
    "signal": """task_prerun task_postrun task_success task_failure task_retry task_revoked before_task_publish after_task_publish worker_init
        worker_process_init worker_process_shutdown worker_ready worker_shutdown setup_logging after_setup_logger after_setup_task_logger beat_init
        task_received task_internal_error task_unknown task_rejected celeryd_init celeryd_after_setup import_modules worker_shutting_down
        eventlet_pool_started""",
    "schedule": "crontab schedule solar add_periodic_task PersistentScheduler",
    "config": """broker_url result_backend timezone enable_utc imports include task_default_queue task_routes task_queues task_create_missing_queues
        task_ignore_result task_track_started task_time_limit task_soft_time_limit task_acks_late task_reject_on_worker_lost task_always_eager
        task_eager_propagates task_store_eager_result task_annotations task_default_rate_limit task_default_priority result_expires result_extended
        worker_concurrency worker_max_tasks_per_child worker_max_memory_per_child worker_prefetch_multiplier worker_hijack_root_logger
        worker_redirect_stdouts worker_log_format beat_schedule task_serializer accept_content beat_cron_starting_deadline""",
    "worker flag": """--app --queues --concurrency --loglevel --hostname --beat --max-tasks-per-child --max-memory-per-child --time-limit
        --soft-time-limit --pool --autoscale --exclude-queues --purge --logfile --pidfile --task-events --optimization --without-gossip
        --without-mingle --without-heartbeat --prefetch-multiplier --disable-prefetch --detach --pool-start-method""",
    "control": """ping active scheduled reserved registered stats revoke terminate rate_limit time_limit pool_grow pool_shrink add_consumer
        cancel_consumer shutdown purge""",
    "exception": "Retry MaxRetriesExceededError Ignore Reject SoftTimeLimitExceeded",
    "state": "PENDING RECEIVED STARTED SUCCESS FAILURE RETRY REVOKED",
    "app": "Celery subclass current_app current_task config_from_object autodiscover_tasks set_default on_after_configure",
    "executor": "Executor submit submit_stored map job futures add_default_done_callback EXECUTOR_TYPE EXECUTOR_MAX_WORKERS EXECUTOR_FUTURES_MAX_LENGTH",
}


@pytest.mark.parametrize("kind", MUST)
def test_what_applications_use_has_a_rule_of_its_own(kind):
    """Every row of the surface that real applications use is rated by its name, not by a rest."""
    missing = [name for name in MUST[kind].split() if (rule := find(kind, name)) is None or rule.name != name]
    assert missing == []


def test_every_rule_says_what_to_do_in_a_sentence():
    """An advice is one sentence, begins like one, and is short enough to be read in a list."""
    for rule in all_rules():
        assert rule.way in WAYS
        assert re.fullmatch(r"[A-Z`].*\.", rule.advice), rule
        assert len(rule.advice) < 140, rule
        assert not re.search(r"[.!?] [A-Z]", rule.advice), rule


def test_what_works_needs_nothing_done_and_what_does_not_says_how_to_go_on():
    """`Nothing to do` is never said of what has nothing in its place."""
    assert not [rule for rule in all_rules() if rule.rating is Rating.UNSUPPORTED and rule.advice.startswith("Nothing")]


def test_the_command_line_knows_the_words():
    """It has them written down, so that --help imports nothing."""
    assert _WAYS == WAYS
    assert set(_RATINGS) == {rating.value for rating in Rating}


def test_a_name_is_rated_once():
    """No table has a name twice, in which the last would win."""
    from jobrunner.migrating import celery_flags, celery_imports, celery_ratings, celery_settings, other_ratings

    rules = [rule for module in (celery_flags, celery_imports, celery_ratings, celery_settings, other_ratings) for rule in module.all_rules()]
    keys = [(rule.kind, rule.name) for rule in rules]
    assert sorted({key for key in keys if keys.count(key) > 1}) == []
    assert len(keys) > 500


@pytest.mark.parametrize(
    ("kind", "name", "value", "rule"),
    [
        ("task option", "serializer", "pickle", "serializer=pickle"),
        ("task option", "serializer", "PICKLE", "serializer=pickle"),
        ("task option", "serializer", "json", "serializer=json"),
        ("task option", "serializer", None, "serializer"),
        ("task option", "of_our_own", None, "*"),
        ("config", "redis_socket_timeout", None, "redis_socket_timeout"),
        ("config", "redis_something_new", None, "redis_*"),
        ("config", "worker_something_new", None, "worker_*"),
        ("config", "of_our_own", None, "*"),
        ("import", "celery.worker.consumer.Consumer", None, "celery.worker.*"),
        ("import", "celery.something.new", None, "celery.*"),
        ("import", "celery.app.log.TaskFormatter", None, "celery.app.log.TaskFormatter"),
        ("canvas", "chain", None, "chain"),
    ],
)
def test_the_nearest_rule_is_found(kind, name, value, rule):
    """A value goes before its name, a name before its prefix, a prefix before the rest of its kind."""
    assert rule_of(kind, name, value).name == rule


def test_a_kind_without_a_rest_knows_its_names_only():
    """Where there is no rule for all others, an unknown name has none."""
    assert find("no such kind", "delay") is None
    assert rule_of("requirement", "celery").name == "celery"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("BROKER_URL", "broker_url"),
        ("BROKER_TRANSPORT_OPTIONS", "broker_transport_options"),
        ("CELERY_RESULT_BACKEND", "result_backend"),
        ("CELERYBEAT_SCHEDULE", "beat_schedule"),
        ("CELERY_IMPORTS", "imports"),
        ("CELERY_QUEUES", "task_queues"),
        ("CELERY_TIMEZONE", "timezone"),
        ("CELERY_TASK_SERIALIZER", "task_serializer"),
        ("CELERY_ACCEPT_CONTENT", "accept_content"),
        ("CELERY_ENABLE_UTC", "enable_utc"),
        ("CELERY_ALWAYS_EAGER", "task_always_eager"),
        ("CELERY_EAGER_PROPAGATES_EXCEPTIONS", "task_eager_propagates"),
        ("CELERY_TASK_RESULT_EXPIRES", "result_expires"),
        ("CELERYD_CONCURRENCY", "worker_concurrency"),
        ("CELERYD_TASK_TIME_LIMIT", "task_time_limit"),
        ("CELERYD_HIJACK_ROOT_LOGGER", "worker_hijack_root_logger"),
        ("CELERY_BROKER_URL", "broker_url"),
        ("CELERY_TASK_ALWAYS_EAGER", "task_always_eager"),
        ("CELERY_WORKER_CONCURRENCY", "worker_concurrency"),
    ],
)
def test_upper_case_names_are_known(old, new):
    """The names of Celery 3, and today's behind the prefix that most applications give them."""
    assert setting_of(old) == new
    assert new in NAMES


def test_a_setting_is_rated_as_the_facade_takes_it():
    """Unsupported there is unsupported here; what is ignored or understood there is not. Every setting has a rule of its own."""
    known = {name: rule_of("config", name) for name in SETTINGS}
    assert [name for name, rule in known.items() if rule.name != name] == []
    refused = {name for name, feature in SETTINGS.items() if feature.rating is Becomes.UNSUPPORTED}
    assert {name for name, rule in known.items() if rule.rating is Rating.UNSUPPORTED} == refused
    assert [name for rule in all_rules() if rule.kind == "config" and (name := rule.name.partition("=")[0]) not in {*SETTINGS, "update", "unknown"} and "*" not in name] == []


def test_other_upper_case_names_are_not_taken_for_settings():
    """A name of an application's own is no setting; one that looks like one is told apart."""
    assert setting_of("SQLALCHEMY_DATABASE_URI") is None
    assert setting_of("BROKER_FEE") is None
    assert setting_of("S3_BUCKET") is None
    assert setting_of("CELERY_OF_OUR_OWN") == "unknown"
    assert len(OLD_NAMES) > 100


def test_the_flags_that_are_rated_are_those_that_are_taken():
    """The table of flags and the options of `jobrunner celery-worker` have the same flags, with the same spellings."""
    rated = {name for names, _, _ in FLAGS for name in names.split() if name.startswith("--") and "=" not in name}
    own = {"--grace"}
    taken = {flag(name) for option in celery_worker.params if isinstance(option, click.Option) for name in option.opts} - own
    assert rated <= taken
    assert {flag(name) for name, others in SPELLINGS.items() for _ in others} <= rated
    spelled = {name for option in celery_worker.params if isinstance(option, click.Option) for name in option.opts}
    assert {other for others in SPELLINGS.values() for other in others} - {"--maxtasksperchild"} <= spelled


def test_what_a_flag_is_rated_is_what_becomes_of_it():
    """A refused flag is rated unsupported, an ignored one is not, and neither is one that is translated."""
    parameters = {option.name: flag(next(name for name in option.opts if name.startswith("--"))) for option in celery_worker.params if isinstance(option, click.Option) and any(name.startswith("--") for name in option.opts)}
    refused = {rule_of("worker flag", parameters[name]).rating for name in REFUSED}
    ignored = {rule_of("worker flag", parameters[name]).rating for name in IGNORED}
    assert refused == {Rating.UNSUPPORTED}
    assert Rating.UNSUPPORTED not in ignored
    translated = set(parameters) - set(REFUSED) - {"pool_start_method", "json", "verbose", "database", "dsn", "version", "help", "grace"}
    assert not {name for name in translated if rule_of("worker flag", parameters[name]).rating is Rating.UNSUPPORTED}
