"""Six long callbacks in one Dash app, each beside its source.

    python examples.py                                  # on Flask-Caching
    python examples.py --celery BROKER --backend URL    # on Celery

The environment variables LONGCALLBACK_BROKER and LONGCALLBACK_BACKEND mean the same as
the flags; a worker, which has no flags, needs them:

    export LONGCALLBACK_BROKER=BROKER LONGCALLBACK_BACKEND=URL
    celery -A examples:celery_app worker
"""

import argparse
import inspect
import os
import signal
import time

import dash
import plotly.graph_objects as go
from dash import dcc, html

import longcallback as dl

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--port", type=int, default=8050)
parser.add_argument("--debug", action="store_true", help="show Dash's dev tools")
parser.add_argument(
    "--celery",
    metavar="BROKER",
    default=os.environ.get("LONGCALLBACK_BROKER"),
    help="run the jobs on Celery with this broker, such as redis://localhost",
)
parser.add_argument(
    "--backend",
    metavar="URL",
    default=os.environ.get("LONGCALLBACK_BACKEND", "rpc://"),
    help="Celery's result backend (default: rpc://)",
)
# A Celery worker or gunicorn imports this file; their command line is not ours.
options = parser.parse_args(None if __name__ == "__main__" else [])

# --- The app ------------------------------------------------------------------------

if options.celery:
    from celery import Celery

    celery_app = Celery("examples", broker=options.celery, backend=options.backend)
    manager = dl.CeleryCallbackManager(celery_app)
else:
    from flask_caching import Cache

    cache = Cache(config={"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "./cache"})
    manager = dl.FlaskCachingCallbackManager(cache)

app = dash.Dash(
    __name__,
    plugins=[dl.plugins.LongCallback(manager)],
    use_pages=True,
    pages_folder="",
)
server = app.server

# --- 1. Simple ----------------------------------------------------------------------


def simple():
    return html.Div(
        [
            html.Button("Run", id="simple_button"),
            html.P(id="simple_result"),
            dcc.Input(id="simple_name", placeholder="Your name"),
            html.P(id="simple_greeting"),
        ]
    )


@app.long_callback(
    output=dl.Output("simple_result", "children"),
    args=dl.Input("simple_button", "n_clicks"),
    running=[(dl.Output("simple_result", "children"), "Running…", "")],
)
def count_clicks(n_clicks):
    time.sleep(2)
    return f"Clicked {n_clicks or 0} times"


@app.callback(
    dl.Output("simple_greeting", "children"),
    dl.Input("simple_name", "value"),
    prevent_initial_call=True,
)
def greet(name):
    return f"Hello, {name}" if name else None


# --- 2. Running ---------------------------------------------------------------------


def running():
    return html.Div(
        [
            html.Button("Run", id="running_button"),
            dcc.Loading(html.P("Not run yet", id="running_result")),
        ]
    )


@app.long_callback(
    output=dl.Output("running_result", "children"),
    args=dl.Input("running_button", "n_clicks"),
    running=[
        (dl.Output("running_button", "disabled"), True, False),
        (dl.Output("running_button", "children"), "Running…", "Run"),
    ],
    prevent_initial_call=True,
)
def disable_button(n_clicks):
    time.sleep(2)
    return f"Clicked {n_clicks} times"


# --- 3. Cancel ----------------------------------------------------------------------


def cancel():
    return html.Div(
        [
            html.Button("Run", id="cancel_run"),
            html.Button("Cancel", id="cancel_cancel", disabled=True),
            html.P("Not run yet", id="cancel_result"),
        ]
    )


@app.long_callback(
    output=dl.Output("cancel_result", "children"),
    args=dl.Input("cancel_run", "n_clicks"),
    running=[
        (dl.Output("cancel_run", "disabled"), True, False),
        (dl.Output("cancel_cancel", "disabled"), False, True),
        (dl.Output("cancel_result", "children"), "Running…", ""),
    ],
    cancel=[dl.Input("cancel_cancel", "n_clicks")],
    prevent_initial_call=True,
)
def run_unless_cancelled(n_clicks):
    time.sleep(5)
    return f"Clicked {n_clicks} times"


@app.callback(
    dl.Output("cancel_result", "children", allow_duplicate=True),
    dl.Input("cancel_cancel", "n_clicks"),
    prevent_initial_call=True,
)
def confirm_cancel(n_clicks):
    return "Cancelled"


# --- 4. Progress --------------------------------------------------------------------


def progress():
    return html.Div(
        [
            html.Button("Run", id="progress_run"),
            html.Button("Cancel", id="progress_cancel", disabled=True),
            html.P("Not run yet", id="progress_result"),
            html.Progress(id="progress_bar", hidden=True),
        ]
    )


@app.long_callback(
    output=dl.Output("progress_result", "children"),
    args=dl.Input("progress_run", "n_clicks"),
    running=[
        (dl.Output("progress_run", "disabled"), True, False),
        (dl.Output("progress_cancel", "disabled"), False, True),
        (
            dl.Output("progress_result", ("children", "hidden")),
            ("", True),
            ("", False),
        ),
        (dl.Output("progress_bar", "hidden"), False, True),
    ],
    cancel=[dl.Input("progress_cancel", "n_clicks")],
    progress=dl.Output("progress_bar", ("value", "max")),
    prevent_initial_call=True,
)
def show_progress(set_progress, n_clicks):
    total = 10
    for step in range(total):
        set_progress(str(step), str(total))
        time.sleep(0.5)
    set_progress(str(total), str(total))
    return f"Clicked {n_clicks} times"


@app.callback(
    dl.Output("progress_result", "children", allow_duplicate=True),
    dl.Input("progress_cancel", "n_clicks"),
    prevent_initial_call=True,
)
def confirm_progress_cancel(n_clicks):
    return "Cancelled"


# --- 5. Progress as a figure --------------------------------------------------------


def figure():
    return html.Div(
        [
            html.Button("Run", id="figure_run"),
            html.Button("Cancel", id="figure_cancel", disabled=True),
            html.P("Not run yet", id="figure_result"),
            dcc.Graph(id="figure_graph", figure=plot([])),
        ]
    )


def plot(estimates):
    line = go.Scatter(y=estimates, mode="lines+markers")
    grid = {"gridcolor": "#8884", "zeroline": False}
    layout = {
        "xaxis": {"range": [-0.5, 19.5], **grid},
        "yaxis": {"range": [2.5, 4.1], **grid},
        "height": 260,
        "margin": {"t": 10, "r": 10, "b": 30, "l": 30},
        "font": {"color": "#8895a5"},  # for light and dark
        "paper_bgcolor": "#0000",
        "plot_bgcolor": "#0000",
    }
    return go.Figure(line, layout)


@app.long_callback(
    output=[
        dl.Output("figure_result", "children"),
        dl.Output("figure_graph", "figure"),
    ],
    args=dl.Input("figure_run", "n_clicks"),
    running=[
        (dl.Output("figure_run", "disabled"), True, False),
        (dl.Output("figure_cancel", "disabled"), False, True),
        (dl.Output("figure_result", "children"), "Running…", ""),
    ],
    cancel=[dl.Input("figure_cancel", "n_clicks")],
    progress=dl.Output("figure_graph", "figure"),
    progress_default=plot([]),
    prevent_initial_call=True,
)
def approximate_pi(set_progress, n_clicks):
    estimates = [4.0]
    for n in range(1, 20):
        set_progress(plot(estimates))
        time.sleep(0.25)
        estimates.append(estimates[-1] + (-1) ** n * 4 / (2 * n + 1))
    return f"π is about {estimates[-1]:.3f}", plot(estimates)


@app.callback(
    dl.Output("figure_result", "children", allow_duplicate=True),
    dl.Input("figure_cancel", "n_clicks"),
    prevent_initial_call=True,
)
def confirm_figure_cancel(n_clicks):
    return "Cancelled"


# --- 6. Errors ----------------------------------------------------------------------


def errors():
    return html.Div(
        [
            html.Button("Raise an error", id="errors_raise"),
            html.P("Not run yet", id="errors_raised"),
            html.Button("Kill the process", id="errors_kill"),
            html.P("Not run yet", id="errors_killed"),
        ]
    )


def explain(error):
    if isinstance(error, dl.LongCallbackError):  # fit for everybody
        return f"The job is lost: {error}."
    return f"The job failed with a {type(error).__name__}."


@app.long_callback(
    output=dl.Output("errors_raised", "children"),
    args=dl.Input("errors_raise", "n_clicks"),
    running=[
        (dl.Output("errors_raise", "disabled"), True, False),
        (dl.Output("errors_raised", "children"), "Running…", ""),
    ],
    on_error=explain,
    prevent_initial_call=True,
)
def raise_an_error(n_clicks):
    time.sleep(1)
    raise ValueError("This text may name a path or a password")


@app.long_callback(
    output=dl.Output("errors_killed", "children"),
    args=dl.Input("errors_kill", "n_clicks"),
    running=[
        (dl.Output("errors_kill", "disabled"), True, False),
        (dl.Output("errors_killed", "children"), "Running…", ""),
    ],
    on_error=explain,
    prevent_initial_call=True,
)
def kill_the_process(n_clicks):
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out


# --- The pages ----------------------------------------------------------------------

EXAMPLES = {  # title: (what it shows, what to try, its functions)
    "Simple": (
        "The job takes two seconds, also at page load; other callbacks run meanwhile.",
        """Click Run and type your name while it runs. Click Run again before it ends:
        the newer job takes the place of the older.""",
        [simple, count_clicks, greet],
    ),
    "Running": (
        "The button is disabled and the spinner shows for as long as the job runs.",
        """Click Run, and refresh the page meanwhile. Open another tab with this page:
        its button is free, since each tab has jobs of its own.""",
        [running, disable_button],
    ),
    "Cancel": (
        "A second button, enabled only while the job runs, ends it.",
        """Click Run, then Cancel: the job's process is ended at once, with all that it
        started.""",
        [cancel, run_unless_cancelled, confirm_cancel],
    ),
    "Progress": (
        "While the job runs, a progress bar takes the place of the result.",
        """Click Run, and refresh this page now, while the bar moves: it goes on, and
        the result arrives.""",
        [progress, show_progress, confirm_progress_cancel],
    ),
    "Figure": (
        "The job reports its progress as a figure, and returns the last one.",
        """Click Run, go to another example and come back: the job went on, or its
        result is there.""",
        [figure, plot, approximate_pi, confirm_figure_cancel],
    ),
    "Errors": (
        "A job that raises and one whose process dies: on_error tells the page.",
        """Click both: each button is free again when its job has failed. On Celery, a
        death shows in the dev tools (--debug) and in the log.""",
        [errors, explain, raise_an_error, kill_the_process],
    ),
}
INTRODUCTION = """
longcallback runs Dash callbacks in the background, in processes or on Celery, and
[the page stays free meanwhile](/1). When a page is refreshed, Dash's own background
callbacks lose its running jobs; here [progress and result come back](/4). When a job's
process is killed, Dash's own fall silent; here [the page learns why](/6).
"""


def navigation(here=None):
    links = [dcc.Link("longcallback", href="/", className="name")]
    for number, title in enumerate(EXAMPLES, 1):
        marked = "here" if title == here else ""
        links.append(dcc.Link(f"{number} {title}", href=f"/{number}", className=marked))
    return html.Nav(links)


def example_page(number, title):
    sentence, hint, functions = EXAMPLES[title]
    source = "\n\n".join(inspect.getsource(function) for function in functions)
    hint = html.P([html.B("Try it "), hint], className="hint")
    return [
        navigation(title),
        html.H1(f"{number}. {title}"),
        html.P(sentence, className="sentence"),
        html.Main(
            [
                html.Section([functions[0](), hint]),
                html.Section(dcc.Markdown(f"```python\n{source}```")),
            ]
        ),
    ]


def index_page():
    entries = [
        html.Li([dcc.Link(title, href=f"/{number}"), html.Span(sentence)])
        for number, (title, (sentence, *_)) in enumerate(EXAMPLES.items(), 1)
    ]
    return [
        navigation(),
        html.H1("Long callbacks for Dash"),
        dcc.Markdown(INTRODUCTION, className="introduction"),
        html.Ol(entries),
    ]


for number, title in enumerate(EXAMPLES, 1):
    page = html.Div(example_page(number, title))
    dash.register_page(
        title, f"/{number}", title=f"{title} | longcallback", layout=page
    )
dash.register_page("Examples", "/", title="longcallback", layout=html.Div(index_page()))

app.layout = dash.page_container
app.index_string = """<!DOCTYPE html>
<html lang="en">
<head>
  {%metas%}
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>{%title%}</title>
  {%favicon%}
  {%css%}
  <style>
    :root { color-scheme: light dark;
      --ink: #1f2933; --soft: #5b6876; --line: #dde3ea; --page: #f6f8fa; --box: #fff;
      --accent: #2457b3; --button: #2457b3; --off: #e6eaef; --off-ink: #7d8894;
      --hint: #eef3fb; --word: #a8326e; --text: #2f6f3e; --number: #0f6a8b; }
    @media (prefers-color-scheme: dark) { :root {
      --ink: #dfe5ec; --soft: #9aa7b5; --line: #2c3641; --page: #12171d; --box: #1a2129;
      --accent: #7fb0ff; --button: #2f63c4; --off: #28313b; --off-ink: #7b8794;
      --hint: #1e2a3a; --word: #ee8fbd; --text: #93d19f; --number: #79c7e3; } }
    * { box-sizing: border-box; }
    [hidden] { display: none !important; }
    body { margin: 0 auto; max-width: 1200px; padding: 0 24px 48px; color: var(--ink);
           background: var(--page); font: 16px/1.5 system-ui, sans-serif; }
    a { color: var(--accent); }
    nav { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 14px 0;
          border-bottom: 1px solid var(--line); }
    nav a { color: var(--soft); text-decoration: none; padding: 2px 0; }
    nav a.name { color: var(--ink); font-weight: 600; margin-right: auto; }
    nav a.here { color: var(--accent); box-shadow: 0 2px var(--accent); }
    nav a:hover { color: var(--accent); }
    h1 { font-size: 26px; line-height: 1.25; margin: 28px 0 4px; }
    .sentence { margin: 0 0 24px; }
    .sentence, li span { color: var(--soft); }
    .introduction { max-width: 720px; margin: 8px 0 24px; }
    ol { padding-left: 22px; }
    li { margin-bottom: 12px; } li a { font-weight: 600; } li span { display: block; }
    main { display: grid; grid-template-columns: 2fr 3fr; gap: 24px; align-items: start; }
    section { min-width: 0; background: var(--box); border: 1px solid var(--line);
              border-radius: 8px; padding: 20px; }
    section p { display: flex; min-height: 24px; margin: 16px 0; }
    section p.hint { display: block; margin: 20px 0 0; padding: 10px 14px;
                     border-radius: 6px; background: var(--hint); font-size: 14px; }
    progress { display: block; width: 100%; height: 24px; margin: 16px 0;
               accent-color: var(--accent); }
    pre { margin: 0; overflow-x: auto; font-size: 13px; line-height: 1.45; }
    pre, pre code.hljs { color: var(--ink); background: none; padding: 0; border: 0; }
    pre code.hljs { overflow-x: visible; }
    code .hljs-keyword, code .hljs-literal, code .hljs-built_in { color: var(--word); }
    code .hljs-string, code .hljs-meta .hljs-string { color: var(--text); }
    code .hljs-number { color: var(--number); }
    code .hljs-comment { color: var(--soft); }
    code .hljs-title.hljs-title, code .hljs-params, code .hljs-meta, code .hljs-subst {
      color: inherit; }
    button { font: inherit; color: white; background: var(--button); cursor: pointer;
             border: 0; border-radius: 6px; padding: 7px 18px; margin-right: 10px; }
    button:disabled { color: var(--off-ink); background: var(--off); cursor: default; }
    section input, section .dash-input-container { font: inherit; max-width: 100%;
      color: var(--ink); background: var(--box); border-color: var(--off-ink); }
    section input { padding: 6px 10px; border: 1px solid var(--off-ink); }
    section .dash-input-container input { border: 0; }
    @media (max-width: 800px) { body { padding: 0 16px 32px; }
                                main { grid-template-columns: 1fr; }
                                nav a.name { flex-basis: 100%; } }
  </style>
</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>"""

if __name__ == "__main__":
    os.environ.setdefault("DASH_DISABLE_VERSION_CHECK", "true")  # stay offline
    app.run(port=options.port, debug=options.debug)
