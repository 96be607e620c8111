"""Explore in the browser how skips and the skip penalty change what a model recommends.

python examples/skip_explorer.py                          # trains a small model on a simulated log
python examples/skip_explorer.py model.ckpt --log sessions.parquet --names tracks.parquet
python examples/skip_explorer.py --smoke true             # builds the page, and serves nothing

The page is served on 127.0.0.1 alone. Neither server nor page contacts another host.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from helpers import explorer_page as page
from helpers.explorer import (
    LARGEST_LIST,
    LONGEST_QUERY,
    Explorer,
    Moment,
    Play,
    read_names,
    read_sessions,
)
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer, seed_everything

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import SessionDataModule, simulate_sessions
from skipcl_lightning.evaluation import calibrate_skip_prediction, choose_transition_weight, skip_trade_off
from skipcl_lightning.heads import SkipPrediction

ALPHA = "\N{GREEK SMALL LETTER ALPHA}"
LARGEST_PENALTY = 2.0
DIAL = "Above 0, tracks that are likely to be skipped sink."
NO_DIAL = "This model has no SkipPrediction head, so there is nothing to turn."
EMPTY = "none: begin with a search"


def simulate_log(sessions: int, items: int, seed: int) -> pl.LazyFrame:
    """Return a simulated log whose tracks have their mood in their name."""
    log = simulate_sessions(sessions, num_items=items, seed=seed)
    return log.with_columns(name=pl.format("{} (mood {})", "item_id", "item_mood"))


def train_small_model(log: pl.LazyFrame, *, epochs: int, embedding_size: int) -> Recommender:
    """Train SASRec with skip prediction, and choose transitions and skip penalty on the validation set."""
    data = SessionDataModule(log, batch_size=64)
    module = SkipCLModule(
        SASRec(embedding_size, max_length=20),
        SkipPrediction(),
        num_items=data.num_items,
        learning_rate=5e-3,
        transition_weight=1.0,
    )
    Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    ).fit(module, data)
    choose_transition_weight(module, data)
    module.skip_penalty = skip_trade_off(module, data).penalty
    calibrate_skip_prediction(module, data)
    return Recommender(module)


class Actions:
    """What the controls of the page do: each action returns the new moment and the HTML of four parts.

    The last arguments of an action are the values of the dial: skip penalty, length of the list, and whether
    played tracks are left out.
    """

    def __init__(self, explorer: Explorer, sessions: dict[str, tuple[Play, ...]]) -> None:
        self.explorer = explorer
        self.sessions = sessions

    def draw(self, moment: Moment, shown: int) -> list[str]:
        """Return the HTML of the last action, the session, the list and the map."""
        return [
            page.describe_change(moment, shown),
            page.make_session(self.explorer, moment.plays),
            page.make_list(self.explorer, moment, shown),
            page.make_map(self.explorer, moment, shown),
        ]

    def act(self, moment: Moment, plays: Sequence[Play], action: str, kind: str, *dial: Any) -> list[Any]:
        """Change the session to some plays."""
        penalty, shown, leave_out = dial
        after = self.explorer.step(
            moment, plays, action, kind=kind, penalty=penalty, leave_out_played=leave_out
        )
        return [after, *self.draw(after, shown)]

    def open(self, name: str, moment: Moment, *dial: Any) -> list[Any]:
        """Begin with a session of the log, or with none."""
        plays = self.sessions.get(name, ())
        return self.act(moment, plays, "Opened a session" if plays else "Began a session", "open", *dial)

    def press(self, moment: Moment, action: str, place: int, *dial: Any) -> list[Any]:
        """Use a button of a track."""
        plays, words = self.explorer.press(moment.plays, action, place)
        return self.act(moment, plays, words, "play", *dial)

    def undo(self, moment: Moment, *dial: Any) -> list[Any]:
        """Take the latest track back."""
        return self.act(moment, moment.plays[:-1], "Took the latest track back", "undo", *dial)

    def turn(self, moment: Moment, *dial: Any) -> list[Any]:
        """Set the skip penalty."""
        return self.act(moment, moment.plays, f"Set {ALPHA} to {dial[0]:g}", "dial", *dial)

    def leave_out(self, moment: Moment, *dial: Any) -> list[Any]:
        """Leave played tracks out, or take them in."""
        words = "Left played tracks out" if dial[2] else "Took played tracks in"
        return self.act(moment, moment.plays, words, "leave out", *dial)

    def search(self, query: str) -> str:
        """Return the HTML of the tracks that a search finds."""
        return page.make_found(self.explorer, query, self.explorer.search(query))


def build_page(actions: Actions, *, penalty: float | None = None, top_k: int = 10) -> Any:
    """Return the page as gradio's `Blocks`.

    Args:
        actions: What the controls do.
        penalty: The skip penalty at the beginning; None for the model's own.
        top_k: Tracks in the list at the beginning.

    Raises:
        ImportError: gradio is not installed.
    """
    gr = import_gradio()
    explorer = actions.explorer
    penalty = explorer.recommender.scorer.skip_penalty if penalty is None else penalty
    longest = min(LARGEST_LIST, len(explorer))
    first = next(iter(actions.sessions), EMPTY)
    start = actions.open(first, Moment(), penalty, min(top_k, longest), True)

    def html(value: str, name: str, script: str | None = page.SCRIPT) -> Any:
        return gr.HTML(value, elem_id=name, js_on_load=script, apply_default_css=False)

    with gr.Blocks(title="Skip explorer", analytics_enabled=False, fill_width=True) as blocks:
        html(page.make_heading(explorer), "heading", None)
        moment = gr.State(start[0])
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                session = gr.Dropdown([EMPTY, *actions.sessions], value=first, label="Session")
                query = gr.Textbox(
                    label="Search for tracks",
                    placeholder="A part of a name or id",
                    max_length=LONGEST_QUERY,
                    max_lines=1,
                )
                found = html("", "found")
                played = html(start[2], "session")
                back = gr.Button("Undo the latest track", size="sm")
            with gr.Column(scale=5, min_width=320):
                alpha = gr.Slider(
                    0,
                    max(LARGEST_PENALTY, penalty),
                    value=penalty,
                    step=0.05,
                    label=f"Dial {ALPHA} (skip penalty)",
                    info=DIAL if explorer.predicts_skips else NO_DIAL,
                    interactive=explorer.predicts_skips,
                    elem_id="alpha",
                )
                status = html(start[1], "status", page.ANNOUNCE)
                following = html(start[3], "list")
                with gr.Row():
                    shown = gr.Slider(
                        1, longest, value=min(top_k, longest), step=1, label="Tracks in the list"
                    )
                    hidden = gr.Checkbox(True, label="Leave out played tracks")
            with gr.Column(scale=4, min_width=300):
                chart = html(start[4], "map", None)

        def press(moment: Moment, penalty: float, shown: int, hidden: bool, event: gr.EventData) -> list[Any]:
            try:
                return actions.press(moment, event.action, event.place, penalty, shown, hidden)
            except ValueError as error:
                raise gr.Error(str(error)) from error

        dial = [alpha, shown, hidden]
        parts = [status, played, following, chart]
        # One action at a time, because all share one model.
        settings: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_id": "model",
            "show_progress": "hidden",
        }
        acted = {"outputs": [moment, *parts], **settings}
        session.input(actions.open, [session, moment, *dial], **acted)
        for pressed in (found, played, following):
            pressed.click(press, [moment, *dial], **acted)
        back.click(actions.undo, [moment, *dial], **acted)
        alpha.input(actions.turn, [moment, *dial], trigger_mode="always_last", **acted)
        hidden.input(actions.leave_out, [moment, *dial], **acted)
        shown.input(actions.draw, [moment, shown], parts, trigger_mode="always_last", **settings)
        query.change(actions.search, query, found, trigger_mode="always_last", **settings)
    return blocks.queue(max_size=32)


def import_gradio() -> Any:
    """Return the module, with its reports to its makers switched off.

    Raises:
        ImportError: gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            'The skip explorer needs the package gradio, and it is missing. Run `pip install ".[app]"`.'
        ) from error
    return gradio


def make_theme(gr: Any) -> Any:
    """Return gradio's theme with the system's fonts, and with text that is dark enough to be read."""
    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        layout_gap="10px",
        block_label_text_color="*body_text_color",
        block_title_text_color="*body_text_color",
        block_info_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def serve(blocks: Any, port: int | None, *, open_browser: bool) -> None:
    """Serve the page on this machine alone until it is interrupted."""
    gr = import_gradio()
    blocks.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        inbrowser=open_browser,
        allowed_paths=[],
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        max_file_size=0,
        enable_monitoring=False,
        quiet=True,  # it advertises a public link
        prevent_thread_lock=True,
        theme=make_theme(gr),
        css_paths=page.STYLE,
    )
    print(f"Skip explorer: {blocks.local_url} (Ctrl+C ends it)", flush=True)
    blocks.block_thread()


def explore(
    checkpoint: Path | None = None,
    *,
    log: Path | None = None,
    names: Path | None = None,
    penalty: float | None = None,
    top_k: int = 10,
    port: int | None = None,
    open_browser: bool = False,
    seed: int = 0,
    smoke: bool = False,
) -> None:
    """Serve the page for a trained model, or for a small one that is trained now.

    Args:
        checkpoint: A trained model; None to train a small one on a simulated log.
        log: A Parquet file of sessions in the canonical form; a column `name` names the tracks.
        names: A Parquet file with the columns `item_id` and `name`.
        penalty: The skip penalty with which the page begins, from 0; None for the model's own.
        top_k: Tracks in the list at the beginning, at most 50.
        port: The port on 127.0.0.1; None for the first free one from 7860.
        open_browser: Open the page in the browser.
        seed: Random seed of simulation and training.
        smoke: Quick check that everything works: train for one epoch, build the page, and serve nothing.
    """
    if not 1 <= top_k <= LARGEST_LIST:
        raise ValueError(f"`top_k` must be from 1 to {LARGEST_LIST}, got {top_k}.")
    if smoke:
        simulated, epochs, embedding_size = simulate_log(100, 40, seed), 1, 8
    else:
        simulated, epochs, embedding_size = simulate_log(1000, 200, seed), 10, 32
    table = None if log is None else pl.scan_parquet(log)
    if checkpoint is None:
        seed_everything(seed, verbose=False)
        table = simulated if table is None else table
        recommender = train_small_model(table, epochs=epochs, embedding_size=embedding_size)
    else:
        recommender = Recommender.from_checkpoint(checkpoint)
    explorer = Explorer(recommender, read_names(names, table))
    sessions = {} if table is None else read_sessions(table, explorer)
    blocks = build_page(Actions(explorer, sessions), penalty=penalty, top_k=top_k)
    if not smoke:
        serve(blocks, port, open_browser=open_browser)


def main() -> None:
    """Read the settings from the command line, and serve."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "checkpoint", nargs="?", type=Path, help="a trained model; without it, a small one is trained"
    )
    parser.add_function_arguments(explore, skip={"checkpoint"})
    explore(**parser.parse_args().as_dict())


if __name__ == "__main__":
    main()
