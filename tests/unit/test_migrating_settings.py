"""`migrate-check` finds settings of Celery in every form in which applications write them."""

from __future__ import annotations

import pytest

from tests.support.scans import found, scan_tree, uses_in

APP = "from celery import Celery\napp = Celery('shop')\n"


@pytest.mark.parametrize(
    "text",
    [
        "app.conf.task_always_eager = True",
        "app.conf['task_always_eager'] = True",
        "app.conf.update(task_always_eager=True)",
        "app.conf.update({'task_always_eager': True})",
        "app.conf.update(dict(task_always_eager=True))",
        "app.conf.update(**{'task_always_eager': True})",
        "S = {'task_always_eager': True}; app.conf.update(S)",
        "S = dict(task_always_eager=True); app.conf.update(**S)",
        "conf = app.conf; conf.task_always_eager = True",
        "app.conf.task_always_eager",
        "app.conf['task_always_eager']",
        "app.config_from_object({'task_always_eager': True})",
        "app.config_from_object(dict(task_always_eager=True))",
        "class S: task_always_eager = True\napp.config_from_object(S)",
        "Celery('b', task_always_eager=True)",
        "app.add_defaults({'task_always_eager': True})",
        "app.conf.get('task_always_eager')",
        "app.conf.setdefault('task_always_eager', True)",
        "CELERY_SETTINGS = {'task_always_eager': True, 'broker_url': url}",
        "SETTINGS = {'queue': {'task_always_eager': True, 'result_backend': url}}",
        "class CeleryConfig:\n    task_always_eager = True",
        "CELERY = {'task_always_eager': True}",
        "CELERY = dict(task_always_eager=True)",
        "flask.config['CELERY'] = {'task_always_eager': True}",
        "flask.config.from_mapping(CELERY=dict(task_always_eager=True))",
        "flask.config.update({'CELERY': {'task_always_eager': True}})",
    ],
)
def test_a_setting_is_found_in_every_form(tmp_path, text):
    """Attributes, items, update, dicts, classes, the constructor, and the mapping that Flask's own documentation has."""
    assert "config task_always_eager" in {use.partition(" ")[2] for use in uses_in(tmp_path, APP + text)}


@pytest.mark.parametrize(
    "text",
    [
        "CELERY_ALWAYS_EAGER = True",
        "class Config:\n    CELERY_ALWAYS_EAGER = True",
        "class Config:\n    CELERY_ALWAYS_EAGER: bool = True",
        "flask.config['CELERY_ALWAYS_EAGER'] = True",
        "flask.config.update(CELERY_ALWAYS_EAGER=True)",
        "flask.config.update({'CELERY_ALWAYS_EAGER': True})",
        "flask.config.get('CELERY_ALWAYS_EAGER')",
        "os.environ['CELERY_ALWAYS_EAGER']",
        "Config.CELERY_ALWAYS_EAGER",
        "dict(CELERY_ALWAYS_EAGER=True)",
    ],
)
def test_an_upper_case_name_is_found_wherever_it_stands(tmp_path, text):
    """In modules, classes, configs and the environment, whether it is set or read."""
    assert "config CELERY_ALWAYS_EAGER" in {use.partition(" ")[2] for use in uses_in(tmp_path, APP + text)}


def test_names_that_say_little_count_in_code_that_uses_celery_only(tmp_path):
    """BROKER_URL may be anybody's; CELERY_… is Celery's."""
    text = "BROKER_URL = CELERY_BROKER_URL = 'redis://'\n"
    assert found(scan_tree(tmp_path / "a", {"config.py": text})) == ["1 config CELERY_BROKER_URL"]
    both = scan_tree(tmp_path / "b", {"config.py": text, "work.py": "from celery import Celery\n"})
    assert found(both, "config.py") == ["1 config BROKER_URL", "1 config CELERY_BROKER_URL"]


@pytest.mark.parametrize(
    ("files", "holder"),
    [
        ({"work.py": APP + "app.config_from_object('settings.celeryconf')\n", "settings/celeryconf.py": "worker_concurrency = 4\nother = 1\n"}, "celeryconf.py"),
        ({"work.py": APP + "app.config_from_object('settings:Queue')\n", "settings.py": "class Queue:\n    worker_concurrency = 4\nclass Other:\n    timezone = 'UTC'\n"}, "settings.py"),
        ({"work.py": "import conf_of_queue\n" + APP + "app.config_from_object(conf_of_queue)\n", "conf_of_queue.py": "worker_concurrency = 4\n"}, "conf_of_queue.py"),
        ({"work.py": APP, "celeryconfig.py": "worker_concurrency = 4\n"}, "celeryconfig.py"),
    ],
)  # fmt: skip
def test_modules_and_classes_of_settings_are_found(tmp_path, files, holder):
    """What `config_from_object` names, by text or by name, and the module that Celery's documentation calls celeryconfig."""
    assert [use.partition(" ")[2] for use in found(scan_tree(tmp_path, files), holder)] == ["config worker_concurrency"]


@pytest.mark.parametrize(
    ("text", "what", "rating"),
    [
        ("app.conf.task_serializer = 'pickle'", "task_serializer=pickle", "unsupported"),
        ("app.conf.task_serializer = 'json'", "task_serializer=json", "ok"),
        ("app.conf.update(result_serializer='yaml')", "result_serializer=yaml", "unsupported"),
        ("app.conf.accept_content = ['json', 'pickle']", "accept_content=pickle", "unsupported"),
        ("app.conf.accept_content = ['json']", "accept_content", "ok"),
        ("CELERY_TASK_SERIALIZER = 'pickle'", "CELERY_TASK_SERIALIZER", "unsupported"),
        ("app.conf.broker_url = 'redis://'", "broker_url", "changed"),
        ("app.conf.beat_schedule = {}", "beat_schedule", "unsupported"),
        ("app.conf.redis_socket_timeout = 3", "redis_socket_timeout", "ok"),
        ("app.conf.of_our_own = 3", "of_our_own", "changed"),
        ("app.conf.worker_pool = 'gevent'", "worker_pool=gevent", "unsupported"),
    ],
)
def test_the_value_decides_where_it_matters(tmp_path, text, what, rating):
    """A serializer, a pool; and a setting is named once, however many forms of it stand in one place."""
    report = scan_tree(tmp_path, {"code.py": APP + text})
    assert [(use.what, use.rule.rating.value) for use in report.uses if use.line == 3] == [(f"config {what}", rating)]


def test_entries_of_a_schedule_are_found(tmp_path):
    """Each entry of beat's schedule, wherever the dict is."""
    text = """
    from celery.schedules import crontab
    CELERYBEAT_SCHEDULE = {
        'nightly': {'task': 'proj.tasks.nightly', 'schedule': crontab(hour=3), 'options': {'queue': 'slow'}},
        'often': {'task': 'proj.tasks.often', 'schedule': 30.0},
    }
    timetable = {'schedule': 'weekly'}
    place = {'timezone': 'UTC', 'include': [], 'broker_url': 1}
    """
    lines = uses_in(tmp_path, text)
    assert "2 config CELERYBEAT_SCHEDULE" in lines
    assert [use for use in lines if "entry" in use] == ["3 schedule entry", "4 schedule entry"]
    assert not [use for use in lines if use.startswith(("6 ", "7 "))]


def test_no_value_is_ever_shown(tmp_path):
    """An address with a password leaves no trace in what is reported."""
    text = APP + "app.conf.broker_url = 'redis://:hunter2@host'\nCELERY_BROKER_URL = 'amqp://me:hunter2@host'\nCelery(broker='redis://:hunter2@h')\n"
    report = scan_tree(tmp_path, {"code.py": text, ".env": "CELERY_BROKER_URL=redis://:hunter2@host\n"})
    assert len(report.uses) >= 6
    assert "hunter2" not in repr(report)
