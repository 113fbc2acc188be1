"""Run slow Dash callbacks in the background, and always learn how they ended.

    cache = Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"})
    manager = FlaskCachingCallbackManager(cache)
    app = dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"))
    def compute(n_clicks):  # may take seconds or hours
        return f"Clicked {n_clicks} times"

A long callback is a Dash callback: in the page's graph stands a clientside callback
with the user's Outputs, Inputs and States, which returns the promise of the job's
result, and in the job's process Dash itself answers the request that the page would
have sent, in the app's own request context.

A *page* is a tab with a secret token; each *job* that it wants has a random number;
both together name the job on the server, whose record of it is the truth. A message
says what the page wants and has seen; its answer brings what the page lacks. A number
that the server knows is not started again, and a record is deleted only when a later
message acknowledges the result. So messages may be lost, late or repeated.
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
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from concurrent.futures import thread
from types import SimpleNamespace
from typing import Any

import dash
import flask
import flask.testing  # which each forked job would import anew
import flask_caching
from dash import _callback, _callback_context, _utils, _validate
from dash._grouping import flatten_grouping, make_grouping_by_index
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


def _dependency(
    kind: Any, component_id: Any, component_property: Any, **options: Any
) -> Any:
    """Return a dependency of Dash; for a tuple or dict of properties, such of them."""
    make = functools.partial(kind, component_id, **options)
    if isinstance(component_property, dict):
        return {name: make(property_) for name, property_ in component_property.items()}
    if isinstance(component_property, tuple):
        return tuple(map(make, component_property))
    return make(component_property)


Input = functools.partial(_dependency, dash.Input)
Output = functools.partial(_dependency, dash.Output)
State = functools.partial(_dependency, dash.State)


def _flatten(argument: str, kind: Any, dependencies: Any) -> Any:
    flat = flatten_grouping(dependencies)
    if strangers := [item for item in flat if not isinstance(item, kind)]:
        raise TypeError(f"{argument}: {strangers[0]!r} is not an {kind.__name__}")
    return flat


def _updates(argument: str, outputs: Any, values: Any) -> list[Any]:
    """Pair Outputs with values of their shape, or with one that stands for each.

    Returns [[component id, {property: value}]], without what is not to be updated.
    """
    flat = _flatten(argument, dash.Output, outputs)
    is_for_each = values is None or dash.no_update.is_no_update(values)
    if len(flat) == 1 and not isinstance(values, (tuple, list, type(outputs))):
        is_for_each = True
    if is_for_each:
        values = make_grouping_by_index(outputs, [values] * len(flat))
    try:
        pairs = zip(flat, flatten_grouping(values, outputs))
    except InvalidCallbackReturnValue:
        raise ValueError(f"{argument}: {values!r} is not of shape {outputs}") from None
    kept = [(o, v) for o, v in pairs if not dash.no_update.is_no_update(v)]
    return [[o.component_id_str(), {o.component_property: v}] for o, v in kept]


# --- Plugins: how an app gets the decorator, and answers its pages --------------------

_LONGEST = 30 * 24 * 3600  # seconds, which Memcached takes
_WAIT = 0.1  # seconds that an answer waits for news
_LOOK_PERIOD = 0.012  # seconds after which it looks for news of a job again
_GONE = """nobody knows of it any more: the server process that ran it is gone (gunicorn
ends one at HUP and --max-requests), the cache or result backend was emptied, the page
was silent for idle_timeout, or another web process sent its task (rpc:// allows one)"""
_SILENCE = 150  # seconds without news after which a job is taken for dead
_SILENT = "it has not been heard of for minutes: its worker or server process is gone"
_RELOAD = "the app has changed since this page was loaded: reload the page"
_GLOBAL = "plugins_LongCallback"  # by which an error names what an app lacks
_ENVIRON = ("HTTP_", "REMOTE_", "SERVER_", "PATH_", "QUERY_", "SCRIPT_", "wsgi.url_")
_plugins: dict[str, LongCallback] = {}  # by the key that their app has in every process
_callbacks: dict[str, _Callback] = {}  # by the key that they have in every process
_requests: set[int] = set()  # that this process is answering, each in a thread
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
        callback = app.callback
        app.callback = lambda *args, **named: callback(*args, **_with_inputs(**named))


class LongCallback:
    """Dash plugin that gives an app ``app.long_callback``.

    Args:
        manager: A FlaskCachingCallbackManager or a CeleryCallbackManager.
        idle_timeout: Seconds without a message from a page after which its jobs end;
            None for never. Stay well above 60, since background tabs ask that rarely.

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
        self.module = next(bodies, globals())["__name__"]  # a fresh process imports it
        app.long_callback = functools.partial(long_callback, _plugin=self)
        tick = dash.dcc.Interval(id=f"{_GLOBAL}-tick", max_intervals=1)
        self.hidden = dash.html.Div([tick], hidden=True)
        app._extra_components += [self.hidden, _no_plugin.hidden]
        self.layout_value, app._layout_value = app._layout_value, self._layout_value
        app._inline_scripts.append(f"({_JAVASCRIPT})('{self.key}')")
        _add(app, ["tick", "", []], dash.Input(tick, "n_intervals"), True)
        app._callback_list[-1]["persistent"] = True  # Dash 4 keeps it out of the title
        # The page's own requests; no browser is told of this callback.
        answer = dash.Output("longcallback", "answer")
        asked = answer, dash.Input("longcallback", "message")
        _callback.register_callback([], app.callback_map, True, *asked)(self._sync)

    def _layout_value(self) -> Any:
        """Return the layout with our components, which a DashProxy would leave out."""
        layout, ours = self.layout_value(), self.app._extra_components
        children = getattr(layout, "children", None)
        if not isinstance(children, list) or children[1:] != ours:
            children = [layout, *ours]
        # A layout that is a list would be one in another.
        return dash.html.Div(flatten_grouping(children), style={"display": "contents"})

    def _sync(self, message: Any) -> dict[str, Any]:
        """Answer a page's message: do what it wants, and say what it lacks.

        The answer waits a moment for news, if this process has nothing else to do, and
        tells how many other pages' messages came in a second, that it may ask less.
        """
        logger.disabled = False  # as dictConfig leaves those that exist
        page, wants, now = message["page"], message["jobs"], time.monotonic()
        crowd = sum(now < at + 1 and other != hash(page) for at, other in [*_arrivals])
        _arrivals.append((now, hash(page)))  # as a page's token may have any size
        until = now + _WAIT if crowd < 4 else 0
        while True:
            jobs = {n: self._answer(page, n, want) for n, want in wants.items()}
            news = [j for j in jobs.values() if not j or j["props"] or j["outcome"]]
            if news or len(_requests) != 1 or time.monotonic() > until:
                return {"crowd": crowd, "jobs": jobs}
            time.sleep(_LOOK_PERIOD)

    def _answer(self, page: str, n: str, want: dict[str, Any]) -> Any:
        """Do what a page wants of a job; return what it lacks, or None at the end."""
        job_id, callback = _digest(page, n), self._reached(n)
        manager = (callback and callback.manager) or self.manager
        name = callback.name if callback else "a callback that is gone"
        try:
            if want["end"]:
                _ended.append(job_id)
                return manager.forget(job_id)
            record = self._read(manager, job_id) if callback else _record(_RELOAD)
            start = want.pop("start", None)  # at the first look only
            if record is None and start and job_id not in _ended:
                call = {"body": start, "environ": _environ()}
                manager.start(_Job((job_id, self.key, callback.key, call)))
                record = manager.read(job_id, self.idle_timeout)
        except Exception as error:
            logger.exception("%s: its manager failed", name)
            text = error if isinstance(error, LongCallbackError) else "see the log"
            record = _record(f"its manager failed: {text}")
        # With rpc://, a start may not be there yet.
        return self._lacks(name, record or _record(None if start else _GONE), want)

    def _reached(self, n: str) -> Any:
        """Return the callback of a job, if the page may start it."""
        callback = _callbacks.get(n[:12])  # what follows the key is random
        # They are its own app's, and those declared without an app, until Dash moves
        # them at an app's first request.
        reachable = [*_callback.GLOBAL_CALLBACK_LIST, *self.app._callback_list]
        return callback if callback and callback.spec in reachable else None

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
            text, failure = f"{name}: {outcome['error']}", record.get("failure")
            if not failure:
                logger.warning("%s", text)
            elif self.app._dev_tools.get("ui") and failure != outcome["error"]:
                text += f": {failure}"  # which is not for everybody
            outcome = {"error": text}
        heard = {True: want["shown"], False: want["seen"]}  # of progress, of the rest
        props = [entry[2:] for entry in record["log"] if entry[0] > heard[entry[1]]]
        return {"seen": record["version"], "props": props, "outcome": outcome}


# What is declared without an app goes, as with Dash, to the one that is first asked.
_config = SimpleNamespace(prevent_initial_callbacks=False)
_no_app = SimpleNamespace(_callback_list=_callback.GLOBAL_CALLBACK_LIST, config=_config)
_no_plugin = SimpleNamespace(key="", app=_no_app, hidden=dash.html.Div([], hidden=True))

plugins = SimpleNamespace(LongCallback=LongCallback)
# Apps of Dash Labs name both.
plugins.FlexibleCallbacks = plugins.HiddenComponents = FlexibleCallbacks


@flask.request_started.connect
def _note_request(app: Any, **_: Any) -> None:
    if flask.request.environ.get("wsgi.multithread"):
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

_GONE_KEYWORDS = """background=True goes without saying; in place of cache_by, expire,
cache_args_to_ignore and cache_ignore_triggered, put @cache.memoize(timeout=...) on what
the callback calls (README, "Reuse results")"""
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
    _plugin: Any = _no_plugin,
    **options: Any,
) -> Any:
    """Declare a callback that runs in the background (after Dash Labs).

    ``app.long_callback`` declares it for one app; this function, like
    ``dash.callback``, for the app that takes up what is declared without one.

    Args:
        *args, **options: What ``dash.callback`` takes; ``args`` stands for ``inputs``.
        interval: Longest time in milliseconds between two questions about a job.
        running: A list, as in running=[(Output(...), value while running, after)].
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
        text = "parentheses are missing: write @app.long_callback(...)"
        raise LongCallbackError(f"{_name(args[0])}: {text}")

    def decorate(function: Any) -> Any:
        name = _name(function)
        try:
            _Callback(**parameters, function=function, name=name).declare()
        except Exception as error:
            text = f"@long_callback for {name}: {error}\n\n{long_callback.__doc__}"
            raise LongCallbackError(text) from error
        return function

    return decorate


_dash: Any = dash.Dash  # which, without the plugin, names what Dash has instead
if not hasattr(_dash, "long_callback"):
    _dash.long_callback = staticmethod(functools.partial(long_callback, _plugin=None))


def _name(function: Any) -> str:
    """Return a readable name of a callable that is the same in every process."""
    function = getattr(function, "func", function)  # of a functools.partial
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None) or "builtins"
    return f"{_stem(module)}.{named.__qualname__}"


class _Callback(SimpleNamespace):
    """A long callback, with the parameters of its declaration."""

    def declare(self) -> None:
        """Check the declaration, and add its callbacks and its Store to the page."""
        if not self._plugin:
            raise TypeError("write Dash(..., plugins=[plugins.LongCallback(manager)])")
        self.options: Any = _with_inputs(**self.options)
        _check_keywords(self.options.keys() - _KEYWORDS)
        if self.manager is not None:
            _check_manager(self.manager)
        grouped = handle_grouped_callback_args(list(self.args), dict(self.options))
        output, inputs, states, indices, _ = grouped
        if self.progress:
            flat = [*inputs, *states]
            args, named = _validate.validate_and_group_input_args(flat, indices)
            with contextlib.suppress(ValueError):  # a compiled one has no signature
                inspect.signature(self.function).bind(None, *args, **named)
        declared = self._plugin.key, self.name, output, inputs, states
        self.key = _digest(*declared)[:12]
        if self.key in _callbacks:
            text = "another callback has its name and dependencies: give one function"
            raise ValueError(f"{text} another __qualname__ (in a notebook: a new app)")
        self._add_to_page(flatten_grouping(output), inputs)
        _callbacks[self.key] = self

    def _targets(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Return what a run's begin and its end update, and the Outputs of both."""
        progress, running = self.progress or [], self.running or []
        on, off = list[Any](), _updates("progress", progress, self.progress_default)
        outputs = flatten_grouping(progress)
        for target in running if isinstance(running, list) else [running]:
            if not isinstance(target, (list, tuple)) or len(target) != 3:
                raise TypeError(f"running: {target!r} is no (Output, value, after)")
            on += _updates("running", *target[:2])
            off += _updates("running", *target[::2])
            outputs += flatten_grouping(target[0])
        return on, off, outputs

    def _add_to_page(self, outputs: Any, inputs: Any) -> None:
        key, store = self.key, f"{_GLOBAL}-{self.key}"
        # It never changes, and tells callbacks with the same Inputs apart.
        own = dash.Input(store, "clear_data")
        add, names = functools.partial(_add, self._plugin.app), _match_names(outputs)
        on, off, targets = self._targets()
        cancels = _flatten("cancel", dash.Input, self.cancel or [])
        options = {"interval": int(self.interval), "name": self.name}
        start = ["start", key, names, {**options, "on": on, "off": off}]
        self.entry = add(start, *self.args, **self.options)
        self.spec = self._plugin.app._callback_list[-1]
        if not outputs:
            self.spec["state"].append(own.to_dict())
        # Without Outputs, an Input's component tells when the page is there again.
        places = _beside(outputs or inputs[:1]), dash.Input(store, "data")
        add(["show", key, names], *places, prevent_initial_call="initial_duplicate")
        targets = [o for o in dict.fromkeys(targets) if not o.has_wildcard()]
        if targets:  # never called, but lets Dash tell of an id that is not there
            add(["unused", key], _beside(targets), own, True)
        for item in cancels:
            call = ["cancel", key, _match_names([item])]
            add(call, _beside([item]), item, own, True)
        self._plugin.hidden.children.append(dash.dcc.Store(id=store))


def _add(app: Any, call: list[Any], *dependencies: Any, **options: Any) -> Any:
    """Add a callback that runs ``call`` in the page; return what a job runs it by."""
    entries, options["hidden"] = dict[str, Any](), True
    kept = app._callback_list, entries, app.config.prevent_initial_callbacks
    _callback.register_callback(*kept, *dependencies, **options)(_run_job)
    # Its name is the call, so that a hot reload of the page brings a changed one.
    named = {"namespace": _GLOBAL, "function_name": f"{_GLOBAL} {_utils.to_json(call)}"}
    app._callback_list[-1]["clientside_function"] = named
    return entries.popitem()[1]


def _run_job(*args: Any, **options: Any) -> Any:
    """Run the job whose request Dash is answering."""
    if "longcallback" not in flask.g:
        raise PreventUpdate  # it is a browser's, that names a job's callback
    return flask.g.longcallback.answer(*args, **options)


def _match_names(items: Any) -> list[str]:
    ids = [i.component_id for i in items if isinstance(i.component_id, dict)]
    return sorted({name for id_ in ids for name in id_ if id_[name] is MATCH})


def _beside(items: Any) -> list[Any]:
    """Return Outputs to the properties of dependencies, beside other callbacks'."""
    return [dash.Output(i.component_id, i.component_property, True) for i in items]


# --- The job: what runs in its process ------------------------------------------------

_RENEWAL = 20  # seconds after which a running job's record is stored anew
_PATCH = '"__dash_patch_update"'


def _record(error: str | None = None) -> dict[str, Any]:
    """Return a job's record: its log, a list of [version, whether it is progress,
    component id, {property: value}], and its outcome: None while it runs, then
    {"response": Dash's answer} or {"error": text}. One whose function raised has
    "failure", a text to log.
    """
    return {"version": 1, "log": [], "outcome": {"error": error} if error else None}


def _renewed(record: dict[str, Any]) -> dict[str, Any]:
    """Return what is to be stored of a record, which differs when that is due."""
    return {**record, "renewed": time.time() // _RENEWAL * _RENEWAL}


class _Job(dict[str, Any]):
    """A run of a callback. (A dict only for Dash, which puts its set_props into one.)

    ``parts`` are its name on the server, the keys of its app and of its callback, and
    the page's request; ``send`` takes the record of the running job when there is news
    (at most 20 times a second), and so that it isn't taken for dead.
    """

    def __init__(self, parts: Any, send: Any = lambda record: None) -> None:
        self.parts, self.send = parts, send
        self.id, app_key, key, self.call = parts
        self.plugin, self.callback = _plugins[app_key], _callbacks[key]
        self.name = f"{self.callback.name} {self.id[:8]}"
        self.record, self.lock = _record(), threading.Lock()
        self.ended = threading.Event()

    def run(self, death: Exception | None = None) -> dict[str, Any]:
        """Run the function, or raise ``death`` in its place; return the record."""
        began, logger.disabled, self.death = time.monotonic(), False, death
        if not death:
            logger.info("%s: started", self.name)
        reporter = threading.Thread(target=self._report, daemon=True)
        reporter.start()
        try:
            outcome: Any = {"response": self._replay()}
        except PreventUpdate:
            outcome = {"response": ""}
        except (Exception, SystemExit) as error:  # none that ends a greenlet
            if isinstance(error, SystemExit) and error.code == signal.SIGTERM - 256:
                raise  # by which a Celery worker ends this process, and says why
            self._note(error)
            outcome = {"error": str(death) if error is death else type(error).__name__}
        if not self.record.get("failure"):
            logger.info("%s: ended in %.1f s", self.name, time.monotonic() - began)
        self.ended.set()
        reporter.join()  # so that nothing older is sent after the outcome
        self.record["outcome"] = outcome
        return self.record

    def _note(self, error: BaseException) -> None:
        text = f"{error}\n\n{traceback.format_exc()}"
        self.record["failure"] = str(error) if error is self.death else text

    def _report(self) -> None:
        """Send the record when it is new, or was sent long ago, until the job's end."""
        sent = _renewed(self.record)
        while not self.ended.wait(0.05):
            if sent != (news := _renewed(self.record)):
                sent = news
                try:
                    self.send(news)
                except Exception as error:  # noqa: BLE001, tracebacks would be many
                    logger.warning("%s: it could not be stored: %r", self.name, error)

    def _replay(self) -> str:
        """Let Dash answer the page's request, and return its response."""
        app, key = self.plugin.app, self.callback.key
        if not isinstance(app.server, flask.app.Flask):  # it is FastAPI's or Quart's
            server: Any = flask.Flask("longcallback")
            app = dash.Dash(server=server, on_error=app._on_error)
        app.callback_map[key] = self.callback.entry
        body = json.dumps({**self.call["body"], "output": key})  # Flask's would sort
        request = {"method": "POST", "data": body, "content_type": "application/json"}
        request["environ_overrides"] = self.call["environ"]
        with app.server.test_request_context(**request):
            flask.g.longcallback = self
            text: str = app.server.dispatch_request().get_data(as_text=True)
            if getattr(flask.session, "modified", False):
                logger.warning("%s: a job can't change the session", self.name)
        return _check_patch(text)

    def answer(self, *args: Any, **options: Any) -> Any:
        """Call the function, in the context that Dash has made for it."""
        context: Any = _callback_context.context_value.get()
        context.updated_props = self  # set_props calls __setitem__
        asyncio._set_running_loop(None)  # in which Dash may be dispatching
        if self.callback.progress:
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

    def _add(self, component_id: str, values: Any, is_progress: bool = False) -> None:
        """Add set_props to the record; of older ones, what a Patch may need stays."""
        for name, value in values.items():
            if dash.no_update.is_no_update(value):
                continue
            text = _check_patch(str(_utils.to_json(value)))
            with self.lock:
                old, version = self.record["log"], self.record["version"] + 1
                if _PATCH not in text:
                    old = [e for e in old if e[2] != component_id or name not in e[3]]
                new = [version, is_progress, component_id, {name: json.loads(text)}]
                self.record.update(version=version, log=[*old, new])

    __setitem__ = _add  # which Dash's set_props calls

    def _set_progress(self, *values: Any) -> None:
        outputs = self.callback.progress
        if isinstance(outputs, dash.Output) and len(values) != 1:
            raise TypeError(f"set_progress takes one value, not {values!r}")
        value = values[0] if len(values) == 1 else values
        for component_id, props in _updates("set_progress", outputs, value):
            self._add(component_id, props, True)


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
_CORNER = "longcallback.__wz_cache"  # a folder
_FRESH = """: see the log. Where no module that its process imports declares it,
write start_method="fork"; write app.run(...) below if __name__ == "__main__" """
_OTHER_CODE = "the worker has not imported it: its code or path prefix differs"


def _check_manager(manager: Any) -> Any:
    if not isinstance(manager, (FlaskCachingCallbackManager, CeleryCallbackManager)):
        kinds = "FlaskCachingCallbackManager(cache) or CeleryCallbackManager(app)"
        raise TypeError(f"manager: {manager!r} is none: write {kinds}")
    return manager


def _check_keywords(unknown: Any) -> None:
    if unknown:
        raise LongCallbackError(f"it takes no {sorted(unknown)}; {_GONE_KEYWORDS}")


class FlaskCachingCallbackManager:
    """Runs each job in a process of its own and keeps records in Flask-Caching.

    The job's process tells its server by a pipe what is new. There, a thread stores it
    as the job's record, and ends the process and what it started when it isn't wanted
    any more: when the time at which its page asked for it is deleted or old.

    Args:
        flask_cache: A ``flask_caching.Cache`` with the configuration of a type that
            processes can share, such as FileSystemCache; it needs no ``init_app``.
        start_method: "fork", "forkserver" or "spawn"; None for fork on Linux and
            Python's default elsewhere. Forks start fastest and need not be importable,
            but a lock that another thread of the server held stays locked in them.

    Raises:
        LongCallbackError: The cache can't be shared between processes.
    """

    def __init__(
        self, flask_cache: Any, start_method: str | None = None, **unknown: Any
    ) -> None:
        _check_keywords(unknown)
        config: Any = getattr(flask_cache, "config", None) or {}
        kind = config.get("CACHE_TYPE", "null")
        kind = {"filesystem": "FileSystemCache", "redis": "RedisCache"}.get(kind, kind)
        if kind.lower().endswith(("null", "nullcache", "simple", "simplecache")):
            example = '{"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"}'
            text = f"write a cache to share between processes: Cache(config={example})"
            raise LongCallbackError(text)
        # The clear() of a FileSystemCache passes over a name with this end.
        folder = os.path.abspath(os.path.join(config.get("CACHE_DIR") or "", _CORNER))
        prefix = "~" + (config.get("CACHE_KEY_PREFIX") or "")
        corner = {"CACHE_TYPE": kind, "CACHE_DIR": folder, "CACHE_KEY_PREFIX": prefix}
        app = flask.Flask("longcallback")
        flask_caching.Cache(app, config={**config, **corner, "CACHE_THRESHOLD": 0})
        (self.cache,) = app.extensions["cache"].values()
        self._swept = 0.0
        default = "fork" if sys.platform == "linux" else None
        self._context: Any = multiprocessing.get_context(start_method or default)

    def read(self, job_id: str, idle_timeout: float) -> Any:
        """Return a job's record, or None if it is not known; note that it is wanted."""
        # In this order, since the outcome is stored before the other is deleted.
        wanted, record = self.cache.get(f"{job_id}-wanted"), self.cache.get(job_id)
        if record and record["outcome"]:
            return record
        if wanted and abs((now := time.time()) - wanted) > idle_timeout / 4:
            self.cache.set(f"{job_id}-wanted", now, timeout=_LONGEST)
        # Memcached deletes what is to be replaced by more than it takes.
        return (record or _record()) if wanted else None

    def forget(self, job_id: str) -> None:
        self.cache.delete_many(f"{job_id}-wanted", job_id)

    def start(self, job: _Job) -> None:
        forks = self._context.get_start_method() == "fork"
        if multiprocessing.current_process().daemon:
            raise LongCallbackError("start the server's process with daemon=False")
        if forks and "gevent" in socket.socket.__module__:
            raise LongCallbackError('with gevent, write start_method="forkserver"')
        if folder := getattr(self.cache, "_path", None):  # of a FileSystemCache
            os.makedirs(folder, exist_ok=True)
            if time.time() > self._swept + _RESULT_KEPT:  # nobody fetched it
                self._swept = time.time()
                self.cache._remove_expired(self._swept)
        if not self.cache.add(f"{job.id}-wanted", time.time(), timeout=_LONGEST):
            return  # a message that said the same was faster
        self.cache.set(job.id, _renewed(job.record), timeout=_RESULT_KEPT)
        pipe, writer = self._context.Pipe(False)
        module = getattr(job.callback.function, "__module__", "__main__")
        args = (job.plugin.module, module), job.parts, writer
        process = self._context.Process(target=_run_in_process, args=args)
        process.start()
        writer.close()
        # A server's exit does not wait for its jobs, which end themselves.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        watched = job, process, pipe
        threading.Thread(target=self._watch, args=watched, daemon=True).start()

    def _watch(self, job: _Job, process: Any, pipe: Any) -> None:
        """Store what a job's process says, until it ends or is not wanted any more."""
        key, stored = f"{job.id}-wanted", _renewed(job.record)
        wanted, asked, unwanted = 0.0, 0.0, ""
        while not stored["outcome"] and not unwanted:
            if not job.record["outcome"]:
                _hear(job, process, pipe)
            news, now = _renewed(job.record), time.monotonic()
            try:
                latest = self.cache.get(key)
                if latest != wanted:  # by a clock that stands while the machine sleeps
                    wanted, asked = latest, now
                if not latest:
                    unwanted = "cancelled"
                elif now > asked + 1.25 * job.plugin.idle_timeout:
                    unwanted = "given up, since nobody asks for it"
                elif news != stored:
                    if not self.cache.set(job.id, news, timeout=_RESULT_KEPT):
                        raise LongCallbackError("the cache did not take it")
                    stored = news
            except Exception as error:  # noqa: BLE001, its traceback each time is much
                logger.warning("%s: it could not be stored: %r", job.name, error)
                if response := (job.record["outcome"] or {}).get("response"):
                    text = f"its result of {len(response)} bytes did not fit"
                    job.record = _record(f"{text} into the cache")
                time.sleep(_WATCH_PERIOD)
        if not job.record["outcome"]:
            logger.info("%s: %s", job.name, unwanted)
            _kill(process)
        if unwanted:
            self.cache.delete(job.id)
        _log_failure(job.name, job.record)
        self.cache.delete(key)
        process.join()  # what the job has started may take its time


def _hear(job: _Job, process: Any, pipe: Any) -> None:
    """Wait a moment for what a job's process says, or for its end."""
    has_exited = process.exitcode is not None
    with contextlib.suppress(EOFError, OSError):
        if pipe.poll(_WATCH_PERIOD):
            job.record = pipe.recv()
            return
        if not has_exited:
            return
    process.join(10)
    _kill(process)
    code = process.exitcode
    cause = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    text = f"its process ended by {cause} before it returned a result"
    if code == 1 and process._start_method != "fork":
        text += _FRESH
    job.run(LongCallbackError(text))


def _kill(process: Any) -> None:
    """End a job's process, and what it started, but on Windows."""
    with contextlib.suppress(AttributeError, OSError):
        os.killpg(process.pid, signal.SIGKILL)  # it may have no group yet
    process.kill()
    process.join()


def _run_in_process(modules: Any, parts: Any, pipe: Any) -> None:
    """Prepare a process for a job, run it, and tell the server by a pipe."""
    _, app_key, key, _ = parts
    if hasattr(os, "setsid"):
        os.setsid()  # so that its group is what the job starts, and Ctrl-C spares it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which ends the job's own pools
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
    job = _Job(parts, pipe.send)
    threading.Thread(target=_end_with_server, args=(job,), daemon=True).start()
    pipe.send(job.run())
    # Ends pools (joblib's), for whose processes multiprocessing would wait before.
    threading._shutdown()  # type: ignore[attr-defined]


def _close_served_sockets() -> None:
    """Close a fork's part in the server's port and in its connections to browsers."""
    ports, served = dict[int, Any](), set[Any]()
    for path in pathlib.Path("/proc/self/fd").glob("*"):  # on Linux
        if path.is_socket():
            number = int(path.name)
            # Without SOCK_NONBLOCK, Python might set the mode of the shared socket.
            probe = socket.socket(type=socket.SOCK_NONBLOCK, fileno=os.dup(number))
            with probe, contextlib.suppress(OSError):  # such as a kernel's crypto
                address: Any = probe.getsockname()
                ports[number] = address[1] if isinstance(address, tuple) else address
                if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    served.add(ports[number])
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, port in ports.items():
        if port in served:
            os.dup2(nothing, number)


def _end_with_server(job: _Job) -> None:
    """End this process, and what it started, when its server is gone; tell the page."""
    parent, server = os.getppid(), multiprocessing.parent_process()
    while os.getppid() == parent and server and server.is_alive():
        time.sleep(2 * _WATCH_PERIOD)
    manager = job.callback.manager or job.plugin.manager
    with contextlib.suppress(Exception):  # the cache may be away, too
        manager.cache.delete(f"{job.id}-wanted")
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
        _check_keywords(unknown)
        self._celery, conf = celery_app, celery_app.conf
        self._is_rpc = str(conf.result_backend).startswith("rpc")
        if self._is_rpc:
            # States come once, and to one thread: so all have to share one backend.
            conf.update(result_cache_max=10_000, result_backend_thread_safe=True)
        self._lock = threading.Lock() if self._is_rpc else contextlib.nullcontext()
        # Celery would try to reach a broker that is down for ever, unseen by anybody.
        options = {"max_retries": 1, "interval_start": 0}
        conf.broker_transport_options = {**options, **conf.broker_transport_options}
        task: Any = {"acks_late": False, "ignore_result": False, "track_started": False}
        # The log has no result, and the cause of an error already.
        logs = {"resultrepr_maxsize": 0, "throws": (LongCallbackError,)}
        task.update(store_eager_result=True, **logs)
        self._task = celery_app.task(name="longcallback", **task)(self._work)

    def start(self, job: _Job) -> None:
        name, backend = job.callback.name, self._celery.backend
        to = {"reply_to": getattr(backend, "oid", None)}  # where rpc:// looks
        request = SimpleNamespace(correlation_id=job.id, **to)  # as if from the task
        backend.store_result(job.id, job.record, "PROGRESS", request=request)
        options: Any = {"task_id": job.id, "shadow": name, "argsrepr": name, **to}
        self._task.apply_async(job.parts, **options)

    def read(self, job_id: str, idle_timeout: float = 0) -> Any:
        """Return the record that a task's state tells, or None if it tells none."""
        limit = {"backlog_limit": 1_000_000} if self._is_rpc else {}  # messages
        with self._lock:
            fetch = functools.partial(self._celery.backend.get_task_meta, job_id)
            try:
                record = fetch(**limit)["result"]
            except OSError:  # the connection is older than the broker's restart
                record = fetch(**limit)["result"]
        if isinstance(record, LongCallbackError):
            return record.args[1]
        if isinstance(record, KeyError):  # such as Celery's NotRegistered
            return _record(_OTHER_CODE)
        if isinstance(record, Exception):
            return _record(f"{type(record).__name__}: {record}")
        return record

    def forget(self, job_id: str) -> None:
        record = self.read(job_id)
        if record and not record["outcome"]:
            logger.info("Job %s: cancelled", job_id[:8])
            self._celery.control.revoke(job_id, terminate=True, signal="SIGKILL")
        with contextlib.suppress(NotImplementedError):  # rpc:// before Celery 5.7
            self._celery.backend.forget(job_id)

    def _work(self, *parts: Any) -> dict[str, Any]:
        """Run a job; this is the task, on a worker."""
        from celery.exceptions import Ignore

        request, store = self._task.request, self._celery.backend.store_result
        report = functools.partial(store, request.id, state="PROGRESS", request=request)
        if not self._is_rpc and self.read(request.id) != _record():
            raise Ignore("it was cancelled, or another worker has taken it")
        job = _Job(parts, report)
        report(_renewed(job.record))  # it is no queued one from now on
        record = job.run()
        _log_failure(job.name, record)
        if "error" in record["outcome"]:
            raise LongCallbackError(record["failure"].partition("\n\n")[0], record)
        return record


# --- The page -------------------------------------------------------------------------

_JAVASCRIPT = """
((app) => {
  const PATIENCE = 4000;  // milliseconds until a message is first given up, or repeated
  const RATE = 100;  // bytes a millisecond that a slow line carries
  const WAIT = 100;  // milliseconds that an answer may wait for news, as the server's
  // A job has: key, its callback's; slot, key and MATCH values, unless it is to end;
  // path, at which its Outputs are; isElsewhere, whether those that have come to the
  // page are another's with such ids; start, its inputs, until the server knows it;
  // isAsked, whether a message about it is under way; seen, the version heard of;
  // shown, that of the progress in the page; failures, its messages in a row that
  // failed; refused, those of them that the server refused; settle, which settles the
  // promise that Dash holds; isShown, whether it does so for show().
  const fresh = {isAsked: false, shown: 0, failures: 0, refused: 0, outcome: null,
    settle: null};
  const echoes = {};  // what show() has set, which is no trigger of its callback
  const shows = {};  // by Store: a timer
  const name = "longcallback:" + app;
  let memory = {}, cookies = () => "", youngest = 0, timer;
  const random = () => crypto.getRandomValues(new Uint32Array(4)).join("-");
  const leave = () => { throw dash_clientside.PreventUpdate; };
  const state = () => dash_stores[0].getState();
  const address = () => location.pathname + location.search;
  const parse = (text) => text.startsWith("{") ? JSON.parse(text) : text;
  const textOf = (id) =>
    typeof id === "string" ? id : JSON.stringify(id, Object.keys(id).sort());
  const isThere = ({outputs}) => outputs.some((id) => matching(id).length);
  const forget = (job) => { jobs = jobs.filter((other) => other !== job); };
  const jobsOf = (slot) => jobs.filter((job) => job.slot?.startsWith(slot));

  try {
    memory = sessionStorage;  // which belongs to one tab
    cookies = () => document.cookie;
  } catch (error) {
    console.warn("A sandboxed frame has no storage and cookies: " + error);
  }
  let {page, jobs} = JSON.parse(memory[name] || "null") || {page: random(), jobs: []};
  let kept = memory[name];
  const found = jobs;  // what the page before has left
  function save() {  // for the next page of this tab, if this one is left or discarded
    const pathOf = (job) => isThere(job) && !job.isElsewhere ? address() : job.path;
    // There is room for 5 MB.
    const startOf = (job) => JSON.stringify(job.start).length < 1e6 ? job.start : null;
    const keep = (job) => ({...job, ...fresh, path: pathOf(job), start: startOf(job)});
    if (document.hidden && jobs.length)
      memory[name] = JSON.stringify({page, jobs: jobs.map(keep)});
    else delete memory[name];  // of which a tab opened from this one would get a copy
    kept = memory[name];
  }
  document.addEventListener("visibilitychange", () => {
    if (memory[name] === kept) return save();
    jobs = [];  // the browser kept this page, and another one took its jobs
    location.reload();
  });

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
    for (const [text, props] of updates)
      for (const id of matching(parse(text), instance))
        dash_clientside.set_props(id, props);
  }

  function resultOf(job, outputs, start) {  // or the promise of it
    if (job.outcome) return valuesFor(job, outputs, start);
    // What depends on the Outputs waits for them, as with Dash, and what they bring to
    // the page does not trigger what led to it. Dash runs twelve callbacks at a time.
    if (!job.outputs.length || jobs.filter(({settle}) => settle).length > 7) leave();
    const promise = new Promise((settle) => job.settle = settle);
    return promise.then((isHeld) => isHeld ? valuesFor(job, outputs, start) : leave());
  }
  function giveUp(job) {
    job.settle?.(false);
    job.settle = null;
  }
  function end(job) {
    giveUp(job);
    Object.assign(job, {slot: null, outcome: null, isAsked: false});
    askIn(20);  // what happens in one moment goes into one message
  }

  function askIn(pause) {
    clearTimeout(timer);
    timer = setTimeout(ask, pause);
  }
  async function ask() {  // about all jobs that no message is under way about
    const open = jobs.filter((job) => !job.outcome && !job.start && !job.isAsked);
    setTimeout(save);  // which throws if there is no room
    if (open.length) askIn(await send(open));
  }
  async function begin(job) {  // its inputs go alone, since they may take their time
    while (job.start) askIn(await send([job]));
  }
  async function send(batch) {  // return how long to wait before the next message
    const began = performance.now(), wants = {};
    for (const job of batch) {
      const {n, slot, seen, shown, start} = job;
      wants[n] = {seen, shown, end: !slot, start: slot && start};
      job.isAsked = true;
    }
    try {
      const {crowd, jobs: answers} = await post({page, jobs: wants}, batch[0].failures);
      for (const job of batch) hear(job, wants[job.n], answers[job.n]);
      return pauseAfter(wants, performance.now() - began, crowd);
    } catch ({message, cause}) {
      console.warn("A message about long callbacks failed: " + message);
      const rest = began + PATIENCE - performance.now();
      await new Promise((resolve) => setTimeout(resolve, rest));
      for (const job of batch) fail(job, message, cause);
      return 0;
    }
  }
  function pauseAfter(wants, took, crowd) {  // longer with age, and in a crowd
    const isEnding = ({n, slot, start, isAsked}) =>
      !slot && !start && !isAsked && !wants[n]?.end;
    if (jobs.some(isEnding)) return 20;  // as in end()
    const age = performance.now() - youngest;
    const factor = 22 * (jobs.length ** 1.5 + crowd);
    // After 20 ms at first, each question then waits 11 ms longer than the one before.
    const wait = Math.sqrt((20 + WAIT) ** 2 + factor * age) - WAIT;
    const intervals = jobs.map(({interval}) => interval);
    return Math.max(Math.min(wait, ...intervals), took - WAIT);
  }
  async function post(value, failures) {  // as Dash sends a change; return the answer
    const {config, hooks} = state(), headers = headersOf(config);
    const inputs = [{id: "longcallback", property: "message", value}];
    const outputs = {id: "longcallback", property: "answer"};
    const body = JSON.stringify({output: "longcallback.answer", outputs, inputs});
    const patience = (PATIENCE + body.length / RATE) * 2 ** Math.min(failures, 3);
    const hung = new AbortController();
    const timeout = setTimeout(() => hung.abort(Error("it hangs")), patience);
    const url = config.requests_pathname_prefix + "_dash-update-component";
    const init = {...config.fetch, method: "POST", headers, body, signal: hung.signal};
    const response = await fetch(url, init);
    clearTimeout(timeout);
    const status = response.redirected ? 302 : response.status;  // to a login page
    if (status === 401 && hooks.request_refresh_jwt) {  // for the next try
      const old = headers.Authorization?.slice("Bearer ".length) || null;
      const payload = {Authorization: "Bearer " + await hooks.request_refresh_jwt(old)};
      dash_stores[0].dispatch({type: "ADD_HTTP_HEADERS", payload});  // as Dash keeps it
    }
    const text = `the server refuses it with status ${status}`;
    const isAway = status > 500 || [408, 425, 429].includes(status);  // for a while
    if (status !== 200) throw Error(text, {cause: !isAway});
    return (await response.json()).response.longcallback.answer;
  }
  function headersOf(config) {
    const {csrf_token_name = "_csrf_token", csrf_header_name = "X-CSRFToken"} = config;
    const token = cookies().match(`(?:^|; )${csrf_token_name}=([^;]*)`);
    const csrf = token && {[csrf_header_name]: decodeURIComponent(token[1])};
    return {...config.fetch.headers, ...csrf};
  }
  function hear(job, {shown}, lacks) {
    Object.assign(job, {start: null, isAsked: false, failures: 0, refused: 0});
    if (!lacks) return forget(job);
    // What was asked before the job ended, or its Outputs came back, is old.
    if (!job.slot || job.shown !== shown) return;
    const {seen, props, outcome} = lacks;
    Object.assign(job, {seen, shown: seen});
    apply(job, props);
    if (outcome) finish(job, outcome);
  }
  function fail(job, text, isRefused) {
    job.isAsked = false;
    job.failures += 1;
    // What is away may be back; but a proxy may hang up on inputs that are too large.
    if (isRefused ? ++job.refused < 4 : !job.start || job.failures < 45) return;
    job.start = null;
    if (job.slot) finish(job, {error: `${job.name}: ${text}`});
    else forget(job);
  }
  function finish(job, outcome) {
    job.outcome = outcome;
    // As in show(), which Dash may just be about to call.
    if (!isThere(job) || job.path !== address()) giveUp(job);
    apply(job, job.off);  // which may bring the Outputs back
    // Dash may have dropped a promise of show(), since it is to call it again.
    if (job.settle && !job.isShown) return job.settle(true);
    const store = "plugins_LongCallback-" + job.key;
    if (!matching(store).length) return end(job);  // the app has changed
    // For this Dash calls show() of all instances: once for those that end now.
    shows[store] ??= setTimeout(() => {
      delete shows[store];
      apply(job, [[store, {data: job.n}]]);
    });
  }
  function valuesFor(job, outputs, start) {
    const {outcome: {error, response}, key, isShown} = job, byId = {};
    end(job);
    if (error) throw new Error(error);
    // Empty is the response to PreventUpdate and to nothing but no_update.
    const values = JSON.parse(response || "{}").response || {};
    if (start) state().hooks.request_post?.(start, values);
    for (const [id, props] of Object.entries(values)) byId[textOf(parse(id))] = props;
    const pick = (output) => {
      if (Array.isArray(output)) return output.map(pick);
      const id = textOf(output.id), name = output.property.split("@")[0];
      if (!(name in (byId[id] || {}))) return dash_clientside.no_update;
      if (isShown) echoes[key + id + "." + name] = JSON.stringify(byId[id][name]);
      return byId[id][name];
    };
    return outputs && pick(outputs);
  }

  const actions = {
    tick() {  // called once, a second after page load
      found.forEach(begin);
      askIn(0);
    },
    start(call, {outputs_list, inputs_list: inputs, states_list, triggered}) {
      const changedPropIds = triggered.map(({prop_id}) => prop_id);
      const isEcho = ({prop_id, value}) => {
        const echo = echoes[call.key + prop_id] || "";
        delete echoes[call.key + prop_id];
        return echo === JSON.stringify(value) ||
          echo.includes("__dash_patch_update");  // whose sum is not known here
      };
      if (triggered.length && triggered.every(isEcho)) return;
      jobsOf(call.slot).forEach(end);
      // Without Outputs, the last State is ours, and tells it apart from others.
      const states = outputs_list ? states_list : states_list.slice(0, -1);
      const start = {outputs: outputs_list, inputs, state: states, changedPropIds};
      state().hooks.request_pre?.(start);
      const outputs = [outputs_list || []].flat(2).map(({id}) => id);
      const n = call.key + random(), seen = 0, path = address();
      const job = {...fresh, ...call, n, seen, start, outputs, path, changedPropIds};
      jobs = [...jobs, job];
      apply(job, job.on);
      youngest = performance.now();
      begin(job);
      return resultOf(job, outputs_list, start);
    },
    cancel({slot}, {triggered}) {
      for (const job of jobsOf(slot)) {
        const isStart = ({prop_id}) => job.changedPropIds.includes(prop_id);
        if (triggered.every(isStart)) continue;  // start() ends it
        end(job);
        apply(job, job.off);
      }
    },
    show({slot}, {outputs_list, triggered}) {  // called by finish(), for all instances
      const [job] = jobsOf(slot), hasCome = !triggered.length;  // or as an Output comes
      const isPromised = job?.settle && !job.isShown;
      // At page load, start() has just promised its result.
      if (!job || (isPromised && (!hasCome || !job.changedPropIds.length))) return;
      giveUp(job);  // since Dash drops the promise before
      // Another address may have such ids.
      if (hasCome) job.isElsewhere = job.outputs.length && job.path !== address();
      if (job.isElsewhere) return;
      if (hasCome) {
        apply(job, job.outcome ? job.off : job.on);
        job.shown = 0;  // to hear its progress again
        askIn(0);
      }
      job.isShown = true;
      return resultOf(job, outputs_list);
    },
  };
  dash_clientside.plugins_LongCallback = new Proxy(actions, {
    get: (_, text) => () => {
      const [action, key, names, options] = JSON.parse(text.slice(text.indexOf("[")));
      const context = dash_clientside.callback_context;
      const [output] = [context.outputs_list].flat(2);
      // A cancel without MATCH values names the begin of all instances' slots.
      const values = names.map((name) => JSON.stringify([output.id[name]]));
      const slot = key + values.join("");
      const call = {...options, key, slot, instance: output?.id || {}};
      const result = actions[action](call, context);
      return result === undefined ? leave() : result;
    },
  });
})
"""
