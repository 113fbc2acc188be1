"""Five long callbacks in one Dash app.

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
            html.P("Not run yet", id="simple_result"),
            dcc.Input(id="simple_name", placeholder="Type here meanwhile"),
            html.P(id="simple_greeting"),
        ]
    )


@app.long_callback(
    output=dl.Output("simple_result", "children"),
    args=dl.Input("simple_button", "n_clicks"),
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
            dcc.Loading(
                html.P("Not run yet", id="running_result"),
                id="running_loading",
            ),
        ]
    )


@app.long_callback(
    output=dl.Output("running_result", "children"),
    args=dl.Input("running_button", "n_clicks"),
    running=[
        (dl.Output("running_button", "disabled"), True, False),
        (dl.Output("running_loading", "display"), "show", "auto"),
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
    ],
    cancel=[dl.Input("cancel_cancel", "n_clicks")],
    prevent_initial_call=True,
)
def run_unless_cancelled(n_clicks):
    time.sleep(5)
    return f"Clicked {n_clicks} times"


# --- 4. Progress --------------------------------------------------------------------


def progress():
    return html.Div(
        [
            html.Button("Run", id="progress_run"),
            html.Button("Cancel", id="progress_cancel", disabled=True),
            html.P("Not run yet", id="progress_result"),
            html.Progress(id="progress_bar", style={"visibility": "hidden"}),
        ]
    )


@app.long_callback(
    output=dl.Output("progress_result", "children"),
    args=dl.Input("progress_run", "n_clicks"),
    running=[
        (dl.Output("progress_run", "disabled"), True, False),
        (dl.Output("progress_cancel", "disabled"), False, True),
        (
            dl.Output("progress_result", "style"),
            {"visibility": "hidden"},
            {"visibility": "visible"},
        ),
        (
            dl.Output("progress_bar", "style"),
            {"visibility": "visible"},
            {"visibility": "hidden"},
        ),
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
    axes = {"xaxis": {"range": [-0.5, 19.5]}, "yaxis": {"range": [2.5, 4.1]}}
    margin = {"t": 10, "r": 10, "b": 30, "l": 30}
    return go.Figure(line, {**axes, "height": 260, "margin": margin})


@app.long_callback(
    output=dl.Output("figure_result", "children"),
    args=dl.Input("figure_run", "n_clicks"),
    running=[
        (dl.Output("figure_run", "disabled"), True, False),
        (dl.Output("figure_cancel", "disabled"), False, True),
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
    return f"π is about {estimates[-1]:.3f}"


# --- The pages ----------------------------------------------------------------------

EXAMPLES = {  # title: (what it shows, its functions)
    "Simple": (
        "The job takes two seconds, also at page load; other callbacks run meanwhile.",
        [simple, count_clicks, greet],
    ),
    "Running": (
        "The button is disabled and the spinner shows for as long as the job runs.",
        [running, disable_button],
    ),
    "Cancel": (
        "A second button, enabled only while the job runs, ends it.",
        [cancel, run_unless_cancelled],
    ),
    "Progress": (
        "While the job runs, a progress bar takes the place of the result.",
        [progress, show_progress],
    ),
    "Figure": (
        "The job reports its progress as a figure, which is empty again after the run.",
        [figure, plot, approximate_pi],
    ),
}


def navigation(here=None):
    links = [dcc.Link("longcallback", href="/", className="name")]
    for number, title in enumerate(EXAMPLES, 1):
        marked = "here" if title == here else ""
        links.append(dcc.Link(f"{number} {title}", href=f"/{number}", className=marked))
    return html.Nav(links)


def example_page(number, title):
    sentence, functions = EXAMPLES[title]
    source = "\n\n".join(inspect.getsource(function) for function in functions)
    return [
        navigation(title),
        html.H1(f"{number}. {title}"),
        html.P(sentence, className="sentence"),
        html.Main(
            [html.Section(functions[0]()), dcc.Markdown(f"```python\n{source}```")]
        ),
    ]


def index_page():
    entries = [
        html.Li([dcc.Link(title, href=f"/{number}"), html.Span(sentence)])
        for number, (title, (sentence, _)) in enumerate(EXAMPLES.items(), 1)
    ]
    sentence = "Dash callbacks that run in the background, each beside its source."
    return [
        navigation(),
        html.H1("Examples"),
        html.P(sentence, className="sentence"),
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
    :root { --ink: #1f2933; --soft: #616e7c; --line: #dde3ea; --accent: #2457b3; }
    * { box-sizing: border-box; }
    body { margin: 0 auto; max-width: 1200px; padding: 0 24px 48px; color: var(--ink);
           background: #f7f9fb; font: 16px/1.5 system-ui, sans-serif; }
    nav { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 14px 0;
          border-bottom: 1px solid var(--line); }
    nav a { color: var(--soft); text-decoration: none; padding: 2px 0; }
    nav a.name { color: var(--ink); font-weight: 600; margin-right: auto; }
    nav a.here { color: var(--accent); box-shadow: 0 2px var(--accent); }
    nav a:hover, li a { color: var(--accent); }
    h1 { font-size: 26px; margin: 28px 0 4px; }
    .sentence, li span { color: var(--soft); }
    .sentence { margin: 0 0 24px; }
    li { margin-bottom: 12px; } li a { font-weight: 600; } li span { display: block; }
    main { display: grid; grid-template-columns: 2fr 3fr; gap: 24px; align-items: start; }
    main > * { min-width: 0; background: white; border: 1px solid var(--line);
               border-radius: 8px; padding: 20px; }
    pre { margin: 0; overflow-x: auto; font-size: 13px; line-height: 1.45; }
    pre, code, pre code.hljs { background: none; padding: 0; border: none; }
    button { font: inherit; color: white; background: var(--accent); cursor: pointer;
             border: 0; border-radius: 6px; padding: 7px 18px; margin-right: 10px; }
    button:disabled { color: #8a96a3; background: #e6eaef; cursor: default; }
    input { font: inherit; padding: 6px 10px; max-width: 100%; }
    progress { width: 100%; accent-color: var(--accent); }
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
