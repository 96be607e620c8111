import contextlib
import importlib
import io
import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml
from markdown_blocks import ROOT, code_blocks, run_python
from test_api import PUBLIC

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
TEXT = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
PROGRAMS = [page for page in PAGES if code_blocks(page, "python")]
WITH_OUTPUTS = ["docs/faq.md", "docs/tutorial.md"]


@pytest.mark.parametrize("page", sorted({*PROGRAMS} - {*WITH_OUTPUTS}))
def test_code_blocks_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What a model learns is shown elsewhere: an epoch runs every line.
    blocks = [re.sub(r"\bmax_epochs=\d+", "max_epochs=1", block) for block in code_blocks(page, "python")]
    run_python(*blocks)


def words_of(text):
    return re.sub(r"\d+", "0", re.sub(r"[ ─═]+", " ", text))


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * ("tutorial" in page)) for page in WITH_OUTPUTS]
)
def test_a_page_shows_what_its_blocks_print(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    names, printed, shown = {"__name__": "__main__"}, "", []
    for language, block in blocks:
        if language == "text":
            # Other machines round otherwise, so numbers and the widths of tables are not compared.
            assert words_of(block) == words_of(printed)
            shown.append(block)
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(block, names)  # noqa: S102 - our own page
        printed = output.getvalue()
    assert shown
    if "tutorial" in page:
        assert (
            names["report"]["hit_rate@10"]
            > names["markov"]["hit_rate@10"]
            > names["popularity"]["hit_rate@10"]
        )
        assert names["report"]["skip_hit_rate@10"] < names["plain_report"]["skip_hit_rate@10"]


def test_the_notebook_is_the_tutorial():
    written = (ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8")
    page = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    # Otherwise: python docs/notebook.py
    assert written == runpy.run_path(str(ROOT / "docs/notebook.py"))["make_notebook"](page)
    cells = ["".join(cell["source"]) for cell in json.loads(written)["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in cells if "IPython" not in cell] == [
        block.rstrip("\n") for block in code_blocks("docs/tutorial.md", "python")
    ]
    assert sum("IPython" in cell for cell in cells) == 2


def test_every_page_of_the_guide_but_those_of_commands_has_a_program():
    guide = [page for page in PAGES if "guide" in page]
    assert len(guide) >= 7
    assert set(guide) - set(PROGRAMS) == {"docs/guide/command-line.md", "docs/guide/serve.md"}


def test_every_page_is_in_the_navigation():
    navigation = re.findall(
        r"- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(f"docs/{page}" for page in navigation) == PAGES


# Where a file has the name of its function, the reference has to name both: the tool takes the file.
@pytest.mark.parametrize("room", PUBLIC)
def test_a_function_in_a_file_of_its_name_is_in_the_reference_by_its_full_path(room):
    package = Path(importlib.import_module(room).__file__).parent
    hidden = {name for name in PUBLIC[room] if (package / f"{name}.py").exists()}
    assert {name for name in hidden if f"::: {room}.{name}.{name}\n" not in TEXT} == set()


@pytest.mark.parametrize("room", [room for room in PUBLIC if room != "skipcl_lightning"])
def test_every_room_is_in_the_reference(room):
    assert f"::: {room}\n" in TEXT


@pytest.mark.parametrize("room", ["backbones", "data", "evaluation", "heads", "metrics"])
def test_a_reference_in_an_order_of_its_own_is_complete(room):
    page = (ROOT / f"docs/reference/{room}.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^        - (\w+)$", page, flags=re.MULTILINE)) == sorted(
        importlib.import_module(f"skipcl_lightning.{room}").__all__
    )


def test_the_citation_names_the_version_that_the_package_has():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert f"version = {{{project['version']}}}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".github").exists(), reason="an archive has no workflows")
def test_the_workflow_runs_scripts_that_exist_from_the_lowest_python_on():
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    scripts = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert scripts == {".ci/run", ".ci/oldest", ".ci/docs"}
    assert all((ROOT / script).is_file() for script in scripts)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest, *_ = jobs["tests"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={lowest}"
