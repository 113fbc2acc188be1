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
wanted, which a cancel, a new trigger or ``idle_timeout`` ends.
"""

# mypy: disable-error-code="no-untyped-call,import-untyped"
from __future__ import annotations

import _socket  # as _thread, which gevent does not patch
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
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from _thread import start_new_thread  # which gevent makes no greenlet of later
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
from dash._grouping import flatten_grouping, map_grouping
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
    flat = [] if dependencies is None else list(flatten_grouping(dependencies))
    for item in flat:
        if not isinstance(item, kind):
            raise TypeError(f"{argument}: {item!r} is not an {kind.__name__}")
    return flat


def _updates(argument: str, outputs: Any, values: Any) -> list[Any]:
    """Pair Outputs with values of their shape: [[component id, {property: value}]]."""
    flat = _flatten(argument, dash.Output, outputs)
    if _is_no_update(values):
        return []
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
_REST = 8  # times as long as it took, after which a large record is read or stored
_GONE = """nobody knows of it any more: the server, cache or result backend was
restarted or emptied, the page was silent for longer than idle_timeout, or, with rpc://,
another web process sent its task (use one, or a result backend that all can read)"""
_RELOAD = "the app has changed since this page was loaded: reload the page"
_GLOBAL = "plugins_LongCallback"  # by which an error names what an app lacks
_ENVIRON = ("HTTP_", "REMOTE_", "SERVER_", "PATH_", "QUERY_", "SCRIPT_", "wsgi.url_")
_plugins: dict[str, LongCallback] = {}  # by the key that their app has in every process
_callbacks: dict[str, _Callback] = {}  # by the key that they have in every process
_shared_stores: list[Any] = []  # of the callbacks that were declared without an app
_requests: set[int] = set()  # that this process is answering
_ended = deque[str](maxlen=1000)  # which no late message starts again
_arrivals = deque[Any](maxlen=200)  # when the last messages came, and of which page


def _with_inputs(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a callback with ``inputs``, Dash's name, for ``args``."""
    if "args" not in options:
        return options
    if "inputs" in options:
        raise TypeError("args and inputs name the same argument: write one of them")
    args = options["args"]  # a tuple is one argument, of several properties
    inputs = [args] if isinstance(args, tuple) else args
    return {"inputs": inputs, **{k: options[k] for k in options if k != "args"}}


class FlexibleCallbacks:
    """Dash plugin that gives ``app.callback`` the keyword ``args`` of Dash Labs."""

    def plug(self, app: Any) -> None:
        callback = app.callback
        app.callback = lambda *args, **options: callback(*args, **_with_inputs(options))


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
        self.app, self.stores = app, list[Any]()
        self.key = _digest(app.config.requests_pathname_prefix, _stem(app.config.name))
        while self.key in _plugins:  # another app of the same factory
            self.key += "+"
        _plugins[self.key] = self
        bodies = (f.frame.f_globals for f in inspect.stack(0) if f[3] == "<module>")
        body = next(bodies, {"__name__": "__main__"})
        self.module = body["__name__"]  # a fresh process imports it
        app.long_callback = functools.partial(long_callback, _plugin=self)
        for stores in (self.stores, _shared_stores):
            hidden = dash.html.Div(stores, style={"display": "none"})
            app._extra_components.append(hidden)
        self.layout_value, app._layout_value = app._layout_value, self._layout_value
        # Dash calls its callback at page load. It does not tick, since that would wait
        # for other callbacks: Dash runs twelve at a time.
        tick: Any = dash.dcc.Interval(id=f"{_GLOBAL}-tick", disabled=True)
        self.stores.append(tick)
        # Dash 3 calls a callback at page load only if it has an Output.
        output = dash.Output(tick.id, "max_intervals")
        ticked = dash.Input(tick.id, "n_intervals")
        options = {"hidden": True, "prevent_initial_call": False}
        dash.Dash.clientside_callback(app, _JAVASCRIPT, output, ticked, **options)
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
            layout = children[0]
        if isinstance(layout, list):
            return [*layout, *ours]
        # Styles may be for the page's first component or its last child, and hooks for
        # a component; Dash 3 has no persistence in a list. A callback may replace what
        # is in one with an id.
        kinds = dash.html.Div, dash.html.Main, dash.html.Section
        if isinstance(layout, kinds) and not hasattr(layout, "id"):
            children, layout = getattr(layout, "children", []), copy.copy(layout)
            children = children if isinstance(children, (list, tuple)) else [children]
            layout.children = [*children[:-1], *ours, *children[-1:]]
            return layout
        return dash.html.Div([layout, *ours], style={"display": "contents"})

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
            record = manager.read(job_id, self.idle_timeout)
            if record is None and want["start"] and job_id not in _ended:
                call = {"body": want["start"], "environ": _environ()}
                manager.start(job_id, self, callback, call)
                record = manager.read(job_id, self.idle_timeout) or _record(_GONE)
        except Exception as error:
            logger.exception("%s: its manager failed", name)
            text = error if isinstance(error, LongCallbackError) else "see the log"
            record = _record(f"its manager failed: {text}")
        if not want["seen"] and (record is None or job_id in _ended):
            return {"seen": 0, "outcome": None}
        return self._lacks(name, record or _record(_GONE), want)

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
        props = [entry for entry in record["log"] if entry[0] > heard[entry[1]]]
        return {"seen": record["version"], "props": props, "outcome": outcome}


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
    if flask.has_request_context():
        items = flask.request.environ.items()
        kept = {n: v for n, v in items if n.startswith(_ENVIRON) and isinstance(v, str)}
        kept.pop("HTTP_TRANSFER_ENCODING", None)  # the job gets the body whole
        return kept
    headers = dash.ctx.headers.items()  # of FastAPI or Quart
    environ = {f"HTTP_{name.upper().replace('-', '_')}": v for name, v in headers}
    return {**environ, "PATH_INFO": "/_dash-update-component"}


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def _stem(module: str) -> str:
    """Return the last part of a module's name, by its file if it is run as a script."""
    if module in ("__main__", "__mp_main__"):
        return inspect.getmodulename(sys.argv[0]) or module
    return module.rpartition(".")[2]


# --- The decorator: how a long callback is declared -----------------------------------

_USAGE = """Write @app.long_callback(output=Output(...), args=Input(...) or a list or
dict, running=[(Output(...), while_running, after)], cancel=[Input(...)],
progress=Output(...), progress_default=value or values of its shape), and what else
dash.callback takes. With progress, the function's first argument is set_progress"""
_GONE_KEYWORDS = """background=True goes without saying; cache_by, expire,
cache_args_to_ignore and cache_ignore_triggered are gone: put
@cache.memoize(timeout=...) of the same Cache on what the callback calls (the README's
"Reuse results")"""
_KEYWORDS = {"output", "inputs", "state", "args", "prevent_initial_call", "hidden"}
_KEYWORDS.add("optional")


def long_callback(
    *args: Any,
    interval: int = 1000,
    running: Any = None,
    cancel: Any = None,
    progress: Any = None,
    progress_default: Any = None,
    manager: Any = None,
    on_error: Callable[[Exception], Any] | None = None,
    _plugin: Any = None,
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
    _without_plugin = functools.partial(long_callback, _plugin=False)
    _dash_class.long_callback = staticmethod(_without_plugin)


def _name(function: Any) -> str:
    """Return a readable name of a callable that is the same in every process."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or "builtins"
    return f"{_stem(module)}.{named.__qualname__}"


class _Callback(SimpleNamespace):
    """A long callback, with the parameters of its declaration."""

    def declare(self) -> None:
        """Check the declaration, and add its callbacks and its Store to the page."""
        self._check()
        plugin, outputs = self._plugin, self.outputs
        store: Any = dash.dcc.Store(id=f"{_GLOBAL}-{self.key}")
        (plugin.stores if plugin else _shared_stores).append(store)
        # It never changes, and tells callbacks with the same Inputs and Outputs apart.
        own = dash.Input(store.id, "clear_data")
        written = [self.output if self.single else outputs, *self.inputs, *self.states]
        if not outputs:
            apart = own
            if _DASH >= (4, 2):  # which would call it at page load for its Store
                apart = dash.Input(f"{store.id}-", "id", allow_optional=True)
            written = [*self.inputs, apart, *self.states]
        ids = [o.component_id for o in outputs if isinstance(o.component_id, dict)]
        names = sorted({name for id_ in ids for name in id_ if id_[name] is MATCH})
        options = {"interval": int(self.interval), "name": self.name}
        options.update(on=self.on, off=self.off)
        call = f"start('{self.key}', {names}, {_script(options)})"
        self.spec = self._add(call, written, self.prevent)
        self.spec["optional"] = self.options.get("optional", False)
        shown = [_beside(outputs), dash.Input(store.id, "data")]
        self._add(f"show('{self.key}', {names})", shown, True)
        if self.targets:  # never called, but lets Dash tell of an id that is not there
            self._add("unused", [_beside(self.targets), own], True)
        for item in self.cancels:
            values = item.component_id.values() if item.has_wildcard() else []
            call = f"cancel('{self.key}', {names if MATCH in values else []})"
            self._add(call, [_beside([item]), item, own], True)
        _callbacks[self.key] = self
        if plugin and getattr(plugin.app, "transforms", None):
            text = "%s: the transforms of dash-extensions do not reach it"
            logger.warning(text, self.name)

    def _check(self) -> None:
        """Take the declaration apart, as Dash does, or raise what is wrong with it."""
        if self._plugin is False:
            example = "dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])"
            raise TypeError(f"its app has no long callbacks: write {example}")
        if unknown := sorted(self.options.keys() - _KEYWORDS):
            raise TypeError(f"it takes no {unknown}; {_GONE_KEYWORDS}")
        if self.manager is not None:
            _check_manager(self.manager)
        self.options: Any = _with_inputs(self.options)
        grouped = handle_grouped_callback_args(list(self.args), dict(self.options))
        self.output, self.inputs, self.states, indices, self.prevent = grouped
        self.single = isinstance(self.output, dash.Output)
        output = [self.output] if self.single else self.output
        self.outputs = _flatten("output", dash.Output, output)
        self.entry(self.function)  # Dash's own checks
        self.cancels = _flatten("cancel", dash.Input, self.cancel)
        self._set_targets(len([*self.inputs, *self.states]), indices)
        declared = [*map(str, [*self.outputs, *self.inputs, *self.states])]
        self.key = _digest(self._plugin and self._plugin.key, self.name, declared)[:12]
        if self.key in _callbacks:
            text = "another callback has this name and these Inputs: give one function"
            text += " another __qualname__ (a notebook makes the app anew before)"
            raise ValueError(text)

    def _set_targets(self, count: int, indices: Any) -> None:
        """Note what a run's begin and its end update, and all Outputs of it."""
        self.on, self.off, targets = list[Any](), list[Any](), [self.progress]
        if self.progress is not None:
            args = _validate.validate_and_group_input_args([None] * count, indices)
            with contextlib.suppress(ValueError):  # a compiled one has no signature
                inspect.signature(self.function).bind(None, *args[0], **args[1])
            default = self.progress_default
            if default is None:
                default = map_grouping(lambda _: None, self.progress)
            self.off += _updates("progress", self.progress, default)
        running = [] if self.running is None else self.running
        listed = isinstance(running, (list, tuple))
        if not listed or (running and not isinstance(running[0], (list, tuple))):
            running = [running]  # as Dash takes it
        for target in running:
            if not isinstance(target, (list, tuple)) or len(target) != 3:
                raise TypeError(f"running: {target!r} is no (Output, value, after)")
            self.on += _updates("running", target[0], target[1])
            self.off += _updates("running", target[0], target[2])
            targets.append(target[0])
        flat = dict.fromkeys(o for t in targets for o in _flatten("", dash.Output, t))
        self.targets = [o for o in flat if not o.has_wildcard()]

    def entry(self, function: Any) -> Any:
        """Return what Dash keeps of this callback to dispatch to ``function``."""
        entries = dict[str, Any]()
        options = {**self.options, "on_error": self.on_error}
        add = functools.partial(_callback.register_callback, [], entries)
        add("initial_duplicate", *self.args, **options)(function)
        return entries.popitem()[1]

    def _add(self, call: str, dependencies: list[Any], prevent: Any) -> Any:
        """Add a callback to the page, and return what Dash tells browsers of it."""
        code = f"() => {_GLOBAL}.{call}"
        options = {"prevent_initial_call": prevent, "hidden": True}
        if self._plugin:
            app = self._plugin.app
            dash.Dash.clientside_callback(app, code, *dependencies, **options)
            return app._callback_list[-1]
        dash.clientside_callback(code, *dependencies, **options)
        return _callback.GLOBAL_CALLBACK_LIST[-1]


def _beside(items: list[Any]) -> list[Any]:
    """Return Outputs to the properties of dependencies, beside other callbacks'."""
    return [dash.Output(i.component_id, i.component_property, True) for i in items]


def _script(value: Any) -> str:
    """Return a value as JavaScript that can stand in an HTML page."""
    return str(_utils.to_json(value)).replace("<", "\\u003c")


# --- The job: what runs in its process ------------------------------------------------

_RENEWAL = 20  # seconds after which a job's record is stored anew
_PATCH = '"__dash_patch_update"'


def _with_traceback(error: BaseException) -> str:
    lines = traceback.format_exception(None, error, error.__traceback__)
    return f"{error}\n\n{''.join(lines)}"


def _record(error: str | None = None) -> dict[str, Any]:
    """Return a job's record: its log, a list of [version, whether it is progress,
    component id, {property: value}], and its outcome: None while it runs, then
    {"response": Dash's answer} or {"error": text}, with "details" if it raised.
    """
    return {"version": 1, "log": [], "outcome": {"error": error} if error else None}


class _Job(dict[str, Any]):
    """A run of a callback. (A dict only for Dash, which puts its set_props into one.)

    Args:
        job_id: Its name on the server, which begins its log lines.
        plugin, callback, call: What runs, in which app, and the page's request.
        store: Takes the job's record: when it starts, when there is news (at most 20
            times a second), and so that it doesn't expire.
    """

    def __init__(
        self, job_id: str, plugin: Any, callback: Any, call: Any, store: Any = None
    ) -> None:
        self.id, self.name, self.store = job_id, f"{callback.name} {job_id[:8]}", store
        self.plugin, self.callback, self.call = plugin, callback, call
        self.record, self.lock = _record(), threading.Lock()
        self.news = threading.Event()
        self.failure: Any = None  # an error, also one that on_error keeps, or its text
        self.process = os.getpid()

    def run(self, death: Exception | None = None) -> dict[str, Any]:
        """Run the function, or raise ``death`` in its place; return the record."""
        began, logger.disabled = time.monotonic(), False
        self.failure = death and str(death)
        if not death:
            logger.info("%s: started", self.name)
            threading.Thread(target=self._report, daemon=True).start()
        try:
            outcome: Any = {"response": self._replay(death)}
        except PreventUpdate:
            outcome = {"response": ""}
        except (Exception, SystemExit) as error:  # none that ends a greenlet
            if isinstance(error, SystemExit) and error.code == signal.SIGTERM - 256:
                raise  # by which a Celery worker ends this process, and says why
            outcome = {"error": self.failure, "details": ""}
            if error is not death:
                self.failure = error
                details = f": {_with_traceback(error)}"
                outcome = {"error": type(error).__name__, "details": details}
        if not self.failure:
            logger.info("%s: ended in %.1f s", self.name, time.monotonic() - began)
        with self.lock:
            self.record["outcome"] = outcome
        self.news.set()
        return self.record

    def log_failure(self) -> None:
        if failure := self.failure:
            info = failure if isinstance(failure, BaseException) else None
            logger.error("%s: failed: %s", self.name, failure, exc_info=info)

    def _replay(self, death: Exception | None) -> str:
        """Let Dash answer the page's request, and return its response."""

        def answer(*args: Any, **options: Any) -> Any:
            context: Any = _callback_context.context_value.get()
            context.updated_props = self  # set_props calls __setitem__
            loop = asyncio._get_running_loop()
            if death:
                raise death
            try:
                if self.callback.progress is not None:
                    args = (self._set_progress, *args)
                asyncio._set_running_loop(None)  # in which Dash may be dispatching
                value = self.callback.function(*args, **options)
                return asyncio.run(value) if inspect.iscoroutine(value) else value
            except PreventUpdate:
                raise
            except Exception as error:
                self.failure = error
                raise
            finally:
                asyncio._set_running_loop(loop)

        app, name = self.plugin.app, self.callback.name
        if not isinstance(app.server, flask.app.Flask):  # it is FastAPI's or Quart's
            server: Any = flask.Flask("longcallback")
            app = dash.Dash(server=server, on_error=app._on_error)
        output = secrets.token_hex()  # which no browser knows
        app.callback_map[output] = self.callback.entry(answer)
        body = json.dumps({**self.call["body"], "output": output})  # Flask's would sort
        request = {"method": "POST", "data": body, "content_type": "application/json"}
        request["environ_overrides"] = self.call["environ"]
        try:
            with app.server.test_request_context(**request):
                text: str = app.server.dispatch_request().get_data(as_text=True)
                if getattr(flask.session, "modified", False):
                    logger.warning("%s: a job can't change the session", name)
        finally:
            del app.callback_map[output]
        return _check_patch(text)

    def __setitem__(self, component_id: str, values: Any) -> None:
        self.add(component_id, values, False)

    def add(self, component_id: str, values: Any, is_progress: bool) -> None:
        """Add set_props to the record; of older ones, what a Patch may need stays."""
        if os.getpid() != self.process:
            text = "%s: a child process of the job can't set progress or props"
            logger.warning(text, self.name)
            return  # since its copy of the lock may be held for ever
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
        self.news.set()

    def _set_progress(self, *values: Any) -> None:
        outputs = self.callback.progress
        if isinstance(outputs, dash.Output) and len(values) != 1:
            raise TypeError(f"set_progress takes one value, not {values!r}")
        value = values[0] if len(values) == 1 else values
        for component_id, props in _updates("set_progress", outputs, value):
            self.add(component_id, props, True)

    def _report(self) -> None:
        """Store the record when there is news, until the job's end."""
        took = 0.0
        while True:
            time.sleep(max(0.05, _REST * took))
            self.news.clear()
            with self.lock:
                if self.record["outcome"]:
                    return
                began = time.monotonic()
                try:
                    self.store({**self.record, "renewed": time.time()})
                except Exception as error:  # noqa: BLE001, its traceback each time is much
                    text = "%s: its progress could not be stored: %r"
                    logger.warning(text, self.name, error)
                took = time.monotonic() - began
            self.news.wait(_RENEWAL)


def _check_patch(text: str) -> str:
    if _PATCH in text and _DASH < (3, 3):
        raise TypeError("a job can return or set a Patch with Dash 3.3 or newer")
    return text


# --- Managers: who keeps a job alive, and ends it -------------------------------------

_RESULT_KEPT = 24 * 3600  # seconds for which a result waits to be fetched
_LEASE = 60  # seconds for which a job is believed to be alive, which may hold the GIL
_WATCH_PERIOD = 0.25  # seconds
_INSTANT = 0.04  # seconds that the answer to a start waits for the job's end
_SILENCE = 150  # seconds without news after which a Celery worker is taken for dead
_CORNER = "longcallback.__wz_cache"  # a folder
_ORPHANED = "the server process that ran it is gone, or could not store its end"
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

    The job's process writes its record. A thread of the server process that started it
    keeps it alive, and ends it and what it started when it isn't wanted any more. When
    that server process is gone, a thread of the job does so, as long as the service
    lives: as somebody listens on the server's socket, such as gunicorn's master (on
    Linux; elsewhere a job ends with its server process).

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
        kind = config.get("CACHE_TYPE", "NullCache")
        kind = {"filesystem": "FileSystemCache", "redis": "RedisCache"}.get(kind, kind)
        name, folder = kind.rpartition(".")[2].lower(), config.get("CACHE_DIR")
        lost = name == "filesystemcache" and not folder
        if lost or name in ("null", "nullcache", "simple", "simplecache"):
            example = '{"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"}'
            text = f"jobs can't share a cache of type {kind}; write Cache(config="
            raise LongCallbackError(f"{text}{example})")
        # The clear() of a FileSystemCache passes over a name with this end.
        folder = os.path.abspath(os.path.join(folder or "", _CORNER))
        prefix = "~" + (config.get("CACHE_KEY_PREFIX") or "")
        self._config = {**config, "CACHE_TYPE": kind, "CACHE_DIR": folder}
        self._config.update(CACHE_THRESHOLD=0, CACHE_KEY_PREFIX=prefix)
        self._swept = 0.0
        self._lock = threading.Lock()  # FileSystemCache.add looks first, then writes
        default = "fork" if sys.platform == "linux" else None
        self._context: Any = multiprocessing.get_context(start_method or default)
        self._connect()

    def _connect(self) -> None:
        """Make a corner of the cache, which the user's entries and clear() spare."""
        app = flask.Flask("longcallback")
        corner = flask_caching.Cache(app, config=self._config)
        self._cache = app.extensions["cache"][corner]

    def _set(self, name: str, value: Any, timeout: int = _RESULT_KEPT) -> None:
        if not self._cache.set(name, value, timeout=timeout):
            raise LongCallbackError("the cache takes no values; see its log")

    def read(self, job_id: str, idle_timeout: float) -> Any:
        """Return a job's record, or None if it is not known; note that it is wanted."""
        # In this order, since the record is written before the others are deleted.
        keys = f"{job_id}-wanted", f"{job_id}-alive", job_id
        wanted, alive, record = map(self._cache.get, keys)
        if record and record["outcome"]:
            return record
        if not wanted:
            return None
        if abs((now := time.time()) - wanted) > idle_timeout / 4:
            self._set(f"{job_id}-wanted", now, _LONGEST)
        if not alive:
            time.sleep(2 * _WATCH_PERIOD)  # of a machine that slept, it is renewed now
            alive, record = map(self._cache.get, keys[1:])
            if not alive and not (record and record["outcome"]):
                return _record(_ORPHANED)
        return record or _record()

    def forget(self, job_id: str) -> None:
        self._cache.delete_many(f"{job_id}-wanted", job_id)

    def start(self, job_id: str, plugin: Any, callback: Any, call: Any) -> None:
        forks = self._context.get_start_method() == "fork"
        if multiprocessing.current_process().daemon:
            raise LongCallbackError("start the server's process with daemon=False")
        if forks and "gevent" in socket.socket.__module__:
            raise LongCallbackError('with gevent, write start_method="forkserver"')
        if folder := getattr(self._cache, "_path", None):
            os.makedirs(folder, exist_ok=True)
            if time.time() > self._swept + _RESULT_KEPT:
                self._swept = time.time()
                self._cache._remove_expired(self._swept)  # what nobody fetched
        self._set(f"{job_id}-alive", True, _LEASE)
        with self._lock:
            if not self._cache.add(f"{job_id}-wanted", time.time(), timeout=_LONGEST):
                return  # a message that said the same was faster
        modules = plugin.module, getattr(callback.function, "__module__", "__main__")
        ended, writer = self._context.Pipe(False)
        service = _service(os.getpid())
        args = modules, plugin.key, callback.key, call, writer, job_id, service
        process = self._context.Process(target=_run_in_process, args=args)
        process.start()
        writer.close()
        # A server's exit does not wait for its jobs, which end themselves.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        watched = _Job(job_id, plugin, callback, call), process, ended
        threading.Thread(target=self._watch, args=watched, daemon=True).start()
        ended.poll(_INSTANT)  # an instant job's result needs no second message

    def _watch(self, job: _Job, process: Any, ended: Any) -> None:
        """Keep a job alive until it ends; end its process if nobody wants it."""

        def runs() -> bool:
            return not ended.poll(_WATCH_PERIOD) and process.exitcode is None

        is_wanted = self._keep_alive(job, runs)
        with contextlib.suppress(EOFError):  # it died
            job.failure = ended.recv() if ended.poll() else None
        try:
            stored = is_wanted and self._cache.get(job.id)
            job.record.update(stored or {})  # a death keeps the progress beside it
            if not job.record["outcome"]:
                process.join(_LEASE / 6 if is_wanted else 0)
                _kill(process)
                self._cache.delete_many(job.id)
                if is_wanted and self._cache.get(f"{job.id}-wanted"):
                    self._set(job.id, job.run(self._death(process.exitcode)))
            job.log_failure()
            self._cache.delete_many(f"{job.id}-wanted", f"{job.id}-alive")
        except Exception:
            logger.exception("%s: its end could not be stored", job.name)
            self._cache.delete_many(f"{job.id}-alive")
        finally:
            process.join()  # what the job has started may take its time

    def _death(self, code: int) -> LongCallbackError:
        """Return the error of a process that ended without a result."""
        cause = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        text = f"its process ended by {cause} before it returned a result"
        if code == 1 and self._context.get_start_method() != "fork":
            text += _FRESH
        return LongCallbackError(text)

    def _keep_alive(self, job: _Job, runs: Any) -> bool:
        """Wait until a job does not run or is unwanted; return whether it is wanted."""
        before, renewed, changed = None, time.time(), time.monotonic()
        while runs():
            if job.record["outcome"]:
                continue  # what it started goes on
            try:
                if abs(time.time() - renewed) > _LEASE / 6:
                    renewed = time.time()
                    self._set(f"{job.id}-alive", True, _LEASE)
                wanted = self._cache.get(f"{job.id}-wanted")
                if wanted is None:
                    logger.info("%s: cancelled", job.name)
                    return False
                if wanted != before:  # a time, which stands while the machine sleeps
                    before, changed = wanted, time.monotonic()
                # read() renews it when a quarter of idle_timeout is over.
                if time.monotonic() > changed + 1.25 * job.plugin.idle_timeout:
                    logger.info("%s: given up, since nobody asks for it", job.name)
                    return False
            except Exception as error:  # noqa: BLE001, its traceback each time is much
                logger.warning("%s: it could not be kept alive: %r", job.name, error)
        return True

    def work(self, pipe: Any, job_id: str, service: Any, *what: Any) -> None:
        """Run a job in its own process, and say through a pipe how it ended."""
        parent = os.getppid()
        self._inherited = self._cache  # whose end would close the server's connection
        self._connect()  # since Memcached's clients don't notice a fork
        job = _Job(job_id, *what)
        job.store = functools.partial(self._set, job_id)
        start_new_thread(self._follow, (job, service))
        record = job.run()
        try:
            self._set(job_id, record)
        except Exception as error:  # noqa: BLE001, its text may name a server
            size = len(record["outcome"].get("response", ""))
            text = f"its result of {size} bytes did not fit into the cache"
            logger.error("%s: %s: %s", job.name, text, error)
            self._set(job_id, _record(text))
        if not self._cache.get(f"{job_id}-wanted"):
            self._cache.delete_many(job_id)  # it was forgotten while it was stored
        if os.getppid() == parent:  # the server, whose log handlers may have threads
            with contextlib.suppress(BrokenPipeError):
                pipe.send(job.failure and _with_traceback(job.failure))
                return
        job.log_failure()

    def _follow(self, job: _Job, service: Any) -> None:
        """Keep this process alive in its server's place; end it with the service."""
        parent, server = os.getppid(), self._context.parent_process()
        while os.getppid() == parent and server.is_alive():
            time.sleep(2 * _WATCH_PERIOD)

        def serves() -> bool:
            time.sleep(_WATCH_PERIOD)
            return _is_open(service)

        try:
            if not self._keep_alive(job, serves):
                self.forget(job.id)
            # So that its page learns of it at once.
            self._cache.delete_many(f"{job.id}-alive")
        finally:
            if hasattr(os, "killpg"):
                os.killpg(0, signal.SIGKILL)
            os._exit(1)  # on Windows, what the job started goes on


def _kill(process: Any) -> None:
    """End a job's process, and what it started, but on Windows."""
    with contextlib.suppress(AttributeError, ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # it may have no group of its own yet
    process.kill()
    process.join()


def _run_in_process(modules: Any, app_key: str, key: str, call: Any, *job: Any) -> None:
    """Prepare a process for a job, and run it."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that its group is what the job starts, and Ctrl-C spares it
    for sign in signal.valid_signals():
        if callable(signal.getsignal(sign)):
            signal.signal(sign, signal.SIG_DFL)
    # A forked process would hold the server's port, and leave a browser waiting.
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, _ in _served_sockets():
        os.dup2(nothing, number)
    if "numpy.random" in sys.modules:  # as Python does with its own numbers
        sys.modules["numpy.random"].seed()
    # In a server's thread that is daemonic, those that it starts would be, too.
    threading.current_thread()._daemonic = False  # type: ignore[attr-defined]
    # At exit, a job forked in a thread of a pool (gunicorn's) would wait for itself.
    thread._threads_queues.clear()  # type: ignore[attr-defined]
    for module in modules:
        if key not in _callbacks or app_key not in _plugins:  # in a fresh process
            importlib.import_module(module)
    callback, plugin = _callbacks[key], _plugins[app_key]
    manager = callback.manager or plugin.manager
    manager.work(*job, plugin, callback, call)
    for end in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
        end()  # pools (joblib's), for whose processes multiprocessing would wait before


def _served_sockets() -> list[tuple[int, bool]]:
    """Return the file numbers of a server's sockets, each with whether it listens."""
    found, folder = list[Any](), "/proc/self/fd"  # on Linux
    for number in map(int, os.listdir(folder) if os.path.isdir(folder) else []):
        with contextlib.suppress(OSError):  # it is closed, or no socket
            # Without SOCK_NONBLOCK, Python might set the mode of the shared socket.
            kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK
            probe = _socket.socket(type=kind, fileno=number)
            try:
                address: Any = probe.getsockname()
                port = address[1] if isinstance(address, tuple) else address
                listens = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                found.append((number, port, bool(listens)))
            finally:
                probe.detach()
    ports = {port for _, port, listens in found if listens}
    return [(number, listens) for number, port, listens in found if port in ports]


@functools.lru_cache(maxsize=1)  # since a recycled worker closes them before it ends
def _service(pid: int) -> set[str]:
    """Return the inodes of the sockets on which this process, a server, listens."""
    listening = [number for number, listens in _served_sockets() if listens]
    return {str(os.fstat(number).st_ino) for number in listening}


def _is_open(inodes: set[str]) -> bool:
    """Tell by Linux's tables whether any process has one of these sockets open."""
    for table in ("tcp", "tcp6", "unix"):
        with contextlib.suppress(OSError), open(f"/proc/net/{table}") as lines:
            if any(inodes.intersection(line.split()) for line in lines):
                return True
    return False


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
        self._task = celery_app.task(name="longcallback", **task)(self._work)

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call Celery, for rpc:// in the one thread that receives its results."""
        if not self._rpc:
            return function(*args, **options)
        return self._thread.submit(function, *args, **options).result()

    def _store(self, job_id: str, record: dict[str, Any]) -> None:
        if self._rpc:
            self._own[job_id] = record
        else:
            self._celery.backend.store_result(job_id, record, "PROGRESS")

    def start(self, job_id: str, plugin: Any, callback: Any, call: Any) -> None:
        self._store(job_id, _record())
        args, name = (plugin.key, callback.key, call), callback.name
        options: Any = {"task_id": job_id, "shadow": name, "argsrepr": name}
        options["retry_policy"] = {"max_retries": 1}  # in case of an old connection
        try:
            task = self._call(self._task.apply_async, args, **options)
        except Exception:
            self._drop(job_id)
            raise
        if self._celery.conf.task_always_eager:
            self._store(job_id, self._told(task.state, task.result))

    @staticmethod
    def _told(state: str, result: Any) -> Any:
        """Return the record that a task's state tells, or None if it tells none."""
        if isinstance(result, LongCallbackError):
            return result.args[1]
        if isinstance(result, KeyError):  # such as Celery's NotRegistered
            return _record(_OTHER_CODE)
        if state == "FAILURE":
            return _record(f"{type(result).__name__}: {result}")
        if state in ("REVOKED", "RETRY", "REJECTED"):
            return _record("its task was revoked, or its worker was stopped")
        return result if state in ("PROGRESS", "SUCCESS") else None

    def read(self, job_id: str, idle_timeout: float) -> Any:
        record = self._own.get(job_id)
        if record and record["outcome"]:
            return record

        def fetch() -> Any:
            backend = self._celery.backend  # of this thread
            return backend.get_task_meta(job_id, **self._limit)

        try:
            meta = self._call(fetch)
        except OSError:  # the connection is older than the broker's restart
            meta = self._call(fetch)
        record = self._told(meta["status"], meta["result"]) or record
        if record and self._rpc:
            self._own[job_id] = record
        if record and time.time() > record.get("renewed", time.time()) + _SILENCE:
            self._revoke(job_id)  # it may live, and be held up by a C call
            return _record(f"its worker has not been heard of for {_SILENCE} s")
        return record

    def forget(self, job_id: str) -> None:
        record = self.read(job_id, 0)
        if record and not record["outcome"]:
            logger.info("Job %s: cancelled", job_id[:8])
            self._revoke(job_id)
        self._drop(job_id)

    def _revoke(self, job_id: str) -> None:
        self._celery.control.revoke(job_id, terminate=True, signal="SIGKILL")

    def _drop(self, job_id: str) -> None:
        self._own.pop(job_id, None)
        with contextlib.suppress(NotImplementedError):  # rpc:// before Celery 5.7
            self._call(lambda: self._celery.backend.forget(job_id))

    def _work(self, app_key: str, key: str, call: Any) -> dict[str, Any]:
        """Run a job; this is the task, on a worker."""
        from celery.exceptions import Ignore

        request, store = self._task.request, self._celery.backend.store_result
        report = functools.partial(store, request.id, state="PROGRESS", request=request)
        if not self._rpc and self.read(request.id, 0) != _record():
            raise Ignore("it was cancelled, or another worker has taken it")
        callback, plugin = _callbacks[key], _plugins[app_key]
        report({**_record(), "renewed": time.time()})
        job = _Job(request.id, plugin, callback, call, report)
        record = job.run()
        job.log_failure()
        outcome = record["outcome"]
        if "error" in outcome:
            details = outcome.get("details", "").partition("\n\n")[0]
            raise LongCallbackError(outcome["error"] + details, record)
        return dict(record)


# --- The page -------------------------------------------------------------------------

_JAVASCRIPT = """
(() => {
  const PATIENCE = 3000;  // milliseconds after which an answer is first taken for lost
  const RATE = 100;  // bytes a millisecond that a slow line carries
  const HANGS = 40_000;  // milliseconds after which a message frees its connection
  const WAIT = 100;  // milliseconds that an answer may wait for news, as the server's
  const AWAY = [408, 425, 429, 502, 503, 504];  // status of a server that may be back
  const CROWD = 0.8;  // other pages' messages a second, above which a page asks less
  const shown = {};  // what show() has just shown of a slot, which is no trigger for it
  // A job has: slot, its callback's key and MATCH values, or null when it is to end;
  // due, when to ask about it; asked, when that was done, or 0; seen, the version heard
  // of; shown, that of the progress in the page; settle, which settles its promise.
  const fresh = {due: 0, asked: 0, tries: 0, refused: 0, answers: 0, shown: 0,
    outcome: null, settle: null, isPlaced: false};  // in a page that it is new to
  const over = {...fresh, slot: null, start: null, seen: 0};
  let page, jobs, known, timer, isOld;
  let memory = {}, cookies = () => "";
  const leave = () => { throw dash_clientside.PreventUpdate; };
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)),
    (byte) => byte.toString(16).padStart(2, "0")).join("");
  const state = () => dash_stores[0].getState();
  const nothing = {strs: {}, objs: {}};  // is in the page during a hot reload
  const paths = () => state().appLifecycle === "HYDRATED" ? state().paths : nothing;
  const parse = (text) => text.startsWith("{") ? JSON.parse(text) : text;
  const textOf = (id) => typeof id === "string" ? id : "{" + Object.keys(id).sort().map(
    (name) => JSON.stringify(name) + ":" + JSON.stringify(id[name])) + "}";
  const nameOf = ({id, property}) => textOf(id) + "." + property;
  const pathOf = ({pathname, search}) => pathname + search;
  const jobsOf = (key) => Object.values(jobs).filter(({slot}) => slot?.startsWith(key));

  function load() {  // what a refresh left in sessionStorage, which belongs to one tab
    if (page) return;
    try {
      memory = sessionStorage;
      cookies = () => document.cookie;
    } catch (error) {
      console.warn("A sandboxed frame has no storage and cookies: " + error);
    }
    const name = "longcallback" + state().config.requests_pathname_prefix;
    ({page, jobs} = JSON.parse(memory[name] || "null") || {page: random(), jobs: {}});
    delete memory[name];  // a tab opened from this one has a copy
    for (const [n, job] of Object.entries(jobs)) job.n = n;  // older versions had none
    const save = () => {
      const kept = {};
      for (const job of Object.values(jobs)) {
        const start = job.seen ? null : job.start;
        const path = job.isPlaced ? pathOf(location) : job.path;
        if (JSON.stringify(start).length > 1e6) continue;  // there is room for 5 MB
        kept[job.n] = {...job, ...fresh, start, path};
      }
      memory[name] = JSON.stringify({page, jobs: kept});
    };
    let left;  // what was saved when the page was left, to which one may return
    addEventListener("pagehide", () => {
      save();
      left = memory[name];
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) save();  // since it may be discarded
      else setTimeout(() => delete memory[name]);  // after pageshow
    });
    addEventListener("pageshow", ({persisted}) => {
      if (!persisted || memory[name] === left) return;
      [isOld, jobs, memory] = [true, {}, {}];  // another page of this tab has the jobs
      location.reload();
    });
    dash_stores[0].subscribe(() => setTimeout(look));  // as React may be at work now
    setTimeout(look);
    setTimeout(ask);
  }
  function look() {  // for jobs whose Outputs came to the page, or left it
    if (known === paths()) return;
    known = paths();
    for (const job of jobsOf("")) {
      const isThere = job.outputs.some((id) => matching(id, known).length);
      // Other addresses may have the same ids; an address changes before its page does.
      const isHere = job.path === pathOf(location);
      const isPlaced = isThere && (isHere || job.isPlaced);
      if (job.isPlaced === isPlaced) continue;
      job.isPlaced = isPlaced;
      giveUp(job);  // since Dash drops what is for Outputs that were away
      if (isPlaced) {
        if (!job.outcome) apply(job, job.on);
        recall(job);
        Object.assign(job, {shown: 0, due: 0, asked: 0});  // for its progress
        setTimeout(ask);
      } else if (Object.keys(job.instance).length && isHere && known !== nothing) {
        job.path = null;  // a row that was deleted: finish() ends the job
      }
    }
  }
  function instanceOf(names) {  // of a callback with MATCH: the values it stands for
    const output = [dash_clientside.callback_context.outputs_list].flat(2)[0];
    return Object.fromEntries(names.map((name) => [name, output.id[name]]));
  }
  function matching(id, {strs, objs}, instance) {  // what an id stands for in the page
    if (typeof id === "string") return strs[id] ? [id] : [];
    const names = Object.keys(id).sort();
    const fits = ({values}) => names.every((name, i) => id[name][0] === "ALL" ||
      values[i] === (id[name][0] === "MATCH" ? instance[name] : id[name]));
    return (objs[names.join()] || []).filter(fits).map(({values}) =>
      Object.fromEntries(names.map((name, i) => [name, values[i]])));
  }
  function apply({instance}, updates) {  // pass over what is not in the page
    for (const [text, props] of updates) {
      const ids = matching(parse(text), paths(), instance);
      ids.forEach((id) => dash_clientside.set_props(id, props));
    }
  }
  function giveUp(job) {
    job.settle?.reject(dash_clientside.PreventUpdate);
    job.settle = null;
  }
  function recall({n}) {  // let show() bring the result, or promise it
    const key = n.slice(0, -32);
    // Dash calls show() for all rows, and drops the promises that it had made.
    jobsOf(key).filter(({isRecalled}) => isRecalled).forEach(giveUp);
    dash_clientside.set_props("plugins_LongCallback-" + key, {data: n});
  }
  function resultOf(job, outputs, own) {  // or the promise of it
    if (job.outcome) return valuesFor(outputs, job, own);
    // What depends on the Outputs waits for them, as with Dash, and what they bring to
    // the page does not trigger what led to it. Dash runs twelve callbacks at a time.
    const waiting = Object.values(jobs).filter(({settle}) => settle).length;
    if (waiting > 7) leave();
    return new Promise((resolve, reject) => job.settle = {resolve, reject})
      .then(() => valuesFor(outputs, job, own));
  }
  function end(job, wait) {
    giveUp(job);
    Object.assign(job, over, {due: performance.now() + wait});
    setTimeout(ask);  // what happens in one moment goes into one message
  }
  function ask() {  // about all jobs that no question is under way about
    const now = performance.now(), isDue = (job) => job.due <= now;
    const open = Object.values(jobs).filter(({outcome}) => !outcome);
    if (open.some(isDue)) send(open.filter((job) => isDue(job) || !job.asked));
    const due = Math.min(...open.map(({due}) => due));
    clearTimeout(timer);
    if (open.length) timer = setTimeout(ask, due - now);
  }
  async function send(batch, starts) {
    const began = performance.now(), wants = {};
    for (const job of batch) {
      const {n, seen, shown, slot, start, tries} = job;
      wants[n] = {seen, shown, end: !slot, start: starts ? start : null};
      Object.assign(job, {asked: began, tries: tries + 1});
    }
    const askAgain = (bytes, doublings) => {  // unless it was asked about meanwhile
      for (const job of batch.filter(({asked}) => asked === began)) {
        const patience = PATIENCE * 2 ** Math.min(job.tries - 1, doublings);
        job.due = performance.now() + patience + bytes / RATE;
      }
    };
    const value = {page, jobs: wants};
    const inputs = [{id: "longcallback", property: "message", value}];
    const outputs = {id: "longcallback", property: "answer"};
    const body = JSON.stringify({output: "longcallback.answer", outputs, inputs});
    askAgain(body.length, 2);
    // A browser opens six connections to a server: those that hang would fill them.
    const hung = new AbortController(), limit = HANGS + 4 * body.length / RATE;
    const timeout = setTimeout(() => hung.abort("it is not answered"), limit);
    try {
      const answer = post(body, hung.signal);
      const response = await answer.finally(() => clearTimeout(timeout));
      askAgain(response.headers.get("Content-Length"), 2);
      const status = response.redirected ? 302 : response.status;  // to a login page
      if (status !== 200) {
        const text = `the server refuses it with status ${status}`;
        const isFinal = !starts && !AWAY.includes(status);
        if (isFinal) batch.forEach((job) => refuse(job, text));
        throw new Error(status);
      }
      hear((await response.json()).response.longcallback.answer, wants, began);
    } catch (error) {
      console.warn("A message about long callbacks failed: " + error);
      askAgain(0, 1);
    }
    ask();
  }
  async function post(body, signal, isRepeated) {  // as Dash sends a change
    const {config, hooks} = state(), headers = {...config.fetch.headers};
    const {csrf_token_name = "_csrf_token", csrf_header_name = "X-CSRFToken"} = config;
    const token = cookies().match(`(?:^|; )${csrf_token_name}=([^;]*)`);
    if (token) headers[csrf_header_name] = decodeURIComponent(token[1]);
    const url = config.requests_pathname_prefix + "_dash-update-component";
    const options = {...config.fetch, method: "POST", headers, body, signal};
    const response = await fetch(url, options);
    const mayRenew = hooks.request_refresh_jwt && [400, 401].includes(response.status);
    if (isRepeated || !mayRenew) return response;
    const isExpired = (await response.clone().text()).includes("JWT Expired");
    const old = headers.Authorization?.slice("Bearer ".length) || null;
    const renewed = isExpired && await hooks.request_refresh_jwt(old);
    if (!renewed) return response;
    const payload = {Authorization: "Bearer " + renewed};
    dash_stores[0].dispatch({type: "ADD_HTTP_HEADERS", payload});  // as Dash keeps it
    return post(body, signal, true);
  }
  function hear({crowd, jobs: answers}, wants, began) {
    if (isOld) return;
    look();
    const now = performance.now(), count = Object.keys(jobs).length;
    for (const [n, lacks] of Object.entries(answers)) {
      const job = jobs[n] ??= {...over, n};
      if (!job.slot) {  // or an older answer, or a late start's
        if (!lacks) delete jobs[n];
      } else if (!lacks?.seen) {
        if (!job.seen) unknown(job);  // or it is older than one that knew the job
      } else if (!job.outcome) {
        const isWhole = wants[n].shown <= job.shown;  // look() may have set it back
        const isNew = ([version, isProgress]) =>
          isProgress ? isWhole && version > job.shown : version > job.seen;
        apply(job, lacks.props.filter(isNew).map(([, , id, props]) => [id, props]));
        const steps = job.answers * Math.max(count ** 1.5, crowd / CROWD);
        const wait = Math.min(job.interval, 20 + 11 * steps);
        const seen = Math.max(job.seen, lacks.seen), answers = job.answers + 1;
        const due = now + Math.max(wait, now - began - WAIT);
        Object.assign(job, {seen, answers, refused: 0});
        if (isWhole) job.shown = Math.max(job.shown, lacks.seen);
        if (job.asked === began) Object.assign(job, {due, asked: 0, tries: 0});
        if (lacks.outcome) finish(job, lacks.outcome);
      }
    }
  }
  function unknown(job) {  // the message with its start was lost, or was refused
    const size = JSON.stringify(job.start).length;
    const text = `the server answers, but not to its inputs (${size} bytes): they ` +
      "may be larger than it, or a proxy, allows";
    refuse(job, text);
    if (!job.outcome) send([job], true);
  }
  function refuse(job, text) {  // what is refused too often is to end
    if (job.refused++ < 3) return;
    if (job.slot) finish(job, {error: `${job.name}: ${text}`}); else delete jobs[job.n];
  }
  function finish(job, outcome) {
    job.outcome = outcome;
    apply(job, job.off);  // which may bring the Outputs back
    if (!job.path) end(job, 1000);
    else if (job.settle) job.settle.resolve();
    else if (job.isPlaced) recall(job);
  }
  function valuesFor(outputs, job, own) {
    const {outcome: {error, response}, start} = job;
    end(job, 1000);  // the acknowledgement waits for other messages to go with
    if (error) throw new Error(error);
    if (!response) leave();
    const values = JSON.parse(response).response || {};
    if (start) state().hooks.request_post?.(start, values);
    const byId = {};
    for (const [id, props] of Object.entries(values)) byId[textOf(parse(id))] = props;
    const pick = (output) => {
      if (Array.isArray(output)) return output.map(pick);
      const props = byId[textOf(output.id)] || {}, name = output.property.split("@")[0];
      if (!(name in props)) return dash_clientside.no_update;
      if (own) own[textOf(output.id) + "." + name] = JSON.stringify(props[name]);
      return props[name];
    };
    return outputs && pick(outputs);
  }
  window.plugins_LongCallback = {
    start(key, names, options) {
      load();
      const context = dash_clientside.callback_context, instance = instanceOf(names);
      const {outputs_list, inputs_list, states_list, triggered} = context;
      const slot = key + JSON.stringify(instance), own = shown[slot] || {};
      const isOwn = ({prop_id, value}) => own[prop_id] === JSON.stringify(value) ||
        own[prop_id]?.includes("__dash_patch_update");  // whose sum is not known here
      shown[slot] = null;
      if (triggered.length && triggered.every(isOwn)) leave();
      const isOurs = ({id}) => String(id).startsWith("plugins_LongCallback-" + key);
      const inputs = inputs_list.filter((input) => !isOurs(input));
      jobsOf(slot).forEach((job) => end(job, 0));
      const start = {outputs: outputs_list, inputs, state: states_list,
        changedPropIds: triggered.map(({prop_id}) => prop_id)};
      state().hooks.request_pre?.(start);
      const n = key + random();
      const job = jobs[n] = {...fresh, ...options, n, slot, instance, start, seen: 0,
        inputs: inputs.flat().map(nameOf),
        outputs: [outputs_list || inputs].flat(2).map(({id}) => id),
        isPlaced: true, path: pathOf(location)};
      apply(job, job.on);
      send([job], true);
      setTimeout(ask);  // again, if the answer is lost
      return resultOf(job, outputs_list);
    },
    cancel(key, names) {
      load();
      const {triggered} = dash_clientside.callback_context;
      const slot = key + (names.length ? JSON.stringify(instanceOf(names)) : "");
      for (const job of jobsOf(slot)) {
        const isTrigger = ({prop_id}) => job.inputs.includes(prop_id);
        if (triggered.every(isTrigger)) continue;  // start() ends it
        end(job, 0);
        apply(job, job.off);
      }
      leave();
    },
    show(key, names) {  // a result of which start() made no promise that still holds
      const {outputs_list} = dash_clientside.callback_context;
      const slot = key + JSON.stringify(instanceOf(names));
      const job = jobsOf(slot).find(({isPlaced, settle}) => isPlaced && !settle);
      if (!job) leave();
      job.isRecalled = true;
      return resultOf(job, outputs_list, shown[slot] = {});
    },
  };
  return () => {
    load();
    leave();
  };
})()
"""
