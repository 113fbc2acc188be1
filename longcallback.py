"""Run slow Dash callbacks in the background, and always learn how they ended.

    cache = Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"})
    manager = FlaskCachingCallbackManager(cache)
    app = dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])

    @app.long_callback(Output("result", "children"), Input("run", "n_clicks"),
                       running=[(Output("run", "disabled"), True, False)])
    def compute(n_clicks):  # may take seconds or hours
        return f"Clicked {n_clicks} times"

A *page* is a browser tab with a secret token; each *job* that it wants has a random
number; both together name the job on the server, whose record of it is the truth:

- A trigger makes the page (the JavaScript at the end) want a job. One message at a time,
  for all its jobs, says what the page wants and has seen; the answer (``_sync``) brings
  what it lacks: ``running``, progress, set_props, and how the job ended. A clientside
  callback with the user's own Outputs shows the result. The next message acknowledges
  it, and only then the server forgets the job.
- A message or answer that is lost, late or repeated does no harm: a number that the
  server knows is not started again, an answer says of which number and version it
  speaks, and what the page still lacks comes with the next one. So both sides converge.
- A job runs only while it is wanted: until a cancel, a new trigger or ``idle_timeout``.
"""

# mypy: disable-error-code="no-untyped-call,import-untyped"
from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import hashlib
import importlib
import json
import logging
import math
import multiprocessing.util  # its exit handler waits for jobs: ours comes before it
import os
import re
import signal
import stat
import threading
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dash
import flask
from dash import _callback_context, _utils, _validate
from dash._grouping import flatten_grouping, map_grouping, update_args_group
from dash.dependencies import MATCH, handle_grouped_callback_args
from dash.exceptions import PreventUpdate

logger = logging.getLogger("longcallback")
_DASH = tuple(map(int, dash.__version__.split(".")[:2]))


class LongCallbackError(Exception):
    """A long callback is declared wrongly, or its job ended without a result."""


# --- Dependencies -------------------------------------------------------------------


def _dependency(kind: Any, component_id: Any, properties: Any, **options: Any) -> Any:
    """Return a dependency of Dash; for a tuple or dict of properties, one of its shape.

    The callback then takes or returns a value of that shape (an idea of Dash Labs).
    """
    make = functools.partial(kind, component_id, **options)
    if isinstance(properties, dict):
        return {name: make(property_) for name, property_ in properties.items()}
    if isinstance(properties, tuple):
        return tuple(map(make, properties))
    return make(properties)


Input = functools.partial(_dependency, dash.Input)
Output = functools.partial(_dependency, dash.Output)
State = functools.partial(_dependency, dash.State)


def _flexible(options: dict[str, Any]) -> dict[str, Any]:
    """Translate the keyword ``args`` of Dash Labs to Dash's ``inputs``."""
    if "args" in options:
        args = options.pop("args")  # a tuple is one argument, of several properties
        options["inputs"] = [args] if isinstance(args, tuple) else args
    return options


def _flatten(kind: Any, dependencies: Any) -> list[Any]:
    flat = [] if dependencies is None else list(flatten_grouping(dependencies))
    for item in flat:
        if not isinstance(item, kind):
            raise TypeError(f"{item!r} is not an {kind.__name__}")
    return flat


def _pair(outputs: Any, values: Any) -> list[tuple[Any, Any]]:
    """Pair the Outputs of a grouping with values of the same shape."""
    if isinstance(outputs, (list, tuple)) and not isinstance(values, (list, tuple)):
        values = [values]
    flat = _flatten(dash.Output, outputs)
    try:
        return list(zip(flat, flatten_grouping(values, outputs)))
    except dash.exceptions.InvalidCallbackReturnValue:
        shape = map_grouping(str, outputs)
        raise ValueError(f"{values!r} is not of the shape {shape}") from None


def _add(props: dict[str, Any], pairs: list[Any], instance: dict[str, Any]) -> None:
    """Add pairs of Output and value to {component id: {property: value}}."""
    for output, value in pairs:
        id_ = output.component_id
        if isinstance(id_, dict):
            id_ = {k: instance[k] if v is MATCH else v for k, v in id_.items()}
        values = props.setdefault(_utils.stringify_id(id_), {})
        values[output.component_property] = value


# --- The decorator ------------------------------------------------------------------

_CALLBACKS: dict[str, Any] = {}  # by the key that they have in every process
_KEY_LENGTH = 12
_KEYWORDS = {"output", "inputs", "state", "args", "prevent_initial_call"}
_KEYWORDS |= set(dash.callback.__kwdefaults__ or ())
_PLUGINS: list[Any] = []
_SHARED_STORES: list[Any] = []  # of callbacks that are declared without an app
_USAGE = """Write @app.long_callback(output=Output(...), args=Input(...) or a list or dict,
running=[(Output(...), while_running, after)], cancel=[Input(...)], progress=Output(...),
progress_default=value or values of its shape), and what else dash.callback takes."""


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

    def decorate(function: Any) -> Any:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        if "_main__." in name:  # a worker knows it by its file's name
            file = os.path.basename(function.__code__.co_filename).partition(".")[0]
            name = f"{file}.{function.__qualname__}"
        callback = SimpleNamespace(
            function=function, name=name, progress=progress, on=[]
        )
        callback.plugin, callback.manager = _plugin, manager
        callback.on_error, callback.ignored = on_error, cache_args_to_ignore
        callback.ignore_triggered = cache_ignore_triggered
        try:
            if unknown := options.keys() - _KEYWORDS:
                raise TypeError(f"it takes no {sorted(unknown)}")
            callback.outputs, *dependencies, callback.indices, prevent = (
                handle_grouped_callback_args(list(args), _flexible({**options}))
            )
            if progress is None and progress_default is not None:
                raise TypeError("progress_default needs progress")
            default = progress_default
            if default is None:
                default = map_grouping(lambda _: None, progress)
            callback.off = [] if progress is None else _pair(progress, default)
            for output, on, off in running or []:
                callback.on += _pair(output, on)
                callback.off += _pair(output, off)
            cancels = _flatten(dash.Input, cancel)
            _register(callback, dependencies, cancels, prevent, interval)
        except Exception as error:
            text = f"@long_callback for {callback.name}: {error}. {_USAGE}"
            raise LongCallbackError(text) from error
        return function

    return decorate


def _register(callback: Any, inputs: Any, cancels: Any, prevent: Any, ms: int) -> None:
    """Add the clientside callbacks and the Store of a long callback."""
    plugin = callback.plugin
    outputs = _flatten(dash.Output, callback.outputs)
    number = plugin and plugin.number  # two apps may have the same callback
    identity = [number, callback.name, *map(str, [*outputs, *inputs[0]])]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    callback.key = key = digest[:_KEY_LENGTH]
    _CALLBACKS[key] = callback
    ids = [o.component_id for o in outputs if isinstance(o.component_id, dict)]
    match = sorted({name for id_ in ids for name in id_ if id_[name] is MATCH})
    callback.match = match
    if "MATCH" in str(inputs) and not match:
        raise TypeError("MATCH needs an Output with MATCH")
    if match and _DASH < (2, 18):
        raise TypeError("MATCH needs Dash 2.18 or newer")
    store: Any = dash.dcc.Store(id=f"longcallback-{key}")
    (plugin.stores if plugin else _SHARED_STORES).append(store)
    # Dash tells callbacks with the same Inputs and Outputs apart by this Input, which
    # never changes. Where there is no Output of the user's, the Input's own component
    # serves, so that an Input that comes to the page is no trigger.
    own = dash.Input(store.id, "clear_data")

    def also(dependency: Any) -> dash.Output:
        return dash.Output(dependency.component_id, dependency.component_property, True)

    def add(verb: str, targets: Any, sources: Any, names: Any, prevent: Any) -> None:
        register = (plugin.app if plugin else dash).clientside_callback
        code = f"() => longcallback.{verb}('{key}', {names}, {ms:d})"
        # Dash wants this word beside allow_duplicate; it lets the initial call happen.
        prevent = True if prevent is True else "initial_duplicate"
        register(code, targets, *sources, prevent_initial_call=prevent, hidden=True)

    if prevent is None and plugin:
        prevent = plugin.app.config.prevent_initial_callbacks
    # With the user's Outputs and Inputs, "start" is called just when Dash would call the
    # user's function; it leaves the Outputs alone.
    callback.wild = ['["ALL' in str(item) for item in [*inputs[0], *inputs[1]]]
    outputs = [also(output) for output in outputs]
    sources = [[*inputs[0], own], inputs[1]]
    add("start", outputs or [also(inputs[0][0])], sources, match, prevent)
    add("show", outputs or [also(own)], [dash.Input(store.id, "data")], match, False)
    for item in cancels:
        names = match if "MATCH" in str(item) else []  # without, for all instances
        add("cancel", [also(item)], [[item, own]], names, True)


# --- Plugins ------------------------------------------------------------------------


class FlexibleCallbacks:
    """Dash plugin that gives ``app.callback`` the keyword ``args`` of Dash Labs."""

    def plug(self, app: Any) -> None:
        callback = app.callback
        app.callback = lambda *args, **options: callback(*args, **_flexible(options))


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
    """

    def __init__(self, manager: _Manager, idle_timeout: float | None = 600) -> None:
        self.manager, self.idle_timeout = manager, idle_timeout or _LONGEST

    def plug(self, app: Any) -> None:
        self.app, self.number = app, len(_PLUGINS)
        _PLUGINS.append(self)
        app.long_callback = functools.partial(long_callback, _plugin=self)
        tick: Any = dash.dcc.Interval(id="longcallback-tick", disabled=True)
        ask: Any = dash.dcc.Store(id="longcallback-ask")
        answer: Any = dash.dcc.Store(id="longcallback-answer")
        self.stores = [tick, ask, answer]
        for stores in (self.stores, _SHARED_STORES):
            app._extra_components.append(dash.html.Div(stores, hidden=True))
        layout_value = app._layout_value

        def layout_in_div() -> Any:  # a list beside extra components would be nested
            layout = layout_value()
            layout.children[0] = dash.html.Div(layout.children[0])
            return layout

        app._layout_value = layout_in_div
        heard = dash.Input(tick.id, "n_intervals"), dash.Input(answer.id, "data")
        app.clientside_callback(
            _JAVASCRIPT, *heard, hidden=True, prevent_initial_call=False
        )
        sync = app.callback(dash.Input(ask.id, "data"), True, hidden=True)
        sync(self._sync)
        app._callback_list[-1]["persistent"] = True  # Dash 4 keeps it out of the title

    def _sync(self, message: Any) -> None:
        """Answer a page's message: start and end jobs, and say what the page lacks."""
        try:
            page, jobs = message["page"], message["jobs"]
            wants = {n: _parse(page, n, want) for n, want in jobs.items()}
        except Exception as error:  # noqa: BLE001
            logger.warning("Ignored a malformed message: %.200r", error)
            raise PreventUpdate from None
        answers: dict[str, Any] = {}
        for n, want in wants.items():
            if want is None:
                answers[n] = {"state": "gone", "seen": 0, "props": {}}
                continue
            callback, props = want.callback, dict[str, Any]()
            try:
                answer = self._answer(want, callback, props)
            except Exception as error:
                logger.exception("%s: its manager failed", callback.name)
                outcome = {"error": f"{callback.name}: its manager failed: {error}"}
                answer = {"state": "gone" if want.end else "ended", "outcome": outcome}
                _add(props, callback.off, want.instance)
            answers[n] = {"seen": want.seen, "props": props, **answer}
        data = {"number": message.get("number"), "jobs": answers}
        dash.set_props("longcallback-answer", {"data": data})

    def _answer(
        self, want: Any, callback: Any, props: dict[str, Any]
    ) -> dict[str, Any]:
        """Do what a page wants of a job, and return what it lacks.

        The state is "running"; "more", which follows at once; "ended"; "gone", so forget
        the job; or "unknown", so start it again.
        """
        manager = callback.manager or (callback.plugin or self).manager
        if want.end:
            if want.end == "cancelled":
                _add(props, callback.off, want.instance)
            manager.forget(want.job)
            return {"state": "gone"}
        record = manager.read(want.job, self.idle_timeout)
        if record is None and want.start:
            record = manager.begin(want.job, callback, want.start, self.idle_timeout)
        if record is None and not want.seen:
            return {"state": "unknown"}
        if want.told:
            return {"state": "ended"}
        known, record = record is not None, record or _record(manager.gone)
        if not want.seen:
            _add(props, callback.on, want.instance)
        for version, component_id, name, value in record["log"]:
            if version >= max(want.seen, 1):
                if name in props.get(component_id, {}):
                    return {"state": "more", "seen": version}
                props.setdefault(component_id, {})[name] = value
        outcome = record["outcome"]
        if outcome is None:
            return {"state": "running", "seen": record["version"] + 1}
        if reuse := outcome.pop("reuse", None):
            manager.finish(reuse, outcome, manager.expire)
        _add(props, callback.off, want.instance)
        if "error" in outcome and not outcome.get("handled"):
            handler = callback.on_error or getattr(self.app, "_on_error", None)
            outcome = _handle(callback, handler, outcome["error"])
            if known:
                manager.finish(want.job, outcome)
        if not self.app._dev_tools.get("ui") and "error" in outcome:  # no traceback
            outcome = {"error": outcome["error"].partition("\n\n")[0]}
        return {"state": "ended", "outcome": outcome}


plugins = SimpleNamespace(
    FlexibleCallbacks=FlexibleCallbacks,
    HiddenComponents=HiddenComponents,
    LongCallback=LongCallback,
)


def _without_plugin(*args: Any, **options: Any) -> Any:
    def decorate(function: Any) -> None:
        example = "dash.Dash(__name__, plugins=[plugins.LongCallback(manager)])"
        name = function.__qualname__
        raise LongCallbackError(f"@app.long_callback for {name}: write {example}")

    return decorate


_dash_class: Any = dash.Dash
_dash_class.long_callback = _without_plugin


def _parse(page: str, n: str, want: dict[str, Any]) -> Any:
    """Check what a browser wants; raises if no page of ours can have sent it.

    Returns None for a callback that a page has which is older than the server's code.
    """
    callback = _CALLBACKS.get(want["slot"][:_KEY_LENGTH])
    if callback is None:
        return None
    if not re.fullmatch("[0-9a-f]{32},[0-9a-f]{32}", f"{n},{page}"):
        raise ValueError("no job number or page token")
    job = hashlib.sha256(json.dumps([page, n]).encode()).hexdigest()
    instance = json.loads(want["slot"][_KEY_LENGTH:])
    if sorted(instance) != callback.match or not isinstance(instance, dict):
        raise ValueError("no instance of the callback")
    _add({}, callback.off, instance)
    want = {"told": None, "end": None, "start": None, **want, "seen": int(want["seen"])}
    if start := want["start"]:
        entries = start["inputs"] + start["states"]
        _utils.inputs_to_dict(entries)
        if [isinstance(entry, list) for entry in entries] != callback.wild:
            raise ValueError("not the inputs of the callback")
        triggered = [str(prop_id) for prop_id in start["triggered"]]
        want["start"] = {"outputs": None, **start, "triggered": triggered}
        want["start"]["instance"] = instance
    return SimpleNamespace(**want, job=job, callback=callback, instance=instance)


def _handle(callback: Any, handler: Any, error: str) -> dict[str, Any]:
    """Log a job's error and give it to its handler; return the outcome to show."""
    text = f"{callback.name}: {error}"
    logger.error("%s", text)
    if handler is not None:
        try:
            value = handler(LongCallbackError(text))
            value = dash.no_update if value is None else value
            return {"result": _encode(callback, value)}
        except Exception:
            logger.exception("%s: its on_error failed", callback.name)
            text += f"\n\nIts on_error failed: {traceback.format_exc()}"
    return {"error": text, "handled": True}


# --- Jobs ---------------------------------------------------------------------------


def _record(error: str | None = None) -> dict[str, Any]:
    """Return a job's record: its set_props by version, and how it ended, if it has."""
    return {"version": 0, "log": [], "outcome": {"error": error} if error else None}


def _extend(record: dict[str, Any], event: dict[str, Any]) -> None:
    """Add what a job sends, {"props": ...}, or its outcome."""
    if "props" not in event:
        record["outcome"] = event
    for component_id, values in event.get("props", {}).items():
        for name, value in values.items():
            record["version"] += 1
            if not (isinstance(value, dict) and "__dash_patch_update" in value):
                target = [component_id, name]  # only a Patch needs the value before it
                record["log"] = [
                    entry for entry in record["log"] if entry[1:3] != target
                ]
            record["log"].append([record["version"], component_id, name, value])


def _serialize(value: Any) -> str:
    text = str(_utils.to_json(value))
    if "__dash_patch_update" in text and _DASH < (3, 3):
        raise TypeError(
            "a long callback can return or set a Patch with Dash 3.3 or newer"
        )
    return text


def _encode(callback: Any, value: Any) -> str:
    """Return what a callback returned as JSON of a flat list with one value an Output."""
    outputs = _flatten(dash.Output, callback.outputs)
    if isinstance(value, type(dash.no_update)):
        flat = [value] * len(outputs)
    elif outputs:
        flat = [item for _, item in _pair(callback.outputs, value)]
    elif value is None:
        flat = []
    else:
        raise ValueError(f"it has no Output, but returned {value!r}")
    return _serialize(flat)


def _run(
    callback: Any, call: Any, send: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run a job, send its set_props and progress, and return its outcome."""

    def emit(props: dict[str, Any]) -> None:
        send({"props": json.loads(_serialize(props))})

    def set_progress(*values: Any) -> None:
        props: dict[str, Any] = {}
        value = values[0] if len(values) == 1 else values
        if isinstance(callback.progress, dash.Output) and len(values) != 1:
            raise TypeError(f"set_progress takes one value, not {values!r}")
        _add(props, _pair(callback.progress, value), call["instance"])
        emit(props)

    class Props(dict):  # type: ignore[type-arg]
        """Stands for Dash's store of set_props."""

        def __setitem__(self, component_id: str, values: dict[str, Any]) -> None:
            emit({component_id: values})

    try:
        inputs, states, triggered = call["inputs"], call["states"], call["triggered"]
        entries = _utils.convert_to_AttributeDict(inputs + states)
        for entry in entries:
            for item in entry if isinstance(entry, list) else [entry]:
                update_args_group(item, triggered)
        values, outputs = _utils.inputs_to_dict(inputs), call["outputs"]
        if isinstance(callback.outputs, dash.Output):
            outputs = outputs[0] if outputs else None  # before 2.18, Dash didn't say
        context = _utils.AttributeDict(
            **call["request"],
            inputs_list=inputs,
            states_list=states,
            outputs_list=outputs,
            input_values=values,
            state_values=_utils.inputs_to_dict(states),
            triggered_inputs=[
                {"prop_id": p, "value": values.get(p)} for p in triggered
            ],
            args_grouping=map_grouping(lambda index: entries[index], callback.indices),
            updated_props=Props(),
            ignore_register_page=True,
        )
        _callback_context.context_value.set(context)
        args, options = _validate.validate_and_group_input_args(
            _utils.inputs_to_vals(inputs + states), callback.indices
        )
        first = [] if callback.progress is None else [set_progress]
        value = callback.function(*first, *args, **options)
        if asyncio.iscoroutine(value):
            value = asyncio.run(value)
        return {"result": _encode(callback, value), "reuse": call["reuse"]}
    except PreventUpdate:
        return {"result": _encode(callback, dash.no_update)}
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM - 256:
            raise  # a Celery worker ends this process, and says why
        return {"error": f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"}


# --- Managers -----------------------------------------------------------------------


class _Manager:
    """Runs jobs: ``start`` starts one, ``read`` returns its record (None if it knows no
    such job) and keeps it wanted, ``finish`` changes how it ended, ``forget`` ends it if
    it runs, and deletes its record.
    """

    start: Any
    read: Any
    finish: Any
    forget: Any
    gone = (
        "its record is gone: the cache was emptied or is too small, or the page was not "
        "heard of for longer than idle_timeout. Start it again."
    )

    def __init__(self, cache_by: Any, expire: float | None) -> None:
        functions = [cache_by] if callable(cache_by) else cache_by
        self._cache_by, self.expire = functions, expire or _LONGEST

    def begin(self, job: str, callback: Any, call: Any, idle_timeout: float) -> Any:
        """Start a job, or reuse a result; return the job's record."""
        context = _callback_context.context_value.get()
        names = {"cookies", "headers", "path", "remote", "origin", "args"} & set(
            context
        )
        request = json.dumps({name: context[name] for name in names}, default=dict)
        call = {**call, "request": json.loads(request), "reuse": None}
        try:
            if self._cache_by is not None:
                call["reuse"] = self._reuse_key(callback, call)
                record = self.read(call["reuse"], self.expire)
                if record and "result" in record["outcome"]:
                    self.finish(job, record["outcome"])
                    return record
            self.start(job, callback, call, idle_timeout)
        except Exception as error:
            logger.exception("%s: its job could not be started", callback.name)
            return _record(f"its job could not be started: {error}")
        return _record()

    def _reuse_key(self, callback: Any, call: Any) -> str:
        values = _utils.inputs_to_vals(call["inputs"] + call["states"])
        grouped = _validate.validate_and_group_input_args(values, callback.indices)
        named = grouped[1] or dict(enumerate(grouped[0]))
        ignored = callback.ignored
        ignored = set(ignored if isinstance(ignored, (list, tuple)) else [ignored])
        kept = [named[name] for name in sorted(named.keys() - ignored)]
        triggered = None if callback.ignore_triggered else call["triggered"]
        identity = callback.key, kept, triggered, [value() for value in self._cache_by]
        return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()


_LONGEST = 30 * 24 * 3600  # seconds
_RESULT_KEPT = 24 * 3600  # seconds for which a result waits to be fetched
_LEASE = 10  # seconds for which a running job's record outlives its watcher
_WATCH_PERIOD = 0.25  # seconds


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
        self._flask_cache = flask_cache
        self._context: Any = multiprocessing.get_context(start_method)
        self._processes: dict[Any, int] = {}  # and the server process that started it
        if flask_cache.config:
            self._check(flask_cache.config)
        atexit.register(self._end_all)

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
        kept = self._get(f"{job}-wanted")
        if kept is None:
            return None
        if abs(time.time() - kept) > idle_timeout / 4:
            self._set(f"{job}-wanted", time.time(), idle_timeout)
        return self._get(job) or _record("the server process that ran it is gone")

    def finish(self, job: str, outcome: Any, kept: float = _RESULT_KEPT) -> None:
        self._set(f"{job}-wanted", time.time(), kept)
        self._set(job, {**_record(), "outcome": outcome}, kept)

    def forget(self, job: str) -> None:
        self._cache.delete_many(f"longcallback-{job}-wanted", f"longcallback-{job}")

    def start(self, job: str, callback: Any, call: Any, idle_timeout: float) -> None:
        self._set(job, _record(), _LEASE)
        self._set(f"{job}-wanted", time.time(), idle_timeout)
        reader, writer = self._context.Pipe(duplex=False)
        args = callback.function.__module__, callback.key, call, writer
        process = self._context.Process(target=_run_in_process, args=args)
        process.start()
        writer.close()
        self._processes[process] = os.getpid()
        watch = job, process, reader
        threading.Thread(target=self._watch, args=watch, daemon=True).start()

    def _watch(self, job: str, process: Any, reader: Any) -> None:
        record, saved, wanted = _record(), time.monotonic(), True
        while wanted and not record["outcome"]:
            changed = _receive(process, reader, record)
            if process not in self._processes:
                return  # the server exits; that the lease runs out tells the page
            try:
                wanted = self._get(f"{job}-wanted") is not None
                if changed or time.monotonic() - saved > _LEASE / 3:
                    saved = time.monotonic()
                    self._set(
                        job, record, _RESULT_KEPT if record["outcome"] else _LEASE
                    )
            except Exception:
                logger.warning("A running job can't reach its cache", exc_info=True)
        if self._processes.pop(process, 0):
            _end(process, grace=1 if record["outcome"] else 0)
        reader.close()
        if not wanted:
            self._cache.delete(f"longcallback-{job}")

    def _end_all(self) -> None:
        for process, server in list(self._processes.items()):
            if server == os.getpid() and self._processes.pop(process, 0):
                _end(process, grace=0)


def _receive(process: Any, reader: Any, record: dict[str, Any]) -> bool:
    """Wait a moment for what a job sends, or for its death; return whether any came."""
    until, changed = time.monotonic() + _WATCH_PERIOD, False
    try:
        while not record["outcome"] and reader.poll(0 if changed else _WATCH_PERIOD):
            _extend(record, reader.recv())
            changed = True
            if time.monotonic() > until:
                return True
        alive = changed or process.is_alive() or reader.poll()
    except EOFError:
        process.join(_WATCH_PERIOD)
        alive = process.is_alive()
    if not alive:
        code = process.exitcode
        how = (
            f"was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        record["outcome"] = {"error": f"its process {how} before it returned a result"}
    return changed or not alive


def _end(process: Any, grace: float) -> None:
    """End a job's process and those it started, after ``grace`` seconds."""
    process.join(grace)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):
        process.kill()  # there are no process groups (Windows), or not yet this one
    process.join()


def _run_in_process(module: str, key: str, call: Any, writer: Any) -> None:
    """Run a job in a process of its own; ``writer`` takes what it sends."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that _end reaches what the job starts, and Ctrl-C does not
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    _leave_sockets()
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    if key not in _CALLBACKS:  # in a fresh process
        importlib.import_module(module)
    writer.send(_run(_CALLBACKS[key], call, writer.send))


def _follow(parent: int) -> None:
    """End this process and those it started when the server is gone."""
    server: Any = multiprocessing.parent_process()
    while os.getppid() == parent and server.is_alive():
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _leave_sockets() -> None:
    """Let go of the network connections that a forked process inherits.

    The server's port would stay taken after it was killed, and a connection that it
    closes would stay open, so that a browser waits on it for ever.
    """
    numbers = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with open(os.devnull, "rb") as nothing:
        for number in map(int, numbers):
            try:
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.dup2(nothing.fileno(), number)
            except OSError:
                continue  # it is closed, as that of the listing


class CeleryCallbackManager(_Manager):
    """Runs each job as a task on a Celery worker that has imported the callback.

    Records are task states in the result backend. With ``rpc://``, only the process that
    sent a task can read them, so there may be one web process only.

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
        except ImportError as error:
            text = 'CeleryCallbackManager needs Celery: pip install "celery[redis]"'
            raise LongCallbackError(text) from error
        if isinstance(celery_app.backend, DisabledBackend):
            raise LongCallbackError(
                'Celery needs a result backend: Celery(backend="rpc://")'
            )
        self._celery = celery_app
        self._own: dict[str, Any] | None = None  # with rpc://, records of this process
        if isinstance(celery_app.backend, RPCBackend):
            self._own = {}
            self._thread = concurrent.futures.ThreadPoolExecutor(1)
            self.gone = (
                "this web process does not know the job. Results of rpc:// belong to the "
                "process that sent the task: use one web process, or a result backend "
                "that all can read, such as Redis."
            )
        options = {"acks_late": False, "ignore_result": False, "typing": False}
        self._task = celery_app.task(name="longcallback", **options)(self._work)

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call Celery, for rpc:// in the one thread that receives its results."""
        if self._own is None:
            return function(*args, **options)
        return self._thread.submit(function, *args, **options).result()

    def _store(self, job: str, record: dict[str, Any]) -> None:
        if self._own is None:
            self._celery.backend.forget(job)  # it would not overwrite a success
            self._celery.backend.store_result(job, record, "PROGRESS")
        else:
            self._own[job] = record

    def start(self, job: str, callback: Any, call: Any, idle_timeout: float) -> None:
        self._store(job, _record())
        options = {"task_id": job, "shadow": callback.name, "retry": False}
        self._call(self._task.apply_async, (callback.key, call), **options)

    def read(self, job: str, idle_timeout: float) -> Any:
        own = (self._own or {}).get(job)
        if own and own["outcome"]:
            return own if own["until"] > time.time() else None

        def fetch() -> Any:
            return self._celery.backend.get_task_meta(job)

        try:
            meta = self._call(fetch)
        except OSError:  # the connection is older than the broker's restart
            meta = self._call(fetch)
        status, result = meta["status"], meta["result"]
        if status in ("PROGRESS", "SUCCESS"):
            return result if result.get("until", math.inf) > time.time() else None
        if status == "FAILURE":
            return _record(f"{type(result).__name__}: {result}")
        if status == "PENDING" and job not in (self._own or {}):
            return None
        return _record("its task was revoked" if status == "REVOKED" else None)

    def finish(self, job: str, outcome: Any, kept: float = _RESULT_KEPT) -> None:
        until = time.time() + kept
        self._store(job, {**_record(), "outcome": outcome, "until": until})

    def forget(self, job: str) -> None:
        record = self.read(job, 0)
        if record and not record["outcome"]:
            revoke = self._celery.control.revoke
            self._call(revoke, job, terminate=True, signal="SIGKILL")
        if self._own is None:
            self._celery.backend.forget(job)
        else:
            self._own.pop(job, None)

    def _work(self, key: str, call: Any) -> dict[str, Any]:
        """Run a job; this is the task, on a worker."""
        record, job = _record(), self._task.request.id
        if self._own is None and self.read(job, 0) is None:
            return _record("it was cancelled before a worker took it")
        if key not in _CALLBACKS:
            return _record("the worker has not imported the module that declares it")

        # A state is a message to the broker or backend: not each is sent, but the last.
        store = functools.partial(self._celery.backend.store_result, job, record)
        request, lock = self._task.request, threading.Lock()
        timers: list[threading.Timer] = []

        def flush() -> None:
            with lock:
                timers.clear()
                if not record["outcome"]:
                    store("PROGRESS", request=request)

        def send(event: dict[str, Any]) -> None:
            with lock:
                _extend(record, event)
                if not timers:
                    timers.append(threading.Timer(0.05, flush))
                    timers[0].start()

        outcome = _run(_CALLBACKS[key], call, send)
        with lock:
            _extend(record, outcome)
        return record


# --- In the browser -----------------------------------------------------------------

_JAVASCRIPT = """
(() => {
  const TIMEOUT = 3000;  // milliseconds after which an answer is taken for lost
  const jobs = {}, slots = {};  // what this page wants and knows, by job number
  let page, memory, config, absent, number = 0, sent = 0;
  const set = (name, props) => dash_clientside.set_props("longcallback-" + name, props);
  const leave = () => { throw dash_clientside.PreventUpdate; };
  const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)),
    (byte) => byte.toString(16).padStart(2, "0")).join("");

  function load() {  // what a refresh left in sessionStorage, which belongs to one tab
    if (page) return;
    config = JSON.parse(document.getElementById("_dash-config").textContent);
    memory = "longcallback" + config.requests_pathname_prefix;
    const saved = JSON.parse(sessionStorage.getItem(memory) || "{}");
    sessionStorage.removeItem(memory);  // a tab opened from this one gets a copy
    addEventListener("pagehide", save);
    for (const [n, job] of Object.entries(saved.jobs || {}))
      jobs[n] = {...job, seen: 0, due: 0};
    page = saved.page || random();
    setTimeout(ask);
  }
  function save() {
    const kept = Object.entries(jobs).map(
      ([n, {slot, born, interval}]) => [n, {slot, born, interval}]);
    sessionStorage.setItem(memory, JSON.stringify({page, jobs: Object.fromEntries(kept)}));
  }
  function slotOf(key, names) {  // a callback, and with MATCH which instance of it
    const output = [dash_clientside.callback_context.outputs_list].flat(2)[0];
    const entries = names.map((name) => [name, output.id[name]]);
    return key + JSON.stringify(Object.fromEntries(entries));
  }
  function find(id) {  // the ids of components in the page, for ALL of those that fit
    const {strs, objs} = dash_stores[0].getState().paths;
    if (typeof id === "string") return strs[id] ? [id] : [];
    const names = Object.keys(id).sort();
    const ids = (objs[names.join()] || []).map(
      ({values}) => Object.fromEntries(names.map((name, i) => [name, values[i]])));
    return ids.filter((other) => names.every(
      (name) => Array.isArray(id[name]) || id[name] === other[name]));
  }
  function apply(props) {  // unlike Dash, pass over components of pages not shown
    for (const [text, values] of Object.entries(props)) {
      const id = text.startsWith("{") ? JSON.parse(text) : text, ids = find(id);
      for (const one of ids) dash_clientside.set_props(one, values);
      if (ids.length || id !== text) continue;
      const known = JSON.stringify(config.validation_layout || null);
      if (!known.includes(`"${id}"`)) absent = id;
    }
  }
  function end(slot, how) {
    for (const job of Object.values(jobs))
      if (job.slot.startsWith(slot)) Object.assign(job, {end: how, start: null, due: 0});
    setTimeout(ask);  // what happens in one moment goes into one message
  }
  function ask() {
    const now = Date.now(), wants = {};
    const due = Math.min(...Object.values(jobs).map((job) => job.due));
    if (due <= now && now >= sent + TIMEOUT) {
      sent = now;
      for (const [n, job] of Object.entries(jobs)) {
        if (job.outcome && job.due > now) continue;
        const {slot, seen, end, start} = job;
        wants[n] = {slot, seen, end, told: !!job.outcome, start: !job.uploaded && start};
        job.uploaded = true;
      }
      set("ask", {data: {page, number: ++number, jobs: wants}});
    }
    const wait = Math.max(1, due - now, sent + TIMEOUT - now);
    set("tick", isFinite(due) ? {disabled: false, interval: wait} : {disabled: true});
  }
  function hear(answer) {
    const now = Date.now(), answers = Object.entries(answer.jobs);
    absent = undefined;
    if (answer.number === number) sent = 0;
    for (const [n, {state, seen, props, outcome}] of answers) {
      const job = jobs[n];
      if (!job && slots[n] && state !== "gone")  // its start was late, and it is over
        jobs[n] = {slot: slots[n], born: now, seen: 0, due: 0, end: "replaced"};
      if (!job) continue;
      apply(props);
      const age = now - job.born;
      job.seen = seen;
      job.due = now + Math.min(job.interval, 20 + 4 * Math.sqrt(age * answers.length));
      if (state === "more") job.due = 0;
      if (state === "ended") job.due = now + 60000;  // till then, show() says more
      if (state === "gone" || (state === "unknown" && !job.start)) delete jobs[n];
      if (state === "unknown") Object.assign(job, {uploaded: false, due: 0});
      else job.start = null;
      if (!outcome || job.outcome) continue;
      job.outcome = outcome;
      set(job.slot.slice(0, KEY_LENGTH), {data: n});
    }
    ask();
    const text = `No component in the page has the id "${absent}".`;
    if (absent && !config.suppress_callback_exceptions) throw new Error(text);
  }
  window.longcallback = {
    start(key, names, interval) {
      load();
      const context = dash_clientside.callback_context, n = random();
      const slot = slotOf(key, names), own = "longcallback-" + key;
      const bare = (output) => Array.isArray(output) ? output.map(bare)
        : {...output, property: output.property.split("@")[0]};
      end(slot, "replaced");
      const start = {
        inputs: context.inputs_list.filter((input) => input.id !== own),
        states: context.states_list || [],
        outputs: (context.outputs_list || []).map(bare),
        triggered: context.triggered.map((item) => item.prop_id)};
      slots[n] = slot;
      jobs[n] = {slot, interval, born: Date.now(), seen: 0, due: 0, start};
      leave();
    },
    cancel(key, names) {
      end(names.length ? slotOf(key, names) : key, "cancelled");
      leave();
    },
    show(key, names) {  // called when a result is there, or its Outputs came to the page
      load();  // at page load, Dash 3 doesn't call the callback below
      const slot = slotOf(key, names), {no_update} = dash_clientside;
      const job = Object.values(jobs).find(
        (job) => job.slot === slot && job.outcome && !job.end);
      if (!job) leave();
      end(slot, "shown");
      if (job.outcome.error) throw new Error(job.outcome.error);
      const values = JSON.parse(job.outcome.result);
      const restore = (value) => value?._dash_no_update ? no_update : value;
      return values.length
        ? values.map((v) => restore(Array.isArray(v) ? v.map(restore) : v)) : leave();
    },
  };
  return (tick, answer) => {
    load();
    const {triggered} = dash_clientside.callback_context;
    if (triggered.some((item) => item.prop_id === "longcallback-answer.data")) hear(answer);
    else ask();
    leave();
  };
})()
""".replace("KEY_LENGTH", str(_KEY_LENGTH))
