"""Run slow Dash callbacks in the background, and always learn how they ended.

    cache = Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"})
    manager = FlaskCachingCallbackManager(cache)
    app = dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       running=[(Output("run", "disabled"), True, False)])
    def compute(n_clicks):  # may take seconds or hours
        return f"Clicked {n_clicks} times"

A *page* is a browser tab with a secret token; each *job* that it wants has a random
number; both together name the job on the server, whose record of it is the truth. A
trigger makes the page (the JavaScript at the end) want a job. One message at a time,
for all jobs of the page, says what it wants and has seen; the answer (``_sync``) brings
what it lacks: progress, set_props, and how the job ended. A clientside callback with
the user's own Outputs shows the result; only when a later message acknowledges it, the
server forgets the job. A message or answer that is lost, late or repeated does no harm:
a number that the server knows is not started again, an answer says of which number and
version it speaks, and what the page still lacks comes with the next one. So both sides
converge. A job runs for as long as it is wanted, which a cancel, a new trigger or
``idle_timeout`` ends.
"""

# mypy: disable-error-code="no-untyped-call,import-untyped"
from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import logging
import multiprocessing
import os
import re
import signal
import stat
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import dash
import flask
from dash import _callback_context, _utils, _validate
from dash._grouping import flatten_grouping, map_grouping, update_args_group
from dash.dependencies import MATCH, handle_grouped_callback_args
from dash.exceptions import InvalidCallbackReturnValue, PreventUpdate

logger = logging.getLogger("longcallback")
_DASH = tuple(map(int, dash.__version__.split(".")[:2]))
_USAGE = """Write @app.long_callback(output=Output(...), args=Input(...) or a list or
dict, running=[(Output(...), while_running, after)], cancel=[Input(...)],
progress=Output(...), progress_default=value or values of its shape), and what else
dash.callback takes."""


class LongCallbackError(Exception):
    """A long callback is declared wrongly, or its job ended without a result."""


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


def _flatten(kind: Any, dependencies: Any) -> list[Any]:
    flat = [] if dependencies is None else list(flatten_grouping(dependencies))
    for item in flat:
        if not isinstance(item, kind):
            raise TypeError(f"{item!r} is not an {kind.__name__}")
    return flat


def _values(outputs: Any, values: Any) -> list[Any]:
    """Return a flat list of values that have the shape of a grouping of Outputs."""
    if isinstance(outputs, (list, tuple)) and not isinstance(values, (list, tuple)):
        values = [values]
    try:
        return list(flatten_grouping(values, outputs))
    except InvalidCallbackReturnValue:
        shape = map_grouping(str, outputs)
        raise ValueError(f"{values!r} is not of the shape {shape}") from None


def _updates(outputs: Any, values: Any) -> list[Any]:
    """Pair Outputs with values: [[component id, {property: value}], ...]."""
    pairs = zip(_flatten(dash.Output, outputs), _values(outputs, values))
    return [
        [item.component_id_str(), {item.component_property: v}] for item, v in pairs
    ]


# --- Plugins and the decorator --------------------------------------------------------


class FlexibleCallbacks:
    """Dash plugin that gives ``app.callback`` the keyword ``args`` of Dash Labs."""

    def plug(self, app: Any) -> None:
        callback = app.callback
        app.callback = lambda *args, **options: callback(*args, **_plain(options))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a callback with ``inputs``, Dash's name, for ``args``."""
    if "args" not in options:
        return options
    args = options["args"]  # a tuple is one argument, of several properties
    inputs = [args] if isinstance(args, tuple) else args
    return {"inputs": inputs, **{k: options[k] for k in options if k != "args"}}


class HiddenComponents:
    """Dash plugin that Dash Labs needed beside ``LongCallback``; it does nothing."""

    def plug(self, app: Any) -> None:
        pass


_shared_stores: list[Any] = []  # of callbacks that are declared without an app


class LongCallback:
    """Dash plugin that gives an app ``app.long_callback``.

    Args:
        manager: A FlaskCachingCallbackManager or a CeleryCallbackManager.
        idle_timeout: Seconds without a message from a page after which its jobs are
            ended, since its tab must be closed; None for never. Browsers slow the
            timers of background tabs to one a minute: stay well above that.
    """

    plugged = 0

    def __init__(self, manager: _Manager, idle_timeout: float | None = 600) -> None:
        self.manager, self.idle_timeout = manager, idle_timeout or _LONGEST

    def plug(self, app: Any) -> None:
        self.app, self.number = app, LongCallback.plugged
        LongCallback.plugged += 1
        app.long_callback = functools.partial(long_callback, _plugin=self)
        tick: Any = dash.dcc.Interval(id="longcallback-tick", disabled=True)
        ask: Any = dash.dcc.Store(id="longcallback-ask")
        answer: Any = dash.dcc.Store(id="longcallback-answer")
        self.stores = [tick, ask, answer]
        for stores in (self.stores, _shared_stores):
            app._extra_components.append(dash.html.Div(stores, hidden=True))
        layout_value = app._layout_value

        def layout_in_div() -> Any:  # a list beside extra components would be nested
            layout = layout_value()
            layout.children[0] = dash.html.Div(layout.children[0])
            return layout

        app._layout_value = layout_in_div
        heard = dash.Input(tick.id, "n_intervals"), dash.Input(answer.id, "data")
        options = {"hidden": True, "prevent_initial_call": False}
        app.clientside_callback(_JAVASCRIPT, *heard, **options)
        app.callback(dash.Input(ask.id, "data"), True, hidden=True)(self._sync)
        for callback in app._callback_list[-2:]:
            callback["persistent"] = True  # Dash 4 keeps it out of the title

    def _sync(self, message: Any) -> None:
        """Answer a page's message: do what it wants, and say what it lacks."""
        try:
            page, jobs = message["page"], message["jobs"]
            wants = {n: _parse(page, n, want) for n, want in jobs.items()}
        except Exception as error:  # noqa: BLE001
            logger.warning("Ignored a malformed message: %.200r", error)
            raise PreventUpdate from None
        answers = {n: self._answer(*want) for n, want in wants.items()}
        data = {"number": message.get("number"), "jobs": answers}
        dash.set_props("longcallback-answer", {"data": data})

    def _answer(self, job: str, callback: Any, seen: int, start: Any, end: Any) -> Any:
        """Do what a page wants of a job, and return what the page lacks.

        None tells the page to forget the job; version 0, to say again what it wants.
        """
        if callback is None:
            return None  # the page is older than the server's code
        manager = callback.manager or (callback._plugin or self).manager
        try:
            if end:
                return manager.forget(job)
            record = manager.read(job, self.idle_timeout)
            if record is None and start:
                record = manager.begin(job, callback, start, self.idle_timeout)
            known = record is not None
        except Exception as error:
            logger.exception("%s: its manager failed", callback.name)
            if end:
                return {"seen": 0}
            record, seen, known = _record(f"its manager failed: {error}"), 0, False
        if record is None and not seen:
            return {"seen": 0}
        record = record or _record(_GONE)
        outcome = record["outcome"]
        if outcome and "error" in outcome and "handled" not in outcome:
            outcome = self._handle(callback, outcome["error"])
            if known:
                manager.finish(job, outcome)
        elif outcome and record.get("reuse"):
            manager.finish(record["reuse"], outcome, manager.expire)
        props = [entry for entry in record["log"] if entry[0] > seen]
        return {"seen": record["version"], "props": props, "outcome": outcome}

    def _handle(self, callback: Any, error: str) -> dict[str, Any]:
        """Log a job's error and give it to its handler; return the outcome to show."""
        text = f"{callback.name}: {error}"
        logger.error("%s", text)
        handler = callback.on_error or getattr(self.app, "_on_error", None)
        try:
            if handler is not None:
                value = handler(LongCallbackError(text))
                value = dash.no_update if value is None else value
                return {"result": callback.encode(value)}
        except Exception:
            logger.exception("%s: its on_error failed", callback.name)
            text += f"\n\nIts on_error failed: {traceback.format_exc()}"
        if not self.app._dev_tools.get("ui"):
            text = text.partition("\n\n")[0]  # without the traceback
        return {"error": text, "handled": True}


plugins = SimpleNamespace(
    FlexibleCallbacks=FlexibleCallbacks,
    HiddenComponents=HiddenComponents,
    LongCallback=LongCallback,
)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def _parse(page: str, n: str, want: dict[str, Any]) -> Any:
    """Return a job's name, its callback, and what a browser wants of it.

    Raises if no page of ours can have sent it.
    """
    if not re.fullmatch("[0-9a-f]{44},[0-9a-f]{32}", f"{n},{page}"):
        raise ValueError("no job number or page token")
    callback, start = _CALLBACKS.get(n[:12]), want.get("start")
    if start and callback:
        entries = start["inputs"] + start["states"]
        _utils.inputs_to_dict(entries)
        if [isinstance(entry, list) for entry in entries] != callback.wild:
            raise ValueError("not the inputs of the callback")
        start["triggered"] = list(map(str, start["triggered"]))
    return _digest(page, n), callback, int(want["seen"]), start, want.get("end")


def long_callback(
    *args: Any,
    interval: int = 1000,
    running: Any = None,
    cancel: Any = None,
    progress: Any = None,
    progress_default: Any = None,
    manager: _Manager | None = None,
    on_error: Callable[[Exception], Any] | None = None,
    cache_args_to_ignore: Any = (),
    cache_ignore_triggered: bool = True,
    _plugin: Any = None,
    **options: Any,
) -> Callable[[Any], Any]:
    """Declare a callback that runs in the background (after Dash Labs).

    ``app.long_callback`` declares it for one app; this function, like
    ``dash.callback``, for the app that ``LongCallback`` was plugged into last.

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
        on_error: Called with the LongCallbackError of a job that failed; what it
            returns goes to the outputs.
        cache_args_to_ignore: Indices (or names, if ``args`` is a dict) of arguments
            that don't matter when the manager reuses results.
        cache_ignore_triggered: Whether what triggered the callback doesn't, either.

    Raises:
        LongCallbackError: The declaration has a mistake; the text names the callback.
    """
    parameters = locals()

    def decorate(function: Any) -> Any:
        # A worker does not know it by __main__, as the module may be called here.
        module = inspect.getmodulename(inspect.getfile(function))
        name = f"{module}.{function.__qualname__}"
        try:
            _Callback(**parameters, function=function, name=name).declare()
        except Exception as error:
            text = f"@long_callback for {name}: {error}. {_USAGE}"
            raise LongCallbackError(text) from error
        return function

    return decorate


_dash_class: Any = dash.Dash  # of an app without the plugin
_without_plugin = functools.partial(long_callback, _plugin=False)
_dash_class.long_callback = staticmethod(_without_plugin)
_CALLBACKS: dict[str, Any] = {}  # by the key that they have in every process
_KEYWORDS = {"output", "inputs", "state", "args", "prevent_initial_call"}
_KEYWORDS |= set(dash.callback.__kwdefaults__ or ())


class _Callback(SimpleNamespace):
    """A long callback, with the parameters of its declaration."""

    def declare(self) -> None:
        """Check the declaration; add its clientside callbacks and its Store."""
        plugin, progress, default = self._plugin, self.progress, self.progress_default
        if plugin is False:
            example = "dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])"
            raise TypeError(f"its app has no long callbacks: write {example}")
        if unknown := self.options.keys() - _KEYWORDS:
            raise TypeError(f"it takes no {sorted(unknown)}")
        grouped = handle_grouped_callback_args(list(self.args), _plain(self.options))
        self.outputs, inputs, states, self.indices, prevent = grouped
        on, off = list[Any](), list[Any]()
        if progress is not None:
            nothing = map_grouping(lambda _: None, progress)
            off += _updates(progress, nothing if default is None else default)
        elif default is not None:
            raise TypeError("progress_default needs progress")
        for output, while_running, after in self.running or []:
            on += _updates(output, while_running)
            off += _updates(output, after)
        outputs = _flatten(dash.Output, self.outputs)
        self.wild = ['["ALL' in str(item) for item in [*inputs, *states]]
        declared = [*map(str, [*outputs, *inputs, *states])]
        app = plugin and plugin.number  # two apps may have the same callback
        self.key = key = _digest(app, self.name, declared)[:12]
        ids = [o.component_id for o in outputs if isinstance(o.component_id, dict)]
        match = sorted({name for id_ in ids for name in id_ if id_[name] is MATCH})
        if "MATCH" in str(inputs) and not match:
            raise TypeError("MATCH needs an Output with MATCH")
        if match and _DASH < (2, 18):
            raise TypeError("MATCH needs Dash 2.18 or newer")
        _CALLBACKS[key] = self
        store: Any = dash.dcc.Store(id=f"longcallback-{key}")
        (plugin.stores if plugin else _shared_stores).append(store)
        # Dash tells callbacks with the same Inputs and Outputs apart by this Input,
        # which never changes. Where there is no Output of the user's, the Input's own
        # component serves, so that an Input that comes to the page is no trigger.
        own = dash.Input(store.id, "clear_data")
        if prevent is None and plugin:
            prevent = plugin.app.config.prevent_initial_callbacks

        def add(call: str, targets: Any, *sources: Any, prevent: Any = False) -> None:
            also = [
                dash.Output(item.component_id, item.component_property, True)
                for item in targets
            ]
            # Dash wants this beside allow_duplicate; it lets the initial call happen.
            options = {"prevent_initial_call": prevent or "initial_duplicate"}
            register = (plugin.app if plugin else dash).clientside_callback
            code = f"() => longcallback.{call}"
            register(code, also, *sources, hidden=True, **options)

        # With the user's Outputs and Inputs, "start" is called just when Dash would
        # call the user's function; it leaves the Outputs alone.
        updates = f"{_script(on)}, {_script(off)}"
        start = f"start('{key}', {match}, {self.interval:d}, {updates})"
        add(start, outputs or inputs[:1], [*inputs, own], states, prevent=prevent)
        add(f"show('{key}', {match})", outputs or [own], dash.Input(store.id, "data"))
        for item in _flatten(dash.Input, self.cancel):
            names = match if "MATCH" in str(item) else []  # without, for all instances
            add(f"cancel('{key}', {names})", [item], [item, own], prevent=True)

    def encode(self, value: Any) -> str:
        """Return what a callback returned as a JSON list with one value an Output."""
        outputs = _flatten(dash.Output, self.outputs)
        if isinstance(value, type(dash.no_update)):
            return _serialize([value] * len(outputs))
        if not outputs and value is not None:
            raise ValueError(f"it has no Output, but returned {value!r}")
        return _serialize(_values(self.outputs, value) if outputs else [])

    def arguments(self, call: dict[str, Any]) -> Any:
        """Return the positional and the keyword arguments of a call."""
        values = _utils.inputs_to_vals(call["inputs"] + call["states"])
        return _validate.validate_and_group_input_args(values, self.indices)

    def context(self, call: dict[str, Any], props: Any) -> Any:
        """Return dash.ctx of a job; ``props`` takes what dash.set_props sets."""
        inputs, states, outputs = call["inputs"], call["states"], call.get("outputs")
        values, triggered = _utils.inputs_to_dict(inputs), call["triggered"]
        entries = _utils.convert_to_AttributeDict(inputs + states)
        for entry in entries:
            for item in entry if isinstance(entry, list) else [entry]:
                update_args_group(item, triggered)
        if isinstance(self.outputs, dash.Output):
            outputs = outputs[0] if outputs else None  # before 2.18, Dash didn't say
        return _utils.AttributeDict(
            **call["request"],
            inputs_list=inputs,
            states_list=states,
            outputs_list=outputs,
            input_values=values,
            state_values=_utils.inputs_to_dict(states),
            triggered_inputs=[
                {"prop_id": p, "value": values.get(p)} for p in triggered
            ],
            args_grouping=map_grouping(lambda index: entries[index], self.indices),
            updated_props=props,
            ignore_register_page=True,
        )


def _script(value: Any) -> str:
    """Return a value as JavaScript that can stand in an HTML page."""
    return str(_utils.to_json(value)).replace("<", "\\u003c")


def _serialize(value: Any) -> str:
    text = str(_utils.to_json(value))
    if "__dash_patch_update" in text and _DASH < (3, 3):
        raise TypeError("a job can return or set a Patch with Dash 3.3 or newer")
    return text


# --- Jobs ---------------------------------------------------------------------------


def _record(error: str | None = None) -> dict[str, Any]:
    """Return a job's record: its set_props by version, and how it ended, if it has."""
    return {"version": 1, "log": [], "outcome": {"error": error} if error else None}


def _add(record: dict[str, Any], component_id: str, values: dict[str, Any]) -> None:
    """Add set_props to a record; of older ones, what a Patch may need stays."""
    for name, value in values.items():
        if not (isinstance(value, dict) and "__dash_patch_update" in value):
            log = record["log"]
            record["log"] = [e for e in log if e[1] != component_id or name not in e[2]]
        record["version"] += 1
        record["log"].append([record["version"], component_id, {name: value}])


def _run(key: str, call: Any, store: Callable[[Any], None]) -> dict[str, Any]:
    """Run a job and return its record; ``store`` takes it at most 20 times a second."""
    callback, record = _CALLBACKS.get(key), _record()
    if callback is None:
        return _record("no module that its process imports declares it")
    lock, news = threading.Lock(), threading.Event()

    def report() -> None:
        while news.wait() and not record["outcome"]:
            news.clear()
            try:
                with lock:
                    store(record)
            except Exception:
                logger.exception("%s: its progress could not be stored", callback.name)
            time.sleep(0.05)

    class Props(dict):  # type: ignore[type-arg]
        """Stands for Dash's store of set_props."""

        def __setitem__(self, component_id: str, values: dict[str, Any]) -> None:
            with lock:
                _add(record, component_id, json.loads(_serialize(values)))
            news.set()

    props = Props()

    def set_progress(*values: Any) -> None:
        if isinstance(callback.progress, dash.Output) and len(values) != 1:
            raise TypeError(f"set_progress takes one value, not {values!r}")
        value = values[0] if len(values) == 1 else values
        for update in _updates(callback.progress, value):
            props.__setitem__(*update)

    threading.Thread(target=report, daemon=True).start()
    try:
        _callback_context.context_value.set(callback.context(call, props))
        args, options = callback.arguments(call)
        first = [] if callback.progress is None else [set_progress]
        value = callback.function(*first, *args, **options)
        if asyncio.iscoroutine(value):
            value = asyncio.run(value)
        outcome = {"result": callback.encode(value)}
        record["reuse"] = call["reuse"]
    except PreventUpdate:
        outcome = {"result": callback.encode(dash.no_update)}
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM - 256:
            raise  # a Celery worker ends this process, and says why
        text = f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"
        outcome = {"error": text}
    with lock:
        record["outcome"] = outcome
    news.set()
    return record


# --- Managers -----------------------------------------------------------------------

_LONGEST = 30 * 24 * 3600  # seconds
_RESULT_KEPT = 24 * 3600  # seconds for which a result waits to be fetched
_LEASE = 10  # seconds for which a running job's record is believed
_WATCH_PERIOD = 0.25  # seconds
_INSTANT = 0.04  # seconds that the answer to a start waits for the job's end
_GONE = """nobody knows of it any more: the cache or the result backend was emptied, the
page was silent for longer than idle_timeout, or, with rpc://, another web process sent
its task (use one web process, or a result backend that all can read, such as Redis)"""


class _Manager:
    """Runs jobs: ``start`` starts one, ``read`` returns its record (None if it knows
    no such job) and keeps it wanted, ``finish`` sets how it ended, ``forget`` ends it
    if it runs, and deletes its record.
    """

    start: Any
    read: Any
    finish: Any
    forget: Any

    def __init__(self, cache_by: Any, expire: float | None) -> None:
        self._cache_by = [cache_by] if callable(cache_by) else cache_by
        self.expire = expire or _LONGEST

    def begin(self, job: str, callback: Any, call: Any, idle_timeout: float) -> Any:
        """Start a job, or reuse a result; return the job's record."""
        context = _callback_context.context_value.get()
        names = "cookies", "headers", "path", "remote", "origin", "args"
        request = {name: context[name] for name in names if name in context}
        call["request"] = json.loads(json.dumps(request, default=dict))
        call["reuse"] = self._cache_by and self._reuse_key(callback, call)
        reused = call["reuse"] and self.read(call["reuse"], self.expire)
        if reused and reused.get("until", float("inf")) > time.time():
            self.finish(job, reused["outcome"])
        else:
            self.start(job, callback, call, idle_timeout)
        return self.read(job, idle_timeout) or _record(_GONE)

    def _reuse_key(self, callback: Any, call: Any) -> str:
        args, options = callback.arguments(call)
        ignored = callback.cache_args_to_ignore
        ignored = ignored if isinstance(ignored, (list, tuple)) else [ignored]
        named = options or dict(enumerate(args))
        kept = [named[name] for name in sorted(named.keys() - set(ignored))]
        triggered = None if callback.cache_ignore_triggered else call["triggered"]
        return _digest(callback.key, kept, triggered, [f() for f in self._cache_by])


class FlaskCachingCallbackManager(_Manager):
    """Runs each job in a process of its own and keeps records in Flask-Caching.

    A job's process ends with the server process that started it. There, a thread
    watches the job: it records what the job sends, renews the record's lease (so other
    server processes can tell a dead server from a slow job), and ends the job and what
    it started when the job isn't wanted any more.

    Args:
        flask_cache: A ``flask_caching.Cache`` that processes can share, such as
            FileSystemCache or RedisCache; ``init_app`` is not needed.
        cache_by: A function or a list of functions, whose values are part of the key
            under which results are reused; None to run every job.
        expire: Seconds for which a result is reused; None for no limit.
        start_method: "fork", "forkserver" or "spawn"; None for Python's default.
            Forked jobs start fastest and need not be importable, but a lock that
            another thread of the server held stays locked in them: libraries with
            threads of their own (gRPC, CUDA, Polars) need another method.

    Raises:
        LongCallbackError: The cache can't be shared between processes.
    """

    def __init__(
        self,
        flask_cache: Any,
        cache_by: Any = None,
        expire: float | None = None,
        start_method: str | None = None,
    ) -> None:
        super().__init__(cache_by, expire)
        self._flask_cache, self._waited = flask_cache, 0.0
        self._context: Any = multiprocessing.get_context(start_method)
        if flask_cache.config:
            self._check(flask_cache.config)

    @staticmethod
    def _check(config: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration with today's names; raises if it can't be used."""
        kind = config.get("CACHE_TYPE", "NullCache").rpartition(".")[2]
        kind = {"filesystem": "FileSystemCache", "redis": "RedisCache"}.get(kind, kind)
        alone = kind.lower() in ("null", "nullcache", "simple", "simplecache")
        if alone or (kind == "FileSystemCache" and not config.get("CACHE_DIR")):
            example = '{"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"}'
            text = f"jobs can't share {config}; write Cache(config={example})"
            raise LongCallbackError(text)
        return {**config, "CACHE_TYPE": kind}

    @functools.cached_property
    def _cache(self) -> Any:
        cache = self._flask_cache
        app = getattr(cache, "app", None) or flask.current_app
        if not app or cache not in app.extensions.get("cache", {}):
            app = flask.Flask("longcallback")
            cache.init_app(app, self._check(cache.config or {}))
        return app.extensions["cache"][cache]

    def _set(self, name: str, value: Any, timeout: float) -> None:
        if not self._cache.set(f"longcallback-{name}", value, timeout=int(timeout)):
            raise LongCallbackError("the cache takes no values; see its log")

    def _get(self, name: str) -> Any:
        return self._cache.get(f"longcallback-{name}")

    def read(self, job: str, idle_timeout: float) -> Any:
        record = self._get(job)
        if record and record["outcome"]:
            return record
        wanted = self._get(f"{job}-wanted")
        if not wanted:
            return self._get(job)  # it may have ended just now
        (began, asked), now = wanted, time.time()
        if now > asked + idle_timeout / 4:
            self._set(f"{job}-wanted", (began, now), max(idle_timeout, _RESULT_KEPT))
        if now < (record["renewed"] if record else began) + _LEASE:
            return record or _record()
        if now > self._waited + _LEASE:
            time.sleep(2 * _WATCH_PERIOD)  # of a machine that slept, it is renewed now
            self._waited = time.time()
        newer = self._get(job)
        if newer and newer != record:
            return newer
        return _record("the server process that ran it is gone")

    def finish(self, job: str, outcome: Any, kept: float = _RESULT_KEPT) -> None:
        self._set(job, {**_record(), "outcome": outcome}, kept)

    def forget(self, job: str) -> None:
        self._cache.delete_many(f"longcallback-{job}-wanted", f"longcallback-{job}")

    def start(self, job: str, callback: Any, call: Any, idle_timeout: float) -> None:
        wanted, kept = (time.time(), time.time()), max(idle_timeout, _RESULT_KEPT)
        if not self._cache.add(f"longcallback-{job}-wanted", wanted, timeout=int(kept)):
            if self._get(f"{job}-wanted"):
                return  # a message that said the same was faster
            self._set(f"{job}-wanted", wanted, kept)  # raises: it takes no values
        reader, writer = self._context.Pipe(duplex=False)
        args = callback.function.__module__, callback.key, call, writer
        process = self._context.Process(target=_run_in_process, args=args)
        process.start()
        writer.close()
        args = job, process, reader, idle_timeout
        watch = threading.Thread(target=self._watch, args=args)
        watch.start()
        watch.join(_INSTANT)  # an instant job's result needs no second message

    def _watch(self, job: str, process: Any, reader: Any, idle_timeout: float) -> None:
        """Keep a job's record until it ends, is not wanted, or this server exits."""
        record, stored, wanted, asked = _record(), time.time(), None, time.monotonic()
        server = threading.main_thread()
        while server.is_alive() and not (record["outcome"] and stored):
            news = None if record["outcome"] else _receive(process, reader)
            if news:
                record, stored = news, 0.0
            try:
                if abs(time.time() - stored) > _LEASE / 3:
                    renewed = {**record, "renewed": time.time()}
                    self._set(job, renewed, _RESULT_KEPT)
                    stored = time.time()
                wanted, before = self._get(f"{job}-wanted"), wanted
                if wanted != before:
                    asked = time.monotonic()  # which stands while the machine sleeps
                if wanted is None or time.monotonic() > asked + idle_timeout:
                    self.forget(job)
                    break
                if record["outcome"]:
                    self._cache.delete(f"longcallback-{job}-wanted")
            except Exception:
                logger.warning("A job's record could not be stored", exc_info=True)
                time.sleep(_WATCH_PERIOD)
        process.join(1 if record["outcome"] else 0)
        with contextlib.suppress(AttributeError, ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # and what the job started
        process.kill()  # there are no process groups (Windows), or not yet this one
        process.join()
        reader.close()


def _receive(process: Any, reader: Any) -> Any:
    """Wait a moment for a job's record; one with an error if the job's process died."""
    alive = process.is_alive()  # asked before, since it may send its last record now
    try:
        if reader.poll(_WATCH_PERIOD):
            return reader.recv()
    except EOFError:
        process.join(_WATCH_PERIOD)
    if alive:
        return None
    code = process.exitcode
    cause = f"exit code {code}" if code >= 0 else str(signal.Signals(-code).name)
    return _record(f"its process ended by {cause} before it returned a result")


def _run_in_process(module: str, key: str, call: Any, writer: Any) -> None:
    """Run a job in a process of its own; ``writer`` takes its record."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that its group is what the job starts, and Ctrl-C spares it
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    # A forked process would hold the server's port after it was killed, and connections
    # that it closes, so that a browser waits on them for ever.
    nothing = os.open(os.devnull, os.O_RDONLY)
    for name in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else []:
        with contextlib.suppress(OSError):  # it is closed, as that of the listing
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.dup2(nothing, int(name))
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    if key not in _CALLBACKS:  # in a fresh process
        importlib.import_module(module)
    writer.send(_run(key, call, writer.send))


def _follow(parent: int) -> None:
    """End this process and those it started when the server is gone."""
    server: Any = multiprocessing.parent_process()
    while os.getppid() == parent and server.is_alive():
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


class CeleryCallbackManager(_Manager):
    """Runs each job as a task on a Celery worker that has imported the callback.

    Records are task states in the result backend. With ``rpc://``, only the process
    that sent a task can read them, so there may be one web process only.

    Args:
        celery_app: A ``celery.Celery`` with a result backend.
        cache_by, expire: As for FlaskCachingCallbackManager.

    Raises:
        LongCallbackError: Celery is not installed, or there is no result backend.
    """

    def __init__(
        self, celery_app: Any, cache_by: Any = None, expire: float | None = None
    ) -> None:
        super().__init__(cache_by, expire)
        try:
            from celery.backends.base import DisabledBackend
            from celery.backends.rpc import RPCBackend
            from celery.utils.functional import LRUCache
        except ImportError as error:
            text = 'CeleryCallbackManager needs Celery: pip install "celery[redis]"'
            raise LongCallbackError(text) from error
        if isinstance(celery_app.backend, DisabledBackend):
            text = 'Celery needs a result backend: Celery(backend="rpc://")'
            raise LongCallbackError(text)
        self._celery, self._rpc = celery_app, isinstance(celery_app.backend, RPCBackend)
        self._own = LRUCache(10_000)  # with rpc://, the records of this process
        self._thread = ThreadPoolExecutor(1)
        # Celery would try to reach a broker that is down for ever, unseen by anybody.
        options = {"max_retries": 1, "interval_start": 0}
        options.update(celery_app.conf.broker_transport_options)
        celery_app.conf.broker_transport_options = options
        task = {"acks_late": False, "ignore_result": False, "typing": False}
        self._task = celery_app.task(name="longcallback", **task)(self._work)

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call Celery, for rpc:// in the one thread that receives its results."""
        if not self._rpc:
            return function(*args, **options)
        return self._thread.submit(function, *args, **options).result()

    def _store(self, job: str, record: dict[str, Any]) -> None:
        if self._rpc:
            self._own[job] = record
        else:
            self._celery.backend.forget(job)  # it would not overwrite a success
            self._celery.backend.store_result(job, record, "PROGRESS")

    def start(self, job: str, callback: Any, call: Any, idle_timeout: float) -> None:
        self._store(job, _record())
        options = {"task_id": job, "shadow": callback.name, "retry": False}
        self._call(self._task.apply_async, (callback.key, call), **options)

    def read(self, job: str, idle_timeout: float) -> Any:
        record = self._own.get(job)
        if record and record["outcome"]:
            return record

        def fetch() -> Any:
            return self._celery.backend.get_task_meta(job)  # each thread has a backend

        try:
            meta = self._call(fetch)
        except OSError:  # the connection is older than the broker's restart
            meta = self._call(fetch)
        status, result = meta["status"], meta["result"]
        if status == "FAILURE":
            record = _record(f"{type(result).__name__}: {result}")
        elif status == "REVOKED":
            record = _record("its task was revoked")
        elif status in ("PROGRESS", "SUCCESS"):
            record = result
        if record and self._rpc:
            self._own[job] = record
        return record

    def finish(self, job: str, outcome: Any, kept: float = _RESULT_KEPT) -> None:
        self._store(job, {**_record(), "outcome": outcome, "until": time.time() + kept})

    def forget(self, job: str) -> None:
        record = self.read(job, 0)
        if record and not record["outcome"]:
            revoke = self._celery.control.revoke
            self._call(revoke, job, terminate=True, signal="SIGKILL")
        if self._rpc:
            self._own.pop(job, None)
        else:
            self._celery.backend.forget(job)

    def _work(self, key: str, call: Any) -> dict[str, Any]:
        """Run a job; this is the task, on a worker."""
        request, store = self._task.request, self._celery.backend.store_result
        if not self._rpc and self.read(request.id, 0) is None:
            return _record("it was cancelled before a worker took it")
        report = functools.partial(store, request.id, state="PROGRESS", request=request)
        return _run(key, call, report)


# --- In the browser -----------------------------------------------------------------

_JAVASCRIPT = """
(() => {
  const TIMEOUT = 3000;  // milliseconds after which an answer is taken for lost
  let page, jobs, config, absent, number = 0, sent = -Infinity;
  const set = (name, props) => dash_clientside.set_props("longcallback-" + name, props);
  const leave = () => { throw dash_clientside.PreventUpdate; };
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)),
    (byte) => byte.toString(16).padStart(2, "0")).join("");

  function load() {  // what a refresh left in sessionStorage, which belongs to one tab
    if (page) return;
    config = JSON.parse(document.getElementById("_dash-config").textContent);
    const memory = "longcallback" + config.requests_pathname_prefix;
    const saved = JSON.parse(sessionStorage.getItem(memory));
    sessionStorage.removeItem(memory);  // a tab opened from this one gets a copy
    ({page, jobs} = saved || {page: random(), jobs: {}});
    const kept = (start) => JSON.stringify([start]).length < 1e6 ? start : null;
    const save = () => {
      for (const job of Object.values(jobs)) {  // version 1 has no set_props
        const seen = Math.min(job.seen, 1), start = kept(job.start);
        Object.assign(job, {seen, due: 0, start, upload: start, outcome: null});
      }
      sessionStorage.setItem(memory, JSON.stringify({page, jobs}));
    };
    addEventListener("pagehide", save);
    addEventListener("pageshow", ({persisted}) => {
      if (!persisted) return;  // the browser kept this page, and what it shows is old
      removeEventListener("pagehide", save);
      location.reload();
    });
    setTimeout(ask);
  }
  function instanceOf(names) {  // of a callback with MATCH: the values it stands for
    const output = [dash_clientside.callback_context.outputs_list].flat(2)[0];
    return Object.fromEntries(names.map((name) => [name, output.id[name]]));
  }
  function apply(job, updates) {  // unlike Dash, pass over components not shown
    const {strs, objs} = dash_stores[0].getState().paths;
    const isKnown = (id) =>
      JSON.stringify([config.validation_layout]).includes(JSON.stringify(id));
    for (const [text, props] of updates) {
      const id = text.startsWith("{") ? JSON.parse(text) : text;
      const names = id === text ? [] : Object.keys(id).sort();
      const fits = ({values}) => names.every((name, i) => id[name][0] === "ALL" ||
        values[i] === (id[name][0] === "MATCH" ? job.instance[name] : id[name]));
      for (const {values} of (objs[names.join()] || []).filter(fits)) {
        const one = Object.fromEntries(names.map((name, i) => [name, values[i]]));
        dash_clientside.set_props(one, props);
      }
      if (strs[id]) dash_clientside.set_props(id, props);
      else if (id === text && !isKnown(id)) absent = id;
    }
  }
  function end(slot, wait, restore) {  // the jobs of a callback or of an instance
    for (const job of Object.values(jobs)) {
      if (!job.slot.startsWith(slot)) continue;
      if (restore) apply(job, job.off);
      const due = performance.now() + wait;
      Object.assign(job, {slot: "", end: true, due, start: null, upload: null});
    }
    setTimeout(ask);  // what happens in one moment goes into one message
  }
  function ask() {
    const now = performance.now();
    const open = Object.entries(jobs).filter(([, job]) => job.due < Infinity);
    let due = Math.max(sent + TIMEOUT, Math.min(...open.map(([, job]) => job.due)));
    if (due <= now) {
      const wants = {};
      for (const [n, job] of open) {
        wants[n] = {seen: job.seen, start: job.upload, end: job.end};
        job.upload = null;
      }
      set("ask", {data: {page, number: ++number, jobs: wants}});
      sent = now + JSON.stringify(wants).length / 100;  // it may go up at 100 kB/s only
      due = sent + TIMEOUT;
    }
    const disabled = !open.length;
    set("tick", disabled ? {disabled} : {disabled, interval: due - now});
  }
  function hear(answer) {
    const now = performance.now(), answers = Object.entries(answer.jobs);
    if (answer.number === number) sent = -Infinity;
    for (const [n, lacks] of answers) {
      const job = jobs[n] ??= {slot: "", seen: 0, end: true, due: now};  // a late start
      if (lacks && job.end) {  // an older answer, unless its manager failed
        if (!lacks.seen) job.due = now + 1000;
      } else if (lacks && !lacks.seen && job.start) {  // the message with it was lost
        Object.assign(job, {upload: job.start, due: 0});
      } else if (!lacks || !lacks.seen) {  // the server does not know the job any more
        if (!job.end) apply(job, job.off);
        delete jobs[n];
      } else if (!job.outcome) {
        const news = lacks.props.filter(([version]) => version > job.seen);
        apply(job, news.map(([version, id, props]) => [id, props]));
        const wait = 20 + 4 * Math.sqrt(Math.abs(now - job.born) * answers.length);
        const due = lacks.outcome ? Infinity : now + Math.min(job.interval, wait);
        const seen = Math.max(job.seen, lacks.seen);
        Object.assign(job, {seen, due, start: null, outcome: lacks.outcome});
        if (!lacks.outcome) continue;
        apply(job, job.off);
        set(n.slice(0, 12), {data: n});
      }
    }
    ask();
    const text = absent && `No component in the page has the id "${absent}".`;
    absent = null;
    if (text && !config.suppress_callback_exceptions) throw new Error(text);
  }
  window.longcallback = {
    start(key, names, interval, on, off) {
      load();
      const context = dash_clientside.callback_context, instance = instanceOf(names);
      const slot = key + JSON.stringify(instance), own = "longcallback-" + key;
      const bare = (output) => Array.isArray(output) ? output.map(bare)
        : {...output, property: output.property.split("@")[0]};
      const start = {
        inputs: context.inputs_list.filter((input) => input.id !== own),
        states: context.states_list || [],
        outputs: (context.outputs_list || []).map(bare),
        triggered: context.triggered.map((item) => item.prop_id)};
      end(slot, 0);
      const job = {slot, instance, interval, on, off, seen: 0, due: 0, start,
        upload: start, born: performance.now()};  // upload: what the next message takes
      jobs[key + random()] = job;
      apply(job, on);
      leave();
    },
    cancel(key, names) {
      load();
      end(key + (names.length ? JSON.stringify(instanceOf(names)) : ""), 0, true);
      leave();
    },
    show(key, names) {  // called when a result is there, or Outputs came to the page
      load();  // at page load, Dash 3 doesn't call the callback below
      const slot = key + JSON.stringify(instanceOf(names));
      const job = Object.values(jobs).find((job) => job.slot === slot);
      const outcome = job && job.outcome;
      if (job && !outcome) apply(job, job.on);
      if (!outcome) leave();
      end(slot, 1000);  // the acknowledgement waits for other messages to go with
      if (outcome.error) throw new Error(outcome.error);
      const restore = (value) =>
        value?._dash_no_update ? dash_clientside.no_update : value;
      const values = JSON.parse(outcome.result).map((value) =>
        Array.isArray(value) ? value.map(restore) : restore(value));
      return values.length ? values : leave();
    },
  };
  return (tick, answer) => {
    load();
    const {triggered} = dash_clientside.callback_context;
    const heard = (item) => item.prop_id === "longcallback-answer.data";
    if (triggered.some(heard)) hear(answer);
    else ask();
    leave();
  };
})()
"""
