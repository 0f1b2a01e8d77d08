"""`migrate-check` finds the other ways: Flask-Executor and concurrent.futures, threads, message queues."""

from __future__ import annotations

import pytest

from tests.support.scans import found, scan_tree, uses_in


def test_flask_executor_is_found(tmp_path):
    """The executor across modules, its jobs, futures by key, options; `submit` of something else is none."""
    files = {
        "shop/__init__.py": "",
        "shop/ext.py": "from flask_executor import Executor\nexecutor = Executor()\nother = object()\n",
        "shop/use.py": """
        from .ext import executor, other
        executor.init_app(app)
        executor.submit(send, 1)
        executor.submit_stored('a', send, 1)
        executor.futures.done('a')
        executor.futures.pop('a').result()
        executor.map(send, [1])
        executor.add_default_done_callback(log)
        @executor.job
        def work(): ...
        work.submit(1)
        work.map([1])
        other.submit(1)
        app.config['EXECUTOR_MAX_WORKERS'] = 5
        EXECUTOR_PUSH_APP_CONTEXT = False
        """,
    }
    report = scan_tree(tmp_path, files)
    assert found(report, "use.py") == [
        "2 executor init_app", "3 executor submit", "4 executor submit_stored", "5 executor futures.done", "6 executor futures.pop",
        "7 executor map", "8 executor add_default_done_callback", "9 executor job", "11 executor submit", "12 executor map",
        "14 config EXECUTOR_MAX_WORKERS", "15 config EXECUTOR_PUSH_APP_CONTEXT",
    ]  # fmt: skip
    assert {use.rule.way for use in report.uses} == {"executor"}


@pytest.mark.parametrize(
    "head",
    [
        "from concurrent.futures import ThreadPoolExecutor",
        "import concurrent.futures; ThreadPoolExecutor = concurrent.futures.ThreadPoolExecutor",
        "from concurrent import futures; ThreadPoolExecutor = futures.ThreadPoolExecutor",
    ],
)
def test_pools_are_found(tmp_path, head):
    """Executors of concurrent.futures in every form, as a name and in a with; their futures."""
    text = f"{head}\nwith ThreadPoolExecutor(3) as pool:\n    future = pool.submit(f)\n    pool.map(f, [1])\nkept = ThreadPoolExecutor()\nkept.submit(f).result()\n"
    lines = uses_in(tmp_path, text)
    for use in ("2 futures ThreadPoolExecutor", "3 futures submit", "4 futures map", "5 futures ThreadPoolExecutor", "6 futures submit"):
        assert use in lines


def test_threads_are_found(tmp_path):
    """Threads, timers, processes, subclasses; one that gets the app is told apart; locks are none."""
    text = """
    import threading, _thread
    import multiprocessing as mp
    from threading import Thread, Lock
    Thread(target=send, args=(1,)).start()
    threading.Thread(target=send, args=(current_app._get_current_object(), msg)).start()
    threading.Timer(5, send).start()
    class Sender(Thread):
        def run(self): ...
    Sender().start()
    _thread.start_new_thread(send, ())
    mp.Process(target=send).start()
    Lock(), threading.Event()
    import queue
    waiting = queue.Queue()
    loop.run_in_executor(None, send)
    socketio.start_background_task(send)
    """
    lines = uses_in(tmp_path, text)
    for use in (
        "3 thread Thread", "4 thread Thread", "5 thread Thread(app)", "6 thread Timer", "7 thread subclass", "9 thread Thread",
        "10 thread start_new_thread", "11 thread Process", "14 thread queue.Queue", "15 futures run_in_executor?",
        "16 thread start_background_task?",
    ):  # fmt: skip
        assert use in lines
    assert not [use for use in lines if use.startswith("12 ")]


def test_message_queues_are_found(tmp_path):
    """Connections, channels, publishing and consuming of pika, kombu and their like."""
    text = """
    import pika
    connection = pika.BlockingConnection(pika.ConnectionParameters('localhost'))
    channel = connection.channel()
    channel.queue_declare(queue='mail', durable=True)
    channel.basic_publish(exchange='', routing_key='mail', body='x')
    channel.basic_consume(queue='mail', on_message_callback=f)
    channel.start_consuming()
    """
    lines = uses_in(tmp_path, text)
    for use in (
        "1 message queue import", "2 message queue BlockingConnection", "2 message queue ConnectionParameters",
        "4 message queue queue_declare", "5 message queue basic_publish", "6 message queue basic_consume", "7 message queue start_consuming",
    ):  # fmt: skip
        assert use in lines


def test_kombu_in_an_app_of_celery_is_celerys(tmp_path):
    """Queues of a Celery app are named with kombu's classes: that is no message queue of its own."""
    with_celery = scan_tree(tmp_path / "a", {"a.py": "from celery import Celery\nfrom kombu import Queue\nCelery().conf.task_queues = [Queue('a')]\n"})
    assert {use.rule.way for use in with_celery.uses} == {"celery"}
    alone = scan_tree(tmp_path / "b", {"a.py": "from kombu import Connection, Queue\nwith Connection('x') as c:\n    c.SimpleQueue('a').put(1)\n"})
    assert {use.rule.way for use in alone.uses} == {"queue"}


def test_only_the_ways_that_are_asked_for(tmp_path):
    """A scan for one way finds nothing of the others."""
    files = {"a.py": "from celery import chain\nfrom threading import Thread\nThread()\nimport pika\nfrom flask_executor import Executor\n"}
    ways = ("celery", "executor", "threads", "queue")
    assert {use.rule.way for use in scan_tree(tmp_path, files).uses} == set(ways)
    for way in ways:
        assert {use.rule.way for use in scan_tree(tmp_path, files, ways=[way]).uses} == {way}


def test_code_without_any_of_it_has_no_uses(tmp_path):
    """An ordinary Flask application, with words that sound like it."""
    text = """
    from flask import Flask
    import threading, queue_of_ours
    app = Flask(__name__)
    lock = threading.Lock()
    class Job:
        def delay(self): return self.retry()
        def retry(self): return self.request.id
    @app.task
    def view(task):
        Job().delay()
        task.s(1), task.map([1])
        session.begin(), pool.submit(1)
        return {'schedule': 'daily', 'task': 1}
    """
    assert uses_in(tmp_path, text) == []
