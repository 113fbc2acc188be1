"""Tests of longcallback: real apps, a real browser, real servers, brokers and workers.

`python -m pytest` runs them. What the machine lacks is skipped with the reason.
`python test_longcallback.py` measures the speed beside Dash's own instead, and with the
word `picture` it films the examples for the README.
"""

from __future__ import annotations

import contextlib
import http.client
import io
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
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import dash
import flask_caching
import pytest
from dash.dependencies import MATCH

import longcallback as dl
from longcallback import Input, Output

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

core = pytest.mark.core
unit = pytest.mark.unit

# A shell ignores it in what it runs in the background, and so would the programs here.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).resolve().parent
CORNER = "cache/longcallback.__wz_cache"  # of a FileSystemCache, for our records
BROWSER_ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
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
        # Dash sets itself up at its first request, which here is to be one alone.
        server.test_client().get("/")
"""


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


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class Program:
    """A process of its own session that a test started, with its output in a file."""

    def __init__(self, command, folder, environment=None, name="program"):
        self.log_file = Path(folder, f"{name}.log")
        self.command, self.folder = command, folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self.start()

    def start(self):
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def stop(self, number=signal.SIGTERM):
        """End the program with a signal; whatever stays of its session is killed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class App(Program):
    """A served Dash app whose source a test wrote."""

    def __init__(self, folder, environment=None, gunicorn=None, name="app"):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, f"{name}.py"]
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
    """Write the source of an app, given in parts."""
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

    def start(source, preamble=PREAMBLE, name="app", ending=RUN, kind=App, **options):
        write_app(tmp_path, preamble, source, ending, name=name)
        apps.append(kind(tmp_path, name=name, **options))
        return apps[-1]

    yield start
    for app in apps:
        app.stop()


def launch(chromium, **options):
    """Start the machine's Chromium or Chrome, or else Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    arguments = [*BROWSER_ARGUMENTS]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    return chromium.launch(executable_path=path, args=arguments, **options)


@pytest.fixture(scope="session")
def browser():
    with playwright_api.sync_playwright() as playwright:
        try:
            browser = launch(playwright.chromium)
        except playwright_api.Error as error:
            pytest.skip(f"no browser starts here: {error}")
        yield browser
        browser.close()


class Tab:
    """A browser tab of its own user; remembers console errors and Dash's requests."""

    def __init__(self, context):
        self.page = context.new_page()
        self.page.set_default_timeout(15000)
        self.errors = []
        self.requests = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note_console)
        self.page.on("request", self._note_request)

    def _note_console(self, message):
        if message.type == "error":
            self.errors.append(message.text)

    def _note_request(self, request):
        if request.url.partition("?")[0].endswith("_dash-update-component"):
            self.requests.append(request)

    def open(self, app, path="/"):
        self.page.goto(app.url + path)
        self.page.wait_for_selector("#react-entry-point > div:not(._dash-loading)")
        return self

    def shows(self, selector, text, timeout=15000):
        expect(self.page.locator(selector)).to_have_text(text, timeout=timeout)

    def __getattr__(self, name):
        return getattr(self.page, name)


@pytest.fixture
def new_tab(browser):
    """Return a function that opens a new user's tab."""
    contexts = []

    def open_tab(context=None):
        if context is None:
            contexts.append(browser.new_context())
            context = contexts[-1]
        return Tab(context)

    yield open_tab
    for context in contexts:
        context.close()


@pytest.fixture
def tab(new_tab):
    return new_tab()


# --- The decorator on Flask-Caching ---------------------------------------------------

SIMPLE = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.Button("Other", id="other"),
        html.Button("Cancel", id="cancel", disabled=True),
        html.P("nothing yet", id="result"), html.P(id="echo"),
    ])

    @app.long_callback(
        output=Output("result", "children"),
        args=Input("run", "n_clicks"),
        running=[(Output("run", "disabled"), True, False),
                 (Output("cancel", "disabled"), False, True)],
        cancel=[Input("cancel", "n_clicks")],
        prevent_initial_call=True,
    )
    def compute(n_clicks):
        with open("runs", "a") as runs:
            runs.write(f"{n_clicks}\\n")
        time.sleep(float(os.environ.get("SECONDS", "1")))
        return f"Clicked {n_clicks} times"

    @app.callback(Output("echo", "children"), Input("other", "n_clicks"))
    def echo(n_clicks):
        return f"Other {n_clicks}"
"""


def test_result_arrives_and_running_switches_on_and_off(serve, tab):
    app = serve(SIMPLE)
    tab.open(app).click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.shows("#result", "Clicked 1 times")
    expect(tab.locator("#run")).to_be_enabled()
    assert app.file("runs") == "1\n"
    assert not tab.errors


def test_page_answers_other_callbacks_meanwhile(serve, tab):
    app = serve(SIMPLE, environment={"SECONDS": "3"})
    tab.open(app).click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.click("#other")
    tab.shows("#echo", "Other 1")
    tab.shows("#result", "nothing yet")
    tab.shows("#result", "Clicked 1 times")


def test_cancel_ends_the_job_and_restores_the_page(serve, tab):
    app = serve(SIMPLE, environment={"SECONDS": "30"})
    tab.open(app).click("#run")
    tab.click("#cancel")
    expect(tab.locator("#run")).to_be_enabled()
    expect(tab.locator("#cancel")).to_be_disabled()
    tab.shows("#result", "nothing yet")


# --- Promises of the decorator -------------------------------------------------------

DASH = tuple(map(int, dash.__version__.split(".")[:2]))
UNTIL_GO = """
    def until_go():
        while not os.path.exists("go"):
            time.sleep(0.02)
"""


def go(app):
    """Let the jobs of an app end that wait for it."""
    Path(app.folder, "go").touch()


# --- Configuration --------------------------------------------------------------------

DASH_LABS = """
    import os
    import dash, flask
    from dash import html
    from flask_caching import Cache
    import longcallback as dl
    from longcallback import FlaskCachingCallbackManager

    server = flask.Flask(__name__)

    def serve(path, layout, plugins):
        app = dash.Dash(__name__, server=server, plugins=plugins,
                        url_base_pathname=f"/{path}/")
        app.layout = layout

        @app.long_callback(
            output=dl.Output("run", "children"),
            args=dl.Input("run", "n_clicks"),
            prevent_initial_call=True,
        )
        def compute(n_clicks):
            return f"{path}: {n_clicks}"
        return app

    manager = FlaskCachingCallbackManager(
        Cache(config={"CACHE_TYPE": "filesystem", "CACHE_DIR": "./cache"}))
"""


@core
def test_plugins_of_dash_labs_work_in_any_order_with_old_cache_names(serve, tab):
    source = """
    kinds = ("FlexibleCallbacks", "HiddenComponents", "LongCallback")
    orders = kinds, kinds[1:] + kinds[:1], kinds[::-1]
    for number, order in enumerate(orders):
        plugins = [getattr(dl.plugins, kind)(*[manager] * (kind == "LongCallback"))
                   for kind in order]
        layout = html.Div([html.Button("Run", id="run"), html.P(id="sum")])
        app = serve(number, layout, plugins)

        @app.callback(dl.Output("sum", "children"), args={
            "n": dl.Input("run", "n_clicks"), "text": dl.State("run", "children")})
        def describe(text, n):
            return f"{text} {n}"
    """
    app = serve(source, DASH_LABS)
    for number in range(3):
        tab.open(app, f"/{number}/").click("#run")
        tab.shows("#run", f"{number}: 1")
        tab.shows("#sum", "Run 1")
    assert not tab.errors


@core
def test_a_layout_may_be_a_list_a_function_or_one_component(serve, tab):
    source = """
    layouts = {
        "list": [html.P("above"), html.Button("Run", id="run")],
        "function": lambda: html.Div(html.Button("Run", id="run")),
        "function-list": lambda: [html.P("above"), html.Button("Run", id="run")],
        "component": html.Button("Run", id="run"),
    }
    for name, layout in layouts.items():
        app = serve(name, layout, [dl.plugins.LongCallback(manager)])
    """
    app = serve(source, DASH_LABS)
    for name in ("list", "function", "function-list", "component"):
        tab.open(app, f"/{name}/").click("#run")
        tab.shows("#run", f"{name}: 1")
    assert not tab.errors


# --- Arguments, outputs and the first call --------------------------------------------


@core
def test_arguments_come_in_every_form_that_dash_and_dash_labs_have(serve, tab):
    source = """
    app.layout = html.Div([
        html.Button("Run", id="run", title="tip"), dcc.Input("A", id="a", type="text"),
        *[html.P(id=f"p{number}") for number in range(10)],
    ])
    run, text = Input("run", "n_clicks"), State("a", "value")
    out = [Output(f"p{number}", "children") for number in range(10)]
    long_callback = functools.partial(app.long_callback, prevent_initial_call=True)

    @long_callback(output=out[0], args=run)
    def single(n):
        return f"{n}"

    @long_callback(output=out[1], args=[run, text])
    def listed(n, a):
        return f"{n} {a}"

    @long_callback(output=out[2], args={"a": text, "n": run})
    def named(n, a):
        return f"{n} {a}"

    @long_callback(output=out[3], args=Input("run", ("n_clicks", "title")))
    def tuple_of_properties(pair):
        n, title = pair
        return f"{n} {title}"

    @long_callback(
        output=out[4],
        args=[run, State("a", {"value": "value", "kind": "type"}), (text, text)],
    )
    def nested(n, a, twice):
        return f"{n} {a['value']} {a['kind']} {twice[0]} {twice[1]}"

    @long_callback(out[5], run, text)
    def positional(n, a):
        return f"{n} {a}"

    @long_callback([out[6]], [run], [text])
    def positional_lists(n, a):
        return [f"{n} {a}"]

    @long_callback(out[7], inputs=[run], state=[text])
    def keywords(n, a):
        return f"{n} {a}"

    @long_callback(out[8], inputs={"n": run}, state={"a": text})
    def named_keywords(a, n):
        return f"{n} {a}"

    @dl.long_callback(out[9], run, text, prevent_initial_call=True)
    def without_app(n, a):
        return f"{n} {a}"
    """
    app = serve(source, PREAMBLE + "    import functools\n")
    tab.open(app).click("#run")
    for number, text in {
        0: "1",
        1: "1 A",
        2: "1 A",
        3: "1 tip",
        4: "1 A text A A",
        5: "1 A",
        6: "1 A",
        7: "1 A",
        8: "1 A",
        9: "1 A",
    }.items():
        tab.shows(f"#p{number}", text)
    assert not tab.errors


@core
def test_outputs_come_in_every_form_that_dash_and_dash_labs_have(serve, tab):
    source = """
    app.layout = html.Div([
        html.Button("Run", id="run"), *[html.P(id=name) for name in "abcdefghi"],
    ])
    run = Input("run", "n_clicks")

    def children(name):
        return Output(name, "children")

    @app.long_callback([children("a"), children("b")], run, prevent_initial_call=True)
    def listed(n):
        return "A", "B"

    @app.long_callback(
        output={"c": children("c"), "rest": [children("d"), (children("e"),)]},
        args=run, prevent_initial_call=True,
    )
    def nested(n):
        return {"rest": ["D", ("E",)], "c": "C"}

    @app.long_callback(
        output=Output("f", ("children", "title")), args=run, prevent_initial_call=True)
    def tuple_of_properties(n):
        return "F", "tip of F"

    @app.long_callback(
        output=[children("g"), Output("h", {"text": "children", "tip": "title"})],
        args=run, prevent_initial_call=True,
    )
    def dict_of_properties(n):
        return "G", {"tip": "tip of H", "text": "H"}

    @app.long_callback(inputs=run, prevent_initial_call=True)
    def none_at_all(n):
        set_props("i", {"children": f"I {n}"})
    """
    app = serve(source)
    tab.open(app).click("#run")
    for name in "abcdefgh":
        tab.shows(f"#{name}", name.upper())
    tab.shows("#i", "I 1")
    expect(tab.locator("#f")).to_have_attribute("title", "tip of F")
    expect(tab.locator("#h")).to_have_attribute("title", "tip of H")
    assert not tab.errors


@core
def test_a_job_runs_at_page_load_unless_it_is_prevented(serve, tab):
    source = """
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    prevent_initial_callbacks=bool(os.environ.get("PREVENT")))
    app.layout = html.Div([html.Button("Run", id="run"), html.P("-", id="default"),
                           html.P("-", id="on"), html.P("-", id="off")])

    def declare(name, **options):
        @app.long_callback(Output(name, "children"), Input("run", "n_clicks"),
                           progress=Output(name, "title"), **options)
        def report(set_progress, n_clicks):
            set_progress("begun")
            return f"{n_clicks} {ctx.triggered_id}"

    declare("on", prevent_initial_call=True)
    declare("default")
    declare("off", prevent_initial_call=False)

    @app.long_callback(inputs=Input("run", "n_clicks"))
    def without_output(n_clicks):
        with open("runs", "a") as runs:
            runs.write(f"{n_clicks}\\n")
    """
    app = serve(source)
    tab.open(app)
    tab.shows("#default", "None None")
    tab.shows("#off", "None None")
    wait_for(lambda: app.file("runs") == "None\n", what="the job without an output")
    tab.shows("#on", "-")
    tab.click("#run")
    for name in ("default", "off", "on"):
        tab.shows(f"#{name}", "1 run")
    wait_for(lambda: app.file("runs") == "None\n1\n", what="one job a click")
    assert not tab.errors

    app = serve(source, environment={"PREVENT": "1"})
    tab.open(app)
    tab.shows("#off", "None None")
    tab.shows("#on", "-")
    tab.shows("#default", "-")
    tab.click("#run")
    tab.shows("#default", "1 run")
    tab.shows("#off", "1 run")
    assert not tab.errors


# --- Running, cancel and progress -----------------------------------------------------


@core
def test_cancel_ends_the_process_and_all_that_it_started(serve, tab):
    source = """
    import multiprocessing, subprocess

    app.layout = html.Div([
        html.Button("Run", id="run"), html.P("before", id="result"),
        html.Button("Cancel", id="cancel", disabled=True),
    ])

    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"),
        running=[(Output("cancel", "disabled"), False, True)],
        cancel=[Input("cancel", "n_clicks")],
        prevent_initial_call=True,
    )
    def compute(n_clicks):
        child = multiprocessing.Process(target=time.sleep, args=(60,))
        child.start()
        program = subprocess.Popen("sleep 60 & echo $!; wait", shell=True,
                                   stdout=subprocess.PIPE, text=True)
        grandchild = program.stdout.readline().strip()
        with open("pids", "w") as pids:
            pids.write(f"{os.getpid()} {child.pid} {program.pid} {grandchild}.")
        time.sleep(60)
    """
    app = serve(source)
    tab.open(app).click("#run")
    text = wait_for(lambda: app.file("pids").endswith(".") and app.file("pids"))
    pids = [int(pid) for pid in text[:-1].split()]
    assert len(set(pids)) == 4 and all(map(alive, pids))
    tab.click("#cancel")
    wait_for(lambda: not any(map(alive, pids)), 5, "all processes to end")
    expect(tab.locator("#cancel")).to_be_disabled()
    tab.shows("#result", "before")
    assert not tab.errors


def test_one_cancel_button_ends_the_jobs_of_all_callbacks_that_name_it(serve, tab):
    source = """
    app.layout = html.Div([html.Button("Run", id="run"), html.Button("X", id="cancel"),
                           *[html.P(id=name) for name in "ab"]])
    for name in "ab":
        @app.long_callback(
            Output(name, "children"), Input("run", "n_clicks"),
            running=[(Output(name, "title"), "running", "idle")],
            cancel=[Input("absent", "n_clicks"), Input("cancel", "n_clicks")],
            prevent_initial_call=True)
        def compute(n_clicks):
            time.sleep(60)
    """
    app = serve(source)
    tab.open(app).click("#run")
    for title in ("running", "idle"):
        for name in "ab":
            expect(tab.locator(f"#{name}")).to_have_attribute("title", title)
        tab.click("#cancel")


@core
def test_a_second_click_replaces_the_first_job(serve, tab):
    source = """
    app.layout = html.Div([html.Button("Run", id="run"), html.P("-", id="result")])

    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"),
        running=[(Output("run", "title"), "running", "idle")], prevent_initial_call=True)
    def compute(n_clicks):
        with open(f"pid{n_clicks}", "w") as file:
            file.write(f"{os.getpid()}.")
        if n_clicks == 1:
            time.sleep(60)
        until_go()
        return f"{n_clicks} clicks"
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app).click("#run")
    pid = wait_for(lambda: app.file("pid1").endswith(".") and app.file("pid1"))
    tab.click("#run")
    wait_for(lambda: app.file("pid2").endswith("."), what="the second job")
    wait_for(lambda: not alive(int(pid[:-1])), 5, "the end of the first job")
    expect(tab.locator("#run")).to_have_attribute("title", "running")
    go(app)
    tab.shows("#result", "2 clicks")
    expect(tab.locator("#run")).to_have_attribute("title", "idle")
    assert not tab.errors


TWO_TABS = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.P("-", id="result"),
        html.Button("Cancel", id="cancel"), html.P("-", id="bar"),
    ])

    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"),
        running=[(Output("run", "title"), "running", "idle")],
        cancel=Input("cancel", "n_clicks"), progress=Output("bar", "children"),
        prevent_initial_call=True)
    def compute(set_progress, n_clicks):
        set_progress(f"click {n_clicks}")
        until_go()
        return f"{n_clicks} clicks"
"""


@pytest.mark.parametrize(
    "opened",
    [pytest.param("by_another_user", marks=core), "by_hand", "by_the_first_tab"],
)
def test_two_tabs_are_two_users(serve, new_tab, opened):
    app = serve(TWO_TABS, PREAMBLE + UNTIL_GO)
    one = new_tab().open(app)
    one.click("#run")
    one.shows("#bar", "click 1")
    if opened == "by_the_first_tab":  # which copies its session storage
        with one.page.expect_popup() as popup:
            one.evaluate("void window.open(location.href)")
        two = popup.value
        two.wait_for_selector("#run")
    else:
        two = new_tab(one.page.context if opened == "by_hand" else None).open(app)
    two.click("#run", click_count=2)
    expect(two.locator("#bar")).to_have_text("click 2", timeout=15000)
    one.shows("#bar", "click 1")
    two.click("#cancel")
    expect(two.locator("#run")).to_have_attribute("title", "idle")
    expect(one.locator("#run")).to_have_attribute("title", "running")
    go(app)
    one.shows("#result", "1 clicks")
    expect(two.locator("#result")).to_have_text("-")
    assert not one.errors


@core
def test_progress_comes_in_every_shape_and_ends_at_its_default(serve, tab):
    source = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.P(id="done"), html.P("-", id="one"),
        *[html.Progress(id=name, value="0", max="9") for name in ("many", "tuple")],
        html.P("-", id="x"), html.P("-", id="y"),
    ])
    before = Input("run", "n_clicks")

    @app.long_callback(
        inputs=before, prevent_initial_call=True,
        progress=Output("one", "children"), progress_default=0)
    def one(set_progress, n_clicks):
        set_progress("half")
        until_go()

    @app.long_callback(
        inputs=before, prevent_initial_call=True,
        progress=Output("many", ("value", "max")), progress_default=("0", "100"))
    def many(set_progress, n_clicks):
        set_progress("1", "2")
        until_go()

    @app.long_callback(
        inputs=before, prevent_initial_call=True,
        progress=[Output("tuple", "value"), Output("tuple", "max")])
    def tuple_(set_progress, n_clicks):
        set_progress(("3", "4"))
        until_go()

    @app.long_callback(
        output=Output("done", "children"), args=before, prevent_initial_call=True,
        progress={"x": Output("x", "children"), "y": Output("y", "children")},
        progress_default={"x": "x at rest", "y": "y at rest"})
    def dict_(set_progress, n_clicks):
        set_progress({"y": "above", "x": "left"})
        until_go()
        return "done"
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app).click("#run")
    tab.shows("#one", "half")
    tab.shows("#x", "left")
    tab.shows("#y", "above")

    def bar(name, **attributes):
        for attribute, value in attributes.items():
            expect(tab.locator(name)).to_have_attribute(attribute, value)

    bar("#many", value="1", max="2")
    bar("#tuple", value="3", max="4")
    go(app)
    tab.shows("#done", "done")
    tab.shows("#x", "x at rest")
    tab.shows("#y", "y at rest")
    tab.shows("#one", "0")
    bar("#many", value="0", max="100")
    expect(tab.locator("#tuple")).not_to_have_attribute("value", re.compile(".*"))
    assert not tab.errors


def test_progress_can_be_a_figure(serve, tab):
    source = """
    import plotly.graph_objects as go

    def figure(title):
        return go.Figure(go.Bar(y=[1]), layout={"title": {"text": title}})

    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result"),
                           dcc.Graph(id="graph", figure=figure("empty"))])

    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"),
        progress=Output("graph", "figure"), progress_default=figure("empty"),
        prevent_initial_call=True)
    def compute(set_progress, n_clicks):
        set_progress(figure("halfway"))
        until_go()
        return "done"
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app).click("#run")
    tab.shows("#graph .gtitle", "halfway")
    go(app)
    tab.shows("#result", "done")
    tab.shows("#graph .gtitle", "empty")
    assert not tab.errors


@pytest.mark.parametrize("absent", ["a plain id", "an ALL id"])
def test_targets_that_are_not_in_the_page_break_nothing(serve, tab, absent):
    source = """
    absent = {"kind": "absent", "of": ALL} if os.environ.get("ALL_ID") else "absent"
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    suppress_callback_exceptions=True)
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"), State("run", "title"),
        running=[(Output(absent, "disabled"), True, False),
                 (Output("run", "title"), "running", "idle")],
        progress=Output("missing", "children"), cancel=Input("not-there", "n_clicks"),
        prevent_initial_call=True)
    def compute(set_progress, n_clicks, title):
        set_progress("half")
        set_props("nowhere", {"children": "lost"})
        return f"{n_clicks} clicks"
    """
    app = serve(source, environment={"ALL_ID": "1" if "ALL" in absent else ""})
    tab.open(app)
    for number in (1, 2):
        tab.click("#run")
        tab.shows("#result", f"{number} clicks")
        expect(tab.locator("#run")).to_have_attribute("title", "idle")
    assert not tab.errors


# --- Mistakes in a declaration --------------------------------------------------------


@pytest.fixture
def plugin(tmp_path):
    """The plugin of an app that a test declares callbacks in, but doesn't serve."""
    cache = flask_caching.Cache(
        config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": str(tmp_path)}
    )
    return dl.plugins.LongCallback(dl.FlaskCachingCallbackManager(cache))


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


@unit
@pytest.mark.parametrize(
    "running",
    [
        [(dl.Output("b", "disabled"), True)],
        [("b.disabled", True, False)],
        [(dl.Input("b", "disabled"), True, False)],
        [dl.Output("b", "disabled")],
        dl.Output("b", "disabled"),
        [(dl.Output("b", ("disabled", "title")), True, (False, "x"))],
    ],
    ids=[
        "two values",
        "a str",
        "an Input",
        "an Output",
        "no list",
        "a pair, one value",
    ],
)
def test_a_wrong_running_entry_is_refused(declare, running):
    text = declare(running=running)
    assert "running=[(Output(" in text


@unit
@pytest.mark.parametrize(
    "cancel",
    ["x.n_clicks", dl.State("x", "n_clicks"), dl.Output("x", "n_clicks"), 5],
    ids=["a str", "a State", "an Output", "a number"],
)
def test_a_cancel_that_is_no_input_is_refused(declare, cancel):
    text = declare(cancel=cancel)
    assert str(cancel) in text and "cancel=[Input(" in text


@unit
def test_a_wrong_progress_or_default_is_refused(declare):
    pair = dl.Output("bar", ("value", "max"))
    for options in (
        {"progress": dl.Input("bar", "value")},
        {"progress": "bar.value"},
        {"progress_default": 0},
        {"progress": pair, "progress_default": 0},
        {"progress": pair, "progress_default": (1, 2, 3)},
        {"progress": pair, "progress_default": {"value": 1, "max": 2}},
        {"progress": {"x": dl.Output("x", "value")}, "progress_default": {"y": 1}},
    ):
        text = declare(**options)
        assert "progress=Output(" in text and "progress_default=" in text
        if len(options) == 2:
            assert "progress: " in text
            assert "bar.max" in text or "x.value" in text


@unit
def test_one_decorator_may_declare_several_callbacks(plugin):
    app = dash.Dash(__name__, plugins=[plugin])
    output, args = dl.Output("p", "children"), dl.Input("b", "n_clicks")
    decorator = app.long_callback(output=output, args=args)
    decorator(lambda n_clicks: 1)

    def another(n_clicks):
        return 2

    decorator(another)
    inputs = [item["id"] for one in app._callback_list for item in one["inputs"]]
    assert inputs.count("b") == 2


@unit
def test_an_unknown_keyword_is_refused(declare):
    text = declare(runing=[])
    assert "'runing'" in text and "running" in text


@unit
def test_an_app_without_the_plugin_has_a_decorator_that_says_so(declare):
    assert "plugins=[plugins.LongCallback(manager)]" in declare(plugins=())


@unit
@pytest.mark.parametrize(
    "config",
    [
        {"CACHE_TYPE": "SimpleCache"},
        {"CACHE_TYPE": "simple"},
        {"CACHE_TYPE": "NullCache"},
        {"CACHE_TYPE": "null"},
        {"CACHE_TYPE": "flask_caching.backends.SimpleCache"},
        {"CACHE_TYPE": "FileSystemCache"},
        {"CACHE_TYPE": "filesystem"},
    ],
    ids=str,
)
def test_a_cache_that_processes_cannot_share_is_refused(config):
    with pytest.raises(dl.LongCallbackError) as raised:
        dl.FlaskCachingCallbackManager(flask_caching.Cache(config=config))
    assert '"CACHE_TYPE": "FileSystemCache", "CACHE_DIR":' in str(raised.value)


@unit
def test_the_decorator_returns_the_function_unchanged(plugin):
    app = dash.Dash(__name__, plugins=[plugin])

    def compute(set_progress, n_clicks):
        return n_clicks + 1

    options = {
        "output": dl.Output("p", "children"),
        "args": dl.Input("b", "n_clicks"),
        "progress": dl.Output("bar", "value"),
    }
    for decorator in (app.long_callback, dl.long_callback):
        assert decorator(**options)(compute) is compute
    assert compute(None, 1) == 2


# --- Jobs that fail -------------------------------------------------------------------

FAILING = """
    import signal

    def raises(set_progress):
        {}["the lost key"]

    def unserialisable(set_progress):
        return {"an object": object()}

    def too_many_values(set_progress):
        set_progress(1, 2, 3)

    def two_values_for_one(set_progress):
        set_progress(1, 2)

    def unserialisable_progress(set_progress):
        set_progress(object(), 1)

    def leaves(set_progress):
        sys.exit()

    def leaves_hard(set_progress):
        os._exit(7)

    def killed(set_progress):
        os.kill(os.getpid(), signal.SIGKILL)

    def crashes(set_progress):
        os.kill(os.getpid(), signal.SIGSEGV)

    class Stubborn(Exception):
        def __init__(self, one, two):
            self.lock = open(os.devnull)
            super().__init__("cannot be pickled")

    def unpicklable(set_progress):
        raise Stubborn(1, 2)

    def recurses(set_progress):
        recurses(set_progress)

    functions = [raises, unserialisable, too_many_values, two_values_for_one,
                 unserialisable_progress,
                 leaves, leaves_hard, killed, crashes, unpicklable, recurses]
    app.layout = html.Div([
        html.Button("Run", id="run"),
        *[html.P("-", id=function.__name__) for function in functions],
        *[html.P("-", id=f"{function.__name__}-bar") for function in functions],
    ])
    for function in functions:
        def job(set_progress, n_clicks, function=function):
            return function(set_progress)
        name = function.__name__
        targets = "children" if function is two_values_for_one else ("children", "lang")
        job.__qualname__ = f"job_{name}"
        app.long_callback(
            Output(name, "children"), Input("run", "n_clicks"),
            progress=Output(f"{name}-bar", targets),
            progress_default="ended" if targets == "children" else ("ended", "en"),
            on_error=str,
            running=[(Output(name, "title"), "on", "off")], prevent_initial_call=True,
        )(job)
"""


def test_every_way_to_fail_ends_in_an_error_that_names_the_cause(serve, tab):
    app = serve(FAILING)
    tab.open(app).click("#run")
    for name, words in {
        "raises": "'the lost key'",
        "too_many_values": r"set_progress: \(1, 2, 3\)",
        "two_values_for_one": r"set_progress takes one value, not \(1, 2\)",
        "unserialisable_progress": "object",
        "leaves_hard": "exit code 7",
        "killed": "ended by SIGKILL",
        "crashes": "ended by SIGSEGV",
        "unpicklable": "cannot be pickled",
        "recurses": "maximum recursion depth",
    }.items():
        target = tab.locator(f"#{name}")
        expect(target).to_have_text(re.compile(words))
        expect(target).to_have_attribute("title", "off")
        tab.shows(f"#{name}-bar", "ended")
        assert f"job_{name} " in app.log
    for name, words in {"unserialisable": "JSON", "leaves": "SystemExit"}.items():
        says(tab, f"job_{name}: ")  # as with Dash, no on_error hears of these
        assert re.search(f"job_{name} .* failed: .*", app.log), words
        expect(tab.locator(f"#{name}")).to_have_attribute("title", "off")
    assert 'in raises\n    {}["the lost key"]' in app.log


def test_a_job_that_prints_and_returns_megabytes_succeeds(serve, tab):
    source = """
    app.layout = html.Div([html.Button("Run", id="run"), dcc.Store(id="store"),
                           html.P(id="size")])

    @app.long_callback(Output("store", "data"), Input("run", "n_clicks"),
                       prevent_initial_call=True)
    def compute(n_clicks):
        for number in range(50):
            print("x" * 100_000)
            print("y" * 100_000, file=sys.stderr)
        return "z" * 3_000_000

    app.clientside_callback("text => text ? text.length : 0",
                            Output("size", "children"), Input("store", "data"))
    """
    app = serve(source)
    tab.open(app).click("#run")
    tab.shows("#size", "3000000")
    assert app.log.count("x" * 100_000) == 50
    assert not tab.errors


DEV_TOOLS = """
    app.layout = html.Div([html.Button("Run", id="run"), html.P("-", id="result")])

    @app.long_callback(
        *[Output("result", "children")] * bool(os.environ.get("OUTPUT")),
        Input("run", "n_clicks"), prevent_initial_call=True,
        running=[(Output("run", "title"), "on", "off")])
    def compute(n_clicks):
        return {}["the lost key"]
"""


@core
@pytest.mark.parametrize("output", ["1", ""], ids=["an_output", "no_output"])
def test_an_error_shows_in_the_dev_tools_with_its_traceback(serve, tab, output):
    app = serve(DEV_TOOLS, environment={"DEBUG": "1", "OUTPUT": output})
    tab.open(app).click("#run")
    card = tab.locator(".dash-error-card .dash-fe-error__title")
    expect(card).to_contain_text("app.compute: KeyError: 'the lost key'", timeout=15000)
    expect(card).to_contain_text('return {}["the lost key"]')
    expect(tab.locator("#run")).to_have_attribute("title", "off")
    assert 'return {}["the lost key"]' in app.log


@core
def test_on_error_of_callback_and_app_get_the_error_and_fill_the_outputs(serve, tab):
    source = """
    def handle(error):
        set_props("kind", {"children": type(error).__name__})
        return f"app: {error}"

    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    on_error=handle)
    app.layout = html.Div([
        html.Button("Run", id="run"), html.P(id="kind"),
        *[html.P("-", id=name) for name in ("own", "app", "x", "y", "none", "silent")],
    ])
    run = Input("run", "n_clicks")

    def fail(n_clicks):
        raise ValueError("oh no")

    def declare(output, **options):
        app.long_callback(
            *output, run, prevent_initial_call=True,
            running=[(Output("run", "title"), "on", "off")], **options)(fail)

    declare([Output("own", "children")], on_error=lambda error: f"own: {error}")
    declare([Output("x", "children"), Output("y", "children")],
            on_error=lambda error: ("X", no_update))
    declare([], on_error=lambda error: set_props("none", {"children": str(error)}))
    declare([Output("silent", "children")], on_error=lambda error: None)
    declare([Output("app", "children")])
    """
    app = serve(source)
    tab.open(app).click("#run")
    tab.shows("#own", "own: oh no")
    tab.shows("#x", "X")
    tab.shows("#y", "-")
    tab.shows("#none", "oh no")
    tab.shows("#app", "app: oh no")
    tab.shows("#kind", "ValueError")
    tab.shows("#silent", "-")
    expect(tab.locator("#run")).to_have_attribute("title", "off")
    assert not tab.errors


# --- What a Dash callback can do ------------------------------------------------------


@core
def test_the_job_sees_the_context_of_its_callback(serve, tab):
    source = """
    app.layout = html.Div([
        html.Button("Run", id="run"), dcc.Input("A", id="a"),
        html.Button("B", id={"kind": "b", "of": 1}), html.Pre(id="result"),
    ])

    @app.long_callback(
        output=Output("result", "children"),
        inputs={"n": Input("run", "n_clicks"),
                "all": Input({"kind": "b", "of": ALL}, "n_clicks")},
        state={"a": State("a", "value")}, prevent_initial_call=True)
    def compute(n, a, all):
        return json.dumps({
            "triggered_id": ctx.triggered_id,
            "triggered": ctx.triggered,
            "triggered_prop_ids": dict(ctx.triggered_prop_ids),
            "inputs": ctx.inputs,
            "states": ctx.states,
            "grouping": [ctx.args_grouping.n.value, ctx.args_grouping.n.triggered,
                         ctx.args_grouping.a.id,
                         [item.triggered for item in ctx.args_grouping["all"]]],
        })
    """
    app = serve(source, PREAMBLE + "    import json\n")
    tab.open(app)

    def context():
        text = tab.locator("#result").inner_text()
        return text and json.loads(text)

    tab.click("#run")
    seen = wait_for(context)
    button = '{"kind":"b","of":1}'
    assert seen == {
        "triggered_id": "run",
        "triggered": [{"prop_id": "run.n_clicks", "value": 1}],
        "triggered_prop_ids": {"run.n_clicks": "run"},
        "inputs": {"run.n_clicks": 1, f"{button}.n_clicks": None},
        "states": {"a.value": "A"},
        "grouping": [1, True, "a", [False]],
    }
    tab.click("text=B")
    seen = wait_for(lambda: context()["triggered_id"] != "run" and context())
    assert seen["triggered_id"] == {"kind": "b", "of": 1}
    assert seen["triggered"] == [{"prop_id": f"{button}.n_clicks", "value": 1}]
    assert seen["grouping"] == [1, False, "a", [True]]
    assert not tab.errors


def test_the_job_sees_cookies_and_headers_of_its_request(serve, tab):
    source = """
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"))
    def compute(n_clicks):
        return f"{ctx.cookies.get('taste')} {ctx.headers['User-Agent']}"
    """
    app = serve(source)
    cookie = {"name": "taste", "value": "chocolate", "url": app.url}
    tab.page.context.add_cookies([cookie])
    tab.open(app)
    tab.shows("#result", "chocolate " + tab.evaluate("navigator.userAgent"))


@core
def test_no_set_props_of_a_job_is_lost(serve, tab):
    source = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.P("-", id="result"), html.P("-", id="a"),
        html.P("-", id={"kind": "b"}), html.P(id="echo"),
        dcc.Input("-", id="typed"),
    ])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       prevent_initial_call=True)
    def compute(n_clicks):
        for number in range(3):  # there is no time for a poll between these
            set_props("a", {"children": f"a{number}", "title": f"t{number}"})
            set_props({"kind": "b"}, {"children": f"b{number}"})
        set_props("a", {"lang": "en"})
        set_props("typed", {"value": "typed"})
        if n_clicks == 2:
            until_go()
        return f"{n_clicks} clicks"

    @app.callback(Output("echo", "children"), Input("typed", "value"))
    def echo(value):
        return f"echo {value}"
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app).click("#run")

    def all_there():
        tab.shows("#a", "a2")
        expect(tab.locator("#a")).to_have_attribute("title", "t2")
        expect(tab.locator("#a")).to_have_attribute("lang", "en")
        tab.shows("text=b2", "b2")
        tab.shows("#echo", "echo typed")

    tab.shows("#result", "1 clicks")
    all_there()
    tab.open(app).click("#run", click_count=2)
    all_there()
    tab.shows("#result", "-")
    go(app)
    tab.shows("#result", "2 clicks")
    all_there()
    assert not tab.errors


@core
def test_patches_are_applied_once_in_results_and_in_set_props(serve, tab):
    source = """
    app.layout = html.Div([html.Button("Run", id="run"), html.P(["a"], id="result"),
                           html.P([], id="list")])

    def appended(text):
        patched = Patch()
        patched.append(text)
        return patched

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       prevent_initial_call=True)
    def compute(n_clicks):
        for number in range(4):
            set_props("list", {"children": appended(str(number))})
        if n_clicks == 2:
            until_go()
        return appended("b")
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app).click("#run")
    if DASH < (3, 3):
        wait_for(lambda: "Dash 3.3 or newer" in app.log, what="the error of a Patch")
        return
    tab.shows("#result", "ab")
    tab.shows("#list", "0123")
    tab.click("#run")
    tab.shows("#list", "01230123")
    tab.shows("#result", "ab")
    go(app)
    tab.shows("#result", "abb")
    tab.shows("#list", "01230123")
    assert not tab.errors


@core
def test_results_may_be_all_that_a_dash_callback_returns(serve, tab):
    source = """
    import asyncio, datetime

    names = ("none", "no", "some", "other", "prevented", "date", "async", "two")
    app.layout = html.Div([
        html.Button("Run", id="run"), *[html.P("-", id=name) for name in names],
        html.Div(id="parent"),
        dcc.Graph(id="graph"), html.P("-", id="log"),
    ])
    run = Input("run", "n_clicks")

    def children(*names):
        return [Output(name, "children") for name in names]

    def declare(*names):
        return app.long_callback(*children(*names), run, prevent_initial_call=True)

    @declare("none")
    def returns_none(n):
        return None

    @declare("no")
    def returns_no_update(n):
        return no_update

    @declare("some", "other")
    def returns_some(n):
        return no_update, "new"

    @declare("prevented")
    def prevents(n):
        raise dash.exceptions.PreventUpdate

    @declare("date")
    def returns_date(n):
        return [datetime.date(2024, 2, 29), " ", datetime.datetime(2024, 2, 29, 12)]

    @declare("async")
    async def returns_later(n):
        await asyncio.sleep(0.01)
        return "awaited"

    @app.long_callback(Output("graph", "figure"), run, prevent_initial_call=True)
    def returns_figure(n):
        import plotly.graph_objects as go
        return go.Figure(go.Bar(y=[1, 2]), layout={"title": {"text": "a figure"}})

    @declare("parent")
    def returns_children(n):
        return [html.Button("Child", id="child"), html.P(id="child-echo"),
                html.P(id="grandchild")]

    app.config.suppress_callback_exceptions = True

    @app.callback(Output("child-echo", "children"), Input("child", "n_clicks"))
    def child_echo(n_clicks):
        return f"child {n_clicks}"

    @app.long_callback(Output("grandchild", "children"), Input("child-echo", "children"))
    def grandchild(text):
        return f"after {text}"

    # Two callbacks and an ordinary one for one property
    for number in (1, 2):
        @app.long_callback(
            Output("two", "children", allow_duplicate=True),
            Input(names[number - 1], "title"), run, prevent_initial_call=True)
        def duplicate(title, n, number=number):
            time.sleep(number / 10)
            return f"by {number}"

    @app.callback(Output("two", "children"), Input("run", "n_clicks"),
                  prevent_initial_call=True)
    def original(n_clicks):
        return "by the ordinary one"
    """
    app = serve(source)
    tab.open(app).click("#run")
    for name, text in {
        "none": "",
        "other": "new",
        "date": "2024-02-29 2024-02-29T12:00:00",
        "async": "awaited",
        "child-echo": "child None",
        "grandchild": "after child None",
        "graph .gtitle": "a figure",
        "two": "by 2",
        "no": "-",
        "some": "-",
        "prevented": "-",
    }.items():
        tab.shows(f"#{name}", text)
    tab.click("#child")
    tab.shows("#child-echo", "child 1")
    tab.shows("#grandchild", "after child 1")
    assert not tab.errors


def test_results_may_hold_numpy_and_pandas_values(serve, tab):
    for library in ("numpy", "pandas"):
        pytest.importorskip(library)
    source = """
    import numpy, pandas

    app.layout = html.Div([html.Button("Run", id="run"), dcc.Store(id="store"),
                           html.P(id="result"), html.P(id="bar")])

    @app.long_callback(
        Output("store", "data"), Input("run", "n_clicks"),
        progress=Output("bar", "children"), progress_default=numpy.int64(5),
        prevent_initial_call=True)
    def compute(set_progress, n_clicks):
        set_progress(numpy.float64(0.5))
        until_go()
        return [numpy.int64(1), numpy.array([1.5, numpy.nan]), pandas.Series([3, 4]),
                pandas.Timestamp("2024-02-29")]

    app.clientside_callback("data => data ? JSON.stringify(data) : ''",
                            Output("result", "children"), Input("store", "data"))
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app).click("#run")
    tab.shows("#bar", "0.5")
    go(app)
    tab.shows("#result", '[1,[1.5,null],[3,4],"2024-02-29T00:00:00"]')
    tab.shows("#bar", "5")
    assert not tab.errors


def wild(kind, number):
    """CSS selector of a component with a dict id."""
    return f'[id=\'{{"kind":"{kind}","of":{number}}}\']'


@core
def test_all_works_in_inputs_states_outputs_running_and_progress(serve, tab):
    source = """
    def wild(kind):
        return {"kind": kind, "of": ALL}

    app.layout = html.Div([
        component(id={"kind": kind, "of": of})
        for kind, component in {"in": html.Button, "out": html.P, "bar": html.P}.items()
        for of in (1, 2)
    ] + [html.P("-", id="sum")])

    @app.long_callback(
        output=[Output("sum", "children"), Output(wild("out"), "children")],
        args=[Input(wild("in"), "n_clicks"), State(wild("in"), "id")],
        running=[(Output(wild("in"), "disabled"), True, False)],
        progress=Output(wild("bar"), "children"), progress_default="rest",
        prevent_initial_call=True)
    def compute(set_progress, clicks, ids):
        set_progress("half")
        until_go()
        return str(clicks), [f"{id['of']}: {n}" for id, n in zip(ids, clicks)]
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app).click(wild("in", 2))
    for number in (1, 2):
        tab.shows(wild("bar", number), "half")
        expect(tab.locator(wild("in", number))).to_be_disabled()
    go(app)
    tab.shows("#sum", "[None, 1]")
    tab.shows(wild("out", 1), "1: None")
    tab.shows(wild("out", 2), "2: 1")
    for number in (1, 2):
        tab.shows(wild("bar", number), "rest")
        expect(tab.locator(wild("in", number))).to_be_enabled()
    assert not tab.errors


@core
def test_each_match_instance_has_a_job_of_its_own(serve, tab, declare):
    if DASH < (2, 18):
        one = {"kind": "run", "of": MATCH}
        error = declare(output=Output(one, "title"), args=Input(one, "n_clicks"))
        assert "MATCH needs Dash 2.18" in error
        return
    source = """
    def wild(kind, of=MATCH):
        return {"kind": kind, "of": of}

    app.layout = html.Div([html.Div([
        html.Button("Run", id=wild("run", of)), html.P("-", id=wild("bar", of)),
        html.Button("Cancel", id=wild("cancel", of)), html.P("-", id=wild("out", of)),
    ]) for of in range(4)] + [html.Button("Stop", id="stop")])

    @app.long_callback(
        Output(wild("out"), "children"), Input(wild("run"), "n_clicks"),
        State(wild("run"), "id"),
        running=[(Output(wild("run"), "title"), "running", "idle")],
        cancel=[Input(wild("cancel"), "n_clicks"), Input("stop", "n_clicks")],
        progress=Output(wild("bar"), "children"), progress_default="rest",
        prevent_initial_call=True)
    def compute(set_progress, n_clicks, id):
        set_progress(f"{id['of']} runs")
        until_go()
        return f"{id['of']}: {n_clicks}, {ctx.triggered_id['of']}"
    """
    app = serve(source, PREAMBLE + UNTIL_GO)
    tab.open(app)
    for number in range(3):
        tab.click(wild("run", number))
    for number in range(3):
        tab.shows(wild("bar", number), f"{number} runs")
    tab.shows(wild("bar", 3), "-")
    tab.click(wild("cancel", 1))
    tab.shows(wild("bar", 1), "rest")
    title = "title"
    expect(tab.locator(wild("run", 1))).to_have_attribute(title, "idle")
    for number in (0, 2):
        expect(tab.locator(wild("run", number))).to_have_attribute(title, "running")
    go(app)
    for number in (0, 2):
        tab.shows(wild("out", number), f"{number}: 1, {number}")
        expect(tab.locator(wild("run", number))).to_have_attribute(title, "idle")
    Path(app.folder, "go").unlink()
    for number in (2, 3):
        tab.click(wild("run", number))
        tab.shows(wild("bar", number), f"{number} runs")
    tab.click("#stop")
    for number in (2, 3):
        expect(tab.locator(wild("run", number))).to_have_attribute(title, "idle")
    go(app)
    tab.click(wild("run", 0))
    tab.shows(wild("out", 0), "0: 2, 0")
    tab.shows(wild("out", 1), "-")
    tab.shows(wild("out", 2), "2: 1, 2")
    tab.shows(wild("out", 3), "-")
    assert not tab.errors


@pytest.mark.parametrize(
    ("method", "server"),
    [
        ("fork", "python"),
        ("forkserver", "python"),
        ("spawn", "python"),
        ("spawn", "gunicorn"),
    ],
)
def test_jobs_start_by_every_method(serve, tab, method, server):
    source = f"""
    manager = dl.FlaskCachingCallbackManager(cache, start_method="{method}")
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])
    server = app.server
    """
    gunicorn = ["--workers", "2", "--threads", "2"] if server == "gunicorn" else None
    app = serve(source + SIMPLE, gunicorn=gunicorn)
    tab.open(app).click("#run")
    tab.shows("#result", "Clicked 1 times", timeout=30000)
    tab.click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.click("#cancel")
    expect(tab.locator("#run")).to_be_enabled()
    assert not tab.errors


@pytest.mark.parametrize("unknown_ids", ["suppressed", "in the validation layout"])
def test_a_cancel_input_that_is_absent_leaves_the_others_alone(serve, tab, unknown_ids):
    source = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.Button("Cancel", id="everywhere"),
        html.Button("Show", id="show"), html.Div(id="page"),
        html.P("idle", id="state"), html.P("-", id="result"),
    ])
    here = html.Button("Cancel", id="here")
    if os.environ["UNKNOWN_IDS"] == "suppressed":
        app.config.suppress_callback_exceptions = True
    else:
        app.validation_layout = html.Div([app.layout, here])

    @app.callback(Output("page", "children"), Input("show", "n_clicks"),
                  prevent_initial_call=True)
    def show(n_clicks):
        return here

    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"),
        running=[(Output("state", "children"), "running", "idle")],
        cancel=[Input("everywhere", "n_clicks"), Input("here", "n_clicks")],
        prevent_initial_call=True)
    def compute(n_clicks):
        time.sleep(30)
    """
    app = serve(source, environment={"UNKNOWN_IDS": unknown_ids, "DEBUG": "1"})
    tab.open(app)
    for button in ("#everywhere", "#here", "#everywhere"):
        tab.click("#run")
        tab.shows("#state", "running")
        tab.click(button)
        tab.shows("#state", "idle")
        if button == "#everywhere":
            tab.click("#show")
            expect(tab.locator("#here")).to_be_visible()
    expect(tab.locator(".dash-fe-error__title")).to_have_count(0)
    assert not [error for error in tab.errors if "ERR_NAME_NOT_RESOLVED" not in error]


@core
def test_a_cancel_before_any_job_is_no_error(serve, tab):
    source = """
    app.config.suppress_callback_exceptions = True
    app.layout = html.Div([
        dcc.Location(id="url"), dcc.Link("Two", href="/two", id="link"),
        html.P(id="page"),
    ])

    @app.callback(Output("page", "children"), Input("url", "pathname"))
    def show(path):
        return path

    @app.long_callback(
        Output("result", "children"), Input("run", "n_clicks"),
        cancel=[Input("url", "pathname")], prevent_initial_call=True)
    def compute(n_clicks):
        return "its components are on a page not shown"
    """
    app = serve(source)
    tab.open(app).shows("#page", "/")
    tab.click("#link")
    tab.shows("#page", "/two")
    goes_quiet(tab)
    assert not tab.errors


def test_the_title_stays_and_the_graph_shows_none_of_ours(serve, tab):
    app = serve(STEPS, environment={"STEPS": "25"})
    tab.open(app).evaluate(
        """() => {
            window.titles = [];
            new MutationObserver(() => titles.push(document.title)).observe(
                document.head, {childList: true, characterData: true, subtree: true});
        }"""
    )
    tab.click("#run")
    ended_once(tab, app)
    goes_quiet(tab)
    assert len(tab.requests) > 5
    assert tab.evaluate("titles").count("Updating...") <= 2  # for start and result
    with urllib.request.urlopen(f"{app.url}/_dash-dependencies") as answer:
        callbacks = json.load(answer)
    assert len(callbacks) == 5  # tick, start, show, targets, cancel
    assert all(item["hidden"] for item in callbacks)


def test_a_callback_that_a_fresh_process_cannot_find_is_an_error(serve, tab):
    source = """
    manager = dl.FlaskCachingCallbackManager(cache, start_method="spawn")
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    if __name__ == "__main__":  # which a spawned process is not
        @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                           prevent_initial_call=True)
        def compute(n_clicks):
            return "done"
    """
    app = serve(source)
    tab.open(app).click("#run")
    says(tab, "app.compute: no module that its process imports declares it")


@pytest.mark.parametrize("backend", ["fastapi", "quart"])
def test_jobs_run_with_other_server_backends(serve, tab, backend):
    pytest.importorskip(backend)
    preamble = PREAMBLE.replace(
        "dash.Dash(__name__, ", f'dash.Dash(__name__, backend="{backend}", '
    )
    app = serve(SIMPLE, preamble)
    tab.open(app).click("#run")
    tab.shows("#result", "Clicked 1 times")
    tab.click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.click("#cancel")
    expect(tab.locator("#run")).to_be_enabled()
    assert not tab.errors


def test_a_target_with_a_typo_is_an_error_in_debug_mode(serve, tab):
    source = """
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       running=[(Output("rnu", "disabled"), True, False)],
                       prevent_initial_call=True)
    def compute(n_clicks):
        return "done"
    """
    app = serve(source, environment={"DEBUG": "1"})
    tab.open(app).click("#run")
    tab.shows("#result", "done")
    card = tab.locator(".dash-fe-error__title", has_text="ID not found in layout")
    expect(card.first).to_be_visible()


def test_a_callback_may_have_a_manager_of_its_own(serve, tab):
    source = """
    own = dl.FlaskCachingCallbackManager(
        Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "own"}))
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       manager=own, prevent_initial_call=True)
    def compute(n_clicks):
        return f'{len(os.listdir("own")) > 0} {os.path.exists("cache")}'
    """
    app = serve(source)
    tab.open(app).click("#run")
    tab.shows("#result", "True False")
    assert not tab.errors


def test_two_apps_in_one_process_keep_their_jobs_apart(serve, tab):
    source = """
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    second = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                  requests_pathname_prefix="/second/")

    def declare(app, name):
        app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

        @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                           prevent_initial_call=True)
        def compute(n_clicks):
            time.sleep(1)
            return f"{name} {n_clicks}"

    declare(app, "first")
    declare(second, "second")
    server = DispatcherMiddleware(app.server, {"/second": second.server})
    """
    app = serve(source, gunicorn=["--threads", "4"])
    for path, name in (("/", "first"), ("/second/", "second")):
        tab.open(app, path).click("#run")
        tab.shows("#result", f"{name} 1")
    with tab.page.expect_request(lambda r: '"start":{' in (r.post_data or "")):
        tab.click("#run")  # Dash hears of a click a moment later
    tab.open(app, "/").click("#run")  # in the same tab, while the other's job runs
    tab.shows("#result", "first 1")
    tab.open(app, "/second/")
    tab.shows("#result", "second 2")
    assert not tab.errors


# --- The examples --------------------------------------------------------------------

EXAMPLE_TITLES = ["Simple", "Running", "Cancel", "Progress", "Figure", "Errors"]


class Examples(App):
    """The examples, served as a person starts them."""

    def __init__(self, folder, *arguments):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, str(HERE / "examples.py"), "--port", str(self.port)]
        Program.__init__(self, command + [*arguments], folder, name="examples")
        self.wait()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    program = Examples(tmp_path_factory.mktemp("examples"))
    yield program
    program.stop()


def test_examples_show_their_own_source_and_need_no_internet(examples, tab):
    source, requests = Path(HERE, "examples.py").read_text(), []
    tab.on("request", lambda request: requests.append(request.url))
    tab.open(examples)
    for number, title in enumerate(EXAMPLE_TITLES, 1):
        tab.click(f"nav >> text={number} {title}")
        tab.shows("h1", f"{number}. {title}")
        expect(tab.locator("pre code")).to_contain_text("@app.long_callback(")
        functions = tab.inner_text("pre code").strip().split("\n\n\n")
        assert len(functions) > 1
        assert all(function in source for function in functions)
    local = examples.url, "data:", "blob:"
    assert requests and not [url for url in requests if not url.startswith(local)]
    assert not tab.errors


def test_examples_say_their_address(examples):
    assert f"{examples.url}/" in examples.log


@pytest.mark.parametrize("path", ["/1", "/2", "/3", "/4", "/5", "/6"])
def test_examples_fit_a_narrow_screen(examples, tab, path):
    tab.set_viewport_size({"width": 400, "height": 800})
    tab.open(examples, path).wait_for_selector("nav")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


def test_examples_follow_the_light_or_dark_setting(examples, tab):
    tab.open(examples, "/1")
    shown = {}
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        shown[scheme] = tab.evaluate(f"[{style}.color, {style}.backgroundColor]")
    light, dark = (
        [sum(map(int, re.findall(r"\d+", color)[:3])) for color in shown[scheme]]
        for scheme in ("light", "dark")
    )
    assert light[0] < light[1] and dark[0] > dark[1]


def test_example_simple_runs_at_load_and_answers_meanwhile(examples, tab):
    tab.open(examples, "/1")
    tab.fill("#simple_name", "Ada")
    tab.shows("#simple_greeting", "Hello, Ada")
    tab.shows("#simple_result", "Running…")
    tab.shows("#simple_result", "Clicked 0 times")
    tab.click("#simple_button")
    tab.shows("#simple_result", "Clicked 1 times")
    assert not tab.errors


def test_example_running_disables_the_button_and_shows_the_spinner(examples, tab):
    tab.open(examples, "/2").click("#running_button")
    expect(tab.locator("#running_button")).to_be_disabled()
    expect(tab.locator("#running_result")).to_be_hidden()
    tab.shows("#running_result", "Clicked 1 times")
    expect(tab.locator("#running_result")).to_be_visible()
    expect(tab.locator("#running_button")).to_be_enabled()
    assert not tab.errors


def test_example_cancel_enables_its_button_during_the_run_only(examples, tab):
    tab.open(examples, "/3")
    expect(tab.locator("#cancel_cancel")).to_be_disabled()
    tab.click("#cancel_run")
    tab.click("#cancel_cancel")
    expect(tab.locator("#cancel_run")).to_be_enabled()
    expect(tab.locator("#cancel_cancel")).to_be_disabled()
    tab.shows("#cancel_result", "Cancelled")
    assert not tab.errors


def test_example_progress_moves_its_bar(examples, tab):
    tab.open(examples, "/4")
    bar, result = tab.locator("#progress_bar"), tab.locator("#progress_result")
    expect(bar).to_be_hidden()
    tab.click("#progress_run")
    for value in ("[1-9]", "[3-9]", "[5-9]"):
        expect(bar).to_have_attribute("value", re.compile(value))
        expect(bar).to_have_attribute("max", "10")
        expect(bar).to_be_visible()
        expect(result).to_be_hidden()
    tab.shows("#progress_result", "Clicked 1 times")
    expect(result).to_be_visible()
    expect(bar).to_be_hidden()
    assert not tab.errors


def test_example_figure_grows_and_stays_after_the_run(examples, tab):
    tab.open(examples, "/5")
    points = tab.locator("#figure_graph .points path")
    expect(tab.locator("#figure_graph .xtick").first).to_be_visible()
    expect(points).to_have_count(0)
    tab.click("#figure_run")
    expect(points.nth(10)).to_be_attached()
    expect(tab.locator("#figure_cancel")).to_be_enabled()
    tab.shows("#figure_result", "π is about 3.092")
    expect(points).to_have_count(20)
    assert not tab.errors


def test_example_errors_shows_sentences_in_place_of_results(examples, tab):
    tab.open(examples, "/6").click("#errors_raise")
    tab.click("#errors_kill")
    tab.shows("#errors_raised", "The job failed with a ValueError.")
    expect(tab.locator("#errors_killed")).to_contain_text("ended by SIGKILL")
    expect(tab.locator("#errors_killed")).not_to_contain_text("Traceback")
    for button in ("#errors_raise", "#errors_kill"):
        expect(tab.locator(button)).to_be_enabled()
    assert not tab.errors


def test_examples_show_no_error_in_debug_mode(tmp_path, tab):
    app, requests = Examples(tmp_path, "--debug"), []
    try:
        tab.on("request", lambda request: requests.append(request.url))
        tab.open(app, "/4").click("#progress_run")
        tab.shows("#progress_result", "Clicked 1 times")
        expect(tab.locator(".dash-error-card")).to_have_count(0)
        local = app.url, "data:", "blob:"
        assert requests and not [url for url in requests if not url.startswith(local)]
    finally:
        app.stop()


def test_readme_begins_with_an_example_that_runs(serve, tab):
    source = Path(HERE, "README.md").read_text().split("```python\n")[1].split("```")[0]
    app = serve(source, preamble="")
    tab.open(app).shows("#result", "Clicked 0 times")
    tab.click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.shows("#result", "Clicked 1 times")
    assert not tab.errors


# --- Dash's own background callbacks -------------------------------------------------

DASHS_OWN = """
    import os, signal, time
    import dash, diskcache
    from dash import Input, Output, DiskcacheManager, html

    manager = DiskcacheManager(diskcache.Cache("cache"))
    app = dash.Dash(__name__, background_callback_manager=manager)
    app.layout = html.Div([
        html.Button("Run", id="run"), html.P("nothing yet", id="result"),
        html.Button("Die", id="die"), html.P("nothing yet", id="died"),
    ])

    @app.callback(Output("result", "children"), Input("run", "n_clicks"),
                  running=[(Output("run", "disabled"), True, False)],
                  background=True, prevent_initial_call=True)
    def work(n_clicks):
        time.sleep(2)
        return "done"

    @app.callback(Output("died", "children"), Input("die", "n_clicks"),
                  running=[(Output("die", "disabled"), True, False)],
                  background=True, prevent_initial_call=True)
    def die(n_clicks):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def dashs_own(serve):
    pytest.importorskip("diskcache")
    return serve(DASHS_OWN, preamble="")


def test_dashs_own_loses_the_result_on_refresh(dashs_own, tab):
    tab.open(dashs_own).click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.reload()
    expect(tab.locator("#run")).to_be_enabled()
    time.sleep(4)  # the job would have ended by now
    tab.shows("#result", "nothing yet")


def test_dashs_own_loses_the_result_with_one_answer(dashs_own, tab):
    tab.open(dashs_own)
    lost = []

    def lose_one_poll(route):
        if "cacheKey" in route.request.url and not lost:
            lost.append(route.request.url)
            return route.abort()
        return route.continue_()

    tab.route("**/_dash-update-component*", lose_one_poll)
    tab.click("#run")
    wait_for(lambda: tab.wait_for_timeout(50) or lost, what="a poll")
    tab.wait_for_timeout(5000)  # the result would be here by now
    tab.shows("#result", "nothing yet")
    expect(tab.locator("#run")).to_be_disabled()


def test_dashs_own_does_not_say_that_a_process_was_killed(dashs_own, tab):
    tab.open(dashs_own).click("#die")
    expect(tab.locator("#die")).to_be_disabled()
    expect(tab.locator("#die")).to_be_enabled()
    tab.shows("#died", "nothing yet")
    assert not tab.errors
    assert "Error" not in dashs_own.log and "SIGKILL" not in dashs_own.log


# --- Faults, restarts and slow networks ----------------------------------------------

STEPS = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.Button("Cancel", id="cancel"),
        html.P("idle", id="state"), html.P(id="progress"), html.P(id="result"),
    ])

    def note(name, *words):
        with open(name, "a") as file:
            print(*words, file=file)

    @app.long_callback(
        output=Output("result", "children"),
        args=Input("run", "n_clicks"),
        running=[(Output("state", "children"), "running", "idle")],
        cancel=[Input("cancel", "n_clicks")],
        progress=Output("progress", "children"),
        progress_default="none",
        interval=int(os.environ.get("INTERVAL", "1000")),
        prevent_initial_call=True,
    )
    def compute(set_progress, n_clicks):
        note("runs", n_clicks, os.getpid(), os.getppid())
        for step in range(int(os.environ.get("STEPS", "3"))):
            time.sleep(0.1)
            set_progress(step)
        note("ends", n_clicks)
        return f"Clicked {n_clicks} times"
"""
UPDATES = "**/_dash-update-component*"


def runs(app):
    """The jobs that started: (n_clicks, its process, its server's process)."""
    return [tuple(map(int, line.split())) for line in app.file("runs").splitlines()]


def running_job(app):
    """The process of the job that started last, and that of its server."""
    return wait_for(lambda: runs(app), what="the job to start")[-1][1:]


def is_ours(request):
    return '"longcallback.answer"' in (request.post_data or "")


def intercept(tab, handle):
    """Call `handle(route, number)` for each message of the protocol."""
    numbers = itertools.count(1)

    def handle_ours(route):
        if not is_ours(route.request):
            return route.continue_()
        try:
            handle(route, next(numbers))
        except playwright_api.Error as error:
            if not re.search("closed|disposed", str(error)):  # the test is over
                raise

    tab.page.route(UPDATES, handle_ours)


def hold_first_message(tab):
    """Hold the first message of the protocol; return a list that gets its route."""
    held = []

    def handle(route, number):
        if number == 1:
            held.append(route)
        else:
            route.continue_()

    intercept(tab, handle)
    return held


def lose_answer(tab, chosen):
    """Lose the first answer that `chosen(number, message, answer)` picks.

    Returns a list of what was lost.
    """
    lost = []

    def handle(route, number):
        answer = route.fetch()
        message = route.request.post_data
        if not lost and chosen(number, message, answer.text()):
            lost.append(message)
            route.abort()
        else:
            route.fulfill(response=answer)

    intercept(tab, handle)
    return lost


def ended_once(tab, app, clicks=1):
    """Check that the page shows the result, nothing sticks and the job ran once."""
    tab.shows("#result", f"Clicked {clicks} times")
    tab.shows("#state", "idle")
    tab.shows("#progress", "none")
    assert [run[0] for run in runs(app)] == list(range(1, clicks + 1))


def wait_with(tab, condition, what):
    """Wait for a condition while the tab's messages go on to be intercepted."""
    wait_for(lambda: (tab.page.wait_for_timeout(20), condition())[1], what=what)


def goes_quiet(tab):
    """Wait until the page asks nothing for a second (longer than any interval)."""

    def quiet():
        before = len(tab.requests)
        tab.page.wait_for_timeout(1200)
        return len(tab.requests) == before

    wait_for(quiet, what="the page to be quiet")


LOST = {
    "start": lambda number, message, answer: number == 1,
    "second": lambda number, message, answer: number == 2,
    "result": lambda number, message, answer: '"outcome":{' in answer,
    "acknowledgement": lambda number, message, answer: '"end":true' in message,
}


@pytest.mark.parametrize("which", LOST)
def test_a_lost_answer_loses_nothing(serve, tab, which):
    app = serve(STEPS)
    lost = lose_answer(tab, LOST[which])
    tab.open(app).click("#run")
    ended_once(tab, app)
    tab.click("#run")
    ended_once(tab, app, clicks=2)
    assert lost


def test_a_lost_answer_to_cancel_does_not_stick(serve, tab):
    app = serve(STEPS, environment={"STEPS": "300"})
    lost = lose_answer(tab, lambda number, message, _: '"end":true' in message)
    tab.open(app).click("#run")
    wait_with(tab, lambda: runs(app), "the job to start")
    job, _ = running_job(app)
    tab.click("#cancel")
    tab.shows("#state", "idle")
    tab.shows("#progress", "none")
    wait_with(tab, lambda: not alive(job), "the job's end")
    goes_quiet(tab)
    assert lost


@core
def test_three_seconds_without_network_lose_nothing(serve, tab):
    app = serve(STEPS)
    tab.open(app)
    tab.page.context.set_offline(True)
    tab.click("#run")
    tab.page.wait_for_timeout(3000)
    assert not runs(app)
    tab.page.context.set_offline(False)
    ended_once(tab, app)


def test_network_that_fails_during_a_run_loses_nothing(serve, tab):
    app = serve(STEPS, environment={"STEPS": "20"})
    tab.open(app).click("#run")
    expect(tab.locator("#progress")).to_have_text(re.compile("[0-9]"))
    tab.page.context.set_offline(True)
    tab.page.wait_for_timeout(3000)
    tab.page.context.set_offline(False)
    ended_once(tab, app)


@pytest.mark.parametrize("bad", [1, 3])
def test_a_502_of_a_proxy_loses_nothing(serve, tab, bad):
    app = serve(STEPS)
    answers = []

    def handle(route, number):
        answers.append(number)
        if number == bad:
            route.fulfill(status=502, body="Bad Gateway")
        else:
            route.continue_()

    intercept(tab, handle)
    tab.open(app).click("#run")
    ended_once(tab, app)
    assert bad in answers


ONE_AT_A_TIME = """
    import threading

    def one_at_a_time(wsgi_app, lock=threading.Lock()):
        def answer(environ, start_response):
            if environ["REQUEST_METHOD"] == "GET":
                return wsgi_app(environ, start_response)
            with lock:
                time.sleep(0.25)
                return wsgi_app(environ, start_response)
        return answer

    server.wsgi_app = one_at_a_time(server.wsgi_app)
"""


def test_requests_do_not_pile_up_on_a_slow_server(serve, tab):
    steps = 30
    app = serve(
        PREAMBLE + ONE_AT_A_TIME + STEPS,
        preamble="",
        environment={"INTERVAL": "50", "STEPS": str(steps)},
    )
    open_requests, most = set(), []
    tab.page.on("request", lambda r: open_requests.add(r) if is_ours(r) else None)
    tab.page.on("request", lambda _: most.append(len(open_requests)))
    tab.page.on("requestfinished", lambda r: open_requests.discard(r))
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    ended_once(tab, app)
    assert max(most) == 1
    assert len(tab.requests) < steps * 0.1 / 0.25 + 8


def watch_progress(tab):
    """Remember every text that #progress shows, in the page's `seen`."""
    tab.page.evaluate(
        """() => {
            window.seen = [];
            const target = document.getElementById("progress");
            new MutationObserver(() => window.seen.push(target.textContent)).observe(
                target, {childList: true, characterData: true, subtree: true});
        }"""
    )


def hold_answer(tab, chosen):
    """Hold back the first answer that `chosen(number, message, answer)` picks.

    Returns a list of functions that let it arrive.
    """
    held = []

    def handle(route, number):
        answer = route.fetch()
        text = answer.text()
        if not held and chosen(number, route.request.post_data, text):
            held.append(lambda: route.fulfill(response=answer))
        else:
            route.fulfill(response=answer)

    intercept(tab, handle)
    return held


def test_a_late_answer_sets_progress_back_for_a_moment_only(serve, tab):
    app = serve(STEPS, environment={"STEPS": "80", "INTERVAL": "200"})
    held = hold_answer(tab, lambda number, message, text: '"progress",{' in text)
    tab.open(app).click("#run")
    expect(tab.locator("#progress")).to_have_text(re.compile("[2-4]."))
    watch_progress(tab)
    held[0]()
    tab.page.wait_for_function("seen.length > 6")
    seen = [int(text) for text in tab.page.evaluate("seen.slice(1)")]
    assert seen == sorted(seen) and min(seen) > 9
    ended_once(tab, app)


def test_an_answer_after_the_end_leaves_nothing_behind(serve, tab):
    app = serve(STEPS)
    held = hold_answer(tab, LOST["start"])
    tab.open(app).click("#run")
    tab.shows("#result", "Clicked 1 times")
    goes_quiet(tab)
    held[0]()
    tab.page.wait_for_timeout(500)  # for what the late answer does
    goes_quiet(tab)
    ended_once(tab, app)


def test_a_late_answer_to_cancel_does_not_switch_a_new_run_off(serve, tab):
    app = serve(STEPS, environment={"STEPS": "60"})
    held = hold_answer(tab, lambda number, message, _: '"end":true' in message)
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    tab.click("#cancel")
    wait_with(tab, lambda: held, "a held answer")
    goes_quiet(tab)
    tab.click("#run")
    tab.shows("#state", "running")
    expect(tab.locator("#progress")).to_have_text(re.compile("[1-9]"))
    held[0]()
    tab.page.wait_for_timeout(500)  # for what the late answer does
    tab.shows("#state", "running")
    expect(tab.locator("#progress")).to_have_text(re.compile("[1-9]"))
    ended_once(tab, app, clicks=2)


def test_an_answer_about_an_old_job_does_not_show_in_a_new_one(serve, tab):
    app = serve(STEPS, environment={"STEPS": "60"})
    held = hold_answer(tab, lambda number, message, text: '"progress",{' in text)
    tab.open(app).click("#run")
    wait_with(tab, lambda: held, "a held answer")
    tab.page.wait_for_timeout(3500)
    tab.click("#run")
    wait_with(tab, lambda: len(runs(app)) == 2, "the second job to start")
    expect(tab.locator("#progress")).to_have_text(re.compile("[3-9]|1."))
    watch_progress(tab)
    held[0]()
    tab.shows("#result", "Clicked 2 times")
    shown = [int(text) for text in tab.page.evaluate("seen") if text != "none"]
    assert len(shown) > 4 and shown == sorted(shown)
    ended_once(tab, app, clicks=2)
    assert app.file("ends") == "2\n"


def test_a_start_that_arrives_after_the_end_does_not_stick(serve, tab):
    app = serve(
        STEPS.replace("range(", "range(3000 if len(open('runs').readlines()) > 1 else ")
    )
    held = hold_first_message(tab)
    tab.open(app).click("#run")
    tab.shows("#result", "Clicked 1 times")
    goes_quiet(tab)
    held[0].continue_()
    tab.page.wait_for_timeout(1000)  # for what the late message does
    goes_quiet(tab)
    tab.shows("#state", "idle")
    tab.shows("#progress", "none")
    wait_for(lambda: not alive(running_job(app)[0]), what="the end of any other job")
    assert app.file("ends") == "1\n"


def test_a_late_answer_that_knew_no_job_loses_nothing(serve, tab):
    app = serve(STEPS, environment={"STEPS": "70"})
    first, second = [], []

    def handle(route, number):
        if number == 1:
            first.append(route)
        elif number == 2:
            answer = route.fetch()  # the server does not know the job yet
            second.append(lambda: route.fulfill(response=answer))
            first[0].continue_()
        else:
            route.continue_()

    intercept(tab, handle)
    tab.open(app).click("#run")
    wait_with(tab, lambda: second, "a second message")
    expect(tab.locator("#progress")).to_have_text(re.compile("[0-9]"))
    second[0]()
    ended_once(tab, app)


def test_a_message_repeated_for_a_slow_answer_starts_nothing(serve, tab):
    app = serve(STEPS, environment={"STEPS": "1"})
    held = []

    def handle(route, number):
        if number == 1:
            answer = route.fetch()
            wait_with(tab, lambda: held, "a second message")
            route.fulfill(response=answer)
        elif number == 2:
            held.append(route)
        else:
            route.continue_()

    intercept(tab, handle)
    tab.open(app).click("#run")
    tab.shows("#result", "Clicked 1 times")
    tab.page.wait_for_timeout(4000)  # for the acknowledgement
    with tab.page.expect_response(UPDATES):
        held[0].continue_()
    goes_quiet(tab)
    ended_once(tab, app)


def test_inputs_go_up_once_on_a_slow_line(serve, tab):
    source = """
    app.layout = html.Div([
        html.Button("Run", id="run"), dcc.Store(id="big", data="x" * 1_000_000),
        html.P(id="result"),
    ])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       State("big", "data"), prevent_initial_call=True)
    def compute(n_clicks, data):
        return len(data)
    """
    app = serve(source)
    tab.open(app)
    goes_quiet(tab)
    line = {"offline": False, "latency": 50, "downloadThroughput": -1}
    session = tab.page.context.new_cdp_session(tab.page)
    session.send(
        "Network.emulateNetworkConditions", {**line, "uploadThroughput": 200_000}
    )
    tab.click("#run")
    tab.shows("#result", "1000000")
    sent = [len(request.post_data) for request in tab.requests if is_ours(request)]
    assert sum(sent) < 1_100_000


def test_a_clock_that_is_set_back_stops_nothing(serve, tab):
    app = serve(STEPS, environment={"STEPS": "10"})
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    tab.evaluate("() => { const now = Date.now; Date.now = () => now() - 3.6e6; }")
    ended_once(tab, app)


# --- Refresh, navigation, clicks ---------------------------------------------------------


@core
def test_refresh_finds_the_running_job(serve, tab):
    app = serve(STEPS, environment={"STEPS": "30"})
    tab.open(app).click("#run")
    expect(tab.locator("#progress")).to_have_text(re.compile("[5-9]"))
    tab.page.reload()
    tab.shows("#state", "running")
    expect(tab.locator("#progress")).to_have_text(re.compile("[1-2]?."))
    ended_once(tab, app)
    assert not tab.errors


@pytest.mark.parametrize("elsewhere", ["another site", "the same app"])
def test_a_page_that_the_browser_kept_is_as_fresh_as_others(serve, browser, elsewhere):
    app = serve(STEPS, environment={"STEPS": "30"})
    kept = {"ignore_default_args": ["--disable-back-forward-cache"]}
    with launch(browser.browser_type, **kept) as browser_that_keeps:
        tab = Tab(browser_that_keeps.new_context()).open(app)
        tab.evaluate("addEventListener('pageshow', () => sessionStorage.kept = 1)")
        tab.click("#run")
        tab.shows("#state", "running")
        if elsewhere == "the same app":
            tab.open(app, "/?again")
            ended_once(tab, app)
            goes_quiet(tab)
        else:
            tab.goto(f"{app.url}/_dash-layout")
        tab.page.go_back(wait_until="commit")
        tab.wait_for_function("sessionStorage.kept")
        if elsewhere == "the same app":
            tab.shows("#state", "idle")
            goes_quiet(tab)
        else:
            ended_once(tab, app)
        assert tab.evaluate("sessionStorage.length") == 1  # a copied tab is another
        assert not tab.errors


def test_refresh_before_the_start_arrived_loses_nothing(serve, tab):
    app = serve(STEPS)
    held = hold_first_message(tab)
    tab.open(app).click("#run")
    wait_with(tab, lambda: held, "the start")
    tab.page.reload()
    ended_once(tab, app)


def test_refresh_starts_a_job_of_page_load_anew(serve, tab):
    source = STEPS.replace("prevent_initial_call=True", "prevent_initial_call=False")
    source = source.replace('note("runs", n_clicks,', 'note("runs", 0,')
    app = serve(source, environment={"STEPS": "20"})
    tab.open(app)
    tab.shows("#state", "running")
    first, _ = running_job(app)
    tab.page.reload()
    wait_for(lambda: not alive(first), what="the end of the first job")
    tab.shows("#result", "Clicked None times")
    tab.shows("#state", "idle")
    assert len(runs(app)) == 2
    assert app.file("ends") == "None\n"
    assert not tab.errors


LOCATION = """
    app.config.suppress_callback_exceptions = True
    page_one = app.layout
    app.layout = html.Div([
        dcc.Location(id="url"), dcc.Link("One", href="/", id="to-one"),
        dcc.Link("Two", href="/two", id="to-two"), html.Div(id="content"),
    ])

    @app.callback(Output("content", "children"), Input("url", "pathname"))
    def show(pathname):
        return html.P("Page two", id="two") if pathname == "/two" else page_one
"""
PAGE_ONE = """
    import os, time
    import dash
    from dash import html
    from longcallback import Input, Output, long_callback

    dash.register_page(__name__, path="/")
"""
PAGES_APP = """
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    use_pages=True, suppress_callback_exceptions=True)
    server = app.server
    app.layout = html.Div([
        dcc.Link("One", href="/", id="to-one"), dcc.Link("Two", href="/two", id="to-two"),
        dash.page_container,
    ])
"""
PAGE_TWO = """
    import dash
    from dash import html

    dash.register_page(__name__, path="/two")
    layout = html.P("Page two", id="two")
"""


@pytest.fixture(params=["location", "use_pages"])
def serve_pages(serve, tmp_path, request):
    """Serve STEPS as the first of two pages of an app."""

    def start(**options):
        if request.param == "location":
            return serve(PREAMBLE + STEPS + LOCATION, preamble="", **options)
        folder = tmp_path / "pages"
        folder.mkdir()
        one = PAGE_ONE + STEPS.replace("@app.long_callback", "@long_callback").replace(
            "app.layout", "layout"
        )
        (folder / "one.py").write_text(textwrap.dedent(one))
        (folder / "two.py").write_text(textwrap.dedent(PAGE_TWO))
        preamble = PREAMBLE.replace("    app = dash", "    plain = dash").replace(
            "app.server", "plain.server"
        )
        return serve(preamble + PAGES_APP, preamble="", **options)

    return start


@core
@pytest.mark.parametrize("back", ["before", "after"])
def test_result_is_there_on_return_to_its_page(serve_pages, tab, back):
    app = serve_pages(environment={"STEPS": "15" if back == "after" else "30"})
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    tab.click("#to-two")
    tab.shows("#two", "Page two")
    if back == "after":
        wait_for(lambda: app.file("ends"), what="the end of the job")
        tab.page.wait_for_timeout(1500)  # the page must have heard of the end
        tab.shows("#two", "Page two")
        assert tab.page.url.endswith("/two")
    tab.click("#to-one")
    if back == "before":
        tab.shows("#state", "running")
        assert not app.file("ends")
    tab.shows("#result", "Clicked 1 times")
    tab.shows("#state", "idle")
    assert len(runs(app)) == 1
    assert not tab.errors
    goes_quiet(tab)


@core
def test_of_a_double_click_the_latest_reaches_its_end(serve, tab):
    app = serve(STEPS, environment={"STEPS": "10"})
    tab.open(app).evaluate(
        """() => new Promise((done) => {
            const button = document.getElementById("run");
            button.click();
            setTimeout(() => { button.click(); done(); }, 3);
        })"""
    )
    tab.shows("#result", "Clicked 2 times")
    tab.shows("#state", "idle")
    goes_quiet(tab)
    assert app.file("ends") == "2\n"


# --- Jobs, servers and caches that die ---------------------------------------------------

DEATHS = {
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "exit code 7": "os._exit(7)",
    "SIGSEGV": "os.kill(os.getpid(), 11)",
}


@pytest.mark.parametrize("cause", DEATHS)
def test_death_of_the_process_is_told_with_its_cause(serve, tab, cause):
    death = f"time.sleep(0.5); {DEATHS[cause]}"
    app = serve(STEPS.replace('note("ends", n_clicks)', death))
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    job, _ = running_job(app)
    wait_for(lambda: not alive(job), what="the death of the job")
    tab.shows("#state", "idle", timeout=2000)
    tab.shows("#progress", "none")
    says(tab, cause)
    assert cause in app.log


def says(tab, text, timeout=15.0):
    """Wait until the page's console has an error with this text."""

    def said():
        tab.page.wait_for_timeout(20)
        return any(text in error for error in tab.errors)

    wait_for(said, timeout, f"{text!r} among {tab.errors}")


def strays(folder):
    """The processes that have their working directory in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(path / "cwd")) == Path(folder) and alive(path.name):
                found.append(int(path.name))
        except OSError:
            continue  # ended meanwhile
    return found


def works_again(tab, app, clicks):
    tab.click("#run")
    tab.shows("#result", f"Clicked {clicks} times")
    tab.shows("#state", "idle")


FIRST_IS_LONG = STEPS.replace(
    'int(os.environ.get("STEPS", "3"))', "3000 if n_clicks == 1 else 3"
)


def test_page_recovers_when_its_server_was_killed(serve, tab):
    app = serve(FIRST_IS_LONG)
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    job, _ = running_job(app)
    os.kill(app.process.pid, signal.SIGKILL)
    app.process.wait()
    app.restart()
    expect(tab.locator("#state")).to_have_text("idle", timeout=15000)
    says(tab, "the server process that ran it is gone")
    assert not alive(job)
    assert app.process.poll() is None
    works_again(tab, app, clicks=2)
    wait_for(lambda: strays(app.folder) == [app.process.pid], what="no stray process")


def test_refresh_after_all_records_were_lost_says_so(serve, tab):
    app = serve(FIRST_IS_LONG)
    tab.open(app).click("#run")
    expect(tab.locator("#progress")).to_have_text(re.compile("[1-9]"))
    os.kill(app.process.pid, signal.SIGKILL)
    app.process.wait()
    delete_entries(Path(app.folder, CORNER))
    app.restart()
    tab.page.reload()
    says(tab, "app.compute: nobody knows of it any more")
    tab.shows("#state", "idle")


RELOADER = """
    run = app.run
    app.run = lambda **options: run(**{**options, "use_reloader": True})
"""


# Its worker may lock itself up when SIGINT and its master's SIGQUIT come at once; the
# master kills it after this time (30 s by default).
GRACE = ["--graceful-timeout", "3"]
GUNICORN = {"gunicorn": GRACE, "preload": [*GRACE, "--preload"]}


def test_a_page_older_than_the_code_keeps_its_other_callbacks(serve, tab):
    source = (
        STEPS
        + """
    app.layout.children += [html.P("idle", id="b-state"), html.P(id="b-result"),
                            html.Button("B", id="b")]

    @app.long_callback(
        Output("b-result", "children"), [Input("b", "n_clicks")],
        running=[(Output("b-state", "children"), "running", "idle")],
        prevent_initial_call=True,
    )
    def other(*values):
        return f"Values: {len(values)}"
    """
    )
    app = serve(source)
    tab.open(app).click("#b")
    tab.shows("#b-result", "Values: 1")
    goes_quiet(tab)
    app.stop()
    code = Path(app.folder, "app.py")
    more = '[Input("b", "n_clicks"), State("run", "n_clicks")]'
    code.write_text(code.read_text().replace('[Input("b", "n_clicks")]', more))
    app.restart()
    tab.click("#b")
    tab.click("#run")
    tab.shows("#result", "Clicked 1 times")
    tab.shows("#b-state", "idle")


@pytest.mark.parametrize("kind", ["plain", "debug", "reloader", *GUNICORN])
def test_ctrl_c_leaves_no_process(serve, tab, kind):
    app = serve(
        PREAMBLE + FIRST_IS_LONG + (RELOADER if kind == "reloader" else ""),
        preamble="",
        environment={"DEBUG": "1"} if kind in ("debug", "reloader") else None,
        gunicorn=["--workers", "2", "--threads", "2", *GUNICORN[kind]]
        if kind in GUNICORN
        else None,
    )
    tab.open(app).click("#run")
    job, _ = running_job(app)
    assert job in strays(app.folder)
    os.killpg(app.process.pid, signal.SIGINT)
    wait_for(lambda: not strays(app.folder), what="no stray process")
    assert "Traceback" not in app.log


FOUR_WORKERS = ["--workers", "4", "--threads", "4", "--keep-alive", "0"]


def test_job_survives_that_its_machine_sleeps(serve, tab):
    app = serve(STEPS, environment={"STEPS": "30"})
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    job, server = running_job(app)
    for pid in (server, job):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(12)  # longer than a dead server is waited for
    for pid in (server, job):
        os.kill(pid, signal.SIGCONT)
    ended_once(tab, app)
    assert not tab.errors


@pytest.fixture
def redis_server(tmp_path):
    """A Redis server of the test's own, with its port."""
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


@pytest.fixture(params=["FileSystemCache", "RedisCache"])
def cached(request):
    """Options of `serve` for an app with this cache."""
    if request.param == "FileSystemCache":
        return {"preamble": PREAMBLE, "environment": {}}
    port = request.getfixturevalue("redis_server").port
    return {"preamble": REDIS, "environment": {"REDIS": f"redis://127.0.0.1:{port}"}}


def test_each_request_may_go_to_another_gunicorn_worker(serve, tab, cached):
    gunicorn = ["--workers", "1", "--threads", "4"]
    cached["environment"]["STEPS"] = "15"
    apps = [serve(STEPS, gunicorn=gunicorn, **cached) for _ in range(2)]
    used = []

    def handle(route, number):
        app = apps[number % 2]
        used.append(app.url)
        route.continue_(url=route.request.url.replace(apps[0].url, app.url))

    intercept(tab, handle)
    tab.open(apps[0]).click("#run")
    tab.shows("#state", "running")
    expect(tab.locator("#progress")).to_have_text(re.compile("[2-9]"))
    ended_once(tab, apps[0])
    for click in (2, 3):  # so that the cancel reaches the one and the other
        tab.click("#run")
        tab.shows("#state", "running")
        wait_with(tab, lambda n=click: len(runs(apps[0])) == n, "the job to start")
        job, _ = running_job(apps[0])
        tab.click("#cancel")
        tab.shows("#state", "idle")
        wait_with(tab, lambda pid=job: not alive(pid), "the end of the job")
    assert apps[0].file("ends") == "1\n"
    assert len(set(used)) == 2
    assert not tab.errors


def test_four_gunicorn_workers_serve_one_page(serve, tab, cached):
    cached["environment"]["STEPS"] = "5"
    tell = """
    @server.after_request
    def tell_worker(response):
        response.headers["X-Worker"] = str(os.getpid())
        return response
    """
    source = cached.pop("preamble") + STEPS + tell
    app = serve(source, preamble="", gunicorn=FOUR_WORKERS, **cached)
    workers = set()
    tab.page.on("response", lambda r: workers.add(r.headers.get("x-worker")))
    tab.open(app)
    for click in (1, 2, 3):
        tab.click("#run")
        tab.shows("#state", "running")
        ended_once(tab, app, clicks=click)
    assert len(workers) > 1
    assert not tab.errors


def test_job_may_outlive_the_default_timeout_of_the_cache(serve, tab):
    short = PREAMBLE.replace('"CACHE_TYPE"', '"CACHE_DEFAULT_TIMEOUT": 1, "CACHE_TYPE"')
    app = serve(STEPS, preamble=short, environment={"STEPS": "30"})
    tab.open(app).click("#run")
    ended_once(tab, app)
    assert not tab.errors


def take_away(folder):
    shutil.rmtree(folder)


def make_unwritable(folder):
    """Put a file in the folder's place (root may write anywhere)."""
    shutil.move(folder, f"{folder}-moved")
    Path(folder).write_text("")


def delete_entries(folder):
    for path in Path(folder).rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("harm", [take_away, make_unwritable, delete_entries])
def test_page_recovers_when_the_cache_directory_fails(serve, tab, harm):
    app = serve(FIRST_IS_LONG)
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    job, _ = running_job(app)
    folder = Path(app.folder, "cache")
    harm(folder)
    says(tab, "app.compute")
    tab.shows("#state", "idle")
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        folder.mkdir()
    works_again(tab, app, clicks=2)
    wait_for(lambda: not alive(job), what="the end of the job")


def test_start_without_a_working_cache_shows_an_error(serve, tab):
    app = serve(STEPS)
    folder = Path(app.folder, "cache")
    tab.open(app).click("#run")
    ended_once(tab, app)
    make_unwritable(folder)
    tab.click("#run")
    says(tab, "compute")
    tab.shows("#state", "idle")
    folder.unlink()
    folder.mkdir()
    works_again(tab, app, clicks=3)


def test_page_recovers_when_redis_went_away(serve, tab, redis_server):
    environment = {"REDIS": f"redis://127.0.0.1:{redis_server.port}"}
    app = serve(FIRST_IS_LONG, preamble=REDIS, environment=environment)
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    job, _ = running_job(app)
    redis_server.stop()
    tab.shows("#state", "idle")
    says(tab, "compute")
    redis_server.start()
    wait_for(lambda: listening(redis_server.port), what="Redis to listen")
    works_again(tab, app, clicks=2)
    wait_for(lambda: not alive(job), what="the end of the job")


# --- Jobs that return nonsense -----------------------------------------------------------

NONSENSE = """
    app.layout = html.Div([
        html.Button("Run", id="run"), html.P("idle", id="state"),
        html.P(id="progress"), html.P(id="result"),
    ])

    class Unpicklable(Exception):
        def __init__(self, first, second):
            super().__init__("odd")
            self.function = lambda: None

    @app.long_callback(
        output=Output("result", "children"),
        args=Input("run", "n_clicks"),
        running=[(Output("state", "children"), "running", "idle")],
        progress=Output("progress", "children"),
        prevent_initial_call=True,
    )
    def compute(set_progress, n_clicks):
        CODE
        return "done"
"""
WRONG = {
    "result": ("return object()", "object"),
    "progress": ("set_progress(object())", "object"),
    "exception": ("raise Unpicklable(1, 2)", "Unpicklable: odd"),
    "exit": ("sys.exit()", "SystemExit"),
}


@pytest.mark.parametrize("what", WRONG)
def test_nonsense_of_a_job_is_a_clear_error(serve, tab, what):
    code, text = WRONG[what]
    app = serve(NONSENSE.replace("CODE", code))
    tab.open(app).click("#run")
    says(tab, "app.compute: ")
    tab.shows("#state", "idle")
    tab.shows("#result", "")
    assert text in app.log and "app.compute" in app.log
    if what == "exception":  # whose text may name a path
        assert not any(text in error for error in tab.errors)


def test_job_that_prints_megabytes_succeeds(serve, tab):
    app = serve(NONSENSE.replace("CODE", "print('longish' * 1_000_000)"))
    tab.open(app).click("#run")
    tab.shows("#result", "done")
    tab.shows("#state", "idle")
    assert app.log.count("longish") == 1_000_000
    assert not tab.errors


# --- Without a browser -------------------------------------------------------------------


class Client:
    """A page without a browser: it speaks the protocol to an app.

    The app's first long callback is meant where no `key` is given.
    """

    def __init__(self, url, page=None, path="/"):
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        self.path = path
        self.page = page or secrets.token_hex(16)
        self.jobs = {}  # by key: number and version seen
        self.sent = self.received = self.requests = 0
        self.answers = []
        ids = [
            item["id"]
            for callback in json.loads(
                self.request("GET", f"{path}_dash-dependencies")[1]
            )
            for item in callback["inputs"]
        ]
        names = [re.fullmatch("longcallback-([0-9a-f]{12})", id_) for id_ in ids]
        self.keys = list(dict.fromkeys(match[1] for match in names if match))

    def request(self, method, path, body=None, kind="application/json"):
        """Return the status and the body of an answer."""
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
        body = {
            "output": "longcallback.answer",
            "outputs": {"id": "longcallback", "property": "answer"},
            "inputs": [{"id": "longcallback", "property": "message", "value": value}],
            "state": [],
            "changedPropIds": ["longcallback.message"],
        }
        content = json.dumps({**body, **changes})
        path = f"{self.path}_dash-update-component"
        status, answer = self.request("POST", path, content)
        self.requests += 1
        self.sent += len(content)
        self.received += len(answer)
        self.answers.append(answer)
        return status, answer

    def send(self, jobs):
        """Send what the page wants of its jobs; return what the server says of them."""
        status, answer = self.post({"page": self.page, "jobs": jobs})
        assert status == 200, (status, answer)
        return json.loads(answer)["response"]["longcallback"]["answer"]

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
    def call(value=1, output="result"):
        """What a page sends to start a callback with one Input."""
        return {
            "outputs": {"id": output, "property": "children"},
            "inputs": [{"id": "run", "property": "n_clicks", "value": value}],
            "state": [],
            "changedPropIds": ["run.n_clicks"],
        }

    def start(self, value=1, key=None):
        self.jobs[key or self.keys[0]] = [self.new_job(key), 0]
        return self.want(key, start=self.call(value))

    def new_job(self, key=None):
        """A job number of a callback."""
        return (key or self.keys[0]) + secrets.token_hex(16)

    def cancel(self, key=None):
        return self.want(key, end=True)

    def finish(self, key=None, pause=0.05, answer=None):
        """Ask until the job has ended, acknowledge it and return its outcome."""
        answer = answer or self.want(key)
        while not answer["outcome"]:
            time.sleep(pause)
            answer = self.want(key)
        assert self.want(key, end=True) is None
        return json.loads(answer["outcome"]["response"])["response"]


def children(pid):
    """Processes of which a process is the parent, zombies among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue  # ended meanwhile
    return found


def usage(pid):
    """What a process holds: memory in MB, threads, open files, child processes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return {
        "memory": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024,
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "children": len(children(pid)),
    }


QUICK = """
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @app.long_callback(output=Output("result", "children"),
                       args=Input("run", "n_clicks"), prevent_initial_call=True)
    def compute(n_clicks):
        if n_clicks < 0:
            time.sleep(60)
        return n_clicks
"""


def run_jobs(app, values):
    """Run a job for each value; negative ones are cancelled. Returns what was wrong."""
    values, wrong = iter(values), []
    lock = threading.Lock()

    def work():
        client = Client(app.url)
        while True:
            with lock:
                value = next(values, None)
            if value is None:
                return client.connection.close()
            try:
                answer = client.start(value)
                if value < 0:
                    assert client.cancel() is None
                else:
                    outcome = client.finish(answer=answer)
                    assert outcome == {"result": {"children": value}}, outcome
            except Exception as error:  # noqa: BLE001
                wrong.append((value, error))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_a_thousand_jobs_leave_nothing_behind(serve):
    app = serve(QUICK, gunicorn=["--workers", "1", "--threads", "8"])
    (server,) = wait_for(lambda: children(app.process.pid), what="the worker")

    def settled(files=99):
        now = usage(server)
        few = now["threads"] <= 9 and now["files"] <= files
        return now["children"] == 0 and few and now

    assert run_jobs(app, range(100)) == []
    before = wait_for(settled, what="the end of the first jobs")
    assert run_jobs(app, [*range(100, 1000), *range(-200, 0)]) == []
    after = wait_for(lambda: settled(before["files"]), what="the end of all jobs")
    assert after["memory"] < before["memory"] + 10
    assert len(os.listdir(Path(app.folder, CORNER))) < 5
    assert {*strays(app.folder)} == {app.process.pid, server}


MANY = """
    import flask
    from flask_caching.backends import FileSystemCache

    app.layout = html.Div([html.Button("Run", id="run"),
                           *[html.P(id=f"result{number}") for number in range(200)]])

    def compute(n_clicks):
        time.sleep(60)

    for number in range(200):
        app.long_callback(output=Output(f"result{number}", "children"),
                          args=Input("run", "n_clicks"),
                          prevent_initial_call=True)(compute)

    get = FileSystemCache.get

    def counted_get(self, key):
        if flask.has_request_context():
            with open("reads", "a") as reads:
                print(key, file=reads)
        return get(self, key)

    FileSystemCache.get = counted_get
"""


def test_of_tabs_that_closed_only_results_are_kept(serve):
    app = serve(QUICK)
    for value in range(5):
        Client(app.url).start(value)
    entries = Path(app.folder, CORNER)
    wait_for(lambda: children(app.process.pid) == [], what="the end of the jobs")
    wait_for(lambda: len(os.listdir(entries)) == 5, what="results only")


def test_results_that_nobody_fetched_are_swept(serve):
    app = serve(QUICK + "    dl._RESULT_KEPT = 1\n")
    for value in range(3):
        Client(app.url).start(value)
    wait_for(lambda: children(app.process.pid) == [], what="the end of the jobs")
    for entry in Path(app.folder, CORNER).iterdir():
        with entry.open("r+b") as file:
            file.write(struct.pack("I", 1))  # when it expires

    def swept():
        client = Client(app.url)
        client.finish(answer=client.start(9))
        return os.listdir(Path(app.folder, CORNER)) == []

    wait_for(swept, what="the end of old results")


def test_what_a_job_prints_under_gunicorn_is_there(serve):
    app = serve(
        QUICK.replace("return n_clicks", "print('from the job'); return n_clicks"),
        gunicorn=["--workers", "1", "--threads", "4"],
        environment={"PYTHONUNBUFFERED": ""},
    )
    assert run_jobs(app, range(10)) == []
    wait_for(lambda: app.log.count("from the job") == 10, what="what they printed")


def test_a_poll_of_an_app_of_200_callbacks_reads_the_cache_twice_a_running_job(serve):
    one_thread = (
        "use_reloader=False, threaded=False"  # so that no answer waits for news
    )
    app = serve(MANY, ending=RUN.replace("use_reloader=False", one_thread))
    client = Client(app.url)
    assert len(client.keys) == 200
    client.jobs[client.keys[0]] = [client.new_job(), 0]
    client.want(start=client.call(output="result0"))
    Path(app.folder, "reads").unlink()
    for _ in range(10):
        assert client.want()["outcome"] is None
    assert 10 <= len(app.file("reads").splitlines()) <= 20


def junk(client, victim):
    """Messages that no browser sends, by what is wrong with them."""
    key = client.keys[0]
    n, call = client.new_job(), client.call(value=-1)
    fine = {"seen": 0, "shown": 0, "end": False, "start": call}
    page = {"page": client.page}

    def message(**changes):
        return {**page, "jobs": {n: {**fine, **changes}}}

    def start(**changes):
        return message(start={**call, **changes})

    def other(**changes):
        return {**message(), **changes}

    for kind in (None, 1, 1.5, True, "text", [], {}, [1], page):
        yield f"message {kind}", kind
    unknown = "0" * len(key) + n[len(key) :]
    wrongs = ("", "x" * 44, n[1:], n + "\n", "../" * 9, "0" * 3_000_000, unknown)
    for wrong in wrongs:
        if not wrong.startswith(key):
            yield f"job number {wrong[:20]!r}", other(jobs={wrong: fine})
    for wrong in (None, "x", [], {}, "9" * 5000):
        yield f"seen {str(wrong)[:9]}", message(seen=wrong, start=None)
    for jobs in (None, 1, "text", [n], {n: None}, {n: 1}, {n: []}, {n: {}}):
        yield f"jobs {jobs}", other(jobs=jobs)
    for wrong in (1, True, "text", [1], {"inputs": []}):
        yield f"start {wrong}", message(start=wrong)
    for wrong in (None, 1, "x", [], [None], [{}], [{"id": "run"}], [{}, {}]):
        yield f"inputs {wrong}", start(inputs=wrong)
    yield "another Output", start(outputs={"id": "run", "property": "n_clicks"})
    theirs, _ = victim.jobs[key]
    stolen = {**fine, "start": None}
    for end in (True, "text", 1, [1], {"n": 1}):
        for whose, name in (("another's", theirs), ("an unknown", n)):
            yield f"end {end} of {whose}", other(jobs={name: {**stolen, "end": end}})
    for seen in (-5, 0, 1, 10**9):
        yield f"another's at {seen}", other(jobs={theirs: {**stolen, "seen": seen}})
    for output in (n, theirs, f"longcallback-{n[:12]}.data", "compute", None):
        yield f"a callback {output}", {**page, "output": output}


def test_a_proxy_may_send_a_message_in_chunks(serve):
    app = serve(QUICK, gunicorn=["--workers", "1", "--threads", "2"])
    client = Client(app.url)
    request = client.connection.request

    def in_chunks(method, path, body=None, headers=()):
        body = iter([body.encode()]) if body else None
        request(method, path, body, dict(headers), encode_chunked=bool(body))

    client.connection.request = in_chunks
    assert client.finish(answer=client.start(5)) == {"result": {"children": 5}}


def test_one_plugin_may_serve_two_apps_of_a_factory(serve):
    source = """
    import flask
    plugin = dl.plugins.LongCallback(manager)
    server = flask.Flask(__name__)

    def make_app(path):
        app = dash.Dash(__name__, server=server, plugins=[plugin],
                        url_base_pathname=path)
        app.layout = html.P(id="result")

        @app.long_callback(Output("result", "children"), Input("run", "n_clicks"))
        def compute(n_clicks):
            return path

        return app

    app = make_app("/one/")
    make_app("/two/")
    """
    app = serve(source)
    for path in ("/one/", "/two/"):
        client = Client(app.url, path=path)
        outcome = client.finish(answer=client.start())
        assert outcome == {"result": {"children": path}}


SECRETS = """
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @app.long_callback(output=Output("result", "children"),
                       args=Input("run", "n_clicks"), prevent_initial_call=True)
    def compute(n_clicks):
        with open("runs", "a") as runs:
            print(n_clicks, os.getpid(), os.getppid(), file=runs)
        if n_clicks < 0:
            os.rename("what", f"started by {open('what').read()}")
        while not os.path.exists("go"):
            time.sleep(0.05)
        return "the treasure"
"""


def test_requests_that_no_browser_makes_do_nothing(serve):
    app = serve(SECRETS)
    victim, client = Client(app.url), Client(app.url)
    victim.start()
    job, _ = running_job(app)
    for what, message in junk(client, victim):
        Path(app.folder, "what").write_text(what)
        known = isinstance(message, dict)
        changes = {k: message[k] for k in ("output",) if known and k in message}
        status, answer = client.post(message, **changes)
        assert status in (200, 204, 500), (what, status, answer)  # as Dash answers
        assert b"treasure" not in answer
    for body in (b"", b"{", b"[]", b"null", os.urandom(1_000_000), b"[" * 100_000):
        client.request("POST", "/_dash-update-component", body)
    wait_for(lambda: len(children(app.process.pid)) == 1, what="the end of other jobs")
    assert not [*Path(app.folder).glob("started by*")]
    assert len(runs(app)) == 1
    assert alive(job)
    Path(app.folder, "go").touch()
    assert victim.finish() == {"result": {"children": "the treasure"}}


def test_nothing_internal_reaches_the_browser(serve, tab):
    app = serve(STEPS + "    print(end='')\n", environment={"STEPS": "5"})
    bodies, internal = [], set()
    tab.page.on(
        "response", lambda r: bodies.append(r.text()) if "/_dash-u" in r.url else 0
    )
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    job, server = running_job(app)
    internal |= {*os.listdir(Path(app.folder, CORNER))} - {"__wz_cache_count"}
    ended_once(tab, app)
    tab.click("#run")
    os.kill(wait_for(lambda: len(runs(app)) == 2 and running_job(app)[0]), 9)
    says(tab, "SIGKILL")
    tab.shows("#state", "idle")
    goes_quiet(tab)
    assert internal
    text = "".join(bodies)
    assert '"outcome":{' in text
    for word in (*internal, str(app.folder), "wz_cache"):
        assert word not in text, word
    for pid in {job, server, *(run[1] for run in runs(app))}:
        assert not re.search(rf"\b{pid}\b", text), pid


# --- Tabs that close or sleep ------------------------------------------------------------

IDLE = PREAMBLE.replace(
    "LongCallback(manager)", "LongCallback(manager, idle_timeout=3)"
)


def test_closed_tab_ends_its_job_after_a_grace_time(serve, new_tab):
    app = serve(STEPS, preamble=IDLE, environment={"STEPS": "600"})
    stays, goes = new_tab().open(app), new_tab().open(app)
    stays.click("#run")
    kept, _ = running_job(app)
    goes.click("#run")
    wait_for(lambda: len(runs(app)) == 2, what="the job of the other tab")
    job, _ = running_job(app)
    goes.page.close()
    closed = time.monotonic()

    def ended():
        stays.page.wait_for_timeout(20)  # while the other tab goes on asking
        return not alive(job)

    wait_for(ended, what="the end of the closed tab's job")
    assert 1.5 < time.monotonic() - closed < 6
    stays.page.wait_for_timeout(2000)
    assert alive(kept)
    stays.shows("#state", "running")


def test_sleeping_timers_of_a_background_tab_end_nothing(serve, tab):
    app = serve(STEPS, environment={"STEPS": "105"})  # longer than a record's lease
    tab.page.clock.install()
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    tab.page.clock.pause_at(time.time() + 2)
    tab.page.wait_for_timeout(300)
    asked = len(tab.requests)
    wait_for(lambda: (tab.page.wait_for_timeout(50), app.file("ends"))[1], 30)
    assert len(tab.requests) <= asked + 1
    tab.page.clock.fast_forward(60_000)
    tab.page.clock.resume()
    ended_once(tab, app)
    assert not tab.errors


# --- The decorator on Celery ----------------------------------------------------------


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
    app.enable_dev_tools(debug=True, dev_tools_hot_reload=False)
"""
WORK = """
    app.layout = html.Div([
        dcc.Input(id="what"), html.Button("Run", id="run"),
        html.Button("Again", id="again"), html.Button("Cancel", id="cancel", disabled=True),
        html.P("nothing yet", id="result"), html.P("-", id="aside"),
        html.Progress(id="bar", value="0", max="9"),
    ])

    def wait(what):
        for _ in range(1500):
            if os.path.exists("go-" + what):
                return
            time.sleep(0.02)

    @app.long_callback(
        output=Output("result", "children"),
        inputs=[Input("run", "n_clicks"), Input("again", "n_clicks")],
        state=State("what", "value"),
        running=[(Output("run", "disabled"), True, False),
                 (Output("cancel", "disabled"), False, True)],
        cancel=[Input("cancel", "n_clicks")],
        progress=Output("bar", ("value", "max")),
        progress_default=("0", "9"),
        prevent_initial_call=True,
    )
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
        if "stubborn" in what:
            try:
                time.sleep(20)
            except BaseException:
                time.sleep(20)
        if "slow" in what:
            time.sleep(20)
        return f"{what} {n_clicks}"
"""


@pytest.fixture(scope="session")
def session_program(tmp_path_factory):
    """Return a function that starts a program that all tests share."""
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
    """A Redis server of these tests' own."""
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
    environment = {
        "HOME": str(home),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names_port),
        "RABBITMQ_NODENAME": f"longcallback{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(home / "none"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
    }
    session_program(["epmd"], environment, name="epmd")
    wait_for(lambda: listening(names_port), what="epmd")
    node = session_program([server], environment, name="rabbitmq")
    wait_for(lambda: "completed with" in node.log, 60, "RabbitMQ")
    return f"pyamqp://guest:guest@127.0.0.1:{port}//"


def start_worker(
    folder, environment, concurrency, app="app:celery_app", pool="prefork"
):
    command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO"]
    command += ["-c", str(concurrency), "-n", f"{folder.name}@localhost", "-P", pool]
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

    def go(self, what):
        """Let a job that waits go on."""
        Path(self.folder, f"go-{what}").touch()

    def jobs(self, what):
        """The ids of the processes that ran a job."""
        lines = [line.split() for line in self.file("jobs").splitlines()]
        return [int(process) for name, process in lines if name == what]

    def started(self, what):
        """Wait until a job runs; return the id of its process."""
        return wait_for(lambda: self.jobs(what), 20, f"{what} to run")[-1]

    def close(self):
        for program in [*self.workers, self.app]:
            program.stop(signal.SIGKILL)


THREADED = ["--workers", "4", "--threads", "4"]


@pytest.fixture(scope="session")
def rabbitmq_site(rabbitmq_url, tmp_path_factory):
    """RabbitMQ with rpc://, and the threaded development server."""
    folder = tmp_path_factory.mktemp("rabbitmq-site")
    with contextlib.closing(Site(folder, rabbitmq_url, "rpc://")) as site:
        site.start_worker(concurrency=2)
        yield site


@pytest.fixture(scope="session")
def redis_site(redis_url, tmp_path_factory):
    """Redis as broker and result backend, and four gunicorn workers with threads."""
    folder = tmp_path_factory.mktemp("redis-site")
    site = Site(folder, redis_url, redis_url, gunicorn=THREADED)
    with contextlib.closing(site):
        site.start_worker(concurrency=2)
        yield site


@pytest.fixture(params=["rabbitmq", "redis"])
def site(request):
    return request.getfixturevalue(f"{request.param}_site")


@pytest.fixture
def new_site(tmp_path):
    """Return a function that makes a site of one test's own."""
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
    cause = re.compile(cause)
    errors = tab.locator(".dash-error-card .dash-fe-error__title", has_text=cause)
    expect(errors).to_have_count(times, timeout=20000)
    logs = site.app.log + "".join(worker.log for worker in site.workers)
    assert len(cause.findall(logs)) >= times
    is_idle(tab)


def is_content(tab):
    is_idle(tab)
    expect(tab.locator(".dash-error-card")).to_have_count(0)


def test_celery_results_arrive_five_times_in_a_row(site, tab):
    tab.open(site)
    for number in range(1, 6):
        run(tab, f"row{number}")
        tab.shows("#result", f"row{number} {number}")
        is_idle(tab)
        assert len(site.jobs(f"row{number}")) == 1
    is_content(tab)


def test_celery_task_has_a_readable_name_in_the_log_of_the_worker(site, tab):
    run(tab.open(site), "name")
    tab.shows("#result", "name 1")
    assert "Task app.compute[" in site.workers[0].log


def test_celery_progress_shows_the_newest_values_and_none_after_the_end(site, tab):
    run(tab.open(site), "progress")
    bar = tab.locator("#bar")
    expect(bar).to_have_attribute("value", "1")
    expect(bar).to_have_attribute("max", "4")
    expect(tab.locator("#run")).to_be_disabled()
    site.go("progress")
    expect(bar).to_have_attribute("value", "2999", timeout=20000)
    site.go("progress-end")
    tab.shows("#result", "progress 1")
    is_idle(tab)
    expect(bar).to_have_attribute("max", "9")
    is_content(tab)


def test_celery_task_has_set_props_and_the_context_of_its_click(site, tab):
    tab.open(site)
    tab.context.add_cookies([{"name": "who", "value": "Ada", "url": site.url}])
    run(tab, "aside")
    tab.shows("#aside", "on the way")
    tab.shows("#result", "nothing yet")
    site.go("aside")
    tab.shows("#result", "run {'what.value': 'aside'} Ada")


def test_celery_two_tabs_at_the_same_moment_get_their_own_results(site, new_tab):
    tabs = {f"wait-tab{number}": new_tab().open(site) for number in (1, 2)}
    for what, tab in tabs.items():
        tab.fill("#what", what)
    for tab in tabs.values():
        tab.click("#run", no_wait_after=True)
    for what in tabs:
        site.started(what)
    for what, tab in tabs.items():
        site.go(what)
        tab.shows("#result", f"{what} 1")
    assert [len(site.jobs(what)) for what in tabs] == [1, 1]
    for tab in tabs.values():
        is_content(tab)


def test_celery_cancel_ends_a_running_task_and_the_next_one_runs(site, tab):
    run(tab.open(site), "wait-cancelled")
    process = site.started("wait-cancelled")
    tab.click("#cancel")
    is_idle(tab)
    wait_for(lambda: not alive(process), what="the end of the job's process")
    run(tab, "next")
    tab.shows("#result", "next 2")
    is_content(tab)


def test_celery_cancelled_task_in_the_queue_never_runs(site, new_tab, tab):
    fillers = {f"wait-filler{number}": new_tab().open(site) for number in (1, 2)}
    for what, filler in fillers.items():
        run(filler, what)
        site.started(what)
    run(tab.open(site), "queued")
    expect(tab.locator("#run")).to_be_disabled()
    tab.click("#cancel")
    is_idle(tab)
    run(tab, "after")
    for what, filler in fillers.items():
        site.go(what)
        filler.shows("#result", f"{what} 1")
    tab.shows("#result", "after 2")
    assert not site.jobs("queued")


def test_celery_second_click_replaces_the_first_job(site, tab):
    tab.open(site)
    run(tab, "wait-first")
    process = site.started("wait-first")
    tab.fill("#what", "second")
    tab.click("#again")
    tab.shows("#result", "second 1")
    wait_for(lambda: not alive(process), what="the end of the first job's process")
    is_content(tab)


def test_celery_job_that_raises_shows_its_error(site, tab):
    run(tab.open(site), "raise")
    complains(tab, site, "RuntimeError: no such luck")
    run(tab, "fine-again")
    tab.shows("#result", "fine-again 2")


def test_celery_killed_pool_process_is_an_error_that_says_so(site, tab):
    run(tab.open(site), "killed")
    complains(tab, site, r"signal 9 \(SIGKILL\)")
    run(tab, "alive-again")
    tab.shows("#result", "alive-again 2")


def test_celery_time_limits_end_in_errors_that_name_them(
    rabbitmq_url, new_site, new_tab
):
    limits = "celery_app.conf.update(task_soft_time_limit=1, task_time_limit=2)"
    site = new_site(rabbitmq_url, "rpc://", source=limits)
    site.start_worker(concurrency=2)
    soft, hard = new_tab().open(site), new_tab().open(site)
    run(soft, "slow")
    run(hard, "stubborn")
    complains(soft, site, "SoftTimeLimitExceeded")
    complains(hard, site, r"app.compute: TimeLimitExceeded\D+2")


def test_celery_job_is_done_when_a_worker_comes(redis_url, new_site, new_tab):
    site = new_site(redis_url, redis_url)
    kept, cancelled = new_tab().open(site), new_tab().open(site)
    for tab in kept, cancelled:
        run(tab, "kept" if tab is kept else "cancelled")
        expect(tab.locator("#run")).to_be_disabled()
    cancelled.click("#cancel")
    is_idle(cancelled)
    expect(kept.locator("#run")).to_be_disabled()
    site.start_worker()
    kept.shows("#result", "kept 1")
    is_idle(kept)
    run(cancelled, "again")
    cancelled.shows("#result", "again 2")
    assert not site.jobs("cancelled")


class Relay:
    """A way to a server that a test can close and open again."""

    def __init__(self, target):
        self.target, self.port, self.sockets = target, free_port(), []

    def open(self):
        listener = socket.create_server(("127.0.0.1", self.port))
        self.sockets = [listener]
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def close(self):
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                ends = listener.accept()[0], socket.create_connection(self.target)
                self.sockets += ends
                for pair in ends, ends[::-1]:
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    @staticmethod
    def _pass(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
def test_celery_unreachable_broker_is_an_error_until_it_is_back(
    kind, request, new_site, tab
):
    url = request.getfixturevalue(f"{kind}_url")
    port = re.search(r"127.0.0.1:(\d+)", url)[1]
    relay = Relay(("127.0.0.1", int(port)))
    url = url.replace(port, str(relay.port))
    site = new_site(url, "rpc://" if kind == "rabbitmq" else url)
    tab.open(site)

    def click_fails(what, times):
        clicked = time.monotonic()
        run(tab, what)
        complains(tab, site, "refused|reset|closed|manager failed", times)
        assert time.monotonic() - clicked < 10

    click_fails("closed", 1)
    with contextlib.closing(relay):
        relay.open()
        run(tab, "opened")
        expect(tab.locator("#run")).to_be_disabled()
        site.start_worker()
        tab.shows("#result", "opened 2")
        relay.close()
        relay.open()
        run(tab, "reopened")
        tab.shows("#result", "reopened 3", timeout=30000)
        relay.close()
        click_fails("closed-again", 2)
    assert not site.jobs("closed") and not site.jobs("closed-again")


def test_celery_result_backend_that_goes_away_is_an_error_until_it_is_back(
    rabbitmq_url, tmp_path, new_site, tab
):
    port = free_port()
    backend = Program(redis_command(port), tmp_path, name="backend")
    try:
        wait_for(lambda: listening(port), what="Redis")
        site = new_site(rabbitmq_url, f"redis://127.0.0.1:{port}/0")
        site.start_worker()
        run(tab.open(site), "wait-backend")
        site.started("wait-backend")
        backend.stop()
        complains(tab, site, "its manager failed: see the log")
        assert "refused" in site.app.log
        backend.start()
        wait_for(lambda: listening(port), what="Redis")
        site.go("wait-backend")
        run(tab, "back")
        tab.shows("#result", "back 2", timeout=30000)
    finally:
        backend.stop()


def test_celery_leaves_nothing_in_redis_but_what_expires(redis_site, redis_url, tab):
    client = pytest.importorskip("redis").Redis.from_url(redis_url)

    def run_once(what):
        run(tab, what)
        tab.shows("#result", re.compile(what))

    tab.open(redis_site)
    run_once("keys-first")
    time.sleep(1)
    before = set(client.keys())
    run_once("keys")
    run(tab, "raise")
    is_idle(tab)
    wait_for(lambda: set(client.keys()) <= before, what="the end of the records")
    run(tab, "wait-keys")
    redis_site.started("wait-keys")
    tab.close()
    redis_site.go("wait-keys")
    wait_for(lambda: redis_site.workers[0].log.count("succeeded"), what="the job's end")
    left = set(client.keys()) - before
    assert left and all(client.ttl(key) > 0 for key in left)


def test_celery_result_of_rpc_in_another_process_is_an_error(
    rabbitmq_url, new_site, tab
):
    site = new_site(rabbitmq_url, "rpc://", gunicorn=["--workers", "2"])
    run(tab.open(site), "wait")
    complains(tab, site, "another\\s+web process sent its task")


def test_celery_works_with_a_database_of_results(redis_url, new_site, tab):
    pytest.importorskip("sqlalchemy")
    site = new_site(redis_url, "db+sqlite:///results.sqlite")
    site.start_worker()
    tab.open(site)
    run(tab, "progress")
    expect(tab.locator("#bar")).to_have_attribute("value", "1")
    tab.click("#cancel")
    is_idle(tab)
    for number in (2, 3):
        run(tab, f"stored{number}")
        tab.shows("#result", f"stored{number} {number}")
    is_content(tab)


def test_celery_runs_the_examples(redis_url, tmp_path, new_tab):
    environment = {"LONGCALLBACK_BROKER": redis_url, "LONGCALLBACK_BACKEND": redis_url}
    worker = start_worker(tmp_path, environment, 5, "examples:celery_app")
    program = Examples(tmp_path, "--celery", redis_url, "--backend", redis_url)
    try:
        simple, running, cancel, progress, figure = (
            new_tab().open(program, f"/{number}") for number in range(1, 6)
        )
        running.click("#running_button")
        cancel.click("#cancel_run")
        progress.click("#progress_run")
        figure.click("#figure_run")
        cancel.click("#cancel_cancel")
        expect(cancel.locator("#cancel_run")).to_be_enabled()
        cancel.shows("#cancel_result", "Cancelled")
        expect(progress.locator("#progress_bar")).to_have_attribute("max", "10")
        expect(progress.locator("#progress_result")).to_be_hidden()
        simple.shows("#simple_result", "Clicked 0 times")
        running.shows("#running_result", "Clicked 1 times")
        progress.shows("#progress_result", re.compile("1"))
        figure.shows("#figure_result", re.compile("3"))
    finally:
        program.stop()
        worker.stop(signal.SIGKILL)


# --- A long callback is a Dash callback -----------------------------------------------

# Callbacks that are independent of each other. In the names of components, "ours" is a
# long callback and "dash" the same function as an ordinary one.
ROWS = """
    import functools, json, math

    children = [dcc.Location(id="url", refresh=True), dcc.Download(id="download"),
                html.Progress(id="meter"), html.P("-", id="aside")]
    app.layout = html.Div(children)
    both = {"ours": app.long_callback, "dash": app.callback}

    def count_run(name):
        with open(f"runs-{name}", "a") as runs:
            print(os.getpid(), file=runs)
        return len(open(f"runs-{name}").readlines())

    def until(name):
        while not os.path.exists(name):
            time.sleep(0.02)

    for kind, declare in both.items():
        children += [html.Button("Count", id=f"{kind}-count", n_clicks=0),
                     dcc.Upload("Upload", id=f"{kind}-upload"),
                     dcc.RadioItems(["one", "two"], id=f"{kind}-radio")]
        for part in ("count.n_clicks", "upload.contents", "radio.value"):
            name, property = f"{kind}-{part}".split(".")
            children.append(html.P("-", id=f"{name}-said"))

            @declare(Output(name, property), Output(f"{name}-said", "children"),
                     Input(name, property), prevent_initial_call=True)
            def set_back(value, name=name):
                empty = 0 if "count" in name else None
                return empty, f"run {count_run(name)}: {str(value)[:4]}"

    def on_click(name, **options):
        children.extend([html.Button(name, id=name), html.P("idle", id=f"{name}-state"),
                         html.P(id=f"{name}-bar"), html.P("-", id=f"{name}-result")])
        return app.long_callback(
            Output(f"{name}-result", "children"), Input(name, "n_clicks"),
            running=[(Output(f"{name}-state", "children"), "running", "idle")],
            prevent_initial_call=True, **options)

    @on_click("again", cancel=[Input("again", "n_clicks")])
    def again(n_clicks):
        count_run("again")
        if n_clicks == 1:
            time.sleep(60)
        return f"Clicked {n_clicks} times"

    @on_click("group", progress={"meter": Output("meter", ("value", "max")),
                                 "text": Output("group-bar", "children")})
    def group(set_progress, n_clicks):
        set_progress({"meter": ("1", "4"), "text": "first"})
        set_progress({"meter": (no_update, "5"), "text": no_update})
        set_progress(no_update)
        set_props("aside", {"children": no_update, "title": "told"})
        until("go-group")

    @on_click("alone", progress=Output("alone-bar", "children"))
    def alone(set_progress, n_clicks):
        set_progress("first")
        set_progress(no_update)
        set_props("aside", {"children": no_update})
        set_props("aside", {"lang": "la"})
        until("go-alone")

    @on_click("leave", progress=Output("leave-bar", "children"))
    def leave(set_progress, n_clicks):
        set_progress("half")
        set_props("download", {"data": {"content": "x", "filename": "x.txt"}})
        until("go-there")
        set_props("url", {"href": "/?there"})
        until("go-leave")
        return f"run {count_run('leave')}"

    for word in ("MATCH", "ALL"):
        other = {"part": "bar", word: "other"}
        children.append(html.P("-", id=other, className="word-other"))
        for make in (lambda part: f"{part}-{word}",
                     lambda part: {"part": part, word: word},
                     lambda part: {"part": part, "word": word, "number": MATCH}):
            for part in ("run", "bar", "result"):
                id = make(part)
                id = {**id, "number": 1} if "number" in id else id
                children.append(html.Button("-", id=id, className=f"word-{part}"))

            @app.long_callback(
                Output(make("result"), "children"), Input(make("run"), "n_clicks"),
                State(make("run"), "id"), progress=Output(make("bar"), "children"),
                progress_default="ended", prevent_initial_call=True,
                running=[(Output(make("run"), "title"), "running", "idle")])
            def compute(set_progress, n_clicks, id):
                set_progress("half")
                until("go-words")
                return dash._utils.stringify_id(id)

    def tell():
        names = ["outputs_grouping", "using_outputs_grouping", "args_grouping",
                 "using_args_grouping", "outputs_list", "inputs_list", "states_list",
                 "inputs", "states", "triggered", "triggered_prop_ids"]
        return json.dumps({name: getattr(ctx, name) for name in names}, sort_keys=True)

    for kind, declare in both.items():
        one, two, run, what = (f"{kind}-{p}" for p in ("one", "two", "run", "what"))
        children += [html.P(id=one), html.P(id=two), html.Button("Run", id=run),
                     dcc.Input("v", id=what)]

        @declare(output={"a": Output(one, "children"), "b": [Output(two, "children")]},
                 inputs={"n": Input(run, "n_clicks"),
                         "more": (State(what, "value"), State(what, "id"))},
                 prevent_initial_call=True)
        def by_name(n, more):
            return {"a": tell(), "b": [more[0]]}

        @declare([Output(one, "title"), Output(two, "title")], Input(run, "n_clicks"),
                 State(what, "value"), prevent_initial_call=True)
        def by_position(n, value):
            return tell(), value

    def repeat(times, value):
        return value * times if value != "x" else 1 / 0

    class Repeat:
        def __call__(self, value):
            return repeat(2, value)

    @functools.wraps(Repeat.__call__)
    def wrapper(*args):
        return repeat(2, *args)

    functions = {"partial": functools.partial(repeat, 2), "object": Repeat(),
                 "wrapped": wrapper, "builtin": ord, "method": str.upper,
                 "compiled": math.factorial}
    for name, function in functions.items():
        kind = "number" if name == "compiled" else "text"
        children += [dcc.Input(id=f"{name}-value", type=kind), html.P(id=name)]
        app.long_callback(Output(name, "children"), Input(f"{name}-value", "value"),
                          prevent_initial_call=True)(function)
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_app(folder, PREAMBLE, ROWS, RUN)
    app = App(folder)
    yield app
    app.stop()


def touch(app, name):
    Path(app.folder, name).touch()


@core
@pytest.mark.parametrize("kind", ["ours", "dash"])
def test_an_output_that_is_an_input_too_starts_no_second_job(rows, tab, kind):
    tab.open(rows)
    upload = {"name": "x.txt", "mimeType": "text/plain", "buffer": b"x"}
    said = {"count": "1", "upload": "data", "radio": "one"}
    for turn in (1, 2):
        tab.click(f"#{kind}-count")
        tab.locator(f"#{kind}-upload input").set_input_files(upload)
        tab.locator(f"#{kind}-radio label").first.click()
        for part, value in said.items():
            tab.shows(f"#{kind}-{part}-said", f"run {turn}: {value}")
        goes_quiet(tab)
        for part in said:
            assert len(rows.file(f"runs-{kind}-{part}").splitlines()) == turn
        assert not tab.locator(f"#{kind}-radio input:checked").count()
    assert not tab.errors


def test_no_list_and_no_patch_starts_its_own_callback_either(serve, tab):
    source = """
    app.layout = html.Div([
        html.Button("Change", id="change"), dcc.Store(id="store", data=[0]),
        dcc.Dropdown(["a"], "a", id="drop"), dcc.Dropdown(["a", "b"], id="many",
                                                          multi=True),
    ])

    def count(name):
        with open(f"runs-{name}", "a") as runs:
            runs.write("x")

    @app.long_callback(Output("drop", "options"), Output("drop", "value"),
                       Input("drop", "value"))
    def choose(value):
        count("choose")
        return ["a", "b", "c"], "c"

    @app.long_callback(Output("many", "value"), Input("many", "value"))
    def order(value):
        count("order")
        return ["b", "a"]

    @app.long_callback(Output("store", "data"), Input("change", "n_clicks"),
                       Input("store", "data"), prevent_initial_call=True)
    def patch(n_clicks, data):
        count("patch")
        patched = Patch()
        patched.append(1)
        return patched
    """
    app = serve(source)
    tab.open(app).click("#change")
    tab.shows("#drop", "c")
    names = ("choose", "order", "patch")
    wait_with(tab, lambda: all(app.file(f"runs-{n}") for n in names), "three jobs")
    goes_quiet(tab)
    assert [app.file(f"runs-{name}") for name in names] == ["x", "x", "x"]


GRAPH = """
    children = []
    app.layout = html.Div(children)

    def add(declare, name, *inputs):
        children.append(html.P(id=f"{kind}-{name}"))

        @declare(Output(f"{kind}-{name}", "children"),
                 *[Input(f"{kind}-{id}", property) for id, property in inputs])
        def show(*values, kind=kind):
            with open(f"runs-{kind}", "a") as runs:  # no lock, which a fork may find held
                print(name, *values, file=runs)
            while name == "top" and not os.path.exists("go"):
                time.sleep(0.02)
            return f"{name}-shown"

        return f"{name}", "children"

    for kind, declare in {"ours": app.long_callback, "dash": app.callback}.items():
        children.append(html.Button("Own", id=f"{kind}-own"))
        top = add(declare, "top", ("own", "n_clicks"))
        add(app.callback, "plain", top)
        add(app.callback, "mixed", top, ("own", "title"))
        add(app.callback, "third", add(declare, "second", top))
        left, right = add(declare, "left", top), add(app.callback, "right", top)
        add(app.callback, "bottom", left, right)
        add(declare, "long-bottom", left, right)
"""


@core
def test_at_page_load_what_depends_on_a_long_callback_waits_for_it(serve, tab):
    app = serve(GRAPH)
    tab.open(app)
    for kind in ("ours", "dash"):
        wait_with(tab, lambda kind=kind: app.file(f"runs-{kind}"), "the first callback")
    go(app)
    for kind in ("ours", "dash"):
        for name in ("plain", "mixed", "third", "bottom", "long-bottom"):
            tab.shows(f"#{kind}-{name}", f"{name}-shown")
    goes_quiet(tab)
    ours, dashs = (
        sorted(app.file(f"runs-{kind}").splitlines()) for kind in ("ours", "dash")
    )
    assert ours == dashs
    assert len({line.split()[0] for line in ours}) == len(ours) == 9
    assert not tab.errors


def test_a_trigger_that_cancel_names_ends_the_old_job_and_starts_a_new_one(rows, tab):
    tab.open(rows).click("#again")
    tab.shows("#again-state", "running")
    first = int(wait_for(lambda: rows.file("runs-again"), what="the job"))
    for clicks in (2, 3):
        tab.click("#again")
        tab.shows("#again-result", f"Clicked {clicks} times")
        tab.shows("#again-state", "idle")
    wait_for(lambda: not alive(first), what="the end of the first job")
    assert len(rows.file("runs-again").splitlines()) == 3
    assert not tab.errors


@core
def test_two_that_share_an_output_are_an_error_of_dashs_own(serve, tab):
    source = """
    children = [html.Button("Run", id="run")]
    app.layout = html.Div(children)
    for kind, declare in {"ours": app.long_callback, "dash": app.callback}.items():
        children.append(html.P(id=kind))
        for state in ("title", "lang"):
            @declare(Output(kind, "children"), Input("run", "n_clicks"),
                     State("run", state), prevent_initial_call=True)
            def compute(n_clicks, state):
                return "done"
    """
    tab.open(serve(source, environment={"DEBUG": "1"}))
    titles = tab.locator(".dash-fe-error__title")
    expect(titles).to_have_text(["Duplicate callback outputs"] * 2)
    for title in titles.all():
        title.click()
    for kind in ("ours", "dash"):
        text = f"Output 0 ({kind}.children) is already in use."
        expect(tab.locator(".dash-error-card")).to_contain_text(text)


def test_no_update_in_set_progress_and_set_props_leaves_that_alone(rows, tab):
    tab.open(rows).click("#group")
    expect(tab.locator("#aside")).to_have_attribute("title", "told")
    expect(tab.locator("#meter")).to_have_attribute("value", "1")
    expect(tab.locator("#meter")).to_have_attribute("max", "5")
    tab.shows("#group-bar", "first")
    tab.click("#alone")
    expect(tab.locator("#aside")).to_have_attribute("lang", "la")
    tab.shows("#alone-bar", "first")
    tab.shows("#aside", "-")
    for name in ("group", "alone"):
        touch(rows, f"go-{name}")
        tab.shows(f"#{name}-state", "idle")
    assert not tab.errors


def test_refresh_repeats_no_redirect_and_no_download_of_a_job(rows, tab):
    loads, downloads = [], []
    tab.page.on("load", lambda page: loads.append(page.url))
    tab.page.on("download", lambda download: downloads.append(download.url))
    with tab.open(rows).page.expect_download():
        tab.click("#leave")
    tab.page.reload()
    tab.shows("#leave-bar", "half")
    touch(rows, "go-there")
    tab.page.wait_for_url("**/?there")
    tab.shows("#leave-bar", "half")
    tab.shows("#leave-state", "running")
    seen = len(tab.requests)
    wait_with(tab, lambda: len(tab.requests) > seen + 3, "questions about the job")
    touch(rows, "go-leave")
    tab.shows("#leave-result", "run 1")
    assert (len(loads), len(downloads)) == (3, 1)
    assert not tab.errors


def test_ids_may_hold_the_words_match_and_all(rows, tab):
    buttons = tab.open(rows).locator(".word-run").all()
    for button in buttons:
        button.click()
    expect(tab.locator(".word-run[title=running]")).to_have_count(6)
    expect(tab.locator(".word-bar")).to_have_text(["half"] * 6)
    touch(rows, "go-words")
    ids = [button.get_attribute("id") for button in buttons]
    expect(tab.locator(".word-result")).to_have_text(ids)
    expect(tab.locator(".word-run[title=idle]")).to_have_count(6)
    expect(tab.locator(".word-bar")).to_have_text(["ended"] * 6)
    expect(tab.locator(".word-other")).to_have_text(["-"] * 2)
    assert not tab.errors


@core
def test_groupings_of_the_context_are_as_dashs(rows, tab):
    tab.open(rows)
    told = []
    for kind in ("ours", "dash"):
        tab.click(f"#{kind}-run")
        tab.shows(f"#{kind}-two", "v")
        expect(tab.locator(f"#{kind}-two")).to_have_attribute("title", "v")
        one = tab.locator(f"#{kind}-one")
        texts = one.text_content(), one.get_attribute("title")
        told.append([json.loads(text.replace("ours-", "dash-")) for text in texts])
    assert told[0] == told[1]
    by_name, by_position = told[0]
    assert by_name["using_args_grouping"] and by_name["using_outputs_grouping"]
    assert not by_position["using_args_grouping"]
    assert set(by_name["outputs_grouping"]) == {"a", "b"}
    assert set(by_name["args_grouping"]) == {"n", "more"}


# A value and what the page then shows, and a value with which it fails and the error.
FUNCTIONS = {
    "partial": ("a", "aa", "x", "app.repeat: ZeroDivisionError"),
    "object": ("a", "aa", "x", "app.Repeat: ZeroDivisionError"),
    "wrapped": ("a", "aa", "x", "app.Repeat.__call__: ZeroDivisionError"),
    "builtin": ("a", "97", "aa", "builtins.ord: TypeError"),
    "method": ("a", "A", "a", ""),
    "compiled": ("5", "120", "-1", "math.factorial: ValueError"),
}


def test_any_callable_works_and_has_a_readable_name(rows, tab):
    tab.open(rows)
    for name, (value, shown, _, _) in FUNCTIONS.items():
        tab.fill(f"#{name}-value", value)
        tab.shows(f"#{name}", shown)
    assert not tab.errors
    for name, (_, _, value, error) in FUNCTIONS.items():
        tab.fill(f"#{name}-value", value)
        says(tab, error)


@unit
def test_a_function_without_room_for_set_progress_is_refused(plugin):
    app = dash.Dash(__name__, plugins=[plugin])
    options = {"args": dl.Input("b", "n_clicks"), "progress": dl.Output("p", "value")}
    for function in (ord, lambda: None):
        with pytest.raises(dl.LongCallbackError, match="set_progress"):
            app.long_callback(dl.Output("p", "title"), **options)(function)


@unit
def test_of_two_without_output_from_one_factory_the_second_is_refused(plugin):
    app = dash.Dash(__name__, plugins=[plugin])

    def make(name="save"):
        def save(n_clicks):
            """Never called."""

        save.__name__ = save.__qualname__ = name
        app.long_callback(dl.Input("b", "n_clicks"))(save)

    make()
    with pytest.raises(dl.LongCallbackError, match="name__"):
        make()
    make("save_again")


TWO_ON_ONE_SERVER = """
    import flask

    server = flask.Flask(__name__)

    @server.before_request
    def login():
        is_private = flask.request.path.startswith("/private/")
        if is_private and "member" not in flask.request.cookies:
            return "Log in first", 401

    def make(name):
        app = dash.Dash(__name__, server=server, url_base_pathname=f"/{name}/",
                        plugins=[dl.plugins.LongCallback(manager)])
        app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

        @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                           prevent_initial_call=True)
        def compute(n_clicks):
            with open("runs", "a") as runs:
                print(name, file=runs)
            return f"{name} {n_clicks}"

        return app

    public, app = make("public"), make("private")
"""


def test_a_public_app_starts_no_callback_of_a_private_one(serve, tab, new_tab):
    app, member, starts = serve(TWO_ON_ONE_SERVER), new_tab(), []
    cookie = {"name": "member", "value": "1", "url": app.url}
    member.page.context.add_cookies([cookie])
    for one, name in ((member, "private"), (tab, "public")):
        one.open(app, f"/{name}/").click("#run")
        one.shows("#result", f"{name} 1")
        bodies = [r.post_data_json for r in one.requests if '"start":{' in r.post_data]
        starts.append(bodies[0])
    private, public = (body["inputs"][0]["value"] for body in starts)
    public["jobs"] = {n[:12] + "0" * 32: job for n, job in private["jobs"].items()}
    for name, status, text in (("private", 401, "Log in"), ("public", 200, "reload")):
        url = f"{app.url}/{name}/_dash-update-component"
        answer = tab.page.request.post(url, data=starts[1])
        assert answer.status == status and text in answer.text()
    tab.click("#run")
    tab.shows("#result", "public 2")
    assert app.file("runs").split() == ["private", "public", "public"]


ONE_OF_TWO = """
    manager = dl.FlaskCachingCallbackManager(cache, start_method="forkserver")
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    requests_pathname_prefix="/two/" if __name__ == "two" else "/")
    app.layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       prevent_initial_call=True)
    def compute(n_clicks):
        return f"{__name__} of {sorted({'one', 'two'} & set(sys.modules))}"
"""


def test_a_fresh_process_imports_the_app_of_its_job_only(serve, tab, tmp_path):
    for name in ("one", "two"):
        write_app(tmp_path, PREAMBLE, ONE_OF_TWO, name=name)
    source = """
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    import one, two

    server = DispatcherMiddleware(one.app.server, {"/two": two.app.server})
    """
    app = serve(source, preamble="", gunicorn=["--threads", "4"])
    for path, name in (("/", "one"), ("/two/", "two")):
        tab.open(app, path).click("#run")
        tab.shows("#result", f"{name} of ['{name}']", timeout=30000)
    assert not tab.errors


@pytest.mark.parametrize(
    "transforms", ["", "MultiplexerTransform(), TriggerTransform()"]
)
def test_a_dash_proxy_of_dash_extensions_has_long_callbacks(serve, tab, transforms):
    pytest.importorskip("dash_extensions")
    source = f"""
    from dash_extensions.enrich import DashProxy, MultiplexerTransform, TriggerTransform
    app = DashProxy(__name__, plugins=[dl.plugins.LongCallback(manager)],
                    transforms=[{transforms}])
    server = app.server
    """
    multiplexed = """
    @app.callback(Output("echo", "children"), Input("run", "n_clicks"))
    def another_echo(n_clicks):
        return f"Run {n_clicks}"
    """
    app = serve(source + SIMPLE + (multiplexed if transforms else ""))
    tab.open(app).click("#run")
    tab.shows("#result", "Clicked 1 times")
    tab.shows("#echo", "Run 1" if transforms else "Other None")
    tab.click("#run")
    expect(tab.locator("#run")).to_be_disabled()
    tab.click("#cancel")
    expect(tab.locator("#run")).to_be_enabled()
    assert not tab.errors


# A callback for each kind of job.
EVERY_KIND = """
    from flask_caching import Cache

    cache = Cache(config={"CACHE_TYPE": os.environ["CACHE_TYPE"], "CACHE_DIR": "cache",
                          "CACHE_REDIS_URL": os.environ["BROKER"]})
    managers = {method: dl.FlaskCachingCallbackManager(cache, start_method=method)
                for method in ("fork", "forkserver", "spawn")}
    managers["celery"] = manager

    def declare(function):
        for name in managers:
            app.layout.children += [html.P(id=name), html.Button("-", id=f"run-{name}")]
            app.long_callback(
                Output(name, "children"), Input(f"run-{name}", "n_clicks"),
                State(name, "id"), manager=managers[name], prevent_initial_call=True,
            )(function)
"""
KINDS = ["fork", "forkserver", "spawn", "celery"]


@pytest.fixture
def every_kind(redis_url, new_site):
    """Return a function that serves EVERY_KIND, with a worker."""

    def make(source, cache_type="FileSystemCache"):
        source = textwrap.dedent(EVERY_KIND) + textwrap.dedent(source)
        site = new_site(redis_url, redis_url, source, CACHE_TYPE=cache_type)
        site.start_worker()
        return site

    return make


@pytest.mark.parametrize("cache_type", ["FileSystemCache", "RedisCache"])
def test_what_a_job_calls_can_be_memoized(every_kind, tab, cache_type):
    source = """
    cache.init_app(app.server)

    @cache.memoize(timeout=60)
    def slow(what):
        with open(f"runs-{what}", "a") as runs:
            runs.write("x")
        return what

    @declare
    def compute(n_clicks, id):
        return f"{n_clicks}: {slow(id)}"
    """
    site = every_kind(source, cache_type)
    tab.open(site)
    for name in KINDS:
        for clicks in (1, 2):
            tab.click(f"#run-{name}")
            tab.shows(f"#{name}", f"{clicks}: {name}", timeout=30000)
        assert site.file(f"runs-{name}") == "x"
    is_content(tab)


@unit
@pytest.mark.parametrize(
    "old", ["cache_by", "expire", "cache_args_to_ignore", "cache_ignore_triggered"]
)
def test_the_old_keywords_of_caching_name_the_recipe(declare, old):
    if old in ("cache_by", "expire"):
        cache = flask_caching.Cache(config={"CACHE_TYPE": "RedisCache"})
        with pytest.raises(dl.LongCallbackError) as raised:
            dl.FlaskCachingCallbackManager(cache, **{old: 1})
    text = str(raised.value) if old in ("cache_by", "expire") else declare(**{old: [0]})
    assert old in text and "@cache.memoize(" in text and "README" in text


PREFIXES = """
    import flask
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.middleware.proxy_fix import ProxyFix

    optional = bool(os.environ["OPTIONAL"])  # an Input that is not in the page
    absent = Input("absent", "title", allow_optional=True) if optional else None

    def make(**options):
        app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)], **options)
        app.layout = html.Div([html.Button("Run", id="run"), html.P(id="ours"),
                               html.P(id="dash")])
        for kind, declare in {"ours": app.long_callback, "dash": app.callback}.items():
            @declare(Output(kind, "children"), Input("run", "n_clicks"),
                     *[absent] * optional, prevent_initial_call=True)
            def compute(n_clicks, absent=None):
                request = flask.request
                return f"{n_clicks} {absent} {request.base_url} {request.remote_addr}"
        return app.server

    fixed = ProxyFix(make(requests_pathname_prefix="/three/"), x_host=1, x_prefix=1)

    def proxied(environ, start_response):  # as behind a proxy that takes the prefix off
        forwarded = {"FOR": "192.0.2.9", "PROTO": "https", "HOST": "shop.example",
                     "PREFIX": "/three"}
        forwarded = {f"HTTP_X_FORWARDED_{name}": forwarded[name] for name in forwarded}
        return fixed({**environ, "SCRIPT_NAME": "", **forwarded}, start_response)

    server = DispatcherMiddleware(make(url_base_pathname="/one/"), {
        "/two": make(requests_pathname_prefix="/two/"), "/three": proxied})
"""


def test_a_job_behind_a_path_prefix_sees_the_request_that_dash_sees(serve, tab):
    optional = {"OPTIONAL": "1" if DASH >= (3, 1) else ""}
    app = serve(PREFIXES, environment=optional, gunicorn=["--threads", "4"])
    end = "_dash-update-component"
    seen = {
        "one": f"{app.url}/one/{end} 127.0.0.1",
        "two": f"{app.url}/two/{end} 127.0.0.1",
        "three": f"https://shop.example/three/{end} 192.0.2.9",
    }
    for name, text in seen.items():
        tab.open(app, f"/{name}/").click("#run")
        for kind in ("dash", "ours"):
            tab.shows(f"#{kind}", f"1 None {text}")
    assert not tab.errors


def test_a_click_in_a_page_older_than_its_callback_says_reload(serve, tab):
    source = """
    app.layout = html.Div([])
    is_new = os.path.exists("new")
    for name in ("renamed", "extended"):
        app.layout.children += [html.Button(name, id=name), html.P(id=f"{name}-result")]

        def compute(n_clicks, title=None):
            return f"Clicked {n_clicks} times"

        if is_new and name == "renamed":
            compute.__qualname__ = "calculate"
        app.long_callback(
            Output(f"{name}-result", "children"), Input(name, "n_clicks"),
            *[State(name, "title")] * (is_new and name == "extended"),
            running=[(Output(name, "title"), "running", "idle")],
            prevent_initial_call=True)(compute)
    """
    app = serve(source)
    tab.open(app)
    app.stop()
    touch(app, "new")
    app.restart()
    text = "the app has changed since this page was loaded: reload the page"
    for name in ("renamed", "extended"):
        tab.errors.clear()
        logged = app.log.count(text)
        tab.click(f"#{name}")
        says(tab, text)
        expect(tab.locator(f"#{name}")).to_have_attribute("title", "idle")
        assert app.log.count(text) > logged
    tab.page.reload()
    for name in ("renamed", "extended"):
        tab.click(f"#{name}")
        tab.shows(f"#{name}-result", "Clicked 1 times")


def test_a_job_of_every_kind_reads_request_session_user_and_app(every_kind, tab):
    pytest.importorskip("flask_login")
    source = """
    import flask, flask_login
    from flask_login import current_user

    server.secret_key = "a secret"
    logins = flask_login.LoginManager(server)

    @logins.user_loader
    def load(name):
        user = flask_login.UserMixin()
        user.id = name
        return user

    @server.route("/login")
    def login():
        flask.session["cart"] = "tea"
        flask_login.login_user(load("Ada"))
        return "Hello"

    @server.before_request
    def members_only():
        if flask.request.path != "/login" and not current_user.is_authenticated:
            return "Log in first", 401

    @declare
    def compute(n_clicks, id):
        words = [n_clicks, current_user.id, flask.session["cart"],
                 flask.request.headers["X-Agent"], flask.current_app.secret_key]
        if n_clicks == 2:
            flask.session["cart"] = "empty"
        return " ".join(map(str, words))
    """
    site = every_kind(source)
    tab.page.set_extra_http_headers({"X-Agent": "007"})
    tab.page.goto(f"{site.url}/login")
    tab.open(site)
    for name in KINDS:
        program = site.workers[0] if name == "celery" else site.app
        before = len(re.findall("chang.* the session", program.log))
        for clicks in (1, 2):
            tab.click(f"#run-{name}")
            tab.shows(f"#{name}", f"{clicks} Ada tea 007 a secret", timeout=30000)
            warnings = re.findall("chang.* the session", program.log)
            assert len(warnings) == before + clicks - 1
    is_content(tab)


def job(body, source=STEPS):
    """The app STEPS whose job does this instead of its steps."""
    begin, end = (
        source.index("        for step in"),
        source.index('        note("ends"'),
    )
    body = textwrap.indent(textwrap.dedent(body).strip("\n"), " " * 8)
    return f"{source[:begin]}{body}\n{source[end:]}"


WAITS = UNTIL_GO + job("set_progress('waiting'); until_go()")
WORKER = ["--workers", "1", "--threads", "4", "--graceful-timeout", "3"]


def fetch(app, path):
    with urllib.request.urlopen(app.url + path, timeout=10) as answer:
        return answer.read().decode()


# --- Servers and processes ------------------------------------------------------------


def test_what_the_app_has_opened_before_the_job_is_usable_in_it(
    serve, tab, redis_server
):
    source = """
    import multiprocessing, socket, sqlite3
    near, far = multiprocessing.Pipe()
    one, other = socket.socketpair()
    redis = socket.create_connection(("127.0.0.1", int(os.environ["REDIS_PORT"])))
    database = sqlite3.connect("a.sqlite", check_same_thread=False)
    """
    body = """
    far.send("pipe")
    other.sendall(b"pair")
    redis.sendall(b"PING\\r\\n")
    return " ".join([near.recv(), one.recv(9).decode(), redis.recv(7).decode(),
                     database.execute("select 'rows'").fetchone()[0]])
    """
    port = str(redis_server.port)
    app = serve(job(body), PREAMBLE + source, environment={"REDIS_PORT": port})
    for clicks in ("once", "again"):
        tab.open(app).click("#run")
        tab.shows("#result", re.compile("pipe pair .PONG\\s+rows"))
        assert not tab.errors, clicks


def test_a_job_holds_neither_the_port_nor_the_connections_of_its_server(serve, tab):
    app = serve(WAITS)
    with socket.create_connection(("127.0.0.1", app.port)) as kept:
        kept.sendall(b"POST /_dash-update-component HTTP/1.1\r\n")  # is answered later
        tab.open(app).click("#run")
        process, _ = running_job(app)
        tab.shows("#progress", "waiting")
        os.kill(process, signal.SIGSTOP)  # so that it can't end by itself
        try:
            app.stop(signal.SIGKILL)
            kept.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert kept.recv(1) == b""
            assert not listening(app.port)
            app.restart()
        finally:
            os.kill(process, signal.SIGCONT)
    wait_for(lambda: not alive(process), 5, "the end of the job")


def recycle(app, worker):
    """Ask until gunicorn replaces its worker for the number of its requests."""
    wait_for(
        lambda: (fetch(app, "/_dash-layout"), not alive(worker))[1], what="recycle"
    )


class Service(App):
    """A gunicorn that is started in one of several ways; `master` is its process."""

    def __init__(self, folder, name="app", way="plain"):
        gunicorn = [*WORKER, "--pid", "pid"]
        self.way = way
        super().__init__(folder, gunicorn=[*gunicorn, *WAYS[way]], name=name)

    def start(self):
        if self.way == "script":
            command = f"{' '.join(self.command)}\necho ended\n"
            Path(self.folder, "start.sh").write_text(command)
            self.command = ["sh", "start.sh"]
        super().start()

    def wait(self):
        wait_for(lambda: listening(self.port), 30, f"gunicorn: {self.log}")
        self.master = int(wait_for(lambda: self.file("pid"), what="pid"))

    def stop(self, number=signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.master, number)
        super().stop(number)
        for process in strays(self.folder):
            os.kill(process, signal.SIGKILL)


WAYS = {"plain": [], "--daemon": ["--daemon"], "script": []}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_ends_with_the_gunicorn_that_was_killed(serve, tab, way):
    app = serve(WAITS, kind=Service, way=way)
    tab.open(app).click("#run")
    process, _ = running_job(app)
    tab.shows("#progress", "waiting")
    os.kill(app.master, signal.SIGKILL)
    wait_for(lambda: not alive(process), 8, "the end of the job")
    wait_for(lambda: not strays(app.folder), 8, f"no stray process: {app.log}")
    assert not listening(app.port)
    Path(app.folder, "pid").unlink()
    if way == "script":
        app.command = Path(app.folder, "start.sh").read_text().splitlines()[0].split()
    app.restart()
    says(tab, "the server process that ran it is gone", 15)
    tab.shows("#state", "idle")
    go(app)
    works_again(tab, app, clicks=2)


PROCESS = """
    import multiprocessing
    server_process = multiprocessing.get_context("fork").Process(
        target=app.run, kwargs={"port": int(os.environ["PORT"])}, daemon=%s)
    server_process.start()
    server_process.join()
"""
PROCESSES = """
    app.run(port=int(os.environ["PORT"]), threaded=False, processes=4)
"""
ENDINGS = {
    "thread": """
    import threading
    threading.Thread(target=app.run, kwargs={"port": int(os.environ["PORT"])}).start()
    """,
    "notebook": """
    import threading
    threading.Thread(target=app.run, kwargs={"port": int(os.environ["PORT"])},
                     daemon=True).start()
    while True:
        time.sleep(1)
    """,
    "process": PROCESS % False,
    "a process a request": PROCESSES,
}


@pytest.mark.parametrize("how", [*ENDINGS, "-O"])
def test_jobs_run_however_the_server_is_run(serve, tab, how):
    environment = {"STEPS": "20", "PYTHONOPTIMIZE": "1" if how == "-O" else ""}
    app = serve(STEPS, ending=ENDINGS.get(how, RUN), environment=environment)
    tab.open(app).click("#run")
    ended_once(tab, app)
    tab.click("#run")
    wait_for(lambda: len(runs(app)) == 2, what="the second job")
    tab.click("#cancel")
    tab.shows("#state", "idle")
    wait_for(lambda: not alive(running_job(app)[0]), what="the end of the job")
    assert not tab.errors


FRESH = "dl.FlaskCachingCallbackManager(cache"


def starting_by(method):
    return PREAMBLE.replace(FRESH, f'{FRESH}, start_method="{method}"')


GEVENT = ["--workers", "1", "-k", "gevent"]
IMPOSSIBLE = {  # what can't work, and the words that say what to change
    "a daemonic process": ("daemon=False", {"ending": PROCESS % True}),
    "gevent": ('start_method="forkserver"', {"gunicorn": GEVENT}),
    "no main guard": (
        "__main__",
        {
            "preamble": starting_by("spawn"),
            "ending": "app.run(port=int(os.environ['PORT']))",
        },
    ),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_work_says_what_to_change(serve, tab, what):
    text, options = IMPOSSIBLE[what]
    app = serve(WAITS, **options)
    tab.open(app).click("#run")
    says(tab, text, 20)
    tab.shows("#state", "idle")
    assert fetch(app, "/")


def test_jobs_run_with_gevent_by_fresh_processes(serve, tab):
    app = serve(STEPS, starting_by("forkserver"), gunicorn=GEVENT)
    tab.open(app).click("#run")
    ended_once(tab, app)
    assert not tab.errors


def test_jobs_are_forked_where_python_has_another_default(serve, tab):
    source = """
    import multiprocessing
    multiprocessing.set_start_method("forkserver")  # as Python 3.14 does

    def make():  # so only a fork can find the callback again
        cache = Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "cache"})
        manager = dl.FlaskCachingCallbackManager(cache)
        app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])
    SOURCE
        return app

    if __name__ == "__main__":
        app = make()
        server = app.server
    """
    declared = textwrap.indent(textwrap.dedent(STEPS), " " * 4)
    app = serve(textwrap.dedent(source).replace("SOURCE", declared))
    tab.open(app).click("#run")
    ended_once(tab, app)
    assert running_job(app)[1] == app.process.pid


PAGE = """
    import dash, longcallback as dl
    from dash import html
    dash.register_page(__name__, path="/")
    layout = html.Div([html.Button("Run", id="run"), html.P(id="result")])

    @dl.long_callback(dl.Output("result", "children"), dl.Input("run", "n_clicks"),
                      prevent_initial_call=True)
    def compute(n_clicks):
        return f"Clicked {n_clicks} times"
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_fresh_process_imports_the_app_before_the_page_of_a_callback(
    serve, tmp_path, tab, method
):
    (tmp_path / "pages").mkdir()
    write_app(tmp_path / "pages", PAGE, name="home")
    preamble = starting_by(method).replace(
        "__name__, plugins", '"sales", use_pages=True, plugins'
    )
    app = serve("app.layout = dash.page_container", preamble, gunicorn=WORKER)
    tab.open(app).click("#run")
    tab.shows("#result", "Clicked 1 times")
    assert not tab.errors


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_factorys_callback_is_not_found_by_a_fresh_process_and_that_is_said(
    serve, tmp_path, tab, method
):
    declared = "\n".join(map(textwrap.dedent, (starting_by(method), STEPS)))
    factory = f"def make():\n{textwrap.indent(declared, ' ' * 4)}\n    return app\n"
    write_app(tmp_path, factory, name="factory")
    guarded = """
    if __name__ == "__main__":
        app = factory.make()
        app.run(port=int(os.environ["PORT"]))
    """
    app = serve("import os\nimport factory", "", ending=guarded)
    tab.open(app).click("#run")
    says(tab, "compute: no module that its process imports declares it")
    says(tab, 'start_method="fork"')
    tab.shows("#state", "idle")


def reload_code(app, server):
    Path(app.folder, "app.py").touch()


RELOADED = RUN.replace("False", "True").replace(
    'bool(os.environ.get("DEBUG"))', "False"
)
GONE_SERVER = {
    "max-requests": (recycle, {"gunicorn": [*WORKER, "--max-requests", "40"]}),
    "HUP": (lambda app, worker: os.kill(app.process.pid, signal.SIGHUP), {}),
    "killed": (lambda app, worker: os.kill(worker, signal.SIGKILL), {}),
    "reloader": (reload_code, {"gunicorn": None, "ending": RELOADED}),
}


@pytest.fixture
def lonely(serve, tab):
    """Return a function that starts a job and takes its server process away."""

    def start(source, how="killed"):
        take_away, options = GONE_SERVER[how]
        app = serve(source, **{"gunicorn": WORKER, **options})
        tab.open(app).click("#run")
        process, server = running_job(app)
        tab.shows("#progress", "waiting")
        take_away(app, server)
        wait_for(lambda: not alive(server), what="the end of the server process")
        return app, process

    return start


@pytest.mark.parametrize("how", GONE_SERVER)
def test_a_job_goes_on_without_the_server_process_that_started_it(lonely, tab, how):
    app, _ = lonely(WAITS, how)
    wait_for(lambda: listening(app.port), what="the next server process")
    tab.shows("#state", "running")
    go(app)
    ended_once(tab, app)
    assert not [error for error in tab.errors if "compute" in error]
    wait_for(lambda: len(strays(app.folder)) == 2, what="master and worker only")


def test_a_job_whose_server_process_is_gone_can_be_cancelled(lonely, tab):
    app, process = lonely(WAITS)
    tab.click("#cancel")
    tab.shows("#state", "idle")
    wait_for(lambda: not alive(process), 5, "the end of the job")
    go(app)
    tab.click("#run")
    ended_once(tab, app, clicks=2)


@pytest.mark.parametrize("server", ["lives", "is killed"])
def test_a_job_that_holds_the_interpreters_lock_is_not_taken_for_dead(
    serve, lonely, tab, server
):
    hold = "import ctypes; ctypes.PyDLL(None).sleep(6)  # holds the interpreter's lock"
    source = UNTIL_GO + job(f"set_progress('waiting'); time.sleep(0.2); {hold}")
    if server == "lives":
        tab.open(serve("    dl._LEASE = 4\n" + source, gunicorn=WORKER)).click("#run")
    else:
        lonely(source)
    tab.shows("#result", "Clicked 1 times", timeout=30000)
    tab.shows("#state", "idle")
    assert dl._LEASE > 30 and not [e for e in tab.errors if "compute" in e]


# --- Caches ---------------------------------------------------------------------------

ENTRIES = """
    cache.init_app(server)

    @server.route("/fill/<int:number>")  # for good, which is dropped last
    def fill(number):
        return str(all(cache.set(f"mine-{n}", n, timeout=0) for n in range(number)))

    @server.route("/mine")
    def mine():
        return str([n for n in range(9) if cache.get(f"mine-{n}") == n])

    @server.route("/clear")
    def clear():
        return str(cache.clear())
"""


def test_jobs_and_the_users_entries_don_t_push_each_other_out(serve, tab):
    full = PREAMBLE.replace('"CACHE_TYPE"', '"CACHE_THRESHOLD": 10, "CACHE_TYPE"')
    app = serve(ENTRIES + WAITS, full)
    assert fetch(app, "/fill/30") == "True"
    fetch(app, "/clear")
    assert fetch(app, "/fill/9") == "True"
    tab.open(app)
    for click in (1, 2, 3, 4):  # each has several keys, beside those of closed tabs
        tab.click("#run")
        wait_for(lambda n=click: len(runs(app)) == n, what="the job to start")
        if click == 1:
            assert fetch(app, "/fill/9") == "True"
            go(app)
        tab.shows("#result", f"Clicked {click} times")
    assert fetch(app, "/mine") == str(list(range(9)))
    assert fetch(app, "/fill/30") == "True"
    Path(app.folder, "go").unlink()
    tab.click("#run")
    wait_for(lambda: len(runs(app)) == 5, what="the job to start")
    assert fetch(app, "/fill/30") == "True"
    go(app)
    ended_once(tab, app, clicks=5)
    assert not tab.errors


PREFIXED = REDIS.replace('"CACHE_TYPE"', '"CACHE_KEY_PREFIX": "shop_", "CACHE_TYPE"')


@pytest.mark.parametrize("preamble", [PREAMBLE, PREFIXED], ids=["files", "Redis"])
def test_clearing_the_users_cache_empties_it_and_ends_no_job(
    serve, tab, redis_server, preamble
):
    environment = {"REDIS": f"redis://127.0.0.1:{redis_server.port}"}
    app = serve(ENTRIES + WAITS, preamble, environment=environment)
    fetch(app, "/fill/9")
    tab.open(app).click("#run")
    tab.shows("#progress", "waiting")
    assert fetch(app, "/clear") == "True"
    assert fetch(app, "/mine") == "[]"
    fetch(app, "/clear")  # again, which finds nothing, and stumbles over nothing
    tab.page.wait_for_timeout(1000)  # a job that is not wanted is ended in less
    tab.shows("#state", "running")
    go(app)
    ended_once(tab, app)
    assert not tab.errors


FILES = '"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "cache"'
BACKEND = """
    import pathlib, pickle, time
    from flask_caching.backends.base import BaseCache

    class Folder(BaseCache):  # has what Flask-Caching asks of a backend, and no more
        @classmethod
        def factory(cls, app, config, args, kwargs):
            return cls(config["CACHE_DEFAULT_TIMEOUT"])

        def path(self, key):
            return pathlib.Path("own-" + key.replace("/", "-"))

        def get(self, key):
            try:
                end, value = pickle.loads(self.path(key).read_bytes())
            except FileNotFoundError:
                return None
            return value if end > time.time() else None

        def set(self, key, value, timeout=None):
            new = self.path(f"{key}-{time.monotonic_ns()}-new")
            new.write_bytes(pickle.dumps((time.time() + (timeout or 300), value)))
            new.rename(self.path(key))
            return True

        def add(self, key, value, timeout=None):
            return self.get(key) is None and self.set(key, value, timeout)

        def delete(self, key):
            self.path(key).unlink(missing_ok=True)
            return True
"""


def test_a_backend_of_the_users_own_keeps_jobs(serve, tmp_path, tab):
    write_app(tmp_path, BACKEND, name="backend")
    app = serve(STEPS, PREAMBLE.replace(FILES, '"CACHE_TYPE": "backend.Folder"'))
    tab.open(app).click("#run")
    expect(tab.locator("#progress")).to_have_text(re.compile("[0-9]"))
    ended_once(tab, app)
    assert not tab.errors
    wait_for(lambda: not list(tmp_path.glob("own-*")), what="the end of the records")


@pytest.fixture
def memcached(tmp_path):
    """The preamble of an app with a Memcached of the test's own."""
    if not shutil.which("memcached"):
        pytest.skip("there is no memcached")
    port = free_port()
    command = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0"]
    command += ["-u", "root"] if os.geteuid() == 0 else []
    program = Program(command, tmp_path, name="memcached")
    wait_for(lambda: listening(port), what="Memcached to listen")
    servers = f'"CACHE_MEMCACHED_SERVERS": ["127.0.0.1:{port}"]'
    yield PREAMBLE.replace(FILES, f'"CACHE_TYPE": "MemcachedCache", {servers}')
    program.stop()


@pytest.mark.parametrize("library", ["pylibmc", "memcache"])
def test_a_result_too_large_for_memcached_is_one_error_that_says_so(
    serve, tab, memcached, library
):
    pytest.importorskip(library)
    other = {"pylibmc": "memcache", "memcache": "pylibmc"}[library]
    hidden = f"\n    import sys; sys.modules['{other}'] = None\n"
    app = serve(job("if n_clicks == 1: return 'x' * 2_000_000"), hidden + memcached)
    tab.open(app).click("#run")
    says(tab, "did not fit into the cache")
    tab.shows("#state", "idle")
    goes_quiet(tab)
    assert len([error for error in tab.errors if "compute" in error]) == 1
    assert re.search("result of 2000[0-9]{3} bytes", tab.errors[0])
    assert app.log.count("Traceback") <= 1
    tab.click("#run")
    tab.shows("#result", "Clicked 2 times")


def test_small_results_and_many_jobs_go_well_with_memcached(serve, new_tab, memcached):
    app = serve(STEPS, memcached, environment={"STEPS": "10"})
    tabs = [new_tab().open(app) for _ in range(4)]  # which talk at the same time
    for tab in tabs:
        tab.click("#run")
    for tab in tabs:
        tab.shows("#result", "Clicked 1 times")
        assert not tab.errors


# --- Celery ---------------------------------------------------------------------------


@pytest.fixture(params=["redis", "rabbitmq"])
def working_site(request, new_site):
    """Return a function that makes a site with a worker, on Redis or with rpc://."""

    def make(source=""):
        url = request.getfixturevalue(f"{request.param}_url")
        backend = "rpc://" if request.param == "rabbitmq" else url
        site = new_site(url, backend, source=source)
        site.start_worker()
        return site

    return make


def test_celery_jobs_run_where_tasks_track_that_they_started(working_site, tab):
    tracks = "celery_app.conf.task_track_started = True"
    site = working_site(tracks)
    run(tab.open(site), "progress")
    expect(tab.locator("#bar")).to_have_attribute("value", "1")
    site.go("progress")
    site.go("progress-end")
    tab.shows("#result", "progress 1")
    is_content(tab)


def test_celery_a_job_may_take_longer_than_results_are_kept(redis_url, new_site, tab):
    short = "celery_app.conf.result_expires = 3; dl._RENEWAL = 1"
    site = new_site(redis_url, redis_url, source=short)
    site.start_worker()
    run(tab.open(site), "wait-long")
    site.started("wait-long")
    tab.page.wait_for_timeout(7000)
    expect(tab.locator("#cancel")).to_be_enabled()
    site.go("wait-long")
    tab.shows("#result", "wait-long 1")
    is_content(tab)


def test_celery_eager_jobs_run_at_once(working_site, tab):
    eager = "celery_app.conf.task_always_eager = True"
    site = working_site(eager)
    tab.open(site)
    for number in (1, 2):
        run(tab, f"eager{number}")
        tab.shows("#result", f"eager{number} {number}")
        is_idle(tab)
    is_content(tab)
    run(tab, "raise")
    complains(tab, site, "RuntimeError: no such luck")


def test_celery_a_worker_that_is_lost_is_missed_and_a_queued_task_is_not(
    working_site, new_tab
):
    soon = "dl._SILENCE = 5; dl._RENEWAL = 1"
    site = working_site(soon)
    busy, queued = new_tab().open(site), new_tab().open(site)
    run(busy, "wait-busy")
    site.started("wait-busy")
    run(queued, "queued")
    busy.page.wait_for_timeout(8000)
    for tab in busy, queued:
        expect(tab.locator("#cancel")).to_be_enabled()
        expect(tab.locator(".dash-error-card")).to_have_count(0)
    site.go("wait-busy")
    busy.shows("#result", "wait-busy 1")
    queued.shows("#result", "queued 1")
    run(busy, "wait-lost")
    for process in site.started("wait-lost"), site.workers[0].process.pid:
        os.kill(process, signal.SIGKILL)
    complains(busy, site, "has not been heard of")
    assert not site.jobs("wait-lost")[1:]


FAILURES = """
    from celery import signals

    @signals.task_failure.connect
    def failed(exception, **options):
        with open("failed", "a") as file:
            print(repr(exception), file=file)

    @signals.task_success.connect
    def succeeded(**options):
        open("succeeded", "a").close()

    celery_app.conf.task_soft_time_limit = 1

    @app.long_callback(Output("aside", "children"), Input("what", "n_submit"),
                       running=[(Output("cancel", "disabled"), False, True)],
                       prevent_initial_call=True)
    def unsendable(n_submit):
        return object()
"""
FAILED = {
    "raises": ("raise", "RuntimeError: no such luck"),
    "is over its time limit": ("slow", "SoftTimeLimitExceeded"),
    "returns what can't be sent": (None, "InvalidCallbackReturnValue"),
}


def test_celery_tasks_fail_when_their_jobs_do(working_site, new_tab):
    site = working_site(FAILURES)
    for number, (kind, (what, text)) in enumerate(FAILED.items(), 1):
        tab = new_tab().open(site)
        if what:
            run(tab, what)
        else:
            tab.press("#what", "Enter")
        error = tab.locator(".dash-error-card .dash-fe-error__title", has_text=text)
        expect(error).to_have_count(1, timeout=20000)
        is_idle(tab)
        tasks = wait_for(lambda n=number: site.file("failed").splitlines()[n - 1 :])
        assert text in tasks[0], kind
    assert not Path(site.folder, "succeeded").exists()


def test_celery_worker_logs_that_a_task_ended_and_not_what_it_took_or_returned(
    working_site, tab
):
    site = working_site()
    tab.open(site)
    tab.context.add_cookies([{"name": "who", "value": "cookie77", "url": site.url}])
    run(tab, "secret77")
    tab.shows("#result", "secret77 1")
    wait_for(lambda: "succeeded" in site.workers[0].log, what="the end in the log")
    run(tab, "killed-secret77")
    complains(tab, site, "SIGKILL")
    log = site.workers[0].log
    assert "app.compute" in log
    assert "secret77" not in log and "cookie77" not in log


# --- Lines and browsers ---------------------------------------------------------------


def slow_line(tab, down=-1, up=-1, latency=20):
    """Let the tab's line carry so many bytes a second."""
    session = tab.page.context.new_cdp_session(tab.page)
    line = {"offline": False, "latency": latency}
    line |= {"downloadThroughput": down, "uploadThroughput": up}
    session.send("Network.emulateNetworkConditions", line)


LONGEST_GAP = """() => {
    window.changed = performance.now(); window.gap = 0;
    new MutationObserver(() => {
        gap = Math.max(gap, performance.now() - changed);
        changed = performance.now();
    }).observe(document.getElementById("b-progress"),
               {childList: true, characterData: true, subtree: true});
}"""
BIG_AND_SMALL = """
    app.layout = html.Div([
        html.Button("A", id="a"), html.P("idle", id="a-state"), html.P(id="a-result"),
        html.Button("B", id="b"), html.P("idle", id="b-state"), html.P(id="b-result"),
        html.P(id="b-progress"), dcc.Store(id="big", data="x" * int(os.environ["BIG"])),
    ])

    @app.long_callback(Output("a-result", "children"), Input("a", "n_clicks"),
                       State("big", "data"), prevent_initial_call=True,
                       running=[(Output("a-state", "children"), "running", "idle")])
    def big(n_clicks, data):
        return len(data)

    @app.long_callback(Output("b-result", "children"), Input("b", "n_clicks"),
                       prevent_initial_call=True,
                       progress=Output("b-progress", "children"),
                       running=[(Output("b-state", "children"), "running", "idle")])
    def small(set_progress, n_clicks):
        step = 0
        while not os.path.exists("go"):
            set_progress(step := step + 1)
            time.sleep(0.1)
        return "ended"
"""
LIMITED = """
    def limited(wsgi_app):
        def answer(environ, start_response):
            if int(environ.get("CONTENT_LENGTH") or 0) < 200_000:
                return wsgi_app(environ, start_response)
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            start_response("413 Request Entity Too Large", [])
            return [b"too large"]
        return answer

    server.wsgi_app = limited(server.wsgi_app)
"""


def test_a_large_result_is_fetched_once_over_a_slow_line(serve, tab):
    body = "return 'x' * (3_000_000 if n_clicks == 1 else 3)"
    app = serve(job(body))
    tab.open(app)
    goes_quiet(tab)
    received = []
    session = tab.page.context.new_cdp_session(tab.page)
    session.send("Network.enable")
    session.on(
        "Network.dataReceived", lambda event: received.append(event["dataLength"])
    )
    slow_line(tab, down=150_000)
    clicked = time.monotonic()
    tab.click("#run")
    expect(tab.locator("#result")).to_have_text(re.compile("^x{9}"), timeout=60000)
    assert time.monotonic() - clicked < 1.3 * 20 + 1  # as long as the bytes need
    assert sum(received) < 1.3 * 3_000_000
    tab.shows("#state", "idle")
    tab.click("#run")
    tab.shows("#result", "xxx")


def test_inputs_that_a_proxy_refuses_end_their_own_job_only(serve, tab):
    app = serve(BIG_AND_SMALL + LIMITED, environment={"BIG": "300000"})
    tab.open(app).click("#b")
    expect(tab.locator("#b-progress")).to_have_text(re.compile("[0-9]"))
    tab.page.evaluate(LONGEST_GAP)
    clicked = time.monotonic()
    tab.click("#a")
    tab.shows("#a-state", "running")
    tab.shows("#a-state", "idle", timeout=60000)
    assert 15 < time.monotonic() - clicked < 50
    says(tab, "app.big: the server answers, but not to its inputs (300")
    assert tab.page.evaluate("gap") < 2000
    go(app)
    tab.shows("#b-result", "ended")
    tab.shows("#b-state", "idle")
    assert not [error for error in tab.errors if "app.small" in error]


def test_a_click_long_without_network_starts_its_job_when_it_is_back(serve, tab):
    app = serve(BIG_AND_SMALL, environment={"BIG": "300000"})
    tab.open(app)
    goes_quiet(tab)
    tab.page.context.set_offline(True)
    tab.click("#a")
    tab.click("#b")
    tab.page.wait_for_timeout(30000)
    for name in "a", "b":
        tab.shows(f"#{name}-state", "running")
    tab.page.context.set_offline(False)
    go(app)
    tab.shows("#a-result", "300000", timeout=30000)
    tab.shows("#b-result", "ended", timeout=30000)
    assert not [error for error in tab.errors if "app." in error]


def test_a_large_upload_does_not_hold_up_another_job(serve, tab):
    app = serve(BIG_AND_SMALL, environment={"BIG": "10000000"})
    tab.open(app)
    goes_quiet(tab)
    slow_line(tab, up=1_000_000)
    tab.click("#b")
    expect(tab.locator("#b-progress")).to_have_text(re.compile("[0-9]"))
    tab.page.evaluate(LONGEST_GAP)
    tab.click("#a")
    tab.shows("#a-result", "10000000", timeout=60000)
    assert tab.page.evaluate("gap") < 3000
    sent = [len(r.post_data) for r in tab.requests if is_ours(r)]
    assert sum(sent) < 11_000_000
    go(app)
    tab.shows("#b-result", "ended")
    assert not tab.errors


FRAME = """
    @server.route("/frame")
    def frame():  # whose page has no origin, hence no storage and no cookies
        return '<iframe sandbox="allow-scripts" src="/" style="height: 90vh"></iframe>'

    @server.after_request
    def allow(response):
        for what in "Origin", "Headers":
            response.headers[f"Access-Control-Allow-{what}"] = "*"
        return response
"""


def test_jobs_run_in_a_frame_without_storage(serve, tab):
    app = serve(STEPS + FRAME, environment={"STEPS": "30"})
    tab.page.goto(app.url + "/frame")
    frame = tab.page.frame_locator("iframe")
    for click in (1, 2):
        frame.locator("#run").click()
        expect(frame.locator("#state")).to_have_text("running")
        if click == 1:
            frame.locator("#cancel").click()
        else:
            text = f"Clicked {click} times"
            expect(frame.locator("#result")).to_have_text(text, timeout=15000)
        expect(frame.locator("#state")).to_have_text("idle")
    assert not [error for error in tab.errors if "favicon" not in error]


SLOW = """
    def slow(wsgi_app):
        def answer(environ, start_response):
            time.sleep(0.5 if environ["REQUEST_METHOD"] == "POST" else 0)
            return wsgi_app(environ, start_response)
        return answer

    server.wsgi_app = slow(server.wsgi_app)
"""


def test_a_server_that_is_slow_to_answer_is_asked_less_often(serve, tab):
    environment = {"STEPS": "60", "INTERVAL": "100"}
    app = serve(STEPS + SLOW, environment=environment)
    answers = []
    tab.page.on(
        "requestfinished",
        lambda request: answers.append(request.timing) if is_ours(request) else None,
    )
    tab.open(app).click("#run")
    ended_once(tab, app)
    ends = [timing["startTime"] + timing["responseEnd"] for timing in answers]
    begins = [timing["startTime"] for timing in answers]
    waits = [begin - end for begin, end in zip(begins[1:], ends, strict=False)]
    assert len(waits) >= 3
    assert min(waits[:-1]) > 400  # it has as long to itself as an answer takes


# --- What a person sees of mistakes and failures ---------------------------------------


@unit
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": dl.Input("b", "n_clicks")}, "args and inputs"),
        ({"on_error": "sorry"}, "on_error: 'sorry' is no function"),
        ({"background": True}, "'background'"),
        ({"interval": "1s"}, "interval: '1s' is no number"),
        ({"running": [("b.disabled", True, False)]}, "running: 'b.disabled'"),
        ({"cancel": dl.State("b", "n_clicks")}, "cancel: <State"),
        ({"progress": dl.Input("bar", "value")}, "progress: <Input"),
        ({"output": "p.children"}, "p.children"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_a_declaration_names_its_argument(declare, options, words):
    assert words in declare(**options)


@unit
def test_a_decorator_without_parentheses_says_so(plugin):
    app = dash.Dash(__name__, plugins=[plugin])
    with pytest.raises(dl.LongCallbackError, match="go_on: parentheses are missing"):

        @app.long_callback
        def go_on(n_clicks):
            """Never called."""


class NoManager:
    """Stands for Dash's DiskcacheManager, say."""


@unit
@pytest.mark.parametrize("wrong", ["redis://", {}, NoManager(), flask_caching.Cache()])
def test_what_is_no_manager_is_refused(declare, wrong):
    assert "manager: " in declare(manager=wrong)
    with pytest.raises(TypeError, match=r"write FlaskCachingCallbackManager\(cache\)"):
        dl.plugins.LongCallback(wrong)
    if not isinstance(wrong, flask_caching.Cache):
        with pytest.raises(dl.LongCallbackError, match=r"flask_caching\.Cache"):
            dl.FlaskCachingCallbackManager(wrong)


def test_one_target_may_stand_without_a_list_as_with_dash(serve, tab):
    app = serve(
        STEPS.replace(
            '[(Output("state", "children"), "running", "idle")]',
            '(Output("state", "children"), "running", "idle")',
        )
    )
    tab.open(app).click("#run")
    tab.shows("#state", "running")
    ended_once(tab, app)


NO_CACHE = PREAMBLE.replace(
    'Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "cache"})', "Cache()"
)
NO_PLUGIN = "app = dash.Dash(__name__)\n    server = app.server"
LATE = {
    "a cache without configuration": (NO_CACHE, "write Cache(config="),
    "an app without the plugin": (
        PREAMBLE.replace(
            "app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])",
            "app = dash.Dash(__name__)",
        ),
        "the app has no plugins.LongCallback",
    ),
}


@pytest.mark.parametrize("what", LATE)
def test_a_mistake_that_is_known_at_the_first_click_shows_there(serve, tab, what):
    preamble, words = LATE[what]
    app = serve(STEPS.replace("app.long_callback", "dl.long_callback"), preamble)
    tab.open(app).click("#run")
    says(tab, words)
    tab.shows("#state", "idle")


LOGGED = """
    import logging, signal
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
""" + STEPS.replace(
    'note("runs"',
    """if n_clicks == 2:
            raise ValueError("secret text")
        if n_clicks == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60 * (n_clicks > 3))
        note("runs\"""",
)


def test_the_lines_of_a_job_in_the_log_have_its_number(serve, tab):
    app = serve(LOGGED, IDLE)
    tab.open(app)

    def logged(words, before):
        """Wait for a line of this kind; return the job's number in it."""
        line = rf"longcallback: app\.compute ([0-9a-f]{{8}}): {words}"
        return wait_for(lambda: re.search(line, app.log[before:]), what=words)[1]

    for end in ("ended in [0-9.]+ s", "failed: secret text", "failed: .* by SIGKILL"):
        before = len(app.log)
        tab.click("#run")
        assert logged("started", before) == logged(end, before)
        tab.shows("#state", "idle")
    for end, act in (
        ("cancelled", lambda: tab.click("#cancel")),
        ("given up, since nobody asks for it", tab.close),
    ):
        before = len(app.log)
        tab.click("#run")
        number = logged("started", before)
        tab.shows("#state", "running")
        act()
        assert number == logged(end, before)


def test_celery_workers_log_the_lines_of_a_job(redis_site, tab):
    (worker,) = redis_site.workers
    run(tab.open(redis_site), "logged")
    tab.shows("#result", "logged 1")
    line = r"app\.compute ([0-9a-f]{8}): "
    begun = wait_for(lambda: re.findall(line + "started", worker.log), what="a line")[
        -1
    ]
    wait_for(lambda: f"{begun}: ended in " in worker.log, what="the end in the log")


# --- The README's picture: python test_longcallback.py picture -------------------------

BROWSER_BAR = """
    <style>
      body { margin: 0; height: 44px; display: flex; align-items: center; gap: 14px;
        padding: 0 16px; background: #e4e8ed; font: 15px system-ui, sans-serif; }
      #reload { font-size: 22px; width: 32px; text-align: center;
        border-radius: 16px; color: #46525f; }
      #reload.Refresh { color: #fff; background: #2457b3; }
      #address { flex: 1; padding: 5px 14px; border-radius: 14px; background: #fff;
        color: #46525f; }
      #what { width: 250px; color: #1f2933; font-weight: 600; text-align: right; }
    </style>
    <body><span id="reload">&#8635;</span>
    <span id="address">http://127.0.0.1:8050/4</span><span id="what"></span></body>"""
FOCUS = "#progress_run:enabled:hover { outline: 4px solid #8fb1ef }"


def picture():
    """Film a real run of the examples, with a refresh, for the README (with Pillow)."""
    from PIL import Image

    frames = []  # [image, milliseconds]

    def shoot(seconds, what):
        """Add a frame: the bar says what happens, the page is as it is now."""
        bar.evaluate("text => { what.textContent = text }", what)
        bar.evaluate("on => { reload.className = on }", what.split()[:1])
        parts = [Image.open(io.BytesIO(p.screenshot())) for p in (bar, page)]
        image = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
        image.paste(parts[0])
        image.paste(parts[1], (0, parts[0].height))
        if not frames or image.tobytes() != frames[-1][0].tobytes():
            frames.append([image, 0])
        frames[-1][1] += round(1000 * seconds)

    def watch(until, what):
        """Add frames, each as long as it took, until something holds."""
        while not until():
            before = time.monotonic()
            shoot(0, what)
            page.wait_for_timeout(50)
            frames[-1][1] += round(1000 * (time.monotonic() - before))

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        app = Examples(folder)
        stack.callback(app.stop)
        playwright = stack.enter_context(playwright_api.sync_playwright())
        browser = stack.enter_context(launch(playwright.chromium))
        context = browser.new_context(device_scale_factor=1.5, color_scheme="light")
        bar, page = context.new_page(), context.new_page()
        bar.set_viewport_size({"width": 1100, "height": 44})
        bar.set_content(BROWSER_BAR)
        page.set_viewport_size({"width": 1100, "height": 600})
        page.goto(f"{app.url}/4")
        page.wait_for_selector("pre code .hljs-keyword")
        shoot(1.2, "")
        page.add_style_tag(content=FOCUS)
        page.hover("#progress_run")
        shoot(0.6, "Click Run")
        page.click("#progress_run")
        page.wait_for_selector("#progress_bar[value]")
        moved = page.locator("#progress_bar[value='4'], #progress_bar[value='5']")
        watch(moved.count, "The job runs")
        shoot(0.5, "Refresh")
        page.reload(wait_until="commit")
        watch(page.locator("#progress_bar[value]").is_visible, "Refresh")
        result = page.locator("#progress_result", has_text="Clicked")
        watch(result.is_visible, "The job has gone on")
        shoot(2.5, "The result is there")
    (first, *others), durations = zip(*frames)
    options = {"save_all": True, "loop": 0, "lossless": True, "method": 6}
    target = Path(HERE, ".github", "run.webp")
    first.save(target, append_images=others, duration=durations, **options)


# --- The benchmark: python test_longcallback.py ---------------------------------------

DASHS_PREAMBLE = """
    import functools, os, time
    import dash, diskcache
    from dash import DiskcacheManager, Input, Output, State, dcc, html

    manager = DiskcacheManager(diskcache.Cache("diskcache"))
    app = dash.Dash(__name__, background_callback_manager=manager)
    server = app.server
    declare = functools.partial(app.callback, background=True)
"""
ON_CELERY = """
    import functools, os, time
    import celery, dash
    import longcallback as dl
    from dash import CeleryManager, Input, Output, State, dcc, html

    url = os.environ["REDIS"]
    celery_app = celery.Celery(__name__, broker=url, backend=url)
    celery_app.conf.task_default_queue = os.environ["QUEUE"]
"""
OUR_CELERY = """
    manager = dl.CeleryCallbackManager(celery_app)
    app = dash.Dash(__name__, plugins=[dl.plugins.LongCallback(manager)])
    server = app.server
    declare = app.long_callback
"""
DASHS_CELERY = """
    app = dash.Dash(__name__, background_callback_manager=CeleryManager(celery_app))
    server = app.server
    declare = functools.partial(app.callback, background=True)
"""
BY_PROCESS = {
    "ours": PREAMBLE + "    declare = app.long_callback\n",
    "Dash's": DASHS_PREAMBLE,
}
BY_CELERY = {"ours": ON_CELERY + OUR_CELERY, "Dash's": ON_CELERY + DASHS_CELERY}
TIMED = """
    ballast = b"x" * (int(os.environ.get("BALLAST", "0")) * 1_000_000)
    app.layout = html.Div([
        html.Button("Run", id="run"), dcc.Input(id="seconds", type="number", value=0),
        dcc.Store(id="data"), html.P(id="result"),
    ])

    @declare(Output("result", "children"), Input("run", "n_clicks"),
             State("seconds", "value"), State("data", "data"), prevent_initial_call=True)
    def job(n_clicks, seconds, data):
        time.sleep(seconds)
        return str(n_clicks)
"""
EIGHT = """
    names = [f"result{number}" for number in range(8)]
    app.layout = html.Div([html.Button("Run", id="run"),
                           *[html.P(id=name) for name in names]])

    def job(n_clicks, name):
        time.sleep(10)
        return "done"

    for name in names:
        declare(Output(name, "children"), Input("run", "n_clicks"), State(name, "id"),
                prevent_initial_call=True)(job)
"""
OVERHEAD = """async ([seconds, text]) => {
    dash_clientside.set_props("seconds", {value: seconds});
    await new Promise((done) => setTimeout(done, 300));
    const start = performance.now();
    document.getElementById("run").click();
    while (document.getElementById("result").innerText !== text)
        await new Promise((done) => setTimeout(done, 2));
    return performance.now() - start - seconds * 1000;
}"""


def overheads(tab, durations, first):
    """Run a job of each duration; return their overheads in ms, and the requests."""
    asked = len(tab.requests)
    values = [
        tab.page.evaluate(OVERHEAD, [seconds, str(number)])
        for number, seconds in enumerate(durations, first)
    ]
    tab.page.wait_for_timeout(500)  # for the acknowledgement
    return values, len(tab.requests) - asked


def cpu_seconds(app):
    """CPU time that an app's server processes have used, without its jobs."""
    servers = [app.process.pid]
    if "gunicorn" in app.command:
        servers = children(app.process.pid)
    ticks = 0
    for pid in servers:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class DashsClient(Client):
    """A page that runs Dash's own background callback in the app TIMED."""

    def start(self, seconds):
        self.body = {
            "output": "result.children",
            "outputs": {"id": "result", "property": "children"},
            "inputs": self.call()["inputs"],
            "changedPropIds": ["run.n_clicks"],
            "state": timed_states(seconds),
        }
        self.query = ""
        answer = self.ask()
        self.query = f"?cacheKey={answer['cacheKey']}&job={answer['job']}"

    def ask(self):
        path = f"/_dash-update-component{self.query}"
        status, answer = self.request("POST", path, json.dumps(self.body))
        assert status == 200, (status, answer)
        return json.loads(answer)

    def pause(self, age):
        return 1.0


class OurClient(Client):
    """A page that runs our long callback in the app TIMED."""

    def start(self, seconds):
        self.jobs[self.keys[0]] = [self.new_job(), 0]
        call = {**self.call(), "state": timed_states(seconds)}
        return self.want(start=call)

    def ask(self):
        answer = self.want()
        assert answer["seen"] and not answer["outcome"], answer

    def pause(self, age):
        return min(1.0, 0.02 + 0.004 * (1000 * age) ** 0.5)


def timed_states(seconds):
    state = {"id": "seconds", "property": "value", "value": seconds}
    return [state, {"id": "data", "property": "data", "value": secrets.token_hex()}]


CLIENTS = {"ours": OurClient, "Dash's": DashsClient}


def crowd(make_client, url, tabs, ramp=5, seconds=12):
    """Let tabs start a job each and ask about it; return how long answers took."""
    took, errors, begin = [], [], time.monotonic()

    def be_a_tab(number):
        try:
            time.sleep(ramp * number / tabs)
            client, started = make_client(url), time.monotonic()
            client.start(seconds + 3 * ramp)
            while (now := time.monotonic()) < begin + ramp + seconds:
                time.sleep(client.pause(now - started))
                asked = time.monotonic()
                client.ask()
                if asked > begin + ramp:
                    took.append(1000 * (time.monotonic() - asked))
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=be_a_tab, args=[n]) for n in range(tabs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return took


class Bench:
    """Apps of ours and of Dash's own side by side, a browser, and Redis."""

    def __init__(self, stack):
        self.stack = stack
        playwright = stack.enter_context(playwright_api.sync_playwright())
        self.browser = stack.enter_context(launch(playwright.chromium))
        port = free_port()
        self.redis = f"redis://127.0.0.1:{port}/0"
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.callback(Program(redis_command(port), folder).stop)

    def serve(self, preambles, source, **options):
        """Return an app of each kind."""
        apps = {}
        for kind, preamble in preambles.items():
            folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
            write_app(folder, preamble, source, RUN)
            environment = {"REDIS": self.redis, "QUEUE": folder.name}
            environment.update(options.pop("environment", {}))
            apps[kind] = App(folder, environment, **options)
            self.stack.callback(apps[kind].stop)
            if preambles is BY_CELERY:
                worker = start_worker(folder, environment, 100, pool="threads")
                self.stack.callback(worker.stop)
        return apps

    def tab(self, app):
        return Tab(self.browser.new_context()).open(app)

    def overhead(self, title, preambles, rounds, jobs):
        chance = random.Random(1)
        durations = [round(0.05 * 160 ** chance.random(), 3) for _ in range(jobs)]
        mixes = {"0.05 to 8 s": durations, "instant": [0] * jobs}
        mixes["up to 1 s"] = [seconds for seconds in durations if seconds <= 1]
        found = {(mix, kind): [] for mix in mixes for kind in preambles}
        apps = self.serve(preambles, TIMED)
        tabs = {kind: self.tab(app) for kind, app in apps.items()}
        clicks = dict.fromkeys(tabs, 1)
        for _ in range(rounds):
            for (mix, kind), results in found.items():
                results.append(overheads(tabs[kind], mixes[mix], clicks[kind]))
                clicks[kind] += len(mixes[mix])
        print(f"\n{title}: overhead in ms, {rounds} alternating rounds of {jobs} jobs")
        print("jobs         whose    mean (rounds from to)   median   requests a job")
        for (mix, kind), results in found.items():
            means = [statistics.mean(values) for values, _ in results]
            values = [value for some, _ in results for value in some]
            requests = sum(count for _, count in results) / len(values)
            spread = f"({min(means):.0f} to {max(means):.0f})"
            print(
                f"{mix:12} {kind:8} {statistics.mean(values):4.0f} {spread:17} "
                f"{statistics.median(values):8.0f} {requests:10.1f}"
            )

    def cost(self, rounds):
        """Requests and CPU of the server while jobs of ten seconds run."""
        found = {}
        for _ in range(rounds):
            for kind, app in self.serve(BY_PROCESS, EIGHT).items():
                tab, used, asked = self.tab(app), cpu_seconds(app), time.monotonic()
                before = len(tab.requests)
                tab.click("#run")
                for number in range(8):
                    tab.shows(f"#result{number}", "done", timeout=30000)
                figures = [len(tab.requests) - before, cpu_seconds(app) - used]
                found.setdefault(("8 jobs in one page", kind), []).append(
                    [figure / (time.monotonic() - asked) for figure in figures]
                )
                tab.page.context.close()
            for kind, app in self.serve(BY_PROCESS, TIMED).items():
                tabs = [self.tab(app) for _ in range(6)]
                used, asked = cpu_seconds(app), time.monotonic()
                before = sum(len(tab.requests) for tab in tabs)
                for number, tab in enumerate(tabs):  # Dash's own mixes up equal calls
                    tab.fill("#seconds", str(10 + number / 100))
                    tab.click("#run")
                for tab in tabs:
                    tab.shows("#result", "1", timeout=30000)
                requests = sum(len(tab.requests) for tab in tabs) - before
                figures = [requests, cpu_seconds(app) - used]
                found.setdefault(("6 tabs with a job", kind), []).append(
                    [figure / (time.monotonic() - asked) for figure in figures]
                )
                for tab in tabs:
                    tab.page.context.close()
        print(f"\nWhile jobs of 10 s run, {rounds} alternating rounds")
        print("what                whose    requests/s    server's CPU %")
        for (what, kind), results in found.items():
            requests, cpu = zip(*results)
            spread = f"{100 * min(cpu):.1f} to {100 * max(cpu):.1f}"
            print(
                f"{what:19} {kind:8} {statistics.mean(requests):6.1f}     {spread:>14}"
            )

    def weight(self, jobs=20):
        """CPU of a server of 300 MB for an instant job, and bytes with 3 MB of input."""
        print(
            "\nwhose    CPU ms a job, server of 300 MB   largest and other requests, bytes"
        )
        for kind, app in self.serve(
            BY_PROCESS, TIMED, environment={"BALLAST": "300"}
        ).items():
            tab = self.tab(app)
            overheads(tab, [0], 1)
            used = cpu_seconds(app)
            overheads(tab, [0] * jobs, 2)
            used = (cpu_seconds(app) - used) * 1000 / jobs
            tab.evaluate("dash_clientside.set_props('data', {data: 'x'.repeat(3e6)})")
            before = len(tab.requests)
            overheads(tab, [5], jobs + 2)
            sizes = sorted(len(request.post_data) for request in tab.requests[before:])
            print(f"{kind:8} {used:22.0f} {sizes[-1]:25} {sizes[0]} to {sizes[-2]}")

    def growth(self, title, preambles):
        gunicorn = ["--workers", "2", "--threads", "8"]
        apps = self.serve(preambles, TIMED, gunicorn=gunicorn)
        print(f"\n{title}: answers to polls in ms, on two gunicorn workers")
        print("tabs  whose    polls  median   95th percentile")
        for tabs in (10, 30, 100):
            for kind, app in apps.items():
                took = crowd(CLIENTS[kind], app.url, tabs)
                *_, high = statistics.quantiles(took, n=20)
                median = statistics.median(took)
                print(f"{tabs:4}  {kind:8} {len(took):5} {median:7.1f} {high:17.1f}")


def benchmark(rounds=3, jobs=10):
    """Print the cost of jobs beside Dash's own, in alternating rounds."""
    print(f"Dash {dash.__version__}, Python {sys.version.split()[0]}")
    with contextlib.ExitStack() as stack:
        bench = Bench(stack)
        bench.overhead("A process a job", BY_PROCESS, rounds, jobs)
        bench.overhead("Celery on Redis", BY_CELERY, rounds, jobs)
        bench.cost(rounds)
        bench.weight()
        bench.growth("A process a job", BY_PROCESS)
        bench.growth("Celery on Redis", BY_CELERY)


if __name__ == "__main__":
    picture() if "picture" in sys.argv else benchmark()
