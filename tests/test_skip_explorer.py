import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from browser import CHROMIUM, Browser

from skipcl_lightning import Recommender, SkipCLModule
from skipcl_lightning.backbones import SASRec
from skipcl_lightning.data import ContextEncoder, ItemVocabulary, SessionEncoder, simulate_sessions
from skipcl_lightning.heads import SkipPrediction

EXAMPLES = Path(__file__).parents[1] / "examples"
HOSTILE = (
    "<img src=x onerror=window.hacked=1>",
    "[x](javascript:window.hacked=1)",
    "</title></svg><script>window.hacked=1</script>",
    '" onmouseover="window.hacked=1',
    "${window.hacked=1}",
    "{{constructor.constructor('window.hacked=1')()}} @children",
)
IDS = [f"t{number}" for number in range(24)]
NAMES = pl.DataFrame({"item_id": IDS[: len(HOSTILE)], "name": HOSTILE})
DIAL = {"penalty": 0.5, "leave_out_played": False}


def module(head, ids=IDS, context=None):
    torch.manual_seed(0)
    sizes = {} if context is None else context.sizes
    module = SkipCLModule(SASRec(8, max_length=8), head, num_items=len(ids), context_sizes=sizes)
    for parameter in module.skip_head.parameters() if head is not None else ():
        torch.nn.init.normal_(parameter)  # it begins with equal probabilities
    module.encoder = SessionEncoder(ItemVocabulary(ids), max_length=8, context=context)
    return module.eval()


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import helpers.explorer

    return helpers.explorer


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import helpers.explorer_page

    return helpers.explorer_page


@pytest.fixture
def explorer(parts):
    return parts.Explorer(Recommender(module(SkipPrediction())), NAMES)


def listen(parts, *tracks):
    return tuple(parts.Play(abs(track), -1.0 if track < 0 else 1.0) for track in tracks)


def test_tracks_have_the_first_name_of_the_table_in_one_line_or_their_id(parts):
    ids = pl.Series([7, 8, 9, 10])
    table = pl.DataFrame(
        {"item_id": [8, 8, 9, 10, 11], "name": ["a\n\tsong\x00", "second", "  ", "x" * 100, "other"]}
    )
    assert parts.name_tracks(ids, table) == ["7", "a song", "9", "x" * 79 + "…"]
    assert parts.name_tracks(ids, None) == ["7", "8", "9", "10"]
    with pytest.raises(ValueError, match="`names` must have the columns 'item_id' and 'name', got id, name"):
        parts.name_tracks(ids, table.rename({"item_id": "id"}))


def test_a_search_finds_text_in_names_and_ids_as_it_is_written(explorer, parts):
    assert explorer.search("ONERROR=") == [0]
    assert explorer.search("(javascript:") == [1]
    assert explorer.search("t2") == [2, 20, 21, 22, 23]
    assert explorer.search("  ") == []
    assert len(explorer.search("t")) == parts.MOST_FOUND
    assert explorer.search("t") == [0, 1, 2, 3, 4, 5]
    # What begins with the text comes first: "window" is inside of names alone, "t1" in ids.
    assert explorer.search("${win") == [4]
    assert explorer.search("x" * 10**6) == []


def test_a_button_listens_skips_or_changes_a_play(explorer, parts):
    plays = listen(parts, 3, -4)
    assert explorer.press(plays, "listen", 8) == (listen(parts, 3, -4, 8), "Listened to t8")
    assert explorer.press(plays, "skip", 8) == (listen(parts, 3, -4, -8), "Skipped t8")
    assert explorer.press(plays, "switch", 1) == (
        listen(parts, 3, 4),
        f"Changed {HOSTILE[4]} to listened",
    )
    assert explorer.press(plays, "switch", 0)[0] == listen(parts, -3, -4)


@pytest.mark.parametrize(
    ("action", "place"),
    [("listen", 24), ("skip", -1), ("switch", 2), ("listen", "0"), ("listen", 1.0), ("drop", 0), ([], None)],
)
def test_a_button_that_is_not_there_is_refused(explorer, parts, action, place):
    with pytest.raises(ValueError, match="The button must be one of the page as it is now"):
        explorer.press(listen(parts, 3, -4), action, place)


def test_the_list_is_the_recommenders_and_moves_are_the_ranks_before(explorer, parts):
    first = explorer.step(parts.Moment(), listen(parts, 3, -5, 6), "opened", kind="open", **DIAL)
    second = explorer.step(first, listen(parts, 3, -5, 6, -7), "skipped", kind="play", **DIAL)
    lists = []
    for tracks, feedback in ((["t3", "t5", "t6"], [1, -1, 1]), (["t3", "t5", "t6", "t7"], [1, -1, 1, -1])):
        frame = explorer.recommender.recommend([tracks], [feedback], top_k=24, skip_penalty=0.5)
        lists.append([int(item[1:]) for item in frame["item_id"]])
        skips = frame["skip_probability"].to_list()
    assert [move.text for move in first.moves(5)] == [""] * 5
    moves = second.moves(24)
    assert [move.track for move in moves] == lists[1]
    assert [move.skip_probability for move in moves] == skips
    assert 7 not in lists[1]
    signs = []
    for rank, track in enumerate(lists[1], start=1):
        before = lists[0].index(track) + 1
        signs.append(
            "=" if before == rank else f"▲ {before - rank}" if before > rank else f"▼ {rank - before}"
        )
    assert [move.text for move in moves] == signs
    assert {sign[0] for sign in signs} >= {"▲", "▼"}
    place = lists[0].index(7) + 1
    assert (7, None) in second.gone(place)
    assert [track for track, _ in second.gone(5)] == [
        track for track in lists[0][:5] if track not in lists[1][:5]
    ]


def test_a_track_that_comes_back_is_new(explorer, parts):
    skipped = explorer.step(parts.Moment(), listen(parts, 3, -5), "opened", kind="open", **DIAL)
    back = explorer.step(skipped, listen(parts, 3), "took back", kind="undo", **DIAL)
    moves = {move.track: move for move in back.moves(24)}
    assert (moves[5].text, moves[5].words) == ("new", "new in the list")


def test_moves_of_the_dial_are_counted_from_before_it_was_touched(explorer, parts):
    plays = listen(parts, 3, -5, 6)

    def turn(moment, penalty):
        return explorer.step(moment, plays, "", kind="dial", penalty=penalty, leave_out_played=False)

    start = explorer.step(parts.Moment(), plays, "", kind="open", **DIAL)
    turned = turn(turn(turn(start, 1.0), 1.5), 2.0)
    assert turned.before == start.ranks != turned.ranks
    assert {move.text for move in turn(turned, 0.5).moves(24)} == {"="}
    assert explorer.step(turned, plays, "", kind="open", **DIAL).before == {}
    after = explorer.step(turned, (*plays, *listen(parts, 8)), "", kind="play", **DIAL)
    assert after.before == turned.ranks


def test_played_tracks_can_be_left_out_and_long_sessions_lose_their_oldest(explorer, parts):
    settings = {"kind": "play", "penalty": 0.0, "leave_out_played": True}
    moment = explorer.step(parts.Moment(), listen(parts, 3, 5), "", **settings)
    assert not {3, 5} & set(moment.ranks)
    assert len(moment.ranks) == 22
    long = explorer.step(moment, listen(parts, 1, *[2] * parts.MOST_PLAYS), "", **settings)
    assert long.plays == listen(parts, *[2] * parts.MOST_PLAYS)
    empty = explorer.step(long, (), "", **settings)
    assert (empty.ranks, empty.moves(5), empty.gone(5)) == ({}, [], [])


def test_a_model_without_a_skip_head_has_no_skip_probabilities(parts, page):
    explorer = parts.Explorer(Recommender(module(None)))
    assert not explorer.predicts_skips
    moment = explorer.step(parts.Moment(), listen(parts, 3), "", kind="open", **DIAL)
    assert {move.skip_probability for move in moment.moves(24)} == {None}
    assert "P(skip)" not in page.make_list(explorer, moment, 5)


def test_a_model_with_context_and_numbers_for_ids_sees_no_context(parts):
    context = ContextEncoder({"hour": None, "shuffle": [False, True]})
    model = module(SkipPrediction(), list(range(100, 124)), context)
    explorer = parts.Explorer(Recommender(model))
    moment = explorer.step(parts.Moment(), listen(parts, 3, -5), "", kind="open", **DIAL)
    given = {"timestamp": None, "shuffle": None}
    frame = explorer.recommender.recommend([[103, 105]], [[1, -1]], context=given, top_k=24, skip_penalty=0.5)
    assert [explorer.ids[track] for track in moment.ranks] == frame["item_id"].to_list()
    assert explorer.search("123") == [23]


def test_the_map_is_a_projection_on_the_two_axes_of_most_variance(parts):
    random = np.random.default_rng(0)
    table = (random.normal(size=(50, 6)) * [1, 5, 2, 9, 1, 1] + 3).astype(np.float32)
    points, share = parts.project(table)
    left, values, axes = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    for axis in range(2):
        sign = np.sign(axes[axis][np.abs(axes[axis]).argmax()])
        np.testing.assert_allclose(points[:, axis], sign * left[:, axis] * values[axis], atol=1e-3)
    assert share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=1e-5)
    assert parts.project(table[:, :1])[0][:, 1].tolist() == [0] * 50
    assert parts.project(np.ones((4, 3), dtype=np.float32))[1] == 1.0


def test_sessions_are_read_in_their_order_without_unknown_tracks(explorer, parts, monkeypatch):
    log = pl.LazyFrame(
        {
            "session_id": ["b", "a", "b", "a", "b", "c"],
            "item_id": ["t2", "t1", "gone", "t4", "t3", "gone"],
            "feedback": [1.0, None, 1.0, -0.5, -1.0, 1.0],
            "position": [3, 1, 2, 2, 1, 1],
        }
    )
    sessions = parts.read_sessions(log, explorer)
    assert sessions == {
        "a: 2 tracks, 1 skipped": (parts.Play(1, 0.0), parts.Play(4, -0.5)),
        "b: 2 tracks, 1 skipped": (parts.Play(3, -1.0), parts.Play(2, 1.0)),
    }
    monkeypatch.setattr(parts, "MOST_SESSIONS", 1)
    assert list(parts.read_sessions(log, explorer)) == ["b: 2 tracks, 1 skipped"]
    monkeypatch.setattr(parts, "MOST_PLAYS", 1)
    assert list(parts.read_sessions(log, explorer).values()) == [(parts.Play(2, 1.0),)]
    with pytest.raises(ValueError, match="`log` must have tracks that the model knows, got none"):
        parts.read_sessions(log.filter(pl.col("session_id") == "c"), explorer)
    with pytest.raises(ValueError, match=r"`log` must have the columns .* got session_id, item_id, feedback"):
        parts.read_sessions(log.drop("position"), explorer)


def test_names_come_from_a_file_or_from_the_log(parts, tmp_path):
    NAMES.write_parquet(tmp_path / "names.parquet")
    log = pl.LazyFrame({"item_id": ["t1", "t1", "t2", "t3"], "name": ["one", "uno", "two", None]})
    assert parts.read_names(tmp_path / "names.parquet", log).equals(NAMES)
    assert parts.read_names(None, log).rows() == [("t1", "one"), ("t2", "two")]
    assert parts.read_names(None, log.drop("name")) is None
    assert parts.read_names(None, None) is None


class Elements(HTMLParser):
    """The tags, attributes and texts of a part of the page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def test_hostile_names_are_text_in_every_part(explorer, parts, page):
    plays = listen(parts, 0, 1, 2, 3, 4, 5, -8)
    before = explorer.step(parts.Moment(), plays, "opened", kind="open", **DIAL)
    for track, name in enumerate(HOSTILE):
        moment = explorer.step(
            before, (*plays, parts.Play(track)), f"Listened to {name}", kind="play", **DIAL
        )
        html = {
            "found": page.make_found(explorer, name, explorer.search(name)),
            "session": page.make_session(explorer, moment.plays),
            "list": page.make_list(explorer, moment, 24),
            "status": page.describe_change(moment, 24),
            "map": page.make_map(explorer, moment, 24),
        }
        for part, text in html.items():
            elements = Elements(text)
            assert not {"img", "script", "a"} & set(elements.tags), part
            assert not [
                key for key, _ in elements.attributes if key.startswith("on") or key in ("href", "src")
            ]
            shown = "".join(elements.texts)
            assert name in shown, part


def test_the_map_has_a_mark_for_each_track_and_names_that_do_not_collide(explorer, parts, page):
    plays = listen(parts, 8, -9, 10, -11, 12)
    moment = explorer.step(parts.Moment(), plays, "", kind="open", **DIAL)
    html = page.make_map(explorer, moment, 10)
    drawn = html[: html.index("</svg><ul")]
    for kind, count in (("listened", 3), ("skipped", 2), ("next", 10), ("latest", 1)):
        assert drawn.count(f'class="{kind}"') == count
    # Without colour they differ by shape.
    assert '<circle class="listened"' in html
    assert '<path class="skipped"' in html
    texts = page.label([("one", 50, 50), ("two", 55, 52), ("three", 395, 50)], np.empty((0, 2)))
    assert [text[text.index(">") + 1 : -7] for text in texts] == ["one", "two", "three"]
    places = [(text.split('"')[1], float(text.split('x="')[1].split('"')[0])) for text in texts]
    assert places == [("right", 62), ("left", 43), ("left", 383)]
    crowd = [(f"name {number}", 200.0, 100.0) for number in range(9)]
    assert len(page.label(crowd, np.empty((0, 2)))) == 2


def test_the_map_has_one_scale_for_both_axes_and_holds_all_that_is_marked(page):
    random = np.random.default_rng(1)
    points = random.normal(size=(30, 2)) * [4, 1]
    marked = [2, 5, 7, 11]
    placed = page.fit(points, marked)
    scale = (placed[3] - placed[0]) / (points[3] - points[0])
    assert scale[0] == pytest.approx(-scale[1])  # upwards is less in a picture
    assert (placed[marked] > page.MARGIN - 1e-6).all()
    assert (placed[marked] < np.array([page.WIDTH, page.HEIGHT]) - page.MARGIN + 1e-6).all()
    # One mark alone is no reason to look at nothing else.
    near = page.fit(points, [2])
    assert near[2].tolist() == [page.WIDTH / 2, page.HEIGHT / 2]
    assert np.ptp(near, axis=0).max() == pytest.approx(4 * (page.HEIGHT - 2 * page.MARGIN))


def test_names_are_escaped_and_keep_their_direction_of_writing(page):
    assert page.write("a<b>&") == "<bdi>a&lt;b&gt;&amp;</bdi>"
    assert "&lt;img src" in page.label([(HOSTILE[0], 50, 50)], np.empty((0, 2)))[0]


def test_an_empty_session_has_hints_instead_of_tables(explorer, parts, page):
    moment = explorer.step(parts.Moment(), (), "", kind="open", **DIAL)
    assert "No track yet" in page.make_session(explorer, ())
    assert "<table" not in page.make_list(explorer, moment, 5)
    assert page.make_map(explorer, moment, 5) == ""
    assert page.make_found(explorer, " ", []) == ""
    assert "No track has this text" in page.make_found(explorer, "xyz", [])


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    import skip_explorer

    with pytest.raises(ImportError, match=r'pip install "\.\[app\]"'):
        skip_explorer.import_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


@pytest.mark.parametrize("top_k", [0, 51])
def test_the_length_of_the_list_is_checked_before_a_model_is_trained(monkeypatch, top_k):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import skip_explorer

    with pytest.raises(ValueError, match=f"`top_k` must be from 1 to 50, got {top_k}"):
        skip_explorer.explore(top_k=top_k)


def wait_for(address, process):
    while process.poll() is None:
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(address):  # noqa: S310
            return
        time.sleep(0.2)
    raise AssertionError("the script has ended")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page with hostile names and sessions, and the folder of its files."""
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from small_models import quiet_trainer

    from skipcl_lightning.data import SessionDataModule

    folder = tmp_path_factory.mktemp("explorer")
    log = simulate_sessions(200, num_items=60, seed=1).collect()
    named = dict(zip(sorted(log["item_id"].unique()), HOSTILE, strict=False))
    log = log.with_columns(
        name=pl.col("item_id").replace(named),
        session_id=pl.col("session_id").cast(pl.String).replace({"0": HOSTILE[0]}),
    )
    log.write_parquet(folder / "log.parquet")
    torch.manual_seed(0)
    data = SessionDataModule(log.drop("name"), batch_size=64)
    trained = SkipCLModule(
        SASRec(16, max_length=20), SkipPrediction(), num_items=data.num_items, learning_rate=0.01
    )
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(trained, data)
    trainer.save_checkpoint(folder / "model.ckpt")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = ["skip_explorer.py", "model.ckpt", "--log", "log.parquet", "--port", str(port)]
    with (
        (folder / "out.txt").open("w") as output,
        subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-u", str(EXAMPLES / command[0]), *command[1:]],
            cwd=folder,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}", folder
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def opened(served, tmp_path_factory):
    """A browser in which the page is loaded."""
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.open(served[0])
        browser.wait("document.querySelectorAll('#list tbody tr, input[role=combobox]').length === 11")
        yield browser


def listed(browser):
    return browser.run("[...document.querySelectorAll('#list tbody td.name')].map(cell => cell.textContent)")


def await_status(browser, text):
    """Wait for the line that says what was done."""
    browser.wait(f"document.querySelector('#status').textContent.includes({json.dumps(text)})")


def click(browser, part, action, row, status):
    button = f"#{part} button[data-action={action}][data-row='{row}']"
    browser.run(f'document.querySelector("{button}").click()')
    await_status(browser, status)


@pytest.mark.slow
def test_without_a_checkpoint_a_small_model_is_trained_for_the_page(tmp_path):
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    command = [sys.executable, str(EXAMPLES / "skip_explorer.py"), "--smoke", "true"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)  # noqa: S603
    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_skip_changes_the_list_and_its_moves_are_shown(opened):
    before = listed(opened)
    click(opened, "list", "skip", 1, f"Skipped {before[0]}. ")
    after = listed(opened)
    assert before[0] not in after
    assert after[:9] != before[1:]
    moves = opened.run("[...document.querySelectorAll('#list td.move')].map(cell => cell.textContent)")
    for row, (name, move) in enumerate(zip(after, moves, strict=True)):
        if name in before:
            up = before.index(name) - row
            assert move == (f"{'▲' if up > 0 else '▼'} {abs(up)}" if up else "=")
    assert any(move[0] in "▲▼" for move in moves)
    latest = "document.querySelector('#session li')"
    assert before[0] in opened.run(f"{latest}.textContent")
    assert opened.run(f"{latest}.querySelector('svg').getAttribute('aria-label')") == "skipped"
    # From the keyboard: the button of the same row has the focus again, and Enter skips the next track.
    opened.press("Enter")
    await_status(opened, f"Skipped {after[0]}. ")
    assert after[0] not in listed(opened)
    opened.run("[...document.querySelectorAll('button')].find(b => b.textContent.includes('Undo')).click()")
    await_status(opened, "Took the latest track back. ")
    assert listed(opened) == after


@pytest.mark.slow
def test_the_dial_changes_the_list_from_the_keyboard(opened):
    before = listed(opened)
    opened.run("document.querySelector('#alpha input[type=range]').focus()")
    for _ in range(40):
        opened.press("ArrowRight")
    await_status(opened, "Set \N{GREEK SMALL LETTER ALPHA} to 2. ")
    assert listed(opened) != before
    skips = opened.run(
        "[...document.querySelectorAll('#list td.skip')].map(cell => parseInt(cell.textContent))"
    )
    assert len(skips) == 10
    for _ in range(40):
        opened.press("ArrowLeft")
    await_status(opened, "Set \N{GREEK SMALL LETTER ALPHA} to 0. ")
    assert listed(opened) == before


@pytest.mark.slow
def test_names_are_text_wherever_they_are_shown(opened):
    for number, name in enumerate(HOSTILE):
        opened.run("document.querySelector('input[placeholder]').focus()")
        opened.type(name)
        opened.wait(
            "document.querySelectorAll('#found li').length === 1 && "
            f"document.querySelector('#found .name').textContent === {json.dumps(name)}"
        )
        action, word = ("skip", "Skipped") if number % 2 else ("listen", "Listened to")
        click(opened, "found", action, 1, f"{word} {name}. ")
        assert opened.run("document.querySelector('#session li .name').textContent") == name
        assert name in opened.run("document.querySelector('svg.map').textContent")
    assert set(HOSTILE) <= set(opened.run("[...document.querySelectorAll('bdi')].map(b => b.textContent)"))
    opened.run("document.querySelector('input[role=combobox]').focus()")
    opened.type("<img")
    opened.wait("document.querySelectorAll('[role=option]').length === 1")
    assert HOSTILE[0] in opened.run("document.querySelector('[role=option]').textContent")
    opened.press("Enter")
    await_status(opened, "Opened a session. ")
    assert opened.run("document.querySelector('input[role=combobox]').value").startswith(HOSTILE[0])
    assert opened.run("window.hacked") is None
    assert opened.run("document.querySelectorAll('main img, main a, main script').length") == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_desk(opened, width):
    opened.resize(width, 900)
    opened.wait(f"innerWidth === {width}")
    assert opened.run("document.documentElement.scrollWidth") == width
    # Nothing is cut off within the page either.
    ends = "[...document.querySelectorAll('.explorer *')].map(part => part.getBoundingClientRect().right)"
    assert opened.run(f"Math.max(...{ends})") <= width


@pytest.mark.slow
def test_every_control_has_a_label(opened):
    unnamed = """[...document.querySelectorAll('main button, main input')].filter(control =>
        !(control.textContent.trim() || control.getAttribute('aria-label')
            || [...control.labels].some(label => label.textContent.trim()))).map(lost => lost.outerHTML)"""
    assert opened.run("document.querySelectorAll('main input').length") >= 7
    assert opened.run(unnamed) == []


@pytest.mark.slow
def test_the_page_asks_no_other_host_and_serves_no_files(opened, served):
    assert opened.hosts == {"127.0.0.1"}
    assert opened.errors == []
    address, folder = served
    for path in ("log.parquet", folder / "log.parquet", "../../../../../etc/passwd", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 40[34]"):
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")  # noqa: S310 - our own address
