"""Run slow Dash callbacks in the background, and always learn how they ended.

    cache = Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"})
    manager = FlaskCachingCallbackManager(cache)
    app = dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       running=[(Output("run", "disabled"), True, False)])
    def compute(n_clicks):  # may take seconds or hours
        return f"Clicked {n_clicks} times"

A long callback is a Dash callback: in the page's graph stands a clientside callback
with the user's Outputs, Inputs and States, which returns the promise of the job's
result, and in the job's process Dash itself answers the request that the page would
have sent, in the app's own request context.

In between: a *page* is a tab with a secret token; each *job* that it wants has a random
number; both together name the job on the server, whose record of it is the truth. A
message says what the page wants and has seen; its answer brings what the page lacks. A
number that the server knows is not started again, an answer says of which number and
version it speaks, and a record is deleted only when a later message acknowledges the
result. So messages may be lost, late or repeated. A job runs for as long as it is
wanted, which a cancel, a new trigger or ``idle_timeout`` ends, and for as long as the
server process or the Celery worker lives that runs it.
"""

# mypy: disable-error-code="no-untyped-call,import-untyped"
from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import hashlib
import importlib
import inspect
import json
import logging
import multiprocessing
import multiprocessing.connection  # a fork may find another thread just importing it
import os
import pathlib
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, thread
from types import SimpleNamespace
from typing import Any

import dash
import flask
import flask.testing  # which each forked job would import anew
import flask_caching
from dash import _callback, _callback_context, _utils, _validate
from dash._grouping import flatten_grouping, make_grouping_by_index, map_grouping
from dash.dependencies import MATCH, handle_grouped_callback_args
from dash.exceptions import InvalidCallbackReturnValue, PreventUpdate

logger = logging.getLogger("longcallback")
_DASH = tuple(map(int, dash.__version__.split(".")[:2]))


class LongCallbackError(Exception):
    """A long callback is declared wrongly, or its job ended without a result."""

    def __str__(self) -> str:
        return str(self.args[0])  # what follows is a record, on its way from Celery

    __repr__ = __str__


# --- Dependencies: Dash's, and groupings of properties (an idea of Dash Labs) ---------


def _dependency(kind: Any, component_id: Any, properties: Any, **options: Any) -> Any:
    """Return a dependency of Dash; for a tuple or dict of properties, such of them."""
    make = functools.partial(kind, component_id, **options)
    if isinstance(properties, dict):
        return {name: make(property_) for name, property_ in properties.items()}
    if isinstance(properties, tuple):
        return tuple(map(make, properties))
    return make(properties)


Input = functools.partial(_dependency, dash.Input)
Output = functools.partial(_dependency, dash.Output)
State = functools.partial(_dependency, dash.State)


def _flatten(argument: str, kind: Any, dependencies: Any) -> list[Any]:
    flat = list(flatten_grouping(dependencies))
    for item in flat:
        if not isinstance(item, kind):
            raise TypeError(f"{argument}: {item!r} is not an {kind.__name__}")
    return flat


def _updates(argument: str, outputs: Any, values: Any) -> list[Any]:
    """Pair Outputs with values of their shape: [[component id, {property: value}]]."""
    flat = _flatten(argument, dash.Output, outputs)
    if values is None or _is_no_update(values):  # it stands for the value of each
        values = make_grouping_by_index(outputs, [values] * len(flat))
    if isinstance(outputs, (list, tuple)) and not isinstance(values, (list, tuple)):
        values = [values]
    try:
        pairs = zip(flat, flatten_grouping(values, outputs))
    except InvalidCallbackReturnValue:
        shape = map_grouping(str, outputs)
        raise ValueError(f"{argument}: {values!r} is not of shape {shape}") from None
    kept = [(o, v) for o, v in pairs if not _is_no_update(v)]
    return [[o.component_id_str(), {o.component_property: v}] for o, v in kept]


def _is_no_update(value: Any) -> bool:
    return isinstance(value, type(dash.no_update))


# --- Plugins: how an app gets the decorator, and answers its pages --------------------

_LONGEST = 30 * 24 * 3600  # seconds, which Memcached takes
_WAIT = 0.1  # seconds that an answer waits for news
_LOOK_PERIOD = 0.012  # seconds after which it looks for news of a job again
_REST = 8  # times as long as it took, after which a large record is read again
_GONE = """nobody knows of it any more: the server process that ran it is gone (gunicorn
ends one at HUP and --max-requests), the cache or result backend was emptied, the page
was silent for longer than idle_timeout, or, with rpc://, another web process sent its
task (use one, or a result backend that all can read)"""
_SILENCE = 150  # seconds without news after which a job is taken for dead
_SILENT = """its process has not been heard of for minutes: its worker, or the server
process that ran it is gone"""
_RELOAD = "the app has changed since this page was loaded: reload the page"
_GLOBAL = "plugins_LongCallback"  # by which an error names what an app lacks
_ENVIRON = ("HTTP_", "REMOTE_", "SERVER_", "PATH_", "QUERY_", "SCRIPT_", "wsgi.url_")
_plugins: dict[str, LongCallback] = {}  # by the key that their app has in every process
_callbacks: dict[str, _Callback] = {}  # by the key that they have in every process
_requests: set[int] = set()  # that this process is answering
_ended = deque[str](maxlen=1000)  # which no late message starts again
_arrivals = deque[Any](maxlen=200)  # when the last messages came, and of which page


def _with_inputs(args: Any = None, **options: Any) -> dict[str, Any]:
    """Return options of a callback with ``inputs``, Dash's name, for ``args``."""
    if args is not None:
        if "inputs" in options:
            raise TypeError("args and inputs name the same argument: write one of them")
        # A tuple is one argument, of several properties.
        options["inputs"] = [args] if isinstance(args, tuple) else args
    return options


class FlexibleCallbacks:
    """Dash plugin that gives ``app.callback`` the keyword ``args`` of Dash Labs."""

    def plug(self, app: Any) -> None:
        dashs = app.callback
        app.callback = lambda *args, **named: dashs(*args, **_with_inputs(**named))


class HiddenComponents:
    """Dash plugin that Dash Labs needed beside ``LongCallback``; it does nothing."""

    def plug(self, app: Any) -> None:
        pass


class LongCallback:
    """Dash plugin that gives an app ``app.long_callback``.

    Args:
        manager: A FlaskCachingCallbackManager or a CeleryCallbackManager.
        idle_timeout: Seconds without a message from a page after which its jobs are
            ended, since its tab must be closed; None for never. Browsers slow the
            timers of background tabs to one a minute: stay well above that.

    Raises:
        TypeError: ``manager`` is something else.
    """

    def __init__(self, manager: Any, idle_timeout: float | None = 600) -> None:
        self.manager = _check_manager(manager)
        self.idle_timeout = idle_timeout or _LONGEST

    def plug(self, app: Any) -> None:
        copy.copy(self)._plug(app)  # it may be plugged into other apps, too

    def _plug(self, app: Any) -> None:
        self.app = app
        self.key = _digest(app.config.requests_pathname_prefix, _stem(app.config.name))
        while self.key in _plugins:  # another app of the same factory
            self.key += "+"
        _plugins[self.key] = self
        bodies = (f.frame.f_globals for f in inspect.stack(0) if f[3] == "<module>")
        body = next(bodies, {"__name__": "__main__"})
        self.module = body["__name__"]  # a fresh process imports it
        app.long_callback = functools.partial(long_callback, _plugin=self)
        self.hidden = dash.html.Div([], hidden=True)
        app._extra_components += [self.hidden, _NoPlugin.hidden]
        self.layout_value, app._layout_value = app._layout_value, self._layout_value
        app._inline_scripts.append(f"({_JAVASCRIPT})('{self.key}')")
        tick = dash.ClientsideFunction(_GLOBAL, f'{_GLOBAL} ["tick"]')
        options = {"prevent_initial_call": True, "hidden": True}
        ticked = dash.Input(_NoPlugin.interval, "n_intervals")
        dash.Dash.clientside_callback(app, tick, ticked, **options)
        app._callback_list[-1]["persistent"] = True  # Dash 4 keeps it out of the title
        # The page's own requests; no browser is told of this callback.
        answer = dash.Output("longcallback", "answer")
        asked = answer, dash.Input("longcallback", "message")
        _callback.register_callback([], app.callback_map, True, *asked)(self._sync)

    def _layout_value(self) -> Any:
        """Return the layout with our components, which a DashProxy would leave out."""
        layout, ours = self.layout_value(), self.app._extra_components
        children = getattr(layout, "children", None)
        if isinstance(children, list) and children[1:] == ours:
            layout = children[0]  # which may be a list, to which Dash only adds them
        layout = layout if isinstance(layout, list) else [layout]
        return dash.html.Div([*layout, *ours], style={"display": "contents"})

    def _sync(self, message: Any) -> dict[str, Any]:
        """Answer a page's message: do what it wants, and say what it lacks.

        The answer waits a moment for news, if this process has nothing else to do, and
        tells how many other pages' messages came in a second, that it may ask less.
        """
        logger.disabled = False  # as dictConfig leaves those that exist
        page, wants, now = message["page"], message["jobs"], time.monotonic()
        asking = _digest(page)  # since a token that a browser names may have any size
        crowd = sum(now < at + 1 and other != asking for at, other in [*_arrivals])
        _arrivals.append((now, asking))
        environ = flask.request.environ if flask.has_request_context() else {}
        is_idle = environ.get("wsgi.multithread") and crowd < 4
        until = now + _WAIT * bool(is_idle)
        while True:
            looked = time.monotonic()
            jobs = {n: self._answer(page, n, want) for n, want in wants.items()}
            is_news = any(
                not answer or answer["seen"] > wants[n]["seen"] or answer["outcome"]
                for n, answer in jobs.items()
            )
            now = time.monotonic()
            if is_news or now > until:
                break
            pause = max(_LOOK_PERIOD * len(wants), _REST * (now - looked))
            time.sleep(min(pause, until - now))
            if len(_requests) > 1:  # others wait, maybe about the same jobs
                break
        return {"crowd": crowd, "jobs": jobs}

    def _answer(self, page: str, n: str, want: dict[str, Any]) -> Any:
        """Do what a page wants of a job, and return what the page lacks.

        None tells the page to forget the job; version 0, to say again what it wants.
        """
        job_id, key = _digest(page, n), n[:-32]  # what follows the key is random
        # A page reaches its own app's callbacks, and those declared without an app,
        # until Dash moves them at an app's first request.
        reachable = [*_callback.GLOBAL_CALLBACK_LIST, *self.app._callback_list]
        callback: Any = _callbacks.get(key)
        known = callback and callback.spec in reachable
        manager = (known and callback.manager) or self.manager
        name = callback.name if known else "a callback that is gone"
        try:
            if want["end"]:
                _ended.append(job_id)
                return manager.forget(job_id)
            if not known:
                return self._lacks(name, _record(_RELOAD), want)
            record = self._read(manager, job_id)
            if record is None and want["start"] and job_id not in _ended:
                call = {"body": want["start"], "environ": _environ()}
                manager.start(_Job(job_id, self, callback, call))
                record = manager.read(job_id, self.idle_timeout)
        except Exception as error:
            logger.exception("%s: its manager failed", name)
            text = error if isinstance(error, LongCallbackError) else "see the log"
            record = _record(f"its manager failed: {text}")
        if not want["seen"] and (record is None or job_id in _ended):
            return {"seen": 0, "outcome": None}
        return self._lacks(name, record or _record(_GONE), want)

    def _read(self, manager: Any, job_id: str) -> Any:
        """Return a job's record; one that is not renewed any more ends."""
        for pause in (0.5, 0):  # of a machine that slept, it is renewed now
            record = manager.read(job_id, self.idle_timeout)
            renewed = record and not record["outcome"] and record.get("renewed")
            if not renewed or time.time() < renewed + _SILENCE:
                return record
            time.sleep(pause)
        return _record(_SILENT)

    def _lacks(self, name: str, record: dict[str, Any], want: dict[str, Any]) -> Any:
        """Return what of a job's record its page has not seen."""
        outcome = record["outcome"]
        if outcome and "error" in outcome:
            text = f"{name}: {outcome['error']}"
            if "details" not in outcome:
                logger.warning("%s", text)
            elif self.app._dev_tools.get("ui"):  # they are not for everybody
                text += outcome["details"]
            outcome = {"error": text}
        heard = {True: want["shown"], False: want["seen"]}  # of progress, of the rest
        props = [entry[2:] for entry in record["log"] if entry[0] > heard[entry[1]]]
        return {"seen": record["version"], "props": props, "outcome": outcome}


class _NoPlugin:
    """Stands for that of the app which takes up what is declared without an app."""

    key, interval = "", dash.dcc.Interval(id=f"{_GLOBAL}-tick", max_intervals=1)
    hidden = dash.html.Div([interval], hidden=True)
    app: Any = SimpleNamespace(_callback_list=_callback.GLOBAL_CALLBACK_LIST)
    app.config = SimpleNamespace(prevent_initial_callbacks=False)


_classes = FlexibleCallbacks, HiddenComponents, LongCallback
plugins = SimpleNamespace(**{plugin.__name__: plugin for plugin in _classes})


@flask.request_started.connect
def _note_request(app: Any, **_: Any) -> None:
    _requests.add(id(flask.request.environ))


@flask.request_tearing_down.connect
def _note_its_end(app: Any, **_: Any) -> None:
    _requests.discard(id(flask.request.environ))


def _environ() -> dict[str, str]:
    """Return what a job may know of the present request, as in WSGI."""
    if not flask.has_request_context():  # but one of FastAPI or Quart
        headers = dash.ctx.headers.items()
        environ = {f"HTTP_{name.upper().replace('-', '_')}": v for name, v in headers}
        return {**environ, "PATH_INFO": "/_dash-update-component"}
    items = flask.request.environ.items()
    kept = {n: v for n, v in items if n.startswith(_ENVIRON) and isinstance(v, str)}
    kept.pop("HTTP_TRANSFER_ENCODING", None)  # the job gets the body whole
    return kept


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def _stem(module: str) -> str:
    """Return the last part of a module's name, by its file if it is run as a script."""
    if module in ("__main__", "__mp_main__"):
        return inspect.getmodulename(sys.argv[0]) or module
    return module.rpartition(".")[2]


# --- The decorator: how a long callback is declared -----------------------------------

_USAGE = """Write @app.long_callback(Output(...), Input(...),
running=[(Output(...), while_running, after)], cancel=[Input(...)],
progress=Output(...)); with progress, the function's first argument is set_progress"""
_GONE_KEYWORDS = """background=True goes without saying; cache_by, expire,
cache_args_to_ignore and cache_ignore_triggered are gone: put
@cache.memoize(timeout=...) on what the callback calls (README, "Reuse results")"""
_KEYWORDS = {"output", "inputs", "state", "on_error", "optional", "hidden"}
_KEYWORDS.add("prevent_initial_call")


def long_callback(
    *args: Any,
    interval: int = 1000,
    running: Any = None,
    cancel: Any = None,
    progress: Any = None,
    progress_default: Any = None,
    manager: Any = None,
    _plugin: Any = _NoPlugin,
    **options: Any,
) -> Callable[[Any], Any]:
    """Declare a callback that runs in the background (after Dash Labs).

    ``app.long_callback`` declares it for one app; this function, like
    ``dash.callback``, for the app that takes up what is declared without one.

    Args:
        *args, **options: What ``dash.callback`` takes; ``args`` stands for ``inputs``.
        interval: Longest time in milliseconds between two questions about a running
            job. Young jobs are asked about more often.
        running: A list of (Output, value while running, value after).
        cancel: An Input or a list of Inputs; any change of one ends the job.
        progress: An Output or a grouping of Outputs. The function's first argument is
            then ``set_progress``, which takes values of that shape, as one or several.
        progress_default: Values for ``progress`` after the run; None for all None.
        manager: Runs this callback's jobs in place of the plugin's manager.
        on_error: Called with the exception that the function raised, or with a
            LongCallbackError if the job's process died; returns values for the Outputs.

    Raises:
        LongCallbackError: The declaration has a mistake; the text names the callback.
    """
    parameters = locals()  # which become the attributes of a _Callback
    if len(args) == 1 and callable(args[0]):
        raise LongCallbackError(f"{_name(args[0])}: parentheses are missing. {_USAGE}")

    def decorate(function: Any) -> Any:
        try:
            _Callback(**parameters, function=function, name=_name(function)).declare()
        except Exception as error:
            text = f"@long_callback for {_name(function)}: {error}. {_USAGE}"
            raise LongCallbackError(text) from error
        return function

    return decorate


_dash_class: Any = dash.Dash  # which, without the plugin, names what Dash has instead
if not hasattr(_dash_class, "long_callback"):
    _without_plugin = functools.partial(long_callback, _plugin=None)
    _dash_class.long_callback = staticmethod(_without_plugin)


def _name(function: Any) -> str:
    """Return a readable name of a callable that is the same in every process."""
    if isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or "builtins"
    return f"{_stem(module)}.{named.__qualname__}"


class _Callback(SimpleNamespace):
    """A long callback, with the parameters of its declaration."""

    def declare(self) -> None:
        """Check the declaration, and add its callbacks and its Store to the page."""
        self._take_apart()
        self._set_targets()
        declared = self.outputs, self.inputs, self.states
        self.key = _digest(self._plugin.key, self.name, *declared)[:12]
        if self.key in _callbacks:
            text = "another callback has this name and these Inputs: give one function"
            text += " another __qualname__ (a notebook makes the app anew before)"
            raise ValueError(text)
        self._add_to_page()
        _callbacks[self.key] = self

    def _take_apart(self) -> None:
        """Find the dependencies, as Dash does, or raise what is wrong with them."""
        if not self._plugin:
            example = "dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])"
            raise TypeError(f"its app has no long callbacks: write {example}")
        self.options: Any = _with_inputs(**self.options)
        if unknown := sorted(self.options.keys() - _KEYWORDS):
            raise TypeError(f"it takes no {unknown}; {_GONE_KEYWORDS}")
        if self.manager is not None:
            _check_manager(self.manager)
        grouped = handle_grouped_callback_args(list(self.args), dict(self.options))
        self.output, self.inputs, self.states, indices, self.prevent = grouped
        self.outputs = flatten_grouping(self.output)
        self.cancels = _flatten("cancel", dash.Input, self.cancel or [])
        if self.progress is not None:
            values = [None] * len([*self.inputs, *self.states])
            args, named = _validate.validate_and_group_input_args(values, indices)
            with contextlib.suppress(ValueError):  # a compiled one has no signature
                inspect.signature(self.function).bind(None, *args, **named)

    def _set_targets(self) -> None:
        """Note what a run's begin and its end update, and all Outputs of it."""
        running = self.running or []
        running = running if isinstance(running, list) else [running]
        if not all(isinstance(t, (list, tuple)) and len(t) == 3 for t in running):
            raise TypeError(f"running: {running} is no list of (Output, value, after)")
        targets = [("running", *target) for target in running]
        if self.progress is not None:
            default = self.progress_default
            targets.append(("progress", self.progress, dash.no_update, default))
        self.on, self.off, self.targets = list[Any](), list[Any](), list[Any]()
        for argument, outputs, during, after in targets:
            self.on += _updates(argument, outputs, during)
            self.off += _updates(argument, outputs, after)
            self.targets += flatten_grouping(outputs)

    def _add_to_page(self) -> None:
        store = f"{_GLOBAL}-{self.key}"
        self._plugin.hidden.children.append(dash.dcc.Store(id=store))
        # It never changes, and tells callbacks with the same Inputs apart.
        own = store, "clear_data"
        names = sorted({n for o in self.outputs for n in _match_names(o)})
        options = {"interval": int(self.interval), "name": self.name}
        options.update(on=self.on, off=self.off)
        output = self.output if isinstance(self.output, dash.Output) else self.outputs
        written = [output, *self.inputs, *self.states]
        written += [] if self.outputs else [dash.State(*own)]
        self.spec = self._add("start", written, self.prevent, names, options)
        self.spec["optional"] = self.options.get("optional", False)
        shown = [_beside(self.outputs), dash.Input(store, "data")]
        self._add("show", shown, True, names)
        for item in self.outputs or self.inputs[:1]:  # each may come to the page alone
            coming = [_beside([item]), dash.Input(store, "storage_type")]
            self._add("come", coming, "initial_duplicate", names)
        targets = [o for o in dict.fromkeys(self.targets) if not o.has_wildcard()]
        if targets:  # never called, but lets Dash tell of an id that is not there
            self._add("unused", [_beside(targets), dash.Input(*own)], True)
        for item in self.cancels:
            cancelled = [_beside([item]), item, dash.Input(*own)]
            self._add("cancel", cancelled, True, names if _match_names(item) else [])

    def _add(self, action: str, dependencies: Any, prevent: Any, *args: Any) -> Any:
        """Add a callback to the page, and return what Dash tells browsers of it."""
        app, call = self._plugin.app, _utils.to_json([action, self.key, *args])
        # Its name is the call, so that a hot reload of the page brings a changed one.
        named = dash.ClientsideFunction(_GLOBAL, f"{_GLOBAL} {call}")
        # It is in no map of the server's, of which no browser asks for it.
        lists: Any = app._callback_list, {}, app.config.prevent_initial_callbacks, []
        options = {"prevent_initial_call": prevent, "hidden": True}
        _callback.register_clientside_callback(*lists, named, *dependencies, **options)
        return app._callback_list[-1]

    def entry(self, function: Any) -> Any:
        """Return what Dash keeps of this callback to dispatch to ``function``."""
        entries = dict[str, Any]()
        add = functools.partial(_callback.register_callback, [], entries)
        add("initial_duplicate", *self.args, **self.options)(function)
        return entries.popitem()[1]


def _match_names(dependency: Any) -> list[str]:
    id_ = dependency.component_id
    return [n for n in id_ if id_[n] is MATCH] if isinstance(id_, dict) else []


def _beside(items: Any) -> list[Any]:
    """Return Outputs to the properties of dependencies, beside other callbacks'."""
    return [dash.Output(i.component_id, i.component_property, True) for i in items]


# --- The job: what runs in its process ------------------------------------------------

_RENEWAL = 20  # seconds after which a job's record is stored anew
_PATCH = '"__dash_patch_update"'


def _record(error: str | None = None) -> dict[str, Any]:
    """Return a job's record: its log, a list of [version, whether it is progress,
    component id, {property: value}], and its outcome: None while it runs, then
    {"response": Dash's answer} or {"error": text}, with "details" if it was logged.

    A running job's has "renewed", a time; one that ended, "failure", a text to log.
    """
    return {"version": 1, "log": [], "outcome": {"error": error} if error else None}


class _Job(dict[str, Any]):
    """A run of a callback. (A dict only for Dash, which puts its set_props into one.)

    Args:
        job_id: Its name on the server, which begins its log lines.
        plugin, callback, call: What runs, in which app, and the page's request.
        send: Takes the record of the running job: when there is news (at most 20 times
            a second), and so that it isn't taken for dead.
    """

    def __init__(
        self, job_id: str, plugin: Any, callback: Any, call: Any, send: Any = None
    ) -> None:
        self.id, self.name, self.send = job_id, f"{callback.name} {job_id[:8]}", send
        self.plugin, self.callback, self.call = plugin, callback, call
        self.record, self.lock = _record(), threading.Lock()
        self.failure: str | None = None  # of an error, also one that on_error keeps

    def run(self, death: Exception | None = None) -> dict[str, Any]:
        """Run the function, or raise ``death`` in its place; return the record."""
        began, logger.disabled, self.death = time.monotonic(), False, death
        if not death:
            logger.info("%s: started", self.name)
            threading.Thread(target=self._report, daemon=True).start()
        try:
            outcome: Any = {"response": self._replay()}
        except PreventUpdate:
            outcome = {"response": ""}
        except (Exception, SystemExit) as error:  # none that ends a greenlet
            if isinstance(error, SystemExit) and error.code == signal.SIGTERM - 256:
                raise  # by which a Celery worker ends this process, and says why
            self._note(error)
            outcome = {"error": type(error).__name__, "details": f": {self.failure}"}
            if error is death:
                outcome = {"error": self.failure, "details": ""}
        if not self.failure:
            logger.info("%s: ended in %.1f s", self.name, time.monotonic() - began)
        with self.lock:
            self.record.update(outcome=outcome, failure=self.failure)
        return self.record

    def _note(self, error: BaseException) -> None:
        text = f"{error}\n\n{traceback.format_exc()}"
        self.failure = str(error) if error is self.death else text

    def _report(self) -> None:
        """Send the record when it is new, or was sent long ago, until the job's end."""
        sent = _state(self.record)
        while True:
            time.sleep(0.05)
            with self.lock:
                if self.record["outcome"]:
                    return
                if sent == (state := _state(self.record)):
                    continue
                try:
                    self.send({**self.record, "renewed": time.time()})
                except Exception as error:  # noqa: BLE001, tracebacks would be many
                    text = "%s: its progress could not be stored: %r"
                    logger.warning(text, self.name, error)
                sent = state

    def _replay(self) -> str:
        """Let Dash answer the page's request, and return its response."""
        app, output = self.plugin.app, secrets.token_hex()  # which no browser knows
        if not isinstance(app.server, flask.app.Flask):  # it is FastAPI's or Quart's
            server: Any = flask.Flask("longcallback")
            app = dash.Dash(server=server, on_error=app._on_error)
        app.callback_map[output] = self.callback.entry(self._answer)
        body = json.dumps({**self.call["body"], "output": output})  # Flask's would sort
        request = {"method": "POST", "data": body, "content_type": "application/json"}
        request["environ_overrides"] = self.call["environ"]
        try:
            with app.server.test_request_context(**request):
                text: str = app.server.dispatch_request().get_data(as_text=True)
                if getattr(flask.session, "modified", False):
                    what = "a job can't change the session"
                    logger.warning("%s: %s", self.callback.name, what)
        finally:
            del app.callback_map[output]
        return _check_patch(text)

    def _answer(self, *args: Any, **options: Any) -> Any:
        """Call the function, in the context that Dash has made for it."""
        context: Any = _callback_context.context_value.get()
        context.updated_props = self  # set_props calls __setitem__
        asyncio._set_running_loop(None)  # in which Dash may be dispatching
        if self.callback.progress is not None:
            args = (self._set_progress, *args)
        try:
            if self.death:
                raise self.death
            value = self.callback.function(*args, **options)
            return asyncio.run(value) if inspect.iscoroutine(value) else value
        except Exception as error:
            if not isinstance(error, PreventUpdate):
                self._note(error)
            raise

    def __setitem__(self, component_id: str, values: Any) -> None:
        self._add(component_id, values, False)

    def _add(self, component_id: str, values: Any, is_progress: bool) -> None:
        """Add set_props to the record; of older ones, what a Patch may need stays."""
        for name, value in values.items():
            if _is_no_update(value):
                continue
            text = _check_patch(str(_utils.to_json(value)))
            with self.lock:
                old, version = self.record["log"], self.record["version"] + 1
                if _PATCH not in text:
                    old = [e for e in old if e[2] != component_id or name not in e[3]]
                new = [version, is_progress, component_id, {name: json.loads(text)}]
                self.record.update(version=version, log=[*old, new])

    def _set_progress(self, *values: Any) -> None:
        outputs = self.callback.progress
        if isinstance(outputs, dash.Output) and len(values) != 1:
            raise TypeError(f"set_progress takes one value, not {values!r}")
        value = values[0] if len(values) == 1 else values
        for component_id, props in _updates("set_progress", outputs, value):
            self._add(component_id, props, True)


def _state(record: dict[str, Any]) -> tuple[int, float]:
    """Return what changes when a running job's record is to be stored again."""
    return record["version"], time.time() // _RENEWAL


def _log_failure(name: str, record: dict[str, Any]) -> None:
    if failure := record.get("failure"):
        logger.error("%s: failed: %s", name, failure)


def _check_patch(text: str) -> str:
    if _PATCH in text and _DASH < (3, 3):
        raise TypeError("a job can return or set a Patch with Dash 3.3 or newer")
    return text


# --- Managers: who keeps a job alive, and ends it -------------------------------------

_RESULT_KEPT = 24 * 3600  # seconds for which a result waits to be fetched
_WATCH_PERIOD = 0.25  # seconds
_INSTANT = 0.04  # seconds that the answer to a start waits for the job's end
_CORNER = "longcallback.__wz_cache"  # a folder
_FRESH = """: see the log. A fresh process runs a script anew, which has to have
app.run(...) below if __name__ == "__main__". If no module that its process imports
declares the callback, as in an app factory, use start_method="fork" """
_OTHER_CODE = """the worker has not imported it: it runs other code than the web server,
or has another requests_pathname_prefix"""


def _check_manager(manager: Any) -> Any:
    if not isinstance(manager, (FlaskCachingCallbackManager, CeleryCallbackManager)):
        kinds = "FlaskCachingCallbackManager(cache) or CeleryCallbackManager(app)"
        raise TypeError(f"manager: {manager!r} is none: write {kinds}")
    return manager


class FlaskCachingCallbackManager:
    """Runs each job in a process of its own and keeps records in Flask-Caching.

    The job's process tells its server by a pipe what is new. There, a thread stores it
    as the job's record, and ends the process and what it started when it isn't wanted
    any more: when the time at which its page asked for it is deleted or old.

    Args:
        flask_cache: A ``flask_caching.Cache`` with a configuration of a type that
            processes can share, such as FileSystemCache or RedisCache; ``init_app`` is
            not needed.
        start_method: "fork", "forkserver" or "spawn"; None for fork on Linux and
            Python's default elsewhere. Forked jobs start fastest and need not be
            importable, but a lock that another thread of the server held stays locked
            in them: libraries with threads of their own need another method.

    Raises:
        LongCallbackError: The cache can't be shared between processes.
    """

    def __init__(
        self, flask_cache: Any, start_method: str | None = None, **unknown: Any
    ) -> None:
        if unknown or not isinstance(flask_cache, flask_caching.Cache):
            text = f"it takes a flask_caching.Cache and start_method; {_GONE_KEYWORDS}"
            raise LongCallbackError(text)
        config: Any = flask_cache.config or {}
        kind = config.get("CACHE_TYPE", "null")
        kind = {"filesystem": "FileSystemCache", "redis": "RedisCache"}.get(kind, kind)
        if kind.lower().endswith(("null", "nullcache", "simple", "simplecache")):
            example = '{"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"}'
            text = f"jobs can't share a cache of type {kind}; write Cache(config="
            raise LongCallbackError(f"{text}{example})")
        # The clear() of a FileSystemCache passes over a name with this end.
        folder = os.path.abspath(os.path.join(config.get("CACHE_DIR") or "", _CORNER))
        prefix = "~" + (config.get("CACHE_KEY_PREFIX") or "")
        self._config = {**config, "CACHE_TYPE": kind, "CACHE_DIR": folder}
        self._config.update(CACHE_THRESHOLD=0, CACHE_KEY_PREFIX=prefix)
        self._swept = 0.0
        self._lock = threading.Lock()
        default = "fork" if sys.platform == "linux" else None
        self.context: Any = multiprocessing.get_context(start_method or default)
        self.forks = self.context.get_start_method() == "fork"
        self.connect()

    def connect(self) -> None:
        """Make a corner of the cache, which the user's entries and clear() spare."""
        app = flask.Flask("longcallback")
        corner = flask_caching.Cache(app, config=self._config)
        self.cache = app.extensions["cache"][corner]

    def set(self, name: str, value: Any, timeout: int = _RESULT_KEPT) -> None:
        if not self.cache.set(name, value, timeout=timeout):
            raise LongCallbackError("the cache takes no values; see its log")

    def read(self, job_id: str, idle_timeout: float) -> Any:
        """Return a job's record, or None if it is not known; note that it is wanted."""
        # In this order, since the outcome is stored before the other is deleted.
        wanted, record = self.cache.get(f"{job_id}-wanted"), self.cache.get(job_id)
        if record and record["outcome"]:
            return record
        if wanted and abs((now := time.time()) - wanted) > idle_timeout / 4:
            self.set(f"{job_id}-wanted", now, _LONGEST)
        return (record or _record()) if wanted else None

    def forget(self, job_id: str) -> None:
        self.cache.delete_many(f"{job_id}-wanted", job_id)

    def start(self, job: _Job) -> None:
        if multiprocessing.current_process().daemon:
            raise LongCallbackError("start the server's process with daemon=False")
        if self.forks and "gevent" in socket.socket.__module__:
            raise LongCallbackError('with gevent, write start_method="forkserver"')
        self._sweep()
        with self._lock:  # FileSystemCache.add looks first, then writes
            if not self.cache.add(f"{job.id}-wanted", time.time(), timeout=_LONGEST):
                return  # a message that said the same was faster
        watch = _Watch(self, job)
        watch.start()
        watch.ended.wait(_INSTANT)  # an instant job's result needs no second message

    def _sweep(self) -> None:
        """Remove from a FileSystemCache, once a day, what nobody fetched."""
        if folder := getattr(self.cache, "_path", None):
            os.makedirs(folder, exist_ok=True)
            if time.time() > self._swept + _RESULT_KEPT:
                self._swept = time.time()
                self.cache._remove_expired(self._swept)


class _Watch(threading.Thread):
    """Starts a job's process, and stores what it says until its end, or ends it."""

    def __init__(self, manager: Any, job: _Job) -> None:
        super().__init__(daemon=True)
        self.manager, self.job = manager, job
        self.stored, self.wanted, self.asked = (0, 0.0), 0.0, 0.0
        self.ended = threading.Event()  # and its end is stored
        self._store()
        module = getattr(job.callback.function, "__module__", "__main__")
        self.pipe, writer = manager.context.Pipe(False)
        names = (job.plugin.module, module), job.plugin.key, job.callback.key
        args = *names, job.call, job.id, writer
        process = manager.context.Process(target=_run_in_process, args=args)
        process.start()
        writer.close()
        self.process = process
        # A server's exit does not wait for its jobs, which end themselves.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]

    def run(self) -> None:
        unwanted, key = "", f"{self.job.id}-wanted"
        while not unwanted and not self.ended.is_set():
            self._hear()
            try:
                unwanted = self._why_unwanted(self.manager.cache.get(key))
                self._store()
            except Exception as error:  # noqa: BLE001, its traceback each time is much
                logger.warning("%s: it could not be stored: %r", self.job.name, error)
                if response := (self.job.record["outcome"] or {}).get("response"):
                    size = len(response)
                    text = f"its result of {size} bytes did not fit into the cache"
                    self.job.record = _record(text)
        if unwanted:
            logger.info("%s: %s", self.job.name, unwanted)
            self._kill()
        else:
            _log_failure(self.job.name, self.job.record)
        if unwanted or not self.manager.cache.get(key):  # while its end was stored
            self.manager.forget(self.job.id)
        else:
            self.manager.cache.delete(key)
        self.process.join()  # what the job has started may take its time

    def _hear(self) -> None:
        """Wait for what the job says, or for its end; or a while, if it has ended."""
        if self.job.record["outcome"]:
            time.sleep(_WATCH_PERIOD)
            return
        has_exited = self.process.exitcode is not None
        with contextlib.suppress(EOFError, OSError):
            if self.pipe.poll(_WATCH_PERIOD):
                self.job.record = self.pipe.recv()
                return
            if not has_exited:
                return
        self.process.join(10)
        self._kill()
        code = self.process.exitcode
        cause = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        text = f"its process ended by {cause} before it returned a result"
        if code == 1 and not self.manager.forks:
            text += _FRESH
        self.job.run(LongCallbackError(text))

    def _store(self) -> None:
        """Store the record if it is new, or was stored long ago."""
        record, state = self.job.record, _state(self.job.record)
        if state != self.stored or record["outcome"]:
            self.manager.set(self.job.id, {**record, "renewed": time.time()})
            self.stored = state
        if record["outcome"]:
            self.ended.set()

    def _why_unwanted(self, wanted: Any) -> str:
        now = time.monotonic()
        if wanted != self.wanted:  # a time, which stands while the machine sleeps
            self.wanted, self.asked = wanted, now
        # read() renews it when a quarter of idle_timeout is over.
        is_idle = now > self.asked + 1.25 * self.job.plugin.idle_timeout
        if wanted is None:
            return "cancelled"
        return "given up, since nobody asks for it" if is_idle else ""

    def _kill(self) -> None:
        """End the job's process, and what it started, but on Windows."""
        with contextlib.suppress(AttributeError, OSError):
            os.killpg(self.process.pid, signal.SIGKILL)  # it may have no group yet
        self.process.kill()
        self.process.join()


def _run_in_process(
    modules: Any, app_key: str, key: str, call: Any, job_id: str, pipe: Any
) -> None:
    """Prepare a process for a job, run it, and tell the server by a pipe."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that its group is what the job starts, and Ctrl-C spares it
    for sign in signal.valid_signals():
        if callable(signal.getsignal(sign)):
            signal.signal(sign, signal.SIG_DFL)
    _close_served_sockets()
    if "numpy.random" in sys.modules:  # as Python does with its own numbers
        sys.modules["numpy.random"].seed()
    # At exit, a job forked in a thread of a pool (gunicorn's) would wait for itself.
    thread._threads_queues.clear()  # type: ignore[attr-defined]
    # In a server's thread that is daemonic, those that it starts would be, too.
    threading.current_thread()._daemonic = False  # type: ignore[attr-defined]
    for module in modules:
        if key not in _callbacks or app_key not in _plugins:  # in a fresh process
            importlib.import_module(module)
    callback, plugin = _callbacks[key], _plugins[app_key]
    job = _Job(job_id, plugin, callback, call, pipe.send)
    parent = os.getppid()
    follow = callback.manager or plugin.manager, job_id, parent
    threading.Thread(target=_end_with_server, args=follow, daemon=True).start()
    try:
        pipe.send(job.run())
        is_heard = os.getppid() == parent
    except BrokenPipeError:
        is_heard = False
    if not is_heard:
        _end_with_server(*follow)
    for end in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
        end()  # pools (joblib's), for whose processes multiprocessing would wait before


def _close_served_sockets() -> None:
    """Close a fork's part in the server's port and in its connections to browsers."""
    ports, served = dict[int, Any](), set[Any]()
    for path in pathlib.Path("/proc/self/fd").glob("*"):  # on Linux
        if path.is_socket():
            number = int(path.name)
            # Without SOCK_NONBLOCK, Python might set the mode of the shared socket.
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            probe = socket.socket(type=kind, fileno=os.dup(number))
            with probe, contextlib.suppress(OSError):  # such as a kernel's crypto
                address: Any = probe.getsockname()
                ports[number] = address[1] if isinstance(address, tuple) else address
                if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    served.add(ports[number])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, port in ports.items():
        if port in served:
            os.dup2(nothing, number)


def _end_with_server(manager: Any, job_id: str, parent: int) -> None:
    """End this process, and what it started, when its server is gone; tell the page."""
    server = multiprocessing.parent_process()
    while os.getppid() == parent and server and server.is_alive():
        time.sleep(2 * _WATCH_PERIOD)
    try:
        manager.connect()  # since Memcached's clients don't notice a fork
        record = manager.cache.get(job_id)
        if not (record and record["outcome"]):
            manager.forget(job_id)
    finally:
        if hasattr(os, "killpg"):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)  # on Windows, what the job started goes on


class CeleryCallbackManager:
    """Runs each job as a task on a Celery worker that has imported the callback.

    Records are task states in the result backend. With ``rpc://``, only the process
    that sent a task can read them, so there may be one web process only.

    Args:
        celery_app: A ``celery.Celery`` with a result backend.
    """

    def __init__(self, celery_app: Any, **unknown: Any) -> None:
        from celery.backends.rpc import RPCBackend
        from celery.utils.functional import LRUCache

        if unknown:
            raise LongCallbackError(f"it takes a Celery app; {_GONE_KEYWORDS}")
        self._celery, self._rpc = celery_app, isinstance(celery_app.backend, RPCBackend)
        self._own = LRUCache(10_000)  # with rpc://, the records of this process
        self._limit = {"backlog_limit": 1_000_000} if self._rpc else {}  # messages
        self._thread = ThreadPoolExecutor(1)
        # Celery would try to reach a broker that is down for ever, unseen by anybody.
        options = {"max_retries": 1, "interval_start": 0}
        options.update(celery_app.conf.broker_transport_options)
        celery_app.conf.broker_transport_options = options
        task: Any = {"acks_late": False, "ignore_result": False, "typing": False}
        task.update(track_started=False, resultrepr_maxsize=0)  # logs no result
        task["throws"] = (LongCallbackError,)  # whose cause is in the log already
        task["store_eager_result"] = True
        self._task = celery_app.task(name="longcallback", **task)(self._work)

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call Celery, for rpc:// in the one thread that receives its results."""
        if not self._rpc:
            return function(*args, **options)
        return self._thread.submit(function, *args, **options).result()

    def start(self, job: _Job) -> None:
        if self._rpc:
            self._own[job.id] = job.record
        else:
            self._celery.backend.store_result(job.id, job.record, "PROGRESS")
        args, name = (job.plugin.key, job.callback.key, job.call), job.callback.name
        options: Any = {"task_id": job.id, "shadow": name, "argsrepr": name}
        self._call(self._task.apply_async, args, **options)

    def read(self, job_id: str, idle_timeout: float = 0) -> Any:
        try:
            return self._call(self._fetch, job_id)
        except OSError:  # the connection is older than the broker's restart
            return self._call(self._fetch, job_id)

    def _fetch(self, job_id: str) -> Any:
        """Return the record that a task's state tells, or None if it tells none."""
        record = self._celery.backend.get_task_meta(job_id, **self._limit)["result"]
        if isinstance(record, LongCallbackError):
            record = record.args[1]
        elif isinstance(record, KeyError):  # such as Celery's NotRegistered
            record = _record(_OTHER_CODE)
        elif isinstance(record, Exception):
            record = _record(f"{type(record).__name__}: {record}")
        if self._rpc and (record := record or self._own.get(job_id)):
            self._own[job_id] = record
        return record

    def forget(self, job_id: str) -> None:
        record = self.read(job_id)
        if record and not record["outcome"]:
            logger.info("Job %s: cancelled", job_id[:8])
            self._celery.control.revoke(job_id, terminate=True, signal="SIGKILL")
        self._own.pop(job_id, None)
        with contextlib.suppress(NotImplementedError):  # rpc:// before Celery 5.7
            self._call(lambda: self._celery.backend.forget(job_id))

    def _work(self, app_key: str, key: str, call: Any) -> dict[str, Any]:
        """Run a job; this is the task, on a worker."""
        from celery.exceptions import Ignore

        request, store = self._task.request, self._celery.backend.store_result
        report = functools.partial(store, request.id, state="PROGRESS", request=request)
        if not self._rpc and self._fetch(request.id) != _record():
            raise Ignore("it was cancelled, or another worker has taken it")
        job = _Job(request.id, _plugins[app_key], _callbacks[key], call, report)
        report({**_record(), "renewed": time.time()})
        record = job.run()
        _log_failure(job.name, record)
        if "error" in record["outcome"]:
            raise LongCallbackError(str(job.failure).partition("\n\n")[0], record)
        return record


# --- The page -------------------------------------------------------------------------

_JAVASCRIPT = """
((app) => {
  const PATIENCE = 4000;  // milliseconds after which an answer is first taken for lost
  const HANGS = 60_000;  // milliseconds in which an answer that has begun is there
  const RATE = 100;  // bytes a millisecond that a slow line carries
  const WAIT = 100;  // milliseconds that an answer may wait for news, as the server's
  const AWAY = [408, 425, 429, 502, 503, 504];  // status of a server that may be back
  const CROWD = 0.8;  // other pages' messages a second, above which a page asks less
  // A job has: slot, its callback's key and MATCH values, unless it is to end; path, at
  // which its Outputs are, if it has any; seen, the version heard of; shown, that of
  // the progress in the page; settle, which settles its promise. Where another object
  // takes its place, the answer that is under way is not heard.
  const fresh = {shown: 0, refused: 0, outcome: null, settle: null};
  const asked = new Set();  // the jobs that a question is under way about
  const shown = {};  // what show() has just shown of a slot, which is no trigger for it
  const name = "longcallback-" + app;
  let memory = {}, cookies = () => "", failures = 0, youngest = 0, timer;
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)),
    (byte) => byte.toString(16).padStart(2, "0")).join("");
  const leave = () => { throw dash_clientside.PreventUpdate; };
  const state = () => dash_stores[0].getState();
  const address = () => location.pathname + location.search;
  const parse = (text) => text.startsWith("{") ? JSON.parse(text) : text;
  const textOf = (id) =>
    typeof id === "string" ? id : JSON.stringify(id, Object.keys(id).sort());
  // It was not triggered: start() has just promised its result, as the Outputs came.
  const isOfLoad = ({settle, start}) => settle && start?.changedPropIds.length === 0;
  const isHere = ({path}) => !path || path === address();  // others may have such ids
  const jobsOf = (key) => Object.values(jobs).filter(({slot}) => slot?.startsWith(key));

  try {
    memory = sessionStorage;  // which belongs to one tab
    cookies = () => document.cookie;
  } catch (error) {
    console.warn("A sandboxed frame has no storage and cookies: " + error);
  }
  let {page, jobs} = JSON.parse(memory[name] || "null") || {page: random(), jobs: {}};
  delete memory[name];  // a tab opened from this one has a copy
  const save = () => {
    const kept = {};
    for (const job of Object.values(jobs)) {
      const size = JSON.stringify(job.start)?.length;  // there is room for 5 MB
      const start = job.seen || size > 1e6 ? null : job.start;
      const path = job.settle ? address() : job.path;
      kept[job.n] = {...job, ...fresh, start, path};
    }
    memory[name] = JSON.stringify({page, jobs: kept});
  };
  document.addEventListener("visibilitychange", () => {
    if (page && document.hidden) save();  // since it may be discarded
    else if (page) delete memory[name];
  });
  addEventListener("pagehide", () => {
    if (!Object.keys(jobs).length) return;
    save();
    [page, jobs] = [null, {}];  // if the browser keeps this page, another may have them
  });
  addEventListener("pageshow", () => page || location.reload());

  function instanceOf(names) {  // of a callback with MATCH: the values it stands for
    const output = [dash_clientside.callback_context.outputs_list].flat(2)[0];
    return Object.fromEntries(names.map((name) => [name, output.id[name]]));
  }
  function matching(id, instance) {  // what an id stands for in the page
    const {strs, objs} = state().paths;
    if (typeof id === "string") return strs[id] ? [id] : [];
    const names = Object.keys(id).sort();
    const fits = ({values}) => names.every((name, i) => id[name][0] === "ALL" ||
      values[i] === (id[name][0] === "MATCH" ? instance[name] : id[name]));
    return (objs[names.join()] || []).filter(fits).map(({values}) =>
      Object.fromEntries(names.map((name, i) => [name, values[i]])));
  }
  function apply({instance}, updates) {  // pass over what is not in the page
    for (const [text, props] of updates) {
      const ids = matching(parse(text), instance);
      ids.forEach((id) => dash_clientside.set_props(id, props));
    }
  }

  function resultOf(job, outputs) {  // or the promise of it
    if (job.outcome) return valuesFor(outputs, job);
    // What depends on the Outputs waits for them, as with Dash, and what they bring to
    // the page does not trigger what led to it. Dash runs twelve callbacks at a time.
    const promised = Object.values(jobs).filter(({settle}) => settle);
    if (promised.length > 7 || !job.outputs.length) leave();
    return new Promise((resolve, reject) => job.settle = {resolve, reject})
      .then(() => valuesFor(outputs, job));
  }
  function giveUp(job) {
    job.settle?.reject(dash_clientside.PreventUpdate);
    job.settle = null;
  }
  function end(job) {
    giveUp(job);
    jobs[job.n] = {...fresh, n: job.n, seen: 0};
    askIn(20);  // what happens in one moment goes into one message
  }

  function askIn(pause) {  // about all jobs that no question is under way about
    clearTimeout(timer);
    timer = setTimeout(() => {
      const open = Object.values(jobs).filter((job) => !job.outcome && !asked.has(job));
      if (open.length) send(open);
    }, pause);
  }
  async function send(batch, starts) {
    const began = performance.now(), wants = {};
    for (const job of batch) {
      const {n, slot, seen, shown, start} = job;
      wants[n] = {seen, shown, end: !slot, start: starts ? start : null};
      asked.add(job);
    }
    const isCurrent = (job) => asked.delete(job) && jobs[job.n] === job;
    try {
      const {crowd, jobs: answers} = await post({page, jobs: wants});
      failures = 0;
      batch.filter(isCurrent).forEach((job) => hear(job, answers[job.n]));
      askIn(pauseAfter(performance.now() - began, crowd));
    } catch ({message, cause}) {
      console.warn("A message about long callbacks failed: " + message);
      failures += 1;
      const rest = began + PATIENCE - performance.now();
      await new Promise((resolve) => setTimeout(resolve, rest));
      const refused = batch.filter((job) => isCurrent(job) && cause && !starts);
      refused.forEach((job) => refuse(job, message));
      askIn(0);
    }
  }
  function pauseAfter(took, crowd) {
    const open = Object.values(jobs), age = performance.now() - youngest;
    const factor = 22 * Math.max(open.length ** 1.5, crowd / CROWD);
    // After 20 ms at first, each question then waits 11 ms longer than the one before.
    const wait = Math.sqrt((20 + WAIT) ** 2 + factor * age) - WAIT;
    const intervals = open.map(({interval = 1000}) => interval);
    return Math.max(Math.min(wait, ...intervals), took - WAIT);
  }
  async function post(value) {  // as Dash sends a change; return the answer
    const {config, hooks} = state(), headers = headersOf(config);
    const inputs = [{id: "longcallback", property: "message", value}];
    const outputs = {id: "longcallback", property: "answer"};
    const body = JSON.stringify({output: "longcallback.answer", outputs, inputs});
    const hung = new AbortController(), {signal} = hung;
    const limit = (ms) => setTimeout(() => hung.abort(Error("it is not answered")), ms);
    const timeout = limit(PATIENCE * 2 ** Math.min(failures, 3) + body.length / RATE);
    const options = {...config.fetch, method: "POST", headers, body, signal};
    const url = config.requests_pathname_prefix + "_dash-update-component";
    const response = await fetch(url, options);
    clearTimeout(timeout);
    const stalls = limit(HANGS + response.headers.get("Content-Length") / RATE);
    const status = response.redirected ? 302 : response.status;  // to a login page
    if (status === 401 && hooks.request_refresh_jwt) {  // for the next try
      const old = headers.Authorization?.slice("Bearer ".length) || null;
      const payload = {Authorization: "Bearer " + await hooks.request_refresh_jwt(old)};
      dash_stores[0].dispatch({type: "ADD_HTTP_HEADERS", payload});  // as Dash keeps it
    }
    const text = `the server refuses it with status ${status}`;
    if (status !== 200) throw Error(text, {cause: !AWAY.includes(status)});
    const told = await response.json().finally(() => clearTimeout(stalls));
    return told.response.longcallback.answer;
  }
  function headersOf(config) {
    const {csrf_token_name = "_csrf_token", csrf_header_name = "X-CSRFToken"} = config;
    const token = cookies().match(`(?:^|; )${csrf_token_name}=([^;]*)`);
    const csrf = token && {[csrf_header_name]: decodeURIComponent(token[1])};
    return {...config.fetch.headers, ...csrf};
  }
  function hear(job, lacks) {
    if (!job.slot) {
      if (!lacks) delete jobs[job.n];
    } else if (lacks.seen) {
      apply(job, lacks.props);
      Object.assign(job, {seen: lacks.seen, shown: lacks.seen, refused: 0});
      if (lacks.outcome) finish(job, lacks.outcome);
    } else {  // the message with its start was lost, or was refused
      const size = JSON.stringify(job.start).length;
      refuse(job, `the server answers, but not to its inputs (${size} bytes): they ` +
        "may be larger than it, or a proxy, allows");
      if (!job.outcome) send([job], true);
    }
  }
  function refuse(job, text) {  // what is refused too often is to end
    if (job.refused++ < 3) return;
    if (job.slot) finish(job, {error: `${job.name}: ${text}`}); else delete jobs[job.n];
  }
  function finish(job, outcome) {
    const isThere = job.outputs.some((id) => matching(id).length);
    const isRow = Object.keys(job.instance).length;
    if (!isThere) giveUp(job);  // as in come()
    job.outcome = outcome;
    apply(job, job.off);  // which may bring the Outputs back
    if (job.settle) job.settle.resolve();
    else if (isRow && !isThere && isHere(job)) end(job);  // it was deleted
    else if (isHere(job)) recall(job);
  }
  function recall(job) {  // let Dash call show()
    const store = "plugins_LongCallback-" + job.n.slice(0, -32);
    if (matching(store).length) dash_clientside.set_props(store, {data: job.n});
    else end(job);  // the app has changed, and has no such callback any more
  }
  function valuesFor(outputs, job) {
    const {outcome: {error, response}, start, slot} = job, byId = {};
    end(job);
    if (error) throw new Error(error);
    if (!response) leave();
    const values = JSON.parse(response).response || {};
    if (start) state().hooks.request_post?.(start, values);
    for (const [id, props] of Object.entries(values)) byId[textOf(parse(id))] = props;
    const pick = (output) => {
      if (Array.isArray(output)) return output.map(pick);
      const id = textOf(output.id), name = output.property.split("@")[0];
      if (!(name in (byId[id] || {}))) return dash_clientside.no_update;
      if (shown[slot]) shown[slot][id + "." + name] = JSON.stringify(byId[id][name]);
      return byId[id][name];
    };
    return outputs && pick(outputs);
  }

  const actions = {
    tick() {  // called once, a second after page load, for what a refresh left
      askIn(0);
      leave();
    },
    start(key, names, options) {
      const context = dash_clientside.callback_context, instance = instanceOf(names);
      const {outputs_list, inputs_list, states_list, triggered} = context;
      const slot = key + JSON.stringify(instance), own = shown[slot] || {};
      const isOwn = ({prop_id, value}) => own[prop_id] === JSON.stringify(value) ||
        own[prop_id]?.includes("__dash_patch_update");  // whose sum is not known here
      const changedPropIds = triggered.map(({prop_id}) => prop_id);
      delete shown[slot];
      if (triggered.length && triggered.every(isOwn)) leave();
      jobsOf(slot).forEach(end);
      const isOurs = ({id}) => String(id).startsWith("plugins_LongCallback-" + key);
      const states = states_list?.filter((state) => !isOurs(state));
      const start = {outputs: outputs_list, inputs: inputs_list, state: states,
        changedPropIds};
      state().hooks.request_pre?.(start);
      const outputs = [outputs_list || []].flat(2).map(({id}) => id);
      const n = key + random(), path = outputs_list && address(), seen = 0;
      const job = {...fresh, ...options, n, slot, instance, path, start, outputs, seen};
      jobs[n] = job;
      apply(job, job.on);
      youngest = performance.now();
      send([job], true);
      return resultOf(job, outputs_list);
    },
    cancel(key, names) {
      const {triggered} = dash_clientside.callback_context;
      const slot = key + (names.length ? JSON.stringify(instanceOf(names)) : "");
      for (const job of jobsOf(slot)) {
        const isStart = ({prop_id}) => job.start?.changedPropIds.includes(prop_id);
        if (triggered.every(isStart)) continue;  // start() ends it
        end(job);
        apply(job, job.off);
      }
      leave();
    },
    come(key, names) {  // called when an Output comes to the page
      const [job] = jobsOf(key + JSON.stringify(instanceOf(names)));
      if (!job || isOfLoad(job)) leave();
      giveUp(job);  // since Dash drops what is for Outputs that were away
      if (isHere(job)) {
        if (job.seen) jobs[job.n] = {...job, ...fresh};  // its progress comes again
        apply(job, job.on);
        recall(job);
        askIn(0);
      }
      leave();
    },
    show(key, names) {  // called by recall(), for all instances
      const slot = key + JSON.stringify(instanceOf(names)), [job] = jobsOf(slot);
      if (!job || isOfLoad(job) || !isHere(job)) leave();
      giveUp(job);  // since Dash drops the promise before
      shown[slot] = {};
      return resultOf(job, dash_clientside.callback_context.outputs_list);
    },
  };
  window.dash_clientside ??= {};
  dash_clientside.plugins_LongCallback = new Proxy(actions, {
    get(_, call) {
      const [action, ...args] = JSON.parse(call.slice(call.indexOf("[")));
      return () => actions[action](...args);
    },
  });
})
"""
