"""Tests of longcallback: real apps, a real browser, real servers, brokers and workers.

`python -m pytest` runs them. What the machine lacks is skipped with the reason.
`python test_longcallback.py` measures the speed beside Dash's own instead.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import itertools
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import dash
import flask_caching
import pytest

import longcallback as dl

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect
expect.set_options(timeout=30_000)

core, unit = pytest.mark.core, pytest.mark.unit

# A shell ignores it in what it runs in the background, and so would the programs here.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).resolve().parent
CORNER = "cache/longcallback.__wz_cache"  # of a FileSystemCache, for our records
BROWSER_ARGUMENTS = """--disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update"""
PREAMBLE = """
    import os, sys, time
    import dash
    from dash import ALL, MATCH, Patch, ctx, dcc, html, no_update, set_props
    from flask_caching import Cache
    import longcallback as dl
    from longcallback import Input, Output, State
    cache = Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "cache"})
    manager = dl.FlaskCachingCallbackManager(cache)
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])
    server = app.server
"""
RUN = """
    if __name__ == "__main__":
        app.run(port=int(os.environ["PORT"]), debug=bool(os.environ.get("DEBUG")),
                use_reloader=False)
    elif hasattr(server, "test_client"):
        server.test_client().get("/")  # in which Dash sets itself up, alone
"""
RELOADS = {"ending": RUN.replace("=False", "=True")}


def wait_for(condition, timeout=15.0, what="the condition"):
    """Return the first true value of `condition()`, or fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"timed out after {timeout} s waiting for {what}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def proc():
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    return Path("/proc")


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        status = Path(proc(), str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class Program:
    """A process of its own session that a test started, with its output in a file."""

    def __init__(self, command, folder, environment=None, name="program"):
        self.log_file = Path(folder, f"{name}.log")
        self.command, self.folder = command, folder
        ours = {"PYTHONPATH": str(HERE), "PYTHONUNBUFFERED": "1"}
        self.environment = {**os.environ, **ours, **(environment or {})}
        self.start()

    def start(self):
        with open(self.log_file, "ab") as log:
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            how = {"cwd": self.folder, "env": self.environment, **files}
            self.process = subprocess.Popen(self.command, start_new_session=True, **how)

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def stop(self, number=signal.SIGTERM):
        """End the program with a signal; whatever stays of its session is killed."""
        self.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class App(Program):
    """A served Dash app whose source a test wrote."""

    def __init__(self, folder, environment=None, gunicorn=None, name="app", command=()):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = command or [sys.executable, f"{name}.py"]
        if gunicorn:
            command = [sys.executable, "-m", "gunicorn", f"{name}:server", *gunicorn]
            command += ["--bind", f"127.0.0.1:{self.port}", "--access-logfile", "-"]
        environment = {"PORT": str(self.port), **(environment or {})}
        super().__init__(command, folder, environment, name)
        self.wait()

    def wait(self):
        def answers():
            assert self.process.poll() is None, self.log
            return listening(self.port)

        wait_for(answers, 30, f"the app to listen; its log: {self.log}")

    def restart(self):
        self.start()
        self.wait()

    def file(self, name):
        """Text of a file that the app's jobs wrote into its folder ("" if absent)."""
        path = Path(self.folder, name)
        return path.read_text() if path.exists() else ""


def write_app(folder, *parts, name="app"):
    source = "\n".join(map(textwrap.dedent, parts))
    Path(folder, f"{name}.py").write_text(source)


def redis_command(port):
    if not shutil.which("redis-server"):
        pytest.skip("there is no redis-server")
    return ["redis-server", "--port", str(port), "--save", ""]


@pytest.fixture
def serve(tmp_path):
    """Serve an app from source, with the preamble before it; stopped after the test."""
    apps = []

    def start(source, preamble=PREAMBLE, name="app", ending=RUN, **options):
        write_app(tmp_path, preamble, source, ending, name=name)
        apps.append(App(tmp_path, name=name, **options))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()


def launch(chromium, **options):
    """Start the machine's Chromium or Chrome, or else Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    arguments = BROWSER_ARGUMENTS.split()
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    return chromium.launch(executable_path=path, args=arguments, **options)


@pytest.fixture(scope="session")
def browser():
    with playwright_api.sync_playwright() as playwright:
        try:
            kept = ["--disable-back-forward-cache"]
            browser = launch(playwright.chromium, ignore_default_args=kept)
        except playwright_api.Error as error:
            pytest.skip(f"no browser starts here: {error}")
        yield browser
        browser.close()


class Tab:
    """A browser tab of its own user; remembers console errors and Dash's requests."""

    def __init__(self, context):
        self.page = context.new_page()
        self.page.set_default_timeout(15000)
        self.errors, self.requests = [], []
        add = self.errors.append
        self.page.on("pageerror", lambda error: add(str(error)))
        self.page.on("console", lambda m: m.type == "error" and add(m.text))
        self.page.on("request", self._note_request)

    def _note_request(self, request):
        if request.url.partition("?")[0].endswith("_dash-update-component"):
            self.requests.append(request)

    def open(self, app, path="/"):
        self.page.goto(app.url + path)
        root = "#react-entry-point > :not(._dash-loading)"
        self.page.wait_for_selector(root, state="attached")
        return self

    def shows(self, selector, text, timeout=15000):
        expect(self.page.locator(selector)).to_have_text(text, timeout=timeout)

    def __getattr__(self, name):
        return getattr(self.page, name)


@pytest.fixture
def new_tab(browser):
    with contextlib.ExitStack() as contexts:
        yield lambda: Tab(contexts.enter_context(browser.new_context()))


@pytest.fixture
def tab(new_tab):
    return new_tab()


DASH = tuple(map(int, dash.__version__.split(".")[:2]))
UNTIL_GO = """
    def until_go():
        while not os.path.exists("go"):
            time.sleep(0.02)
"""


def touch(app, name):
    Path(app.folder, name).touch()


def go(app):
    touch(app, "go")


STEPS = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.Button("Cancel", id="cancel"),
        html.P("idle", id="state"), html.P(id="progress"), html.P(id="result")])
    def note(name, *words):
        print(*words, file=open(name, "a"))
    @app.long_callback(
        output=Output("result", "children"), args=Input("run", "n_clicks"),
        running=[(Output("state", "children"), "running", "idle")],
        cancel=[Input("cancel", "n_clicks")], progress=Output("progress", "children"),
        progress_default="none", prevent_initial_call=True)
    def compute(set_progress, n_clicks):
        note("runs", n_clicks, os.getpid(), os.getppid())
        for step in range(3):
            time.sleep(0.1)
            set_progress(step)
        note("ends", n_clicks)
        return f"Clicked {n_clicks} times"
"""


def runs(app):
    """The jobs that started: (n_clicks, its process, its server's process)."""
    return [tuple(map(int, line.split())) for line in app.file("runs").splitlines()]


def running_job(app):
    """The process of the job that started last, and that of its server."""
    return wait_for(lambda: runs(app), what="the job to start")[-1][1:]


def intercept(tab, handle):
    """Call `handle(route, number)` for each message of the protocol."""
    numbers = itertools.count(1)

    def handle_ours(route):
        if '"longcallback.answer"' not in (route.request.post_data or ""):
            return route.continue_()
        try:
            handle(route, next(numbers))
        except playwright_api.Error as error:
            if not re.search("closed|disposed", str(error)):  # the test is over
                raise

    tab.page.route("**/_dash-update-component*", handle_ours)


def ended_once(tab, app, clicks=1):
    """Check that the page shows the result, nothing sticks and the job ran once."""
    tab.shows("#result", f"Clicked {clicks} times")
    sees(tab, "state=idle | progress=none")
    assert [run[0] for run in runs(app)] == list(range(1, clicks + 1))


def wait_with(tab, condition, what, timeout=15.0):
    """Wait for a condition while the tab's messages go on to be intercepted."""
    wait_for(lambda: (tab.page.wait_for_timeout(20), condition())[1], timeout, what)


def goes_quiet(tab):
    def quiet():
        before = len(tab.requests)
        tab.page.wait_for_timeout(1200)
        return len(tab.requests) == before

    wait_for(quiet, what="the page to be quiet")


def says(tab, text, timeout=15.0):
    """Wait until the page's console has an error with this text."""
    error = f"{text!r} among {tab.errors}"
    wait_with(tab, lambda: any(text in said for said in tab.errors), error, timeout)


def job(body, source=STEPS):
    """The app STEPS whose job does this instead of its steps."""
    begin, end = map(source.index, ("        for step in", '        note("ends"'))
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    return f"{source[:begin]}{body}\n{source[end:]}"


WAITS = UNTIL_GO + job("set_progress('waiting'); until_go()")
WORKER = ["--workers", "1", "--threads", "4", "--graceful-timeout", "3"]


def fetch(app, path):
    with urllib.request.urlopen(app.url + path, timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture
def plugin(tmp_path):
    """The plugin of an app that a test declares callbacks in, but doesn't serve."""
    config = {"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": str(tmp_path)}
    manager = dl.FlaskCachingCallbackManager(flask_caching.Cache(config=config))
    return dl.plugins.LongCallback(manager)


@pytest.fixture
def declare(plugin):
    """Return a function that declares a long callback and returns the error's text."""

    def error_of(plugins=(plugin,), **options):
        app = dash.Dash(__name__, plugins=[*plugins])
        options.setdefault("output", dl.Output("p", "children"))
        options.setdefault("args", dl.Input("b", "n_clicks"))
        with pytest.raises(dl.LongCallbackError) as raised:

            @app.long_callback(**options)
            def the_callback(*args):
                """Never called."""

        text = str(raised.value)
        assert "the_callback" in text
        return text

    return error_of


class Client:
    """A page without a browser; without `key`, the app's first callback is meant."""

    def __init__(self, url, page=None, path="/"):
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        self.path = path
        self.page = page or secrets.token_hex(16)
        self.jobs = {}  # by key: number and version seen
        self.crowd = 0  # messages of other pages in the last second
        told = self.request("GET", f"{path}_dash-dependencies")[1].decode()
        keys = re.findall(r"start\W+(\w{12})\W", told)
        self.keys = list(dict.fromkeys(keys))

    def request(self, method, path, body=None, kind="application/json"):
        for attempt in range(3):
            try:
                self.connection.request(method, path, body, {"Content-Type": kind})
                answer = self.connection.getresponse()
                return answer.status, answer.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                self.connection.close()  # kept alive for too long; a message may repeat
                if attempt == 2:
                    raise

    def post(self, value, **changes):
        """Send a value as the page's message, however wrong it is."""
        body = self.call(value, "longcallback", "answer", "longcallback", "message")
        body["output"] = "longcallback.answer"
        path = f"{self.path}_dash-update-component"
        return self.request("POST", path, json.dumps({**body, **changes}))

    def send(self, jobs):
        """Send what the page wants of its jobs; return what the server says of them."""
        status, answer = self.post({"page": self.page, "jobs": jobs})
        assert status == 200, (status, answer)
        answer = json.loads(answer)["response"]["longcallback"]["answer"]
        self.crowd = answer["crowd"]
        return answer["jobs"]

    def want(self, key=None, **wants):
        """Ask about the job of one callback; return what the server says of it."""
        key = key or self.keys[0]
        number, seen = self.jobs[key]
        want = {"seen": seen, "shown": seen, "end": False, "start": None, **wants}
        answer = self.send({number: want})[number]
        if answer:
            self.jobs[key][1] = answer["seen"]
        return answer

    @staticmethod
    def call(value=1, output="result", shown="children", by="run", property="n_clicks"):
        """What a page sends to start a callback with one Input."""
        inputs = [{"id": by, "property": property, "value": value}]
        call = {"outputs": {"id": output, "property": shown}, "inputs": inputs}
        return {**call, "state": [], "changedPropIds": [f"{by}.{property}"]}

    def start(self, value=1, key=None):
        self.jobs[key or self.keys[0]] = [self.new_job(key), 0]
        return self.want(key, start=self.call(value))

    def new_job(self, key=None):
        return (key or self.keys[0]) + secrets.token_hex(16)

    def finish(self, key=None, pause=0.05, answer=None):
        answer = answer or self.want(key)
        while not answer["outcome"]:
            time.sleep(pause)
            answer = self.want(key)
        assert self.want(key, end=True) is None
        return json.loads(answer["outcome"]["response"])["response"]


def children(pid):
    """Processes of which a process is the parent, zombies among them."""
    found = []
    for path in proc().glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def redis_server(tmp_path):
    port = free_port()
    program = Program(redis_command(port), tmp_path, name="redis")
    program.port = port
    wait_for(lambda: listening(port), what="Redis to listen")
    yield program
    program.stop()


REDIS = PREAMBLE.replace(
    '"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "cache"',
    '"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": os.environ["REDIS"]',
)
CELERY = """
    import os, signal, sys, time
    import celery, dash
    from dash import ctx, dcc, html, set_props
    import longcallback as dl
    from longcallback import Input, Output, State
    celery_app = celery.Celery(
        __name__, broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
    celery_app.conf.task_default_queue = os.environ["QUEUE"]
    manager = dl.CeleryCallbackManager(celery_app)
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])
    server = app.server
"""
WORK = """
    app.enable_dev_tools(debug=True, dev_tools_hot_reload=False)
    app.layout = html.Div([
        dcc.Input(id="what"), html.Button("Run", id="run"),
        html.Button("Again", id="again"), html.Button("Cancel", id="cancel", disabled=True),
        html.P("nothing yet", id="result"), html.P("-", id="aside"),
        html.Progress(id="bar", value="0", max="9")])
    def wait(what):
        while not os.path.exists("go-" + what):
            time.sleep(0.02)
    @app.long_callback(
        output=Output("result", "children"),
        inputs=[Input("run", "n_clicks"), Input("again", "n_clicks")],
        state=State("what", "value"),
        running=[(Output("run", "disabled"), True, False),
                 (Output("cancel", "disabled"), False, True)],
        cancel=[Input("cancel", "n_clicks")],
        progress=Output("bar", ("value", "max")), progress_default=("0", "9"),
        prevent_initial_call=True)
    def compute(set_progress, n_clicks, again, what):
        with open("jobs", "a") as jobs:
            jobs.write(f"{what} {os.getpid()}\\n")
        if "wait" in what:
            wait(what)
        if "progress" in what:
            set_progress("1", "4")
            wait(what)
            for step in range(3000):
                set_progress(str(step), "3000")
            wait(what + "-end")
        if "aside" in what:
            set_props("aside", {"children": "on the way"})
            wait(what)
            return f"{ctx.triggered_id} {ctx.states} {ctx.cookies['who']}"
        if "raise" in what:
            raise RuntimeError("no such luck")
        if "killed" in what:
            os.kill(os.getpid(), signal.SIGKILL)
        if "slow" in what:
            time.sleep(20)
        return f"{what} {n_clicks}"
"""


@pytest.fixture(scope="session")
def session_program(tmp_path_factory):
    pytest.importorskip("celery")
    programs = []

    def start(command, environment=None, name="program"):
        folder = tmp_path_factory.mktemp(name)
        programs.append(Program(command, folder, environment, name))
        return programs[-1]

    yield start
    for program in reversed(programs):
        program.stop()


@pytest.fixture(scope="session")
def redis_url(session_program):
    port = free_port()
    session_program(redis_command(port), name="redis")
    wait_for(lambda: listening(port), what="Redis")
    return f"redis://127.0.0.1:{port}/0"


@pytest.fixture(scope="session")
def rabbitmq_url(session_program, tmp_path_factory):
    """A RabbitMQ node of these tests' own, beside any that the machine runs."""
    server = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin")
    if not server:
        pytest.skip("rabbitmq-server is not installed")
    port, names_port, home = free_port(), free_port(), tmp_path_factory.mktemp("home")
    settings = f"""HOME={home} ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT={names_port}
        RABBITMQ_NODENAME=longcallback{port}@localhost RABBITMQ_NODE_PORT={port}
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_DIST_PORT={free_port()}
        RABBITMQ_MNESIA_BASE={home}/mnesia RABBITMQ_LOG_BASE={home}/log
        RABBITMQ_ENABLED_PLUGINS_FILE={home}/plugins RABBITMQ_PID_FILE={home}/pid
        RABBITMQ_CONFIG_FILE={home}/none RABBITMQ_CONF_ENV_FILE=/dev/null"""
    environment = dict(setting.split("=") for setting in settings.split())
    session_program(["epmd"], environment, name="epmd")
    wait_for(lambda: listening(names_port), what="epmd")
    node = session_program([server], environment, name="rabbitmq")
    wait_for(lambda: "completed with" in node.log, 60, "RabbitMQ")
    return f"pyamqp://guest:guest@127.0.0.1:{port}//"


def start_worker(folder, environment, count, app="app:celery_app", pool="prefork"):
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO"]
    command += ["-c", str(count), "-n", f"{folder.name}@localhost", "-P", pool]
    worker = Program(command, folder, environment, "worker")
    wait_for(lambda: "ready." in worker.log, 30, "the worker")
    return worker


class Site:
    """A served app whose jobs run on a Celery worker."""

    def __init__(self, folder, broker, backend, source="", gunicorn=None, **options):
        write_app(folder, CELERY, WORK, source, RUN)
        self.folder, self.workers = folder, []
        self.environment = {"BROKER": broker, "BACKEND": backend}
        self.environment.update(DEBUG="1", QUEUE=f"queue-{folder.name}", **options)
        self.app = App(folder, self.environment, gunicorn)
        self.url, self.file = self.app.url, self.app.file

    def start_worker(self, concurrency=1):
        self.workers.append(start_worker(self.folder, self.environment, concurrency))

    def jobs(self, what):
        lines = [line.split() for line in self.file("jobs").splitlines()]
        return [int(process) for name, process in lines if name == what]

    def started(self, what):
        return wait_for(lambda: self.jobs(what), 20, f"{what} to run")[-1]

    def close(self):
        for program in [*self.workers, self.app]:
            program.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def redis_site(redis_url, tmp_path_factory):
    """Redis as broker and result backend, and four gunicorn workers with threads."""
    folder, four = tmp_path_factory.mktemp("redis-site"), ["-w", "4", "--threads", "4"]
    with contextlib.closing(Site(folder, redis_url, redis_url, "", four)) as site:
        site.start_worker(concurrency=2)
        yield site


@pytest.fixture(scope="session")
def rabbitmq_site(rabbitmq_url, tmp_path_factory):
    """RabbitMQ with rpc://, and the threaded development server."""
    folder = tmp_path_factory.mktemp("rabbitmq-site")
    with contextlib.closing(Site(folder, rabbitmq_url, "rpc://")) as site:
        site.start_worker(concurrency=2)
        yield site


@pytest.fixture(params=["rabbitmq", "redis"])
def site(request):
    return request.getfixturevalue(f"{request.param}_site")


@pytest.fixture
def new_site(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(*args, **options):
            site = Site(tmp_path, *args, **options)
            return stack.enter_context(contextlib.closing(site))

        yield make


def run(tab, what):
    tab.fill("#what", what)
    tab.click("#run")


def is_idle(tab):
    expect(tab.locator("#run")).to_be_enabled(timeout=15000)
    expect(tab.locator("#cancel")).to_be_disabled()
    expect(tab.locator("#bar")).to_have_attribute("value", "0")


def complains(tab, site, cause, times=1):
    """The page and a log name the cause; nothing runs any more."""
    cause = re.compile(cause.replace(" ", r"\s+"))  # however a text is wrapped
    errors = tab.locator(".dash-error-card .dash-fe-error__title", has_text=cause)
    expect(errors).to_have_count(times, timeout=20000)
    logs = site.app.log + "".join(worker.log for worker in site.workers)
    assert len(cause.findall(logs)) >= times
    is_idle(tab)


def is_content(tab):
    is_idle(tab)
    expect(tab.locator(".dash-error-card")).to_have_count(0)


def strays(folder):
    """The processes that have their working directory in a folder."""
    found = []
    for path in proc().glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if Path(os.readlink(path / "cwd")) == Path(folder) and alive(path.name):
                found.append(int(path.name))
    return found


# An app that tests share: `@page` takes what declares and returns a test's own page.
PAGES = """
    import flask
    from urllib.parse import urlsplit
    app.config.suppress_callback_exceptions = True
    pages = {}
    def page(function):
        pages[f"/{function.__name__}"] = function()
    app.layout = lambda: html.Div(pages.get(urlsplit(flask.request.referrer).path))
"""


def shared(*parts, **options):
    """Return a fixture: an app of PAGES, served once for all tests that take it."""

    @pytest.fixture(scope="module")
    def served(tmp_path_factory):
        folder = tmp_path_factory.mktemp("app")
        write_app(folder, PREAMBLE, PAGES, *parts, RUN)
        app = App(folder, **options)
        yield app
        app.stop()

    return served


DECLARED = """
    import functools, itertools, logging.config, signal, subprocess
    logging.config.dictConfig({"version": 1})  # which disables the loggers that exist
    line = f"{os.getpid()} %(process)d: %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line)
    later = functools.partial(app.long_callback, prevent_initial_call=True)
    clicks = lambda id_: Input(id_, "n_clicks")
    text = lambda id_: Output(id_, "children")
    def parts(buttons, texts):
        return [*[html.Button(name, id=name) for name in buttons.split()],
                *[html.P("-", id=name) for name in texts.split()]]
    plugins = [dl.plugins.LongCallback(dl.FlaskCachingCallbackManager(Cache(config={
        "CACHE_TYPE": "filesystem", "CACHE_DIR": "./cache"})), idle_timeout=2),
        dl.plugins.FlexibleCallbacks(), dl.plugins.HiddenComponents()]
    run, layout = clicks("run"), parts("run log stop never", "off default on sum")
    layouts = {"list": layout, "function": lambda: html.Div(layout), "load": layout,
               "listing": lambda: layout, "prevented": layout, "one": html.Div(layout)}
    for path, order in zip(layouts, itertools.permutations(plugins)):
        lab = dash.Dash(server=server, url_base_pathname=f"/{path}/", plugins=order,
                        prevent_initial_callbacks=path == "prevented")
        lab.layout = layouts[path]
        for name, prevented in {"on": True, "off": False, "default": None}.items():
            lab.long_callback(text(name), run, prevent_initial_call=prevented)(
                lambda n_clicks: f"{n_clicks} {ctx.triggered_id}")
        lab.long_callback(args=run)(lambda n, path=path: print(n, file=open(path, "a")))
        lab.callback(text("sum"), args={"n": run, "a": State("run", "id")})(
            lambda a, n: f"{a} {n}")
    @lab.long_callback(inputs=clicks("log"), cancel=clicks("stop"), interval=100,
                       prevent_initial_call=True)
    def compute(n_clicks):
        assert n_clicks != 2, "secret text"
        if n_clicks == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60 * (n_clicks > 3))
    @page
    def forms():
        run, a = clicks("forms"), State("i", "value")
        forms = {
            "(1, 'A')": ([run, a], {}),
            "([1, 'tip'],)": ([], {"args": Input("forms", ("n_clicks", "title"))}),
            "(1, {'v': 'A', 'kind': 'text'}, ['A', 'A'])": ([], {
                "args": [run, State("i", {"v": "value", "kind": "type"}), (a, a)]}),
            "{'a': 'A', 'n': 1}": ([], {"args": {"n": run, "a": a}}),
            "{'a': 'A', 'm': 1}": ([], {"inputs": {"m": run}, "state": {"a": a}}),
        }
        def told(*args, **named):
            return str(args or dict(sorted(named.items())))
        for number, (args, options) in enumerate(forms.values()):
            (app if number else dl).long_callback(
                text(f"p{number}"), *args, **options, prevent_initial_call=True)(told)
        for output, value in [
            ([text("c"), text("d")], ("c", "d")),
            (Output("e", ("children", "lang")), ("e", "tip")),
            ({"f": text("f"), "g": [(Output("g", {"c": "children", "l": "lang"}),)]},
             {"g": [({"l": "tip", "c": "g"},)], "f": "f"}),
        ]:
            later(output, [run], [a])(lambda n_clicks, a, value=value: value)
        later(inputs=run)(lambda n_clicks: set_props("h", {"children": "h"}))
        return [html.Button("Go", "forms", title="tip"), dcc.Input("A", "text", id="i"),
                *[html.P(id=f"p{n}", title=form) for n, form in enumerate(forms)],
                *[html.P(id=name, title=name) for name in "cdefgh"]]
    @page
    def busy():
        on = lambda id_: (Output(id_, "title"), "on", "off")
        for name, running in [
                ("one", [*map(on, ["one", "gone", {"of": ALL}])]), ("two", on("two"))]:
            @later(output=text(name), args=clicks("busy"), running=running,
                   progress=[text(f"bar-{name}"), text("gone")],
                   cancel=[clicks("gone"), clicks("stop")])
            def compute(set_progress, n):
                shell = subprocess.Popen("sleep 60 & echo $$ $!; wait", shell=True,
                                         stdout=subprocess.PIPE, text=True)
                set_progress((f"{n} {os.getpid()} {shell.stdout.readline()}", "lost"))
                set_props("gone", {"children": "lost"})
                until_go()
                return f"{n} clicks"
        app.callback(text("echo"), clicks("other"))(str)
        return parts("busy stop other", "one two bar-one bar-two echo")
    @page
    def progress():
        for n, (shown, end, values) in zip("0123", [
            (text("lone"), 0, ["half"]),
            (Output("many", ("children", "title")), ("0", "100"), ["1", "2"]),
            ([text("pair"), text("w")], None, [("3", "4")]),
            ({"x": text("x"), "y": text("y")}, {"y": 2, "x": 1}, [{"y": 4, "x": 3}]),
        ]):
            @later(text(n), clicks("progress"), progress=shown, progress_default=end)
            def compute(set_progress, n_clicks, values=values):
                set_progress(*values)
                until_go()
        return parts("progress", "lone many pair w x y 0 1 2 3")
"""
declared_app = shared(UNTIL_GO, DECLARED)


@pytest.fixture
def declared(declared_app, tab):
    Path(declared_app.folder, "go").unlink(missing_ok=True)
    yield declared_app
    assert not tab.errors


def has_titles(tab, title, count=2):
    expect(tab.locator(f"[title='{title}']")).to_have_count(count, timeout=15000)


def busy_processes(tab, clicks):
    bars, begin = tab.locator("[id^=bar-]"), re.compile(rf"^{clicks} ")
    expect(bars).to_have_text([begin, begin], timeout=15000)
    return [int(pid) for text in bars.all_inner_texts() for pid in text.split()[1:]]


@core
def test_plugins_of_dash_labs_work_in_any_order_and_with_any_layout(declared, tab):
    for path in ("list", "function", "listing", "one"):
        tab.open(declared, f"/{path}/").click("#run")
        sees(tab, "on=1 run | sum=run 1")


@core
def test_arguments_and_outputs_come_in_every_form(declared, tab):
    tab.open(declared, "/forms").click("#forms")
    for one in tab.locator("p").all():
        expect(one).to_have_text(one.get_attribute("title"), timeout=15000)
    expect(tab.locator("[lang=tip]")).to_have_count(2)


@core
def test_a_job_runs_at_page_load_unless_it_is_prevented(declared, tab):
    for path, initial in (("load", "None None"), ("prevented", "-")):
        tab.open(declared, f"/{path}/")
        for clicks, texts in enumerate((["None None", initial, "-"], ["1 run"] * 3)):
            shown = tab.locator("#off, #default, #on")
            expect(shown).to_have_text(texts, timeout=15000)
            ran = ["None", "1"][path == "prevented" or DASH < (4, 2) : clicks + 1]
            wait_for(lambda ran=ran, path=path: declared.file(path).split() == ran)
            tab.click("#run")


@core
def test_meanwhile_the_page_answers_and_a_second_click_replaces_the_job(declared, tab):
    """Two jobs, with one target for `running` and several, some not in the page."""
    tab.open(declared, "/busy").click("#busy")
    first = busy_processes(tab, 1)
    tab.click("#other")
    tab.shows("#echo", "1")
    tab.click("#busy")
    busy_processes(tab, 2)
    wait_for(lambda: not any(map(alive, first)), 5, "the first jobs to end")
    has_titles(tab, "on")
    go(declared)
    tab.shows("#one", "2 clicks")
    has_titles(tab, "off")


@core
def test_cancel_ends_the_jobs_that_name_it_and_all_that_they_started(declared, tab):
    tab.open(declared, "/busy").click("#busy")
    processes = busy_processes(tab, 1)
    assert len({*processes}) == 6 and all(map(alive, processes))
    tab.click("#stop")
    wait_for(lambda: not any(map(alive, processes)), 5, "the processes to end")
    has_titles(tab, "off")
    tab.shows("#one", "-")


@core
def test_two_tabs_are_two_users(declared, tab, new_tab):
    """Opened by the first, refreshed, whose storage it copies; by hand; by another."""
    tab.open(declared, "/busy").click("#busy")
    busy_processes(tab, 1)
    tab.reload()
    has_titles(tab, "on")
    with tab.page.expect_popup() as popup:
        tab.evaluate("void window.open(location.href)")
    ours = tab.page.context.new_page()
    ours.goto(f"{declared.url}/busy")
    for other in (popup.value, ours, new_tab().open(declared, "/busy")):
        other.bring_to_front()
        other.click("#busy", click_count=2)
        busy_processes(other, 2)
        other.click("#stop")
        has_titles(other, "off")
        expect(other.locator("#one")).to_have_text("-")
    busy_processes(tab, 1)
    has_titles(tab, "on")
    go(declared)
    tab.shows("#one", "1 clicks")


@core
def test_progress_comes_in_every_shape_and_ends_at_its_default(declared, tab):
    tab.open(declared, "/progress").click("#progress")
    shown = ("2", "half", "1", "3", "4", "3", "4"), ("100", "0", "0", "", "", "1", "2")
    for most, *texts in shown:
        for name, text in zip(("lone", "many", "pair", "w", "x", "y"), texts):
            tab.shows(f"#{name}", text)
        has_titles(tab, most, 1)
        go(declared)


# --- Mistakes, and log lines ----------------------------------------------------------

BUTTON, CLICKS = dl.Output("b", "disabled"), dl.Input("b", "n_clicks")
PAIR = dl.Output("bar", ("value", "max"))
MISTAKES = {
    "running: ": ("running", [(BUTTON, 1)], [BUTTON], BUTTON, [("b.disabled", 1, 0)]),
    "running:": ("running", [(CLICKS, 1, 0)], [(PAIR, 1, (0, "x"))]),
    "is not an Input": ("cancel", "x.n_clicks", dl.State("x", "n_clicks"), BUTTON, 5),
    "progress: ": ("progress", "bar.value", CLICKS),
    "bar.max": ("progress_default", 0, {"y": (1, 2)}, {"x": 1}, {"x": (1, 2, 3)}),
    "an Output depen": ("output", "p.children"),
    "args and inputs": ("inputs", CLICKS),
    "int() with base 10: '1s'": ("interval", "1s"),
    "it takes no ['runing']": ("runing", []),
    "background=True goes": ("background", True),
    "@cache.memoize(timeout=...)": ("cache_by", [0]),
    "cache_args_to_ignore and cache_ignore": ("cache_ignore_triggered", False),
    "plugins=[plugins.LongCallback(manager)]": ("plugins", ()),
    "manager: ": ("manager", "redis://", {}, object(), flask_caching.Cache()),
}


@unit
@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_in_a_declaration_names_its_argument(declare, words):
    argument, *wrong = MISTAKES[words]
    more = {"progress": {"x": PAIR}} if words == "bar.max" else {}
    for value in wrong:
        text = declare(**{argument: value}, **more)
        assert words in text and "running=[(Output(...)," in text


@unit
def test_a_decorator_returns_each_function_and_needs_parentheses(plugin):
    app = dash.Dash(__name__, plugins=[plugin])
    decorator = app.long_callback(dl.Output("p", "children"), CLICKS)
    assert [*map(decorator, (print, len))] == [print, len]
    assert str(app._callback_list).count("'id': 'b'") == 2
    with pytest.raises(dl.LongCallbackError, match="print: parentheses are missing"):
        app.long_callback(print)


@unit
def test_what_is_no_manager_and_no_cache_to_share_is_refused():
    kinds = None, "null", "simple", "x.SimpleCache"
    caches = [flask_caching.Cache(config=k and {"CACHE_TYPE": k}) for k in kinds]
    for cache in "redis://", *caches:
        with pytest.raises(dl.LongCallbackError, match='"CACHE_DIR": "./cache"'):
            dl.FlaskCachingCallbackManager(cache)
        with pytest.raises(TypeError, match="write FlaskCachingCallbackManager"):
            dl.plugins.LongCallback(cache)
    with pytest.raises(dl.LongCallbackError, match=r"cache_by.*\n.*@cache.memoize"):
        dl.FlaskCachingCallbackManager(caches[0], cache_by=[])


def test_what_the_first_click_alone_can_tell_shows_there(serve, tab):
    source = STEPS.replace("app.long_callback", "dl.long_callback")
    tab.open(serve(source, PREAMBLE.replace(", plugins=[", ") #"))).click("#run")
    says(tab, "of undefined (reading 'plugins_LongCallback")
    tab.shows("#state", "idle")


def test_the_lines_of_a_job_in_the_log_have_its_number(declared_app, tab):
    def lines(line=r"(\d+) (\d+): \w+: app\.compute (\w{8}): (.*)"):
        return re.findall(line, declared_app.log)

    ends = ["ended in [0-9.]+ s", "failed: secret text", "failed: .* by SIGKILL"]
    ends += ["cancelled", "given up, since nobody asks for it"]
    tab.open(declared_app, "/one/")
    for number, end in enumerate(ends):
        tab.click("#log")
        wait_for(lambda n=2 * number: len(lines()) > n, what="the begin")
        if number > 2:
            tab.click("#stop") if end == "cancelled" else tab.close()
        wait_for(lambda n=2 * number + 1: len(lines()) > n, what=end)
        (*_, begun, started), (server, process, ended, text) = lines()[-2:]
        assert begun == ended and started == "started" and re.match(end, text)
        assert (server == process) == (number > 0)  # whose log handlers live on


BASE = """
    import asyncio, datetime, functools, json, math, multiprocessing, numpy.random, signal, threading
    both = {"ours": app.long_callback, "dash": app.callback}  # for the same function
    click = functools.partial(app.long_callback, prevent_initial_call=True)
    def begin(name):
        global here
        here = pages[f"/{name}"] = [html.Button(name, id=name)]
        return Input(name, "n_clicks")
    def place(name):
        here.append(html.P("-", id=name))
        return Output(name, "children")
    def job(name, **options):
        running = [(Output(name, "title"), "on", "off")]
        return click(place(name), Input(here[0].id, "n_clicks"), running=running, **options)
    def until(name):
        while not os.path.exists(name):
            time.sleep(0.02)
    def fail(error):
        raise error
    def count_run(name, *words):  # takes no lock, which a fork may find held
        with open(f"runs-{name}", "a") as runs:
            print(*words or [os.getpid()], file=runs)
        return len(open(f"runs-{name}").readlines())
"""
FAILURES = {  # what a job does, and what is then to be read
    '{}["the lost key"]': "'the lost key'",
    "bar(1, 2, 3)": r"set_progress: \(1, 2, 3\) is not of shape",
    "bar(object(), 1)": "object",
    "os.kill(os.getpid(), signal.SIGKILL)": "ended by SIGKILL",
    "fail(Stubborn(1, 2))": "cannot be pickled",
    "recurses()": "maximum recursion depth",
}
ROWS = f"""
    def handle(error):
        set_props("kind", {{"children": type(error).__name__}})
        return f"app: {{error}}"
    layout = app.layout
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)], on_error=handle,
                    suppress_callback_exceptions=True)
    app.layout = layout
{BASE}
    (name,) = [r.endpoint for r in app.server.url_map.iter_rules() if "-update" in r.rule]
    async def dispatch(view=app.server.view_functions[name]):
        return view()  # within an event loop, as with dash[async]
    app.server.view_functions[name] = lambda: asyncio.run(dispatch())
    class Stubborn(Exception):
        def __init__(self, one, two):
            self.lock = open(os.devnull)
            super().__init__("cannot be pickled")
    def recurses():
        recurses()
    begin("failing")
    for number, code in enumerate({[*FAILURES, "object()", "sys.exit()"]}):
        bar = Output(place(f"bar-{{number}}").component_id, ("children", "lang"))
        @job(f"job-{{number}}", progress=bar, progress_default=("ended", ""), on_error=str)
        def failing(bar, n_clicks, code=code):
            return eval(code, {{**globals(), "bar": bar}})
    job("single", progress=place("one"), on_error=str)(lambda bar, n_clicks: bar(1, 2))
    if __name__ == "__main__":  # which a spawned process is not
        spawning = dl.FlaskCachingCallbackManager(cache, start_method="spawn")
        job("undeclared", manager=spawning, on_error=str)(ord)
"""
ROWS += """
    run = begin("handled")
    here += [html.P(id="kind"), html.P(id="none")]
    for name, options in {"own": {"on_error": "own: {}".format}, "app": {},
                          "silent": {"on_error": lambda error: None}}.items():
        job(name, **options)(lambda n: fail(ValueError("oh no")))
    click([place("x"), place("y")], run, on_error=lambda error: ("X", no_update))(ord)
    click(run, on_error=lambda e: set_props("none", {"children": str(e)}))(lambda n: 1 / 0)
    begin("context")
    for kind, declare in both.items():
        here += [html.P(kind, id={"kind": kind, "of": of}) for of in (1, 2)]
        here += [dcc.Store(id=f"{kind}-order", data={"z": 1, "a": 2})]
        each, args = {"kind": kind, "of": ALL}, f"{kind}-args"
        @declare(
            output={"a": place(f"{kind}-told"), "b": [place(args), Output(each, "title")]},
            inputs={"n": Input(args, "n_clicks"), "all": Input(each, "n_clicks"),
                    "more": (State(f"{kind}-order", "data"), State(each, "children"))},
            prevent_initial_call=True)
        def by_name(n, all, more):
            names = ("outputs_grouping using_outputs_grouping args_grouping "
                     "using_args_grouping outputs_list inputs_list states_list inputs "
                     "states triggered triggered_prop_ids triggered_id")
            told = [getattr(ctx, name) for name in names.split()]
            told += [ctx.cookies["taste"], ctx.headers["User-Agent"]]
            return {"a": json.dumps(told), "b": [f"{n} {all} {more}", [no_update, "new"]]}
    run = begin("results")
    for kind, declare in both.items():
        for name, function in {
            "none": lambda: None, "no": lambda: no_update,
            "prevented": lambda: fail(dash.exceptions.PreventUpdate),
            "date": lambda: [datetime.date(2024, 2, 29), " ", datetime.time(12)],
            "tree": lambda: [html.P(["a", html.B("b", id="c")])],
        }.items():
            declare(place(f"{kind}-{name}"), run, prevent_initial_call=True)(
                lambda n_clicks, function=function: function())
    @job("parent")
    async def parent(n):
        return await asyncio.sleep(0.01, [html.P(id="new"), html.Button(id="newer")])
    app.callback(Output("newer", "n_clicks"), Input("new", "id"))(lambda id: 1)
    app.long_callback(Output("new", "children"), Input("newer", "n_clicks"))(str)
    app.callback(place("two"), run, prevent_initial_call=True)(lambda n: "by the first")
    for number, other in enumerate(["title", "lang"]):
        @click(Output("two", "children", allow_duplicate=True), run, Input("two", other))
        def duplicate(n, other, number=number):
            until(f"go-two-{number}")
            return f"by {number}"
    for name, function in {"partial": functools.partial(pow, 7), "compiled": math.factorial,
                           "object": type("It", (), {"__call__": lambda *_: "so"})()}.items():
        job(name)(function)
    begin("launches")
    job("drawn")(lambda n: (os.chdir("/"), str(numpy.random.random()))[1])
    @job("launched")
    def launch(n):  # what goes on for longer than its record
        multiprocessing.Process(target=lambda: (time.sleep(2), count_run("child"))).start()
        threading.Timer(2, count_run, ["thread"]).start()
    stop = begin("match-ALL")
    def wild(part, of=MATCH, n=ALL):
        return {"ALL": part, "MATCH": of, "n": n}
    here += [html.P("-", id=wild(part, of, n))
             for of in (0, 1, 10, 9) for part in ("MATCH", "ALL", "bar") for n in (1, 2)]
    @click(Output(wild("ALL"), "children"), Input(wild("MATCH", n=1), "n_clicks"),
           State(wild("ALL"), "id"), running=[(Output(wild("bar"), "title"), "on", "off")],
           cancel=[Input(wild("MATCH"), "n_clicks"), stop],
           progress=Output(wild("bar"), "children"), progress_default="rest")
    def instance(set_progress, n_clicks, ids):
        set_progress(f"{ctx.triggered_id['MATCH']} runs")
        until(f"go-match-{n_clicks}")
        return [f"{n_clicks} of {id['MATCH']}" for id in ids]
    begin("props")
    here += [html.P(id="a"), html.P("-", id={"b": 1}), dcc.Input("-", id="typed"),
             html.P(id="echoed"), html.Progress(id="meter"), html.P([], id="list")]
    app.callback(Output("echoed", "children"), Input("typed", "value"))(lambda v: f"e {v}")
    @job("set", progress={"meter": Output("meter", ("value", "max")), "day": place("day")},
         progress_default={"meter": ("0", "9"), "day": datetime.date(2024, 2, 29)})
    def props(set_progress, n_clicks):
        set_progress({"meter": ("1", "4"), "day": datetime.date(2023, 1, 1)})
        set_progress({"meter": (no_update, "5"), "day": no_update})
        set_progress(no_update)
        for number in range(3):  # there is no time for a poll between these
            set_props("a", {"children": f"a{number}", "title": f"t{number}"})
            set_props({"b": 1}, {"children": f"b{number}"})
        set_props("a", {"children": no_update, "lang": "en"})
        set_props("typed", {"value": "typed"})
        until("go-set")
        return "done"
    def appended(text):
        patched = Patch()
        patched.append(text)
        return patched
    @job("patched", interval=50)
    def patches(n_clicks):
        for number in range(4):
            set_props("list", {"children": appended(str(number))})
        until("go-set")
        return appended(str(n_clicks))
    begin("leave")
    here += [dcc.Location(id="url", refresh=True), dcc.Download(id="download"),
             dcc.Link("Link", href="/linked", id="link")]
    app.callback(place("path"), Input("url", "pathname"))(lambda path: path)
    click(Output("gone", "children"), Input("gone", "n_clicks"),
          cancel=Input("url", "pathname"))(lambda n: "its components are not shown")
    @job("left", progress=place("half"))
    def leave(set_progress, n_clicks):
        set_progress("half")
        set_props("download", {"data": {"content": "x", "filename": "x.txt"}})
        until("go-there")
        set_props("url", {"href": "/leave"})
        until("go-leave")
        return f"run {count_run('leave')}"
"""
MORE = """
    run, on = begin("tabs"), Input("go", "n_clicks")
    here += [html.B("go", id="go"), html.P(id="shown")]
    inner = html.I("-", id="inner")
    tabs = [html.P("-", id="tabbed"), html.P(inner, id="box")]
    app.callback(Output("shown", "children"), run)(lambda n: "elsewhere" if n == 1 else tabs)
    for output, running in (("tabbed", (Output("go", "title"), "on", "off")),
                            ("inner", (Output("box", "children"), "works", inner))):
        click(Output(output, "children"), on, running=[running])(
            lambda n, output=output: [until("go-tabs"), output][1])
    for number in range(12):
        click(place(f"of-{number}"), on)(lambda n: [until("go-tabs"), f"run {n}"][1])
    begin("circular")
    here += [dcc.Dropdown(["a"], "a", id="drop"), dcc.Store(id="store", data=[0])]
    for kind, declare in both.items():
        here += [html.Button("Count", id=f"{kind}-count", n_clicks=0),
                 dcc.RadioItems(["one", "two"], id=f"{kind}-radio")]
        for name, property, empty in (("count", "n_clicks", 0), ("radio", "value", None)):
            @declare(Output(f"{kind}-{name}", property), place(f"{kind}-{name}-said"),
                     Input(f"{kind}-{name}", property), prevent_initial_call=True)
            def set_back(value, name=f"{kind}-{name}", empty=empty):
                run = count_run(name)
                while os.path.exists("hold"):
                    time.sleep(0.02)
                return empty, f"run {run}: {value}"
    app.long_callback(Output("drop", "options"), Output("drop", "value"),
                      Input("drop", "value"))(lambda v: (["b"], "b" if count_run("choose") else v))
    click(Output("store", "data"), Input("circular", "n_clicks"), Input("store", "data"))(
        lambda n_clicks, data: appended(count_run("patch")))
    begin("graph")
    graph = [("long-top", "title"), ("mixed", "long-top", "title"), ("other", "long-second"),
             ("long-second", "long-top"), ("long-left", "long-top"), ("right", "long-top"),
             ("both", "long-left", "right"), ("long-both", "long-left", "right"),
             ("prevents", "title"), ("long-prevented", "prevents")]
    graph += [("long-alone",)] * (dash.__version__ > "4.1")  # older ones need an Input
    for kind, declare in both.items():
        for name, *inputs in graph:
            names = [(f"{kind}-long-top", i) if i == "title" else (f"{kind}-{i}", "children")
                     for i in inputs]
            @(declare if "long" in name else app.callback)(
                place(f"{kind}-{name}"), *[Input(*name) for name in names])
            def show(*values, name=name, kind=kind):
                count_run(kind, name, *values)
                if name == "long-top":
                    until("go-graph")
                elif name == "prevents":
                    raise dash.exceptions.PreventUpdate
                return f"{name}-shown"
        declare(Input("graph", "n_clicks"))(
            lambda n, kind=kind: [count_run(kind, "none"), None][1])
"""
MORE += """
    begin("brings")
    for kind, declare in both.items():
        add, delete = f"{kind}-add", {"kind": kind, "n": MATCH}
        here += [html.Div(html.Button("Add", id=add), id=f"{kind}-box")]
        note = functools.partial(count_run, kind)
        @declare(Output(f"{kind}-box", "children"), Output(add, "title"),
                 Input(add, "n_clicks"), Input({**delete, "n": ALL}, "n_clicks"),
                 running=[(Output(f"{kind}-box", "lang"), "on", "off")],
                 prevent_initial_call=True)
        def bring(add, deleted, note=note, id_=add, kind=kind):
            note("bring", add, ctx.triggered_id)
            return [html.Button(id_, id=id_), *[html.Button(f"{kind} {n}",
                    id={"kind": kind, "n": n}) for n in "ab"]], "brought"
        @app.callback(place(f"{kind}-after"), Input(add, "n_clicks"), Input(add, "title"),
                      prevent_initial_call=True)
        def after(add, title, note=note):
            note("after", add, title, len(ctx.triggered))
            return f"after {title}"
        known = delete if dash.__version__ > "4.1" else {**delete, "n": ALL}
        @declare(Input(known, "n_clicks"), prevent_initial_call=known is not delete)
        def alone(n, note=note):
            note("alone", n, ctx.triggered_id["n"])
        @declare(place(f"{kind}-made"), Input(f"{kind}-after", "children"))
        def makes(text, kind=kind):
            set_props(f"{kind}-made", {"children": html.B(id=f"{kind}-inner")})
            set_props(f"{kind}-inner", {"children": text})
            return no_update
"""
rows = shared(ROWS, MORE)


def sees(tab, facts):
    """Wait until a page shows these: `id=text` or `id@attribute=value`; parted by |."""
    for fact in facts.split(" | "):
        place, _, text = fact.partition("=")
        id_, _, attribute = place.partition("@")
        one = expect(tab.locator(f"[id='{id_}']"))
        if attribute:
            one.to_have_attribute(attribute, text)
        else:
            one.to_have_text(text)


def start(tab, app, name):
    """Open one of BASE's pages, and click its button."""
    tab.open(app, f"/{name}").click(f"[id='{name}']")


@core
def test_a_job_sees_the_context_that_dash_gives_its_callback(rows, tab):
    cookie = {"name": "taste", "value": "chocolate", "url": rows.url}
    tab.page.context.add_cookies([cookie])
    tab.open(rows, "/context")
    told = []
    for kind in ("ours", "dash"):
        tab.click(f"text={kind} >> nth=1")  # the second of ALL
        states = f"[{{'z': 1, 'a': 2}}, ['{kind}', '{kind}']]"
        sees(tab, f"{kind}-args=None [None, 1] {states}")
        told.append(tab.locator(f"#{kind}-told").inner_text().replace("ours", "dash"))
    expect(tab.locator("[title=new]")).to_have_text(["ours", "dash"])
    assert told[0] == told[1] and not tab.errors
    id_, cookie, agent = json.loads(told[0])[-3:]
    assert id_ == {"kind": "dash", "of": 2} and cookie == "chocolate"
    assert agent == tab.evaluate("navigator.userAgent")


@core
def test_results_and_functions_may_be_all_that_dash_takes(rows, tab):
    start(tab, rows, "results")
    sees(tab, "new=1 | two=by the first")
    for kind in ("ours", "dash"):
        sees(tab, f"{kind}-none= | {kind}-tree=ab | {kind}-date=2024-02-29 12:00:00")
    sees(tab, "partial=7 | compiled=1 | object=so")
    for number in (1, 0):
        touch(rows, f"go-two-{number}")
        sees(tab, f"two=by {number}")
    tab.click("#newer")
    sees(tab, "new=2")
    for kind in ("ours", "dash"):
        sees(tab, f"{kind}-no=- | {kind}-prevented=-")
    assert not tab.errors


def test_a_job_draws_numbers_of_its_own_and_what_it_started_goes_on(rows, tab):
    start(tab, rows, "launches")
    expect(tab.locator("#drawn")).to_contain_text("0.")
    drawn = tab.inner_text("#drawn")
    tab.click("#launches")
    expect(tab.locator("#drawn")).not_to_have_text(drawn)
    for started in "child", "thread":
        wait_for(lambda name=f"runs-{started}": rows.file(name), what=started)


@core
def test_each_match_instance_has_a_job_of_its_own(rows, tab):
    def at(part, of):  # which are two
        return tab.locator(f"""[id*='"ALL":"{part}","MATCH":{of},']""")

    def show(part, *texts):
        for of, text in zip((0, 1, 10, 9), texts):
            expect(at(part, of)).to_have_text([text] * 2)
            if part == "bar" and text != "-":
                title = "off" if text == "rest" else "on"
                expect(at(part, of).last).to_have_attribute("title", title)

    tab.open(rows, "/match-ALL")
    for of in (0, 1, 10):
        at("MATCH", of).first.click()
    show("bar", "0 runs", "1 runs", "10 runs", "-")
    at("MATCH", 1).last.click()
    show("bar", "0 runs", "rest", "10 runs", "-")
    touch(rows, "go-match-1")
    show("bar", "rest", "rest", "rest", "-")
    show("ALL", "1 of 0", "-", "1 of 10", "-")
    for of in (0, 10):
        at("MATCH", of).first.click()
    show("bar", "0 runs", "rest", "10 runs", "-")
    tab.click("[id=match-ALL]")
    show("bar", "rest", "rest", "rest", "-")
    touch(rows, "go-match-3")
    at("MATCH", 0).first.click()
    show("ALL", "3 of 0", "-", "1 of 10", "-")
    assert not tab.errors


@core
def test_what_a_job_sets_on_its_way_arrives_once(rows, tab):
    def is_there():
        sees(tab, "a=a2 | a@title=t2 | a@lang=en | echoed=e typed")
        tab.shows("text=b2", "b2")

    start(tab, rows, "props")
    is_there()
    sees(tab, "meter@value=1 | meter@max=5 | day=2023-01-01 | set=- | set@title=on")
    patches = DASH >= (3, 3)
    wait_with(tab, lambda: len(tab.requests) > 20, "questions about the jobs")
    sees(tab, "list=0123" if patches else "list=")
    touch(rows, "go-set")
    sees(tab, "set=done | meter@value=0 | meter@max=9 | day=2024-02-29 | set@title=off")
    error = "app: a job can return or set a Patch with Dash 3.3 or newer"
    sees(tab, "patched=-1" if patches else f"patched={error}")
    start(tab, rows, "props")  # now it does not wait
    sees(tab, "set=done")
    is_there()
    assert not tab.errors


def test_every_way_to_fail_ends_in_an_error_that_names_the_cause(rows, tab):
    start(tab, rows, "failing")
    for number, words in enumerate([*FAILURES.values(), "-", "-"]):
        tab.shows(f"#job-{number}", re.compile(words))
        sees(tab, f"bar-{number}=ended | job-{number}@title=off")
        assert words == "-" or re.search(f"app.failing .*{words}", rows.log)
    sees(tab, "single=set_progress takes one value, not (1, 2)")
    tab.shows("#undeclared", re.compile("no module that its process imports"))
    for error in ("InvalidCallbackReturnValue", "SystemExit"):
        says(tab, f"app.failing: {error}")  # as with Dash, no on_error hears of these
    assert "which is not JSON serializable" in rows.log


@core
def test_on_error_of_callback_and_app_get_the_error_and_fill_the_outputs(rows, tab):
    start(tab, rows, "handled")
    sees(tab, "own=own: oh no | app=app: oh no | kind=ValueError | x=X | y=-")
    sees(tab, "none=division by zero | silent@title=off | silent=-")
    assert re.search(r"builtins.ord \w{8}: failed", rows.log) and not tab.errors


STRICT = """
    app.config.suppress_callback_exceptions = False
    app.renderer = ("new DashRenderer({request_refresh_jwt: (old) => `new for ${old}`,"
        "layout_post: (layout) => {layout.props.lang = 'en'},"
        "request_pre: (call) => {if (call.inputs) call.inputs[0].value++},"
        "request_post: (call, response) => document.body.lang = response.hooked.children})")
    @server.before_request
    def guard():
        request, bearer = flask.request, "Bearer new for null"
        if request.method == "POST" and request.headers.get("Authorization") != bearer:
            return "JWT Expired", 401
    run = begin("raising")
    targets = [Output("raising", "title"), Output("typo", "title")]
    job("hooked")(str)
    for outputs in ([place("told")], []):
        @click(*outputs, run, running=[(target, "on", "off") for target in targets])
        def raising(n_clicks):
            return {}["the lost key"]
"""
strict = shared(BASE, STRICT, environment={"DEBUG": "1"})


@core
def test_an_error_or_a_typo_shows_in_the_dev_tools_and_hooks_are_called(strict, tab):
    start(tab, strict, "raising")
    sees(tab, "raising@title=off | hooked=2")
    expect(tab.locator("body[lang='2'] [lang=en]")).to_be_visible()
    cards = tab.locator(".dash-fe-error__title")
    errors = cards.filter(has_text="app.raising: KeyError: 'the lost key'")
    expect(errors).to_have_count(2)
    for error in errors.all():
        expect(error).to_contain_text('return {}["the lost key"]')
    assert 'return {}["the lost key"]' in strict.log
    expect(cards.filter(has_text="ID not found in layout").first).to_be_visible()


def test_refresh_repeats_no_redirect_and_no_download_of_a_job(rows, tab):
    loads, downloads = [], []
    tab.page.on("load", lambda page: loads.append(page.url))
    tab.page.on("download", lambda download: downloads.append(download.url))
    with tab.page.expect_download():
        start(tab, rows, "leave")
    tab.page.reload()
    sees(tab, "half=half")
    touch(rows, "go-there")
    wait_with(tab, lambda: len(loads) == 3, "the redirect")
    sees(tab, "half=half | left@title=on")
    seen = len(tab.requests)
    wait_with(tab, lambda: len(tab.requests) > seen + 3, "questions about the job")
    touch(rows, "go-leave")
    sees(tab, "left=run 1")
    assert (len(loads), len(downloads)) == (3, 1) and not tab.errors


EVERY_KIND = """
    import flask, flask_login
    from flask_caching import Cache
    from flask_login import current_user
    caches = [Cache(config={"CACHE_TYPE": kind, "CACHE_DIR": "cache",
        "CACHE_REDIS_URL": os.environ["BROKER"]}) for kind in ("RedisCache", "FileSystemCache")]
    managers = {method: dl.FlaskCachingCallbackManager(caches[1], start_method=method)
                for method in ("fork", "forkserver", "spawn")}
    managers["celery"] = manager
    server.secret_key = "a secret"
    load = flask_login.LoginManager(server).user_loader(
        lambda name: type("User", (flask_login.UserMixin,), {"id": name})())
    server.route("/login")(lambda: str(
        (flask.session.update(cart="tea"), flask_login.login_user(load("Ada")))))
    def slow(set_progress, what, user):
        print("x", file=open(f"runs-{what}", "a"))
        return what
    memoized = []
    for cache in caches:
        cache.init_app(server)
        memoize = cache.memoize(timeout=60, args_to_ignore=["set_progress"])
        memoized.append(memoize(slow))
    for name in managers:
        app.layout.children += [html.P(id=name), html.Button("-", id=f"run-{name}")]
        @app.long_callback(
            Output(name, "children"), Input(f"run-{name}", "n_clicks"), State(name, "id"),
            progress=Output(name, "title"), manager=managers[name],
            prevent_initial_call=True)
        def compute(set_progress, n_clicks, id):
            user = current_user.id
            words = [n_clicks, user, flask.session["cart"], flask.current_app.secret_key]
            if n_clicks == 2:
                flask.session["cart"] = "empty"
            return " ".join(map(str, words + [m(set_progress, id, user) for m in memoized]))
"""


def test_jobs_of_every_kind_read_session_and_user_and_memoize(redis_url, new_site, tab):
    pytest.importorskip("flask_login")
    site = new_site(redis_url, redis_url, EVERY_KIND)
    site.start_worker()
    tab.page.goto(f"{site.url}/login")
    tab.open(site)
    kinds = ["fork", "forkserver", "spawn", "celery"]
    logs = site.app, site.workers[0]
    for clicks in (1, 2):
        for name in kinds:  # in turn, since the first call makes the function's version
            tab.click(f"#run-{name}")
            sees(tab, f"{name}={clicks} Ada tea a secret {name} {name}")
        warnings = [program.log.count("can't change the session") for program in logs]
        assert warnings == [3 * (clicks - 1), clicks - 1]
    assert {site.file(f"runs-{name}") for name in kinds} == {"x\nx\n"}  # two caches
    is_content(tab)


PROXY = """
    from dash_extensions.enrich import DashProxy, MultiplexerTransform, TriggerTransform
    app = DashProxy(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    transforms=[MultiplexerTransform(), TriggerTransform()])
    app.callback(Output("result", "title"), Input("run", "n_clicks"))(lambda n: n)
"""
METHOD = """
    manager = dl.FlaskCachingCallbackManager(cache, start_method=os.environ["METHOD"])
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])
    server = app.server
"""


@pytest.mark.parametrize(
    "kind", ["spawn", "forkserver", "fastapi", "quart", "dash_extensions"]
)
def test_jobs_run_and_are_cancelled_by_every_method_and_server(serve, tab, kind):
    source = job("while n_clicks == 2: time.sleep(0.1)")
    gunicorn, environment = None, {"METHOD": kind}
    if "spawn" in kind or "fork" in kind:
        preamble, gunicorn = PREAMBLE + METHOD, ["--threads", "4"]
    elif pytest.importorskip(kind) and kind == "dash_extensions":
        preamble = PREAMBLE + PROXY
    else:
        backend = f'dash.Dash(__name__, backend="{kind}", '
        preamble = PREAMBLE.replace("dash.Dash(__name__, ", backend)
    app = serve(source, preamble, gunicorn=gunicorn, environment=environment)
    tab.open(app).click("#run")
    ended_once(tab, app)
    tab.click("#run")
    tab.shows("#state", "running")
    tab.click("#cancel")
    tab.shows("#state", "idle")
    assert not tab.errors


@core
def test_an_output_that_is_an_input_too_starts_no_second_job(rows, tab):
    start(tab, rows, "circular")
    for turn in (1, 2):
        for kind in ("ours", "dash"):
            tab.click(f"#{kind}-count")
            tab.locator(f"#{kind}-radio label").first.click()
            sees(tab, f"{kind}-count-said=run {turn}: 1")
            sees(tab, f"{kind}-radio-said=run {turn}: one")
    touch(rows, "hold")
    tab.click("#ours-count")
    wait_for(lambda: rows.file("runs-ours-count").count("\n") == 3, what="another job")
    tab.reload()
    Path(rows.folder, "hold").unlink()
    sees(tab, "ours-count-said=run 3: 1")
    counted = {"choose": 2, "patch": 1, "ours-count": 3, "ours-radio": 2}
    for name in counted:
        wait_for(lambda name=name: rows.file(f"runs-{name}"))
    goes_quiet(tab)
    for name, number in counted.items():
        assert rows.file(f"runs-{name}").count("\n") == number
    assert not tab.locator("input:checked").count()
    assert not tab.errors or DASH < (3, 3)


@core
def test_at_page_load_what_depends_on_a_long_callback_waits_for_it(rows, tab):
    tab.open(rows, "/graph")
    for kind in ("ours", "dash"):
        wait_for(lambda kind=kind: rows.file(f"runs-{kind}"))
    touch(rows, "go-graph")
    for kind in ("ours", "dash"):
        for name in ("mixed", "other", "both", "long-both"):
            sees(tab, f"{kind}-{name}={name}-shown")
    goes_quiet(tab)
    ours, dashs = (sorted(rows.file(f"runs-{k}").split("\n")) for k in ("ours", "dash"))
    assert ours == dashs and len(ours) == 10 + (DASH >= (4, 1)) + (DASH >= (4, 2))
    assert not tab.errors


@core
def test_dependents_wait_and_what_a_result_brings_triggers_nothing(rows, tab):
    tab.open(rows, "/brings")
    for kind in ("ours", "dash"):
        tab.click(f"#{kind}-add")
        inner = "after brought" if DASH >= (3, 3) else ""  # as Dash knew it not yet
        sees(tab, f"{kind}-after=after brought | {kind}-inner={inner}")
        for n, name in enumerate(("a", "b"), 2):
            tab.click(f"text={kind} {name}")
            wait_for(lambda n=n, k=kind: rows.file(f"runs-{k}").count("bring") == n)
            sees(tab, f"{kind}-box@lang=off")
    goes_quiet(tab)
    ours, dashs = (rows.file(f"runs-{kind}") for kind in ("ours", "dash"))
    ours = ours.replace("ours", "dash")
    assert sorted(ours.split("\n")) == sorted(dashs.split("\n")) and not tab.errors


def test_what_runs_while_the_page_changes_comes_to_its_end_there(rows, tab):
    tab.open(rows, "/tabs").click("#go")
    for shown in ("-works", "elsewhere"):
        sees(tab, f"go@title=on | shown={shown}")
        tab.click("[id=tabs]")
    sees(tab, "go@title=on | shown=-works")
    tab.evaluate("history.replaceState(0, '', '?filter=1')")  # as a dcc.Location does
    touch(rows, "go-tabs")
    sees(tab, "go@title=off | shown=tabbedinner")
    sees(tab, " | ".join(f"of-{number}=run 1" for number in range(12)))
    assert not tab.errors


ABSENT = """
    app.config.suppress_callback_exceptions = False
    run, hidden = begin("absent"), html.Button("Here", id="here")
    here += [html.Button("Everywhere", id="everywhere"), html.Button("Show", id="show"),
             html.Div(id="parent-of-here")]
    app.callback(Output("parent-of-here", "children"), Input("show", "n_clicks"),
                 prevent_initial_call=True)(lambda n: hidden)
    @job("ended", cancel=[Input("everywhere", "n_clicks"), Input("here", "n_clicks"), run])
    def ended(n_clicks):
        count_run("ended")
        until("never" if n_clicks < 4 else ".")
        return f"Clicked {n_clicks} times"
    for id_ in "everywhere", "here":  # without Output
        app.long_callback(Input(id_, "n_clicks"), Input({"no": ALL}, "id"))(
            lambda *values, id_=id_: print(id_, *values, file=open("bare", "a")))
    app.validation_layout = html.Div([*here, hidden])
"""
absent = shared(BASE, ABSENT, environment={"DEBUG": "1"})


def test_cancel_by_an_input_new_in_the_page_and_by_the_trigger_itself(absent, tab):
    tab.open(absent, "/absent")
    wait_for(lambda: DASH < (4, 2) or absent.file("bare"), what="the page's load")
    for number, cancel in enumerate(["everywhere", "here", "absent"], 1):
        tab.click("#absent")
        sees(tab, "ended@title=on")
        wait_for(lambda n=number: absent.file("runs-ended").count("\n") == n)
        tab.click(f"#{cancel}")
        sees(tab, "ended@title=off")
        if number == 1:
            tab.click("#show")
            expect(tab.locator("#here")).to_be_visible()
    sees(tab, "ended=Clicked 4 times")
    *jobs, _ = map(int, absent.file("runs-ended").split())
    wait_for(lambda: len(jobs) == 3 and not any(map(alive, jobs)), what="their end")
    bare = ["everywhere None []", "everywhere 1 []", "here 1 []"][DASH < (4, 2) :]
    assert absent.file("bare").splitlines() == bare
    expect(tab.locator(".dash-fe-error__title")).to_have_count(0)


MODULE = """
    import flask
    manager = dl.FlaskCachingCallbackManager(cache, start_method="forkserver")
    option = "url_base_pathname" if __name__ == "public" else "requests_pathname_prefix"
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    **{option: f"/{__name__}/"})
    app.layout = html.Div([html.Button("Run", id="run"), html.P("-", id="modules"),
                           html.P(id="ours"), html.P(id="dash")])
    click = Input("run", "n_clicks")
    @app.server.before_request
    def log_in():
        if __name__ == "private" and "member" not in flask.request.cookies:
            return "Log in first", 401
    @app.callback(Output("dash", "children"), click, prevent_initial_call=True)
    def address(n_clicks):
        return f"{n_clicks} {flask.request.base_url} {flask.request.remote_addr}"
    @app.long_callback(Output("ours", "children"), Output("modules", "children"), click,
                       prevent_initial_call=True)
    def compute(n_clicks):
        while __name__ == "private" and not os.path.exists("go"):
            time.sleep(0.02)
        return address(n_clicks), str({"private", "public"} & {*sys.modules})
"""
TWO_APPS = """
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.middleware.proxy_fix import ProxyFix
    import private, public
    apps = {"/private": private.app.server}
    server = ProxyFix(DispatcherMiddleware(public.app.server, apps), x_host=1)
"""


def test_two_apps_of_one_server_keep_their_jobs_apart(serve, tab, tmp_path):
    for name in ("private", "public"):
        write_app(tmp_path, PREAMBLE, MODULE, name=name)
    app = serve(TWO_APPS, "", gunicorn=["--threads", "4"])
    tab.page.context.add_cookies([{"name": "member", "value": "1", "url": app.url}])
    proxied = {"For": "192.0.2.9", "Proto": "https", "Host": "shop.example"}
    headers = {f"X-Forwarded-{name}": value for name, value in proxied.items()}
    tab.page.set_extra_http_headers(headers)
    seen = "1 https://shop.example/{}/_dash-update-component 192.0.2.9"
    with tab.page.expect_request(lambda r: "seen" in str(r.post_data)) as sent:
        tab.open(app, "/private/").click("#run")
    sees(tab, f"dash={seen.format('private')}")
    tab.open(app, "/public/").click("#run")  # in the same tab, while the other's runs
    sees(tab, f"dash={seen.format('public')} | ours={seen.format('public')}")
    sees(tab, "modules={'public'}")  # a fresh process imports the app of its job only
    touch(app, "go")
    tab.open(app, "/private/")
    sees(tab, f"ours={seen.format('private')} | modules={{'private'}}")
    assert "is gone" not in app.log  # as a job of another app would be
    (job,) = sent.value.post_data_json["inputs"][0]["value"]["jobs"]
    stranger = Client(app.url, path="/public/")
    assert "reload the page" in str(stranger.start(key=job[:12]))
    stranger.path = "/private/"
    assert stranger.post({})[0] == 401


@unit
def test_a_function_needs_room_for_set_progress_and_a_name_of_its_own(plugin):
    declare = dash.Dash(__name__, plugins=[plugin]).long_callback
    for function in (ord, lambda: None):
        with pytest.raises(dl.LongCallbackError, match="set_progress"):
            declare(CLICKS, progress=dl.Output("p", "value"))(function)
    declare(CLICKS)(lambda n_clicks: None)
    with pytest.raises(dl.LongCallbackError, match="name__"):
        declare(CLICKS)(lambda n_clicks: None)


# --- The examples --------------------------------------------------------------------

EXAMPLES = {  # what is seen one after the other, and what to click
    "Simple": "p:text('Running…') | p:text('Clicked 0 times')",
    "Running": "click #running_button | :disabled:text('Running…') | p:text('Clicked 1')",
    "Cancel": "click #cancel_run | click #cancel_cancel | :disabled ~ p:text('Cancelled')",
    "Progress": "click #progress_run | p[hidden] ~ [max='10']:is([value='4'], [value='5'])"
    "| p:text('Clicked 1 times'):visible ~ [hidden]",
    "Figure": "click #figure_run | :nth-match(.points path, 9) | p:text('π is about 3.092')",
    "Errors": "click #errors_raise | click #errors_kill | p:text('with a ValueError.') |"
    "#errors_kill:enabled ~ p:text('ended by SIGKILL'):not(:text('Traceback'))",
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    shell = ["sh", "-c", 'exec "$0" "$1" --port $PORT $2', sys.executable]
    shell.append(str(HERE / "examples.py"))
    programs = [App(folder, command=[*shell, more]) for more in ("", "--debug")]
    yield programs
    for program in programs:
        program.stop()


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_works_on_any_screen_without_the_internet(examples, tab, title):
    number, urls = [*EXAMPLES].index(title) + 1, []
    app = examples[number % 2]
    tab.on("request", lambda request: urls.append(request.url))
    tab.set_viewport_size({"width": 400, "height": 800})
    tab.open(app).click(f"nav >> text={number} {title}")
    for step in EXAMPLES[title].split("|"):
        _, click, selector = step.rpartition("click ")
        tab.click(selector) if click else tab.wait_for_selector(step, state="attached")
    shown, source = tab.inner_text("pre code"), (HERE / "examples.py").read_text()
    assert all(function in source for function in shown.strip().split("\n\n\n"))
    assert "def" in shown and "@app.long_callback(" in shown
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert all(url.startswith((app.url, "data:", "blob:")) for url in urls)
    assert not [error for error in tab.errors if "defaultProps" not in error]  # React's
    assert not tab.locator(".dash-error-card").count() and f"{app.url}/" in app.log


def test_readme_begins_with_an_example_that_runs(serve, tab):
    source = Path(HERE, "README.md").read_text().split("```python\n")[1].split("```")[0]
    tab.open(serve(source, preamble="")).shows("#result", "Clicked 0 times")
    tab.click("#run")
    tab.wait_for_selector("#run:disabled")
    tab.shows("#result", "Clicked 1 times")
    assert not tab.errors


DASHS_OWN = """
    import diskcache, signal
    own = dash.DiskcacheManager(diskcache.Cache("own"))
    app.layout = html.Div([html.Button("Run", id="run"), html.P("-", id="result")])
    @app.callback(Output("result", "children"), Input("run", "n_clicks"), manager=own,
                  running=[(Output("run", "disabled"), True, False)],
                  background=True, prevent_initial_call=True)
    def work(n_clicks):
        print("begun", file=open("begun", "w"))
        until_go()
        if os.path.exists("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"
"""


@pytest.mark.parametrize("fault", ["refreshed", "answer", "killed"])
def test_dashs_own_loses_the_result(serve, tab, fault):
    """With a refresh, a lost answer or, in silence, a killed process."""
    pytest.importorskip("diskcache")
    app = serve(UNTIL_GO + DASHS_OWN)
    touch(app, fault)
    if fault == "answer":
        tab.route("**/*cacheKey*", lambda route: route.abort(), times=1)
    tab.open(app).click("#run")
    wait_with(tab, lambda: app.file("begun"), "the job to start")
    if fault == "refreshed":
        tab.reload()
    go(app)
    tab.wait_for_timeout(3000)  # it asks each second
    tab.shows("#result", "-")
    tab.wait_for_selector("#run:disabled" if fault == "answer" else "#run:enabled")
    assert bool(tab.errors) == (fault == "answer")
    assert "Error" not in app.log and "SIGKILL" not in app.log


# --- Faults, slow networks, refresh and navigation -----------------------------------

LAB = """
    import itertools
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    use_pages=True, pages_folder="", suppress_callback_exceptions=True)
    server = app.server
    def layout(name="", **query):
        load = [html.Button(id="load"), html.P(id="loaded")] if "load" in name else []
        return html.Div([
            html.Button("Run", id="run"), html.Button("Cancel", id="cancel"),
            html.P("idle", id="state"), html.P(id="progress"), html.P(id="result"),
            html.Button("A", id="a"), html.P("idle", id="a-state"), html.P(id="a-result"),
            dcc.Store(id="large", data="x" * 800_000), *load])
    dash.register_page("two", path="/two", layout=html.P("Page two", id="two"))
    dash.register_page("tests", path_template="/test<name>", layout=layout)
    app.layout = html.Div([dcc.Link("Two", href="/two", id="to-two"), dash.page_container])
    def file(name):
        return urlsplit(flask.request.referrer).path[1:] + "/" + name
    def note(name, *words):
        print(*words, file=open(file(name), "a"))
    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"), interval=100,
        running=[(Output("state", "children"), "running", "idle")],
        cancel=[Input("cancel", "n_clicks")], progress=Output("progress", "children"),
        progress_default="none", prevent_initial_call=True)
    def compute(set_progress, n_clicks):
        note("runs", n_clicks, os.getpid(), os.getppid())
        for step in itertools.count():
            if step > 3 and os.path.exists(file("go")):
                break
            set_progress(step)
            time.sleep(0.1)
        note("ends", n_clicks)
        return f"Clicked {n_clicks} times"
    @app.long_callback(Output("loaded", "children"), Input("load", "n_clicks"))
    def at_load(n_clicks):
        return compute(lambda step: None, 0)
    @app.long_callback(Output("a-result", "children"), Input("a", "n_clicks"),
                       State("large", "data"), prevent_initial_call=True,
                       running=[(Output("a-state", "children"), "running", "idle")])
    def a(n_clicks, data):
        note("inputs", len(data))
        return data * 2
"""
lab_app = shared(LAB)


@pytest.fixture
def lab(lab_app, tab, request):
    """A test's own page of LAB, open in its tab; it has its folder, too."""
    lab, name = copy.copy(lab_app), request.node.name
    lab.url, lab.folder = f"{lab.url}/{name}", Path(lab.folder, name)
    lab.folder.mkdir()
    tab.open(lab, "").wait_for_selector("#run")
    return lab


START, POLL, END = '"start":{', '"end":false,"start":null', '"end":true'  # of messages


def hold(tab, message, answer=None):
    """Hold the first message with a text, or such an answer to one, in a list."""
    held = []

    def handle(route, number):
        if held or message not in route.request.post_data:
            return route.fallback()
        response = None if answer is None else route.fetch()
        if response and (answer not in response.text() or held):
            return route.fulfill(response=response)
        held.extend([route, response])

    intercept(tab, handle)
    return held


def lose_patience(tab, *held):
    """Wait until each of these is held, and then for the page to repeat its message."""
    for item in held:
        wait_with(tab, lambda item=item: item, "a message to hold")
        for _ in range(20):
            tab.clock.run_for(500)


def goes_on(tab, *held, until=lambda: True):
    """Let answers arrive; each progress is set once, in order. Returns its times."""
    tab.wait_for_selector("#progress:text-matches('[0-9]')")
    tab.evaluate("""() => {
        [window.seen, window.set] = [[], window.set || dash_clientside.set_props];
        dash_clientside.set_props = (id, props) => set(id, props,
            id === "progress" && seen.push([performance.now(), +props.children]));
    }""")
    for route, response in held:
        route.fulfill(response=response)
    lose_patience(tab, *held)
    wait_with(tab, lambda: tab.evaluate("seen.length > 4") and until(), "progress")
    times, steps = zip(*tab.evaluate("seen"))
    assert list(steps) == sorted({*steps})
    return times


def test_lost_answers_a_proxys_502_and_a_clock_set_back_lose_nothing(lab, tab):
    lose, refuse = lambda route: route.abort(), lambda route: route.fulfill(status=502)
    mishaps = [(lose, START, ""), (lose, POLL, ""), (lose, "", '"outcome":{')]
    mishaps += [(lose, END, ""), (refuse, START), (refuse, POLL)]
    tab.clock.install()
    go(lab)
    for clicks, (act, *texts) in enumerate(mishaps, 1):
        held = hold(tab, *texts)
        tab.click("#run")
        wait_with(tab, lambda held=held: held, "a message")
        act(held[0])
        tab.evaluate("() => { const now = Date.now; Date.now = () => now() - 3.6e6; }")
        lose_patience(tab, held)
        ended_once(tab, lab, clicks)
    goes_quiet(tab)


def test_two_minutes_without_network_lose_nothing(lab, tab):
    tab.clock.install()
    for buttons in (["#a", "#run"], []):
        tab.context.set_offline(True)
        for button in buttons:
            tab.click(button)
        for _ in range(120):
            tab.clock.run_for(1000)
        tab.shows("#state", "running")
        assert bool(runs(lab)) != bool(buttons)
        tab.context.set_offline(False)
        tab.clock.run_for(12_000)
        expect(tab.locator("#a-result")).to_have_text("x" * 1_600_000)
        goes_on(tab)
    go(lab)
    ended_once(tab, lab)
    assert not [error for error in tab.errors if "app." in error]


def test_messages_that_hang_leave_the_browser_connections(lab, tab):
    tab.clock.install()
    hung = []
    intercept(tab, lambda route, _: hung.append(route))
    tab.click("#run")
    for _ in range(120):
        tab.clock.run_for(1000)
    assert sum(not route.request.failure for route in hung) < 2 and len(hung) > 5
    intercept(tab, lambda route, _: route.continue_())
    go(lab)
    tab.clock.run_for(12_000)
    ended_once(tab, lab)


def test_what_is_late_shows_nothing_old_and_leaves_nothing_behind(lab, tab):
    tab.clock.install()
    start, unknown = hold(tab, START), hold(tab, POLL, "")
    tab.click("#run")
    lose_patience(tab, start, unknown)
    goes_on(tab, unknown)
    olds = [hold(tab, POLL, '"progress",{') for _ in range(2)]
    lose_patience(tab, *olds)
    goes_on(tab, *olds)
    old, cancelled = hold(tab, POLL, '"progress",{'), hold(tab, END, "")
    wait_with(tab, lambda: old, "an answer about the first job")
    tab.click("#cancel")
    lose_patience(tab, cancelled)
    tab.shows("#progress", "none")
    wait_for(lambda: not alive(running_job(lab)[0]), what="the job's end")
    goes_quiet(tab)
    answer, repeated = hold(tab, START, ""), hold(tab, POLL)
    tab.click("#run")
    lose_patience(tab, answer, repeated)
    goes_on(tab, old, cancelled)
    go(lab)
    ended_once(tab, lab, clicks=2)
    goes_quiet(tab)
    answer[0].fulfill(response=answer[1])
    repeated[0].continue_()
    late = start[0].request  # it starts nothing, since its page has ended that job
    tab.page.request.post(late.url, data=late.post_data, headers=late.headers)
    goes_quiet(tab)
    sees(tab, "state=idle | progress=none")
    assert len(runs(lab)) == 2 and lab.file("ends") == "2\n"


def test_a_slow_line_carries_large_values_once_and_is_asked_less_often(lab, tab):
    received, timings, session = [], [], tab.context.new_cdp_session(tab.page)
    session.send("Network.enable")
    session.on("Network.dataReceived", lambda e: received.append(e["dataLength"]))
    tab.on("requestfinished", lambda request: timings.append(request.timing))
    line = dict.fromkeys(("downloadThroughput", "uploadThroughput"), 200_000)
    line.update(latency=300, offline=False)
    session.send("Network.emulateNetworkConditions", line)
    tab.click("#run")
    wait_with(tab, lambda: len(timings) > 3, "some answers")
    ends = [timing["startTime"] + timing["responseEnd"] for timing in timings]
    assert all(t["startTime"] - end > 180 for t, end in zip(timings[1:], ends))
    tab.click("#a")
    times = [*goes_on(tab, until=lambda: lab.file("inputs"))]
    times.append(tab.evaluate("performance.now()"))
    assert max(after - at for at, after in itertools.pairwise(times)) < 3000
    expect(tab.locator("#a-result")).to_have_text("x" * 1_600_000, timeout=30000)
    sizes = [len(request.post_data) for request in tab.requests]
    assert sum(sizes) < 1_000_000 and sum(received) < 2_000_000
    go(lab)
    ended_once(tab, lab)
    assert not tab.errors


def test_a_page_asks_less_while_others_ask(serve, tab):
    app = serve(WAITS)
    other, _ = client_job(app)
    tab.open(app).click("#run")
    for _ in range(100):  # two seconds, in which it would ask some fifteen times
        assert not other.want(seen=0, shown=0)["outcome"]  # which is answered at once
        tab.page.wait_for_timeout(20)
    assert other.crowd and 2 < len(tab.requests) < 9


def test_inputs_that_a_proxy_refuses_end_their_own_job_only(lab, tab):
    def passes_until_idle(selector):
        is_idle = tab.locator(selector, has_text="idle").count
        wait_for(lambda: (tab.clock.run_for(250), is_idle())[1], what="the error")

    def refuse(route, number):
        sent.append("L" if len(route.request.post_data) > 200_000 else "s")
        route.fulfill(status=413) if sent[-1] == "L" else route.continue_()

    tab.clock.install()
    sent = []
    intercept(tab, refuse)
    tab.click("#run")
    goes_on(tab)
    tab.click("#a")
    tab.shows("#a-state", "running")
    began = tab.evaluate("performance.now()")
    passes_until_idle("#a-state")
    assert 15_000 < tab.evaluate("performance.now()") - began < 50_000
    says(tab, "app.a: the server refuses it with status 413")
    assert re.fullmatch("s+(Ls{4,}){4}", "".join(sent))  # the other job was asked about
    go(lab)
    ended_once(tab, lab)
    assert not [error for error in tab.errors if "app.compute" in error]
    intercept(tab, lambda route, number: route.fulfill(status=401))
    tab.click("#run")
    tab.shows("#state", "running")
    passes_until_idle("#state")
    says(tab, "app.compute: the server refuses it with status 401")
    wait_for(lambda: tab.title() != "Updating...", what="the end of the title")
    tab.click("#run")
    tab.click("#to-two")
    asked = [(tab.clock.run_for(1000), len(tab.requests))[1] for _ in range(90)]
    assert asked[60] == asked[-1]


@core
def test_refresh_finds_the_running_job_and_starts_one_of_page_load_anew(lab, tab):
    at_load, held = running_job(lab)[0], hold(tab, START)
    tab.click("#run")
    wait_with(tab, lambda: held, "the start")
    for _ in range(2):  # first, before the start arrived
        tab.reload()
        tab.shows("#state", "running")
        expect(tab.locator("#result")).to_have_attribute("data-dash-is-loading", "true")
        goes_on(tab)
    wait_for(lambda: not alive(at_load), what="the end of the first job of page load")
    go(lab)
    sees(tab, "result=Clicked 1 times | loaded=Clicked 0 times")
    assert sorted(run[0] for run in runs(lab)) == [0, 0, 0, 1] and not tab.errors
    assert sorted(lab.file("ends").split()) == ["0", "1"]
    hold(tab, END)
    tab.click("#run")
    tab.click("#cancel")
    tab.reload()  # before the cancel has arrived
    goes_quiet(tab)
    tab.shows("#state", "idle")


@core
def test_result_is_there_on_return_from_another_page_or_site(lab, lab_app, tab):
    """Also when the browser kept the page, or a page elsewhere showed the result."""
    here = f"/{lab.folder.name}"
    for elsewhere in f"{here}?id=2", "/test-other", "", "again":
        tab.evaluate("addEventListener('pageshow', () => sessionStorage.kept = 1)")
        tab.click("#run")
        goes_on(tab)
        if "/" in elsewhere:  # pages with the same ids
            tab.click("#to-two")
            tab.shows("#two", "Page two")
            tab.reload()
            tab.shows("#two", "Page two")
            tab.go_back()
            tab.shows("#state", "running")
            tab.click("#to-two")
            tab.shows("#two", "Page two")
            if "id" in elsewhere:
                go(lab)
                goes_quiet(tab)  # the page has heard of it
            tab.evaluate("(url) => history.pushState(0, '', url)", elsewhere)
            tab.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
        else:
            tab.goto(f"{lab_app.url}/_dash-layout")
        go(lab)
        goes_quiet(tab)
        if "/" in elsewhere:
            sees(tab, "result= | state=idle")
            tab.go_back()
        elif elsewhere:
            tab.goto(lab_app.url + here)
            tab.shows("#result", "Clicked 2 times")  # the kept page went on before
            goes_quiet(tab)
            tab.go_back(wait_until="commit")
        tab.go_back(wait_until="commit")
        tab.shows("#result", "" if elsewhere == "again" else "Clicked 1 times")
        tab.shows("#state", "idle")
        goes_quiet(tab)
        Path(lab.folder, "go").unlink()
    assert tab.evaluate("sessionStorage.kept")
    assert [run[0] for run in runs(lab)] == [1, 1, 1, 2] and not tab.errors
    assert tab.evaluate("sessionStorage.length") == 1  # a copied tab is another


SANDBOXED = """
    @server.after_request
    def allow(response):  # what a frame without an origin asks for
        for what in "Origin", "Headers":
            response.headers[f"Access-Control-Allow-{what}"] = "*"
        return response
"""


def test_jobs_run_in_a_frame_without_storage_and_cookies(serve, tab):
    app = serve(WAITS + SANDBOXED)
    tab.page.set_content(f'<iframe sandbox="allow-scripts" src="{app.url}"></iframe>')
    frame = tab.page.frame_locator("iframe")
    for button, text in ("#cancel", ""), ("#progress", "Clicked 2 times"):
        frame.locator("#run").click()
        expect(frame.locator("#progress")).to_have_text("waiting")
        frame.locator(button).click()
        if text:
            go(app)
        expect(frame.locator("#result")).to_have_text(text)
        expect(frame.locator("#state")).to_have_text("idle")
    assert not [error for error in tab.errors if "favicon" not in error]


FAILS = {  # what a job does, by a word of the error that the page shows
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "SIGSEGV": "os.kill(os.getpid(), 11)",
    "exit code 7": "os._exit(7)",
    "SystemExit": "sys.exit()",
    "InvalidCallbackReturnValue": "return object()",
    "TypeError": "set_progress(object())",
    "Unpicklable": "raise type('Unpicklable', (Exception,), {})('may name a path')",
}
QUICK = job("""
    set_progress("begun")
    time.sleep(0.1 * str(n_clicks).startswith("-"))  # and ends as its page forgets it
    return "x" * 2_000_000 if n_clicks == 1 else n_clicks
""")
CLOCK = """
    import os, time  # before others take the clock
    real, later = time.time, {"an hour later": 3600, "two days later": 172800}
    time.time = lambda: real() + sum(later[x] for x in later if os.path.exists(x))
"""


@core
def test_each_way_to_fail_is_told_but_nothing_internal(serve, tab):
    codes = [f"if n_clicks == {n}: {FAILS[x]}" for n, x in enumerate(FAILS, 1)]
    work = "\n".join(["set_progress('begun')", *codes, "until_go()"])
    app, bodies = serve(UNTIL_GO + job(work)), []
    tab.page.on("response", lambda r: "_dash-u" in r.url and bodies.append(r.text()))
    tab.open(app)
    for click, word in enumerate(FAILS, 1):
        tab.click("#run")
        says(tab, word, 8)  # sooner than a job is given up that nobody keeps alive
        sees(tab, "state=idle | progress=none")
        assert word in app.log
        assert sum("app.compute: " in error for error in tab.errors) == click
    tab.shows("#result", "")
    assert "may name a path" in app.log
    assert "may name a path" not in "".join(tab.errors)
    tab.click("#run")
    tab.shows("#progress", "begun")
    internal = {*os.listdir(Path(app.folder, CORNER))} - {"__wz_cache_count"}
    go(app)
    ended_once(tab, app, clicks=8)
    text = "".join(bodies)
    assert internal and '"outcome":{' in text
    for word in (*internal, str(app.folder), "wz_cache"):
        assert word not in text
    for pid in {pid for run in runs(app) for pid in run[1:]}:
        assert not re.search(rf"\b{pid}\b", text)


def run_jobs(app, values, size=1):
    """Run a job for each value, six at a time; those of negative ones are cancelled."""

    def run(value):
        client, text = Client(app.url), str(value).ljust(size)
        answer = client.start(text)
        if value < 0:
            assert client.want(end=True) is None
        else:
            assert client.finish(answer=answer)["result"] == {"children": text}

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, values))


def test_hundreds_of_jobs_leave_nothing_but_unfetched_results_for_a_day(serve):
    app = serve(CLOCK + PREAMBLE + QUICK, "", gunicorn=["--threads", "8"])
    (server,) = wait_for(lambda: children(app.process.pid), what="the worker")
    records = Path(app.folder, CORNER)

    def held(most=99):  # open files, when the server rests
        tasks, files = (len(os.listdir(f"/proc/{server}/{x}")) for x in ("task", "fd"))
        return tasks <= 9 and files <= most and not children(server) and files

    run_jobs(app, range(100, 160), size=50_000)
    files = wait_for(held, what="the end of the first jobs")
    run_jobs(app, [*range(200, 500), *range(-60, 0)], size=50_000)
    wait_for(lambda: held(files), what="the end of all jobs")
    assert {*strays(app.folder)} == {app.process.pid, server}
    wait_for(lambda: not os.listdir(records), what="the end of the records")
    for value in range(2, 7):
        Client(app.url).start(value)
    wait_for(held, what="the end of the jobs")
    wait_for(lambda: len(os.listdir(records)) == 5, what="results only")
    touch(app, "two days later")
    run_jobs(app, [9])
    wait_for(lambda: not os.listdir(records), what="the end of old results")


def client_job(app):
    """Start a job of STEPS without a browser; return its page and its process."""
    before, client = len(runs(app)), Client(app.url)
    client.start()
    return client, wait_for(lambda: len(runs(app)) > before and runs(app)[-1][1])


def test_job_survives_that_its_machine_or_its_tabs_timers_sleep(serve, tab):
    """And that it lasts longer than the cache's default timeout (five minutes)."""
    app = serve(CLOCK + PREAMBLE + WAITS, "")
    tab.page.clock.install()
    tab.open(app).click("#run")
    tab.shows("#progress", "waiting")
    touch(app, "an hour later")
    asked = len(tab.requests)
    wait_with(tab, lambda: len(tab.requests) > asked + 1, "the page to ask")
    tab.page.clock.pause_at(time.time() + 2)
    asked = len(tab.requests)
    go(app)
    wait_with(tab, lambda: app.file("ends"), "the end of the job")
    assert len(tab.requests) <= asked + 2
    tab.page.clock.fast_forward(60_000)
    tab.page.clock.resume()
    ended_once(tab, app)
    assert not tab.errors


@pytest.fixture
def cached(request, tmp_path):
    """The preamble of an app with a cache of the kind that is the parameter."""
    kind = request.param
    if kind == "files":
        return PREAMBLE
    if kind == "Redis":
        url = f"redis://127.0.0.1:{request.getfixturevalue('redis_server').port}"
        return REDIS.replace('os.environ["REDIS"]', repr(url))
    pytest.importorskip(kind)
    if not shutil.which("memcached"):
        pytest.skip("there is no memcached")
    port, (other,) = free_port(), {"pylibmc", "memcache"} - {kind}
    command = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-u", "root"]
    request.addfinalizer(Program(command, tmp_path, name="memcached").stop)
    wait_for(lambda: listening(port), what="Memcached to listen")
    config = f'MemcachedCache", "CACHE_MEMCACHED_SERVERS": ["127.0.0.1:{port}"], "'
    hidden = f"\n    import sys; sys.modules['{other}'] = None\n"
    return hidden + PREAMBLE.replace('FileSystemCache", "', config)


UNKNOWN = "nobody knows of it"  # what the page says when these are lost
LOST = ["server", "server of gunicorn", "server and its records", "records", "folder"]
LOSSES = {"Redis": "its manager failed", **dict.fromkeys(LOST, UNKNOWN)}
OTHER = """
    app.layout.children.append(html.Button("off", id="other"))
    app.long_callback(Output("other", "title"), [Input("other", "n_clicks")],
                      running=[(Output("other", "children"), "on", "off")],
                      prevent_initial_call=True)(lambda *values: "done")
"""


@pytest.mark.parametrize("what", LOSSES)
def test_page_recovers_when_it_loses_its(serve, tab, request, what):
    redis = what == "Redis" and request.getfixturevalue("redis_server")
    url = f"redis://127.0.0.1:{redis and redis.port}"
    gunicorn = WORKER if "gunicorn" in what else None
    source = CLOCK + (REDIS if redis else PREAMBLE) + WAITS + OTHER
    app = serve(source, "", gunicorn=gunicorn, environment={"REDIS": url})
    cache = Path(app.folder, "cache")
    tab.open(app).click("#run")
    tab.shows("#progress", "waiting")
    process, _ = running_job(app)
    if "server" in what:
        app.process.kill()
        app.process.wait()
        wait_for(lambda: not listening(app.port), what="the end of gunicorn's worker")
        write_app(app.folder, source.replace('"title"', '"lang"'), RUN)
    if "records" in what or what == "folder":
        shutil.rmtree(cache)
    if what == "folder":  # in which root may always write
        touch(app, "cache")
    if "server" in what:
        touch(app, "an hour later" if "gunicorn" in what else "at once")
        app.restart()
    if what == "server and its records":
        tab.page.reload()
    if redis:
        redis.stop()
    says(tab, f"app.compute: {LOSSES[what]}")
    tab.shows("#state", "idle")
    if "gunicorn" in what:
        tab.click("#other")  # whose callback is newer than the page
        says(tab, "reload the page")
        tab.shows("#other", "off")
    if what in ("folder", "Redis"):
        told = len(tab.errors)
        tab.click("#run")  # which can't start a job
        wait_with(tab, lambda: len(tab.errors) > told, "another error")
        tab.shows("#state", "idle")
        redis.start() if redis else cache.unlink()
        wait_for(lambda: not redis or listening(redis.port), what="Redis to listen")
    wait_for(lambda: not alive(process), what="the end of the job")
    go(app)
    tab.click("#run")
    tab.shows("#result", re.compile("Clicked [123] times"))
    tab.shows("#state", "idle")


def test_a_job_of_a_callback_that_changed_spares_the_others(serve, tab):
    app = serve(WAITS + OTHER.replace('"done"', "until_go()"))
    tab.open(app).click("#other")
    tab.click("#run")
    sees(tab, "other=on | progress=waiting")
    tab.goto("about:blank")
    write_app(app.folder, app.file("app.py").replace('"title"', '"lang"'))
    app.process.kill()
    app.process.wait()
    app.restart()
    tab.open(app)
    says(tab, f"app.compute: {UNKNOWN}")
    sees(tab, "state=idle | other=off")
    go(app)
    tab.click("#run")
    sees(tab, "result=Clicked 1 times | state=idle")
    goes_quiet(tab)
    tab.goto(f"{app.url}/_dash-layout")
    assert tab.evaluate("sessionStorage.length") == 0  # the callback of one is gone


ENTRIES = """
    cache.init_app(server)
    rule = server.add_url_rule
    rule("/fill/<int:n>/<int:age>", "fill", lambda n, age: str(all(
        [cache.set(str(i), 1, timeout=age) for i in range(n)])))
    rule("/clear", "clear", lambda: str(cache.clear()))
    rule("/count", "count", lambda: str(sum(map(cache.has, map(str, range(30))))))
"""


@pytest.mark.parametrize("cached", ["files", "Redis"], indirect=True)
def test_four_gunicorn_workers_share_a_cache_with_the_users_entries(serve, cached):
    options = ["--workers", "2", "--threads", "4", "--keep-alive", "0"]
    own = '"CACHE_THRESHOLD": 10, "CACHE_KEY_PREFIX": "shop_", "CACHE_TYPE"'
    source = cached.replace('"CACHE_TYPE"', own) + ENTRIES + WAITS
    app, other = (serve(source, "", gunicorn=options) for _ in range(2))
    (first, process), (second, _) = client_job(app), client_job(app)
    for client in (first, second):
        client.connection = Client(other.url).connection
        wait_for(lambda c=client: c.want(seen=0, shown=0)["props"], what="progress")
    assert first.want(end=True) is None
    wait_for(lambda: not alive(process), what="the end of the job")
    assert fetch(app, "/fill/30/9999999") == "True"  # which goes over the threshold
    assert second.want()["outcome"] is None
    assert fetch(app, "/clear") == "True"
    assert fetch(app, "/count") == "0"
    fetch(app, "/clear")  # again, which finds nothing, and stumbles over nothing
    assert second.want()["outcome"] is None
    assert fetch(app, "/fill/9/99") == "True"
    for _ in range(3):  # each has several keys, of a longer life
        client_job(app)
    go(app)
    assert second.finish()["result"] == {"children": "Clicked 1 times"}
    assert fetch(app, "/count") == "9"


@pytest.mark.parametrize("cached", ["pylibmc", "memcache"], indirect=True)
def test_a_result_too_large_for_memcached_is_one_error(serve, tab, cached):
    app = serve(QUICK, cached, gunicorn=["--workers", "2", "--threads", "4"])
    run_jobs(app, range(2, 60))  # which talk to it at the same time
    tab.open(app).click("#run")
    says(tab, "did not fit into the cache")
    goes_quiet(tab)
    assert len([error for error in tab.errors if "compute" in error]) == 1
    assert re.search("result of 2000[0-9]{3} bytes", tab.errors[0])
    assert app.log.count("Traceback") <= 1
    tab.click("#run")
    tab.shows("#result", "2")


SERVER = """
    import multiprocessing, threading
    served = %s(target=lambda: app.run(port=int(os.environ["PORT"])), daemon=%s)
    served.start(), served.join()
"""
THREAD, PROCESS = "threading.Thread", 'multiprocessing.get_context("fork").Process'
SHELL = """
    if __name__ == "__main__":
        command = sys.executable + " -m gunicorn app:server --threads 4 --pid pid"
        command += f" -b 127.0.0.1:{os.environ['PORT']}"
        os.execlp("sh", "sh", "-c", "%s".format(command))
"""
SPAWN = PREAMBLE.replace("Manager(cache", 'Manager(cache, start_method="spawn"')
SALES = "(__name__, p", '("sales", use_pages=True, p'
FORKSERVER = SPAWN.replace("spawn", "forkserver")
DEBUG, GEVENT = {"DEBUG": "1"}, [*WORKER, "-k", "gevent"]
SERVED = {
    "python -O": {"environment": {"PYTHONOPTIMIZE": "1"}},
    "debug": {"environment": DEBUG},
    "reloader": {"environment": DEBUG, **RELOADS},
    "a thread": {"ending": SERVER % (THREAD, False)},
    "a notebook": {"ending": SERVER % (THREAD, True)},
    "a process": {"ending": SERVER % (PROCESS, False)},
    "gunicorn": {"gunicorn": [*WORKER, "--workers", "2"]},
    "preload": {"gunicorn": [*WORKER, "--workers", "2", "--preload"]},
    "killed gunicorn": {"ending": SHELL % "exec {}"},
    "killed gunicorn of a script": {"ending": SHELL % "{}; echo ended"},
    "killed gunicorn --daemon": {"ending": SHELL % "{} --daemon; cd /; exec sleep 60"},
    "pages, spawn": {"preamble": SPAWN.replace(*SALES), "gunicorn": WORKER},
    "pages, gevent": {"preamble": FORKSERVER.replace(*SALES), "gunicorn": GEVENT},
}
PAGE = PREAMBLE.partition("    cache")[0] + "    dash.register_page(__name__, path='/')"
FACTORY = """
    import flask, multiprocessing
    plugin, server = dl.plugins.LongCallback(manager), flask.Flask("factory")
    if __name__ == "__main__":  # so only a fork can find the callbacks again
        multiprocessing.set_start_method("forkserver")  # as Python 3.14 does
        for path in ("/two/", "/"):
            app = dash.Dash(server=server, plugins=[plugin], url_base_pathname=path)
            app.layout = html.P(id="result")
            app.long_callback(Output("result", "children"), Input("run", "n_clicks"))(
                lambda n_clicks, path=path: path)
        server.run(port=int(os.environ["PORT"]))
"""
BARE = "app.run(port=int(os.environ['PORT']))"
IMPOSSIBLE = {  # what can't work, and the words that say what to change
    "a daemonic process": ("daemon=False", WAITS, {"ending": SERVER % (PROCESS, True)}),
    "gevent": ('start_method="forkserver"', WAITS, {"gunicorn": GEVENT}),
    "no main guard": ("__main__", WAITS, {"preamble": SPAWN, "ending": BARE}),
    "a factory, spawn": ('start_method="fork"', FACTORY, {"preamble": SPAWN}),
    "a factory, forkserver": ('method="fork"', FACTORY, {"preamble": FORKSERVER}),
}


@pytest.mark.parametrize("how", SERVED)
def test_jobs_run_and_end_with_their_app_however_it_is_served(serve, tmp_path, how):
    work = "until_go()\nprint('longish' * 1_000_000)\nprint('the end')"
    source = UNTIL_GO + job(work)
    if "pages" in how:
        (tmp_path / "pages").mkdir()
        page = source.replace("@app.", "@dl.").replace("app.layout", "layout")
        write_app(tmp_path / "pages", PAGE, page, name="home")
        source = "app.layout = dash.page_container"
    app = serve(source, **{"environment": {"PYTHONUNBUFFERED": ""}, **SERVED[how]})
    client, process = client_job(app)
    client.want(end=True)
    wait_for(lambda: not alive(process), what="the end of the cancelled job")
    client, _ = client_job(app)
    go(app)
    request = client.request  # now in chunks, as a proxy may send it
    client.request = lambda *args: request(*args[:2], [args[2].encode()])
    assert client.finish()["result"] == {"children": "Clicked 1 times"}
    if "--daemon" not in how:
        wait_for(lambda: "the end" in app.log, what="what the job printed")
        assert app.log.count("longish") == 1_000_000
    Path(app.folder, "go").unlink()
    _, process = client_job(app)
    assert process in strays(app.folder)
    if "killed" in how:
        os.kill(int(app.file("pid")), signal.SIGKILL)
    else:  # Ctrl-C
        os.killpg(app.process.pid, signal.SIGINT)
    wait_for(lambda: not strays(app.folder), what="no stray process")
    assert not listening(app.port)
    if how in ("python -O", "debug", "reloader", "gunicorn", "preload"):
        assert "Traceback" not in app.log


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_work_says_what_to_change(serve, what):
    text, source, options = IMPOSSIBLE[what]
    client = Client(serve(source, **options).url)
    outcome = client.start()["outcome"]
    outcome = outcome or wait_for(lambda: client.want()["outcome"], what="the error")
    assert text in outcome["error"]


@unit
def test_a_factorys_apps_share_a_plugin_and_jobs_are_forked_by_default(serve):
    app = serve(FACTORY)
    for path in ("/", "/two/"):
        client = Client(app.url, path=path)
        assert client.finish(answer=client.start())["result"]["children"] == path


def test_a_job_has_what_the_app_opened_but_no_socket_of_the_server(serve, redis_server):
    address = ("127.0.0.1", redis_server.port)
    opened = f"    import socket; db = socket.create_connection({address})"
    work = "db.sendall(b'PING\\r\\n'); set_progress(db.recv(7).decode()); until_go()"
    app = serve(opened + UNTIL_GO + job(work))
    with socket.create_connection(("127.0.0.1", app.port), 5) as kept:
        kept.sendall(b"POST /_dash-update-component HTTP/1.1\r\n")  # is answered later
        client, process = client_job(app)
        wait_for(lambda: "+PONG" in str(client.want(seen=0, shown=0)), what="it")
        os.kill(process, signal.SIGSTOP)  # so that it can't end by itself
        app.stop(signal.SIGKILL)
        with contextlib.suppress(ConnectionResetError):
            assert kept.recv(1) == b""
        assert not listening(app.port)
        os.kill(process, signal.SIGCONT)
    wait_for(lambda: not alive(process), 5, "the end of the job")


def junk(client, victim):
    """Messages that no browser sends."""
    key, page, n = client.keys[0], {"page": client.page}, client.new_job()
    theirs, call = victim.jobs[key][0], client.call(value=-1)

    def message(name=n, **changes):
        want = {"seen": 0, "shown": 0, "end": False, "start": call, **changes}
        return {**page, "jobs": {name: want}}

    yield from map(message, ["", n[1:], "../" * 9, "0" * 3_000_000, "x" + n[1:]])
    for wrong in [None, 1.5, -5, 10**9, True, "9" * 5000, [], [None], [{}, {}], page]:
        yield from (wrong, {**page, "jobs": wrong}, {**page, "jobs": {n: wrong}})
        yield from (message(start={**call, "inputs": wrong}), message(start=wrong))
        for name in (n, theirs):
            yield message(name, end=wrong, start=None)
            yield message(name, seen=wrong, start=None)
    for output in (n, theirs, f"plugins-LongCallback-{key}.data", "compute", None):
        yield {**page, "output": output}


@unit
def test_requests_that_no_browser_makes_do_nothing(serve):
    app = serve(UNTIL_GO + job("until_go()\nreturn 'the treasure'"))
    (victim, process), client = client_job(app), Client(app.url)
    for message in junk(client, victim):
        output = message.get("output") if isinstance(message, dict) else None
        status, answer = client.post(message, **({"output": output} if output else {}))
        what = f"{str(message)[:200]} {status} {answer}"
        assert status in (200, 204, 500), what  # as Dash answers
        assert b"treasure" not in answer, what
    for content in (b"", b"{", b"[]", b"null", os.urandom(1_000_000), b"[" * 100_000):
        client.request("POST", "/_dash-update-component", content)
    wait_for(lambda: len(children(app.process.pid)) == 1, what="the end of other jobs")
    assert len(runs(app)) == 1
    assert alive(process)
    go(app)
    assert victim.finish()["result"] == {"children": "the treasure"}


# --- The end of a server process ------------------------------------------------------

GONE_SERVER = {  # how a server process goes, and what serves the app
    "max-requests": (
        lambda app, server: [fetch(app, "/_dash-layout") for _ in range(50)],
        {"gunicorn": [*WORKER, "--max-requests", "40"]},
    ),
    "HUP": (lambda app, server: os.kill(app.process.pid, signal.SIGHUP), {}),
    "killed": (lambda app, server: os.kill(server, signal.SIGKILL), {}),
    "reloader": (lambda app, _: touch(app, "app.py"), {"gunicorn": None, **RELOADS}),
}


@pytest.mark.parametrize("how", GONE_SERVER)
def test_a_job_ends_with_its_server_process_and_the_page_says_so(serve, tab, how):
    take_away, options = GONE_SERVER[how]
    app = serve(WAITS, **{"gunicorn": WORKER, **options})
    tab.open(app).click("#run")
    process, server = running_job(app)
    tab.shows("#progress", "waiting")
    take_away(app, server)
    wait_for(lambda: not alive(server), what="the end of the server process")
    tab.shows("#state", "idle", timeout=15000)
    says(tab, "HUP and --max-requests")
    wait_for(lambda: not alive(process), 5, "the end of the job")
    go(app)
    tab.click("#run")
    ended_once(tab, app, clicks=2)


def test_a_hot_reload_of_the_page_brings_changed_callbacks(serve, tab):
    app = serve(job("pass"), environment=DEBUG, **RELOADS)
    with tab.page.expect_response("**/_reload-hash"):  # with which it compares the next
        tab.open(app)
    tab.click("#run")
    ended_once(tab, app)
    source = app.file("app.py").replace("Clicked", "Pressed")
    source = source.replace("def compute", "def calculate").replace('"running"', '"on"')
    write_app(app.folder, source.replace('"Run"', '"Go"'))
    tab.shows("#run", "Go", timeout=30000)
    tab.click("#run")
    tab.shows("#result", "Pressed 1 times")
    sees(tab, "state=idle | progress=none")
    assert not [error for error in tab.errors if "reading" in error]


def test_a_job_that_holds_the_interpreters_lock_is_not_taken_for_dead(serve, tab):
    hold = "import ctypes; ctypes.PyDLL(None).sleep(6)  # holds the interpreter's lock"
    step = f"set_progress('waiting'); time.sleep(0.2); {hold}"
    app = serve("    dl._SILENCE, dl._RENEWAL = 4, 1\n" + job(step), gunicorn=WORKER)
    tab.open(app).click("#run")
    tab.shows("#progress", "waiting")
    ended_once(tab, app)
    assert not tab.errors


# --- Celery ---------------------------------------------------------------------------


def shows_result(tab, site, what, clicks):
    run(tab, what)
    tab.shows("#result", f"{what} {clicks}", timeout=30000)
    is_idle(tab)
    assert len(site.jobs(what)) == 1


def test_celery_job_shows_progress_context_and_errors_and_logs_no_values(site, tab):
    tab.open(site)
    tab.context.add_cookies([{"name": "who", "value": "cookie77", "url": site.url}])
    bar, what = tab.locator("#bar"), "progress-aside-secret77"
    run(tab, what)
    expect(bar).to_have_attribute("value", "1")
    expect(bar).to_have_attribute("max", "4")
    expect(tab.locator("#run")).to_be_disabled()
    touch(site, f"go-{what}")
    expect(bar).to_have_attribute("value", "2999", timeout=20000)
    touch(site, f"go-{what}-end")
    tab.shows("#result", f"run {{'what.value': '{what}'}} cookie77")
    tab.shows("#aside", "on the way")
    is_idle(tab)
    expect(bar).to_have_attribute("max", "9")
    for clicks in range(2, 6):
        shows_result(tab, site, f"row{clicks}-secret77", clicks)
    is_content(tab)
    run(tab, "raise-secret77")
    complains(tab, site, "RuntimeError: no such luck")
    run(tab, "killed-secret77")
    complains(tab, site, r"signal 9 \(SIGKILL\)")
    shows_result(tab, site, "alive", 8)
    log = site.workers[0].log
    line = r"app\.compute (\w{8}): started(?s:.*)app\.compute \1: ended in "
    assert re.search(line, log)
    assert re.search(r"Task app.compute\[.*succeeded", log)
    assert re.search(r"Task app.compute\[.*raised .*no such luck", log)
    assert "secret77" not in log and "cookie77" not in log


def test_celery_tabs_get_their_results_and_a_cancelled_task_never_runs(site, new_tab):
    tabs = {what: new_tab().open(site) for what in ("wait-tab1", "wait-tab2", "queued")}
    for what, tab in tabs.items():
        tab.fill("#what", what)
    for what in "wait-tab1", "wait-tab2":  # which take both of the worker's processes
        tabs[what].click("#run", no_wait_after=True)
        site.started(what)
    tab.click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.click("#cancel")
    is_idle(tab)
    goes_quiet(tab)  # when the server has been told
    run(tab, "after")
    for what in "wait-tab1", "wait-tab2":
        touch(site, f"go-{what}")
        tabs[what].shows("#result", f"{what} 1")
        is_content(tabs[what])
    tab.shows("#result", "after 2")
    assert [len(site.jobs(what)) for what in tabs] == [1, 1, 0]


def test_celery_second_click_and_cancel_end_the_running_task(site, tab):
    run(tab.open(site), "wait-first")
    first = site.started("wait-first")
    tab.fill("#what", "wait-second")
    tab.click("#again")
    second = site.started("wait-second")
    wait_for(lambda: not alive(first), what="the end of the first job")
    tab.click("#cancel")
    is_idle(tab)
    wait_for(lambda: not alive(second), what="the end of the second job")
    tab.shows("#result", "nothing yet")
    shows_result(tab, site, "next", 2)
    is_content(tab)


def test_celery_job_outlasts_result_expires(redis_url, new_site, tab):
    url = redis_url[:-1] + "1"  # a database of its own
    client = pytest.importorskip("redis").Redis.from_url(url)
    short = "celery_app.conf.result_expires = celery_app.backend.expires = 4\n"
    short += "dl._RENEWAL = 1"  # this thread has its backend already
    site = new_site(url, url, source=short)
    run(tab.open(site), "cancelled")
    tab.click("#cancel")
    is_idle(tab)
    site.start_worker()
    run(tab, "wait-long")
    site.started("wait-long")
    assert not site.jobs("cancelled")
    tab.page.wait_for_timeout(5500)
    expect(tab.locator("#cancel")).to_be_enabled()
    touch(site, "go-wait-long")
    tab.shows("#result", "wait-long 2")
    is_content(tab)
    wait_for(lambda: not client.keys("celery-task-meta-*"), 2.5, "the fetched to go")


RELAY = """
    import asyncio, os
    async def relay(reader, writer):
        ends = await asyncio.open_connection("127.0.0.1", int(os.environ["TARGET"]))
        async def move(source, target):
            while data := await source.read(65536):
                target.write(data)
            target.close()
        await asyncio.gather(move(reader, ends[1]), move(ends[0], writer))
    loop, port = asyncio.new_event_loop(), int(os.environ["PORT"])
    loop.run_until_complete(asyncio.start_server(relay, "127.0.0.1", port))
    loop.run_forever()
"""


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
def test_celery_servers_away_are_errors_meanwhile(kind, request, serve, new_site, tab):
    url = request.getfixturevalue(f"{kind}_url")
    port = re.search(r"127.0.0.1:(\d+)", url)[1]
    relay = serve(RELAY, "", "relay", ending="", environment={"TARGET": port})
    url = url.replace(port, str(relay.port))
    site = new_site(url, "rpc://" if kind == "rabbitmq" else url)
    tab.open(site)

    def click_fails(what, times):
        clicked = time.monotonic()
        run(tab, what)
        complains(tab, site, "refused|reset|closed|manager failed", times)
        assert time.monotonic() - clicked < 10

    relay.stop(signal.SIGKILL)
    click_fails("closed", 1)
    relay.restart()
    run(tab, "wait-for-worker")
    expect(tab.locator("#run")).to_be_disabled()
    site.start_worker()
    site.started("wait-for-worker")
    relay.stop(signal.SIGKILL)
    complains(tab, site, "its manager failed: see the log", 2)
    click_fails("closed-again", 3)
    relay.restart()
    touch(site, "go-wait-for-worker")
    shows_result(tab, site, "reopened", 4)
    assert not site.jobs("closed") and not site.jobs("closed-again")
    relay.stop(signal.SIGKILL)
    relay.restart()
    shows_result(tab, site, "restarted", 5)


def test_celery_misses_a_lost_worker_not_a_queued_task(rabbitmq_url, new_site, new_tab):
    site = new_site(rabbitmq_url, "rpc://", source="dl._SILENCE = 4; dl._RENEWAL = 1")
    site.start_worker()
    tabs = {what: new_tab().open(site) for what in ("wait-busy", "queued")}
    for what, tab in tabs.items():
        run(tab, what)
        site.started("wait-busy")
    tab.page.wait_for_timeout(6000)
    for tab in tabs.values():
        expect(tab.locator("#cancel")).to_be_enabled()
        expect(tab.locator(".dash-error-card")).to_have_count(0)
    touch(site, "go-wait-busy")
    for what, tab in tabs.items():
        tab.shows("#result", f"{what} 1")
    for told, what in enumerate(["wait-held", "wait-lost"], 1):
        run(tab, what)
        process = site.started(what)
        os.kill(process, signal.SIGSTOP) if told < 2 else site.workers[0].stop(9)
        complains(tab, site, "has not been heard of", told)
        wait_for(lambda p=process: not alive(p), what="the end of what is given up")
        assert len(site.jobs(what)) == 1


SETTINGS = {  # options of Celery, a job, and its error
    "soft limit": ("task_soft_time_limit=1", "slow", "SoftTimeLimitExceeded"),
    "hard limit": ("task_time_limit=1", "slow", r"app.compute: TimeLimitExceeded\D+1"),
    "eager": ("task_always_eager=True", "raise", "RuntimeError: no such luck"),
    "database": ("task_track_started=True", "raise", "RuntimeError: no such luck"),
    "two servers": ("", "wait", "another web process sent its task"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_celery_error_names_the_cause_with(kind, rabbitmq_url, new_site, tab):
    options, what, error = SETTINGS[kind]
    backend = "rpc://" if kind not in ("database", "eager") else "db+sqlite:///results"
    pytest.importorskip("sqlalchemy" if "sqlite" in backend else "celery")
    servers = ["--workers", "2"] if kind == "two servers" else None
    conf = f"celery_app.conf.update(task_ignore_result=True, {options})"
    site = new_site(rabbitmq_url, backend, conf, servers)
    if kind not in ("eager", "two servers"):
        site.start_worker()
    run(tab.open(site), what)
    complains(tab, site, error)
    if kind != "two servers":
        shows_result(tab, site, "fine", 2)


# --- The benchmark: python test_longcallback.py [OTHER/longcallback.py] ---------------

TIMED = """
    import functools, diskcache
    if os.environ["KIND"] == "websocket":
        import uvicorn  # which Dash would run in another process
        app = dash.Dash(__name__, backend="fastapi")
        app.run = lambda port, **options: uvicorn.run(app.server, port=port)
        declare = functools.partial(app.callback, websocket=True)
    elif os.environ["KIND"] == "Dash's":
        manager = (dash.CeleryManager(celery_app) if "celery_app" in globals() else
                   dash.DiskcacheManager(diskcache.Cache("diskcache")))
        app = dash.Dash(__name__, background_callback_manager=manager)
        declare = functools.partial(app.callback, background=True)
    else:
        declare = app.long_callback
    server, app.config.prevent_initial_callbacks = app.server, True
    ballast = b"x" * int(os.environ.get("BALLAST", "0") + 6 * "0")
    names = [f"result{n}" for n in range(int(os.environ.get("RESULTS", "1")))]
    app.layout = html.Div([
        html.Button("Run", id="run"), dcc.Input(id="seconds", type="number", value=0),
        html.Button(id="other"), html.B(id="echo"), *[html.P(id=name) for name in names],
    ])
    def job(n_clicks, seconds, name):
        time.sleep(seconds)
        return str(n_clicks)
    for name in names:  # which is a State, since Dash's own mixes up equal calls
        states = State("seconds", "value"), State(name, "id")
        declare(Output(name, "children"), Input("run", "n_clicks"), *states)(job)
    app.callback(Output("echo", "children"), Input("other", "n_clicks"))(str)
"""
OVERHEAD = """() => new Promise((done) => {
    const result = document.getElementById("result0"), began = performance.now();
    new MutationObserver(() => done(performance.now() - began)).observe(
        result, {childList: true, characterData: true, subtree: true});
    document.getElementById("run").click();
})"""


def cpu_seconds(app):
    import psutil

    return sum(psutil.Process(app.process.pid).cpu_times()[:2])


def overhead(browser, app, number, jobs=6):
    """How long jobs take beyond their own time, and what they cost."""
    chance, tab = random.Random(number), Tab(browser.new_context()).open(app)
    mix = [0.05 * 160 ** ((n + chance.random()) / jobs) for n in range(jobs)]
    cases, figures = {"instant": [0] * jobs, "0.05 to 8 s": mix}, {}

    def measure(seconds):
        tab.fill("#seconds", str(seconds))
        took = tab.evaluate(OVERHEAD)
        tab.wait_for_timeout(1100)  # a page keeps an acknowledgement back for less
        return took - 1000 * seconds

    measure(0)  # the first is slower
    for case, durations in cases.items():
        before, used = len(tab.requests), cpu_seconds(app)
        figures[f"{case}: overhead, ms"] = statistics.mean(map(measure, durations))
        used, sent = cpu_seconds(app) - used, len(tab.requests) - before
        figures[f"{case}: requests a job"] = sent / len(durations)
        figures[f"{case}: server's CPU, ms a job"] = 1000 * used / len(durations)
    return figures


def load(browser, app, number, tabs=1):
    tabs = [Tab(browser.new_context()).open(app) for _ in range(tabs)]
    used, began = cpu_seconds(app), time.monotonic()
    for place, tab in enumerate(tabs):  # Dash's own mixes up equal calls
        tab.fill("#seconds", f"10.{place}")
        tab.click("#run")
    for result in [result for tab in tabs for result in tab.locator("p").all()]:
        expect(result).to_have_text("1", timeout=30000)
    took, used = time.monotonic() - began, cpu_seconds(app) - used
    requests = sum(len(tab.requests) for tab in tabs)
    return {"requests/s": requests / took, "server's CPU %": 100 * used / took}


def crowd(_, app, number, tabs=100, ramp=5, seconds=17):
    end = time.monotonic() + seconds

    def be_a_page(number):
        time.sleep(ramp * number / tabs)
        client, took, output = Client(app.url), [], "result0" if number else "echo"
        values = [end + 2 - time.monotonic(), output] if number else []
        state = [{"id": "-", "property": "-", "value": value} for value in values]
        call = client.call(output=output)
        call.update(state=state, output=f"{output}.children")

        def ask(query=""):
            path, body = "/_dash-update-component" + query, json.dumps(call)
            return json.loads(client.request("POST", path, body)[1])

        if number and client.keys:
            client.jobs[client.keys[0]], ask = [client.new_job(), 0], client.want
            client.want(start=call)
        elif number:
            ask = partial(ask, "?cacheKey={cacheKey}&job={job}".format(**ask()))
        while (asked := time.monotonic()) < end:
            answer = ask()
            assert not number or not answer.get("outcome", "response" in answer)
            took.append(1000 * (time.monotonic() - asked))
            crowd = max(1, client.crowd / 0.8)  # what a page does about it
            wait = min(1, 0.02 + 0.011 * crowd * len(took)) if client.keys else 1
            time.sleep(wait if number else 0.1)
        return took

    with ThreadPoolExecutor(tabs + 1) as pool:
        others, *polls = pool.map(be_a_page, range(tabs + 1))
    time.sleep(5)  # until the jobs have ended
    polls = [took for page in polls for took in page]
    high, other = (statistics.quantiles(took, n=20)[-1] for took in (polls, others))
    figures = {"95% of polls in ms": high, "95% of other requests in ms": other}
    return {"polls/s": len(polls) / seconds, **figures}


def benchmark(*others, rounds=2):
    """Print the cost of jobs beside Dash's own, and other longcallback.py's."""
    print(f"Dash {dash.__version__}: mean (least to most) of {rounds} rounds in turn")
    folders = {"ours": HERE, "Dash's": HERE}
    folders.update((path, Path(path).resolve().parent) for path in others)
    fast = DASH >= (4, 2) and all(map(find_spec, ["fastapi", "uvicorn", "wsproto"]))
    everybody = {**folders, "websocket": HERE} if fast else folders
    print("" if fast else "No websockets: they need Dash 4.2, fastapi and wsproto")

    def compare(title, measure, folders=folders, celery="", gunicorn=None, **options):
        found, apps = {}, {}
        with contextlib.ExitStack() as stack:
            for kind, path in folders.items():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                write_app(folder, CELERY if celery else PREAMBLE, TIMED, RUN)
                environment = {**options, "KIND": kind, "PYTHONPATH": str(path)}
                environment.update(BROKER=redis, BACKEND=redis, QUEUE=folder.name)
                if celery:
                    worker = start_worker(folder, environment, 100, pool="threads")
                    stack.callback(worker.stop, signal.SIGKILL)
                apps[kind] = App(folder, environment, gunicorn)
                stack.callback(apps[kind].stop)
            for number in range(rounds):
                for kind in [*apps][:: (-1) ** number]:
                    for name, value in measure(browser, apps[kind], number).items():
                        found.setdefault(name, {}).setdefault(kind, []).append(value)
                    for context in browser.contexts:
                        context.close()
        print(f"\n{title:38}", *(kind.ljust(26) for kind in apps))
        for name, kinds in found.items():
            rows = [(statistics.mean(x), min(x), max(x)) for x in map(kinds.get, apps)]
            cells = ["{:.1f} ({:.1f} to {:.1f})".format(*row).ljust(26) for row in rows]
            print(f"{name:38}", *cells, flush=True)

    with contextlib.ExitStack() as ending:
        playwright = ending.enter_context(playwright_api.sync_playwright())
        browser = ending.enter_context(launch(playwright.chromium))
        port, folder = free_port(), ending.enter_context(tempfile.TemporaryDirectory())
        ending.callback(Program(redis_command(port), folder).stop)
        redis, two = f"redis://127.0.0.1:{port}", ["--workers", "2", "--threads", "8"]
        compare("Processes, a server of 300 MB", overhead, everybody, BALLAST="300")
        compare("Celery on Redis", overhead, celery="yes")
        compare("8 jobs of 10 s in a page", load, RESULTS="8")
        compare("6 tabs with a job of 10 s", partial(load, tabs=6))
        compare("100 tabs, 2 gunicorn workers", crowd, gunicorn=two)
        compare("100 tabs on Celery", crowd, gunicorn=two, celery="yes")


if __name__ == "__main__":
    benchmark(*sys.argv[1:])
