"""The report: what it writes in each format equals the rows it was made from, and the page works in a browser."""

import csv
import json
import runpy
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="the report's libraries are not installed: pip install 'normtriton[perf]'")
from click.testing import CliRunner
from matplotlib.image import imread
from normtriton.perf.cases.shapes import cells
from normtriton.perf.cli import main
from normtriton.perf.show import contents, render, rows

ROOT = Path(__file__).parents[1]
MADE_UP = "Imaginary GPU"
TITLE = "Ours & <i>theirs</i>"
PREDICTED = "predicted by a model, not measured"


def report(*arguments):
    """Run the command as the shell does."""
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def committed(name):
    """The rows of a committed file."""
    return [json.loads(line) for line in (render.RESULTS / name).read_text().splitlines()]


def bench_rows():
    """Times that nobody measured, of three libraries; one failed."""
    shared = {"instrument": "bench", "machine": MADE_UP, "norm": "layer", "groups": 0, "layout": "contiguous"}
    shared |= {"driver": "0.0", "torch": "2.13.0", "triton": "3.9.0", "commit": "none", "method": "graph"}
    found = []
    for at, (size, direction, library) in enumerate(
        product((4096, 768), ("forward", "backward"), ("torch", "normtriton", "liger-kernel"))
    ):
        us = 10.0 + at / 7
        row = {"case": f"layer-8192x{size}", "shape": [8192, size], "dtype": "bfloat16", "direction": direction}
        row |= {"us": us, "us_low": us - 0.5, "us_high": us + 1, "host_us": 7.25 + at, "bytes": 8192 * size * 4}
        row |= {"gbps": 8192 * size * 4e-3 / us, "ceiling_gbps": 30000.0, "of_ceiling": 0.5 + at / 100}
        found.append(shared | {"library": library} | row)
    figures = set(found[-1]) - set(rows.NAMED)
    found[-1] = {name: value for name, value in found[-1].items() if name not in figures} | {"error": "OutOfMemory"}
    return found


def kernel(name, us, **more):
    """A launch as a model might have seen it; figures are made up."""
    found = {"kernel": name, "us": us, "blocks": 132, "warps": 8, "resident": 2, "registers": 96, "spills": 0}
    found |= {"cluster": 1, "dram_read": 3e7, "dram_write": 1e7, "dram_busy": 0.9, "issue_busy": 0.3}
    return found | {"queue_busy": 0.2, "guessed": 0, "stalls": {"load": 0.61, "barrier": 0.2, "pipe": 0.01}} | more


def model_rows():
    """Times that no model predicted, of two libraries and two dtypes; one failed."""
    shared = {"instrument": "model", "machine": MADE_UP, "norm": "layer", "groups": 0, "layout": "contiguous"}
    shared |= {"torch": "2.13.0", "triton": "3.9.0", "compulsory": 40_000_000}
    found = []
    for at, (dtype, direction, library) in enumerate(
        product(("bfloat16", "float32"), ("forward", "backward"), ("normtriton", "liger-kernel"))
    ):
        us = 20.0 + at**2
        row = {"case": "layer-8192x4096", "shape": [8192, 4096], "dtype": dtype, "direction": direction}
        row |= {"us": us, "us_alone": us + 4, "gbps": 4e4 / us, "of_ceiling": 16 / us}
        row |= {"of_ceiling_alone": 16 / (us + 4), "kernels": [kernel("sums", 3.0), kernel("main", us - 3)]}
        found.append(shared | {"library": library} | row)
    failed = {name: value for name, value in found[-1].items() if name in (*rows.NAMED, "torch", "triton")}
    return [*found[:-1], failed | {"error": "OutOfMemory"}]


def write(file, found):
    """Rows as a file of results."""
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


@pytest.fixture
def few(tmp_path):
    """A folder of few results: the made-up times, our traffic and code in one shape, and a tuner's row."""
    folder = tmp_path / "few"
    folder.mkdir()
    write(folder / "bench.jsonl", bench_rows())
    for name in ("traffic-H100.jsonl", "traffic-H100-rivals.jsonl", "code-sm_90.jsonl"):
        write(folder / name, [row for row in committed(name) if row["case"] == "layer-8192x4096"])
    write(folder / "tuner.jsonl", [{"instrument": "autotune", "machine": MADE_UP, "best": {"warps": 4}, "us": 1.5}])
    return folder


def test_help_shows_examples():
    """What there is to choose, and how it is called."""
    text = report("--help").output
    assert all(word in text for word in ("--out", "--format", "--title", "--json", "Examples:", "report.html"))


def test_every_format_is_written(tmp_path, few):
    """One page, Markdown, CSV and pictures; each is named with its size."""
    out = tmp_path / "out"
    given = few / "bench.jsonl", few / "traffic-H100.jsonl"
    ran = report(*given, "--out", out, "--format", "html,md,csv,png", "--json")
    assert ran.exit_code == 0, ran.output
    said = [json.loads(line) for line in ran.output.splitlines()]
    assert {Path(line["file"]) for line in said} == set(out.iterdir())
    assert all(Path(line["file"]).stat().st_size == line["bytes"] for line in said)
    assert {line["format"] for line in said} == {"html", "md", "csv", "png"}
    pictures = [Path(line["file"]) for line in said if line["format"] == "png"]
    made = contents.gather(rows.read(given), "")
    metrics = [len(chart.metrics) * len(chart.dtypes) for chart in made.charts]
    assert len(pictures) == sum(metrics)
    for picture in pictures:
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert imread(picture).std() > 0.05  # something is drawn


@pytest.mark.parametrize("form", ["md", "csv", "html"])
def test_a_file_has_the_format_of_its_name(tmp_path, few, form):
    """One file, and nothing beside it."""
    ran = report(few, "--out", tmp_path / "new" / f"results.{form}")
    assert ran.exit_code == 0, ran.output
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"results.{form}"]


def test_csv_has_every_row_and_figure(tmp_path):
    """Each cell equals what the row says, at any depth."""
    report("--out", tmp_path / "results.csv")
    found = [row for file in sorted(render.RESULTS.glob("*.jsonl")) for row in committed(file.name)]
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found)
    for line, row in zip(lines, found, strict=True):
        flat = {"how": {"traffic": "simulated", "code": "compiled", "model": PREDICTED}[row["instrument"]]}
        flat |= rows.flat(row)
        assert {name: text for name, text in line.items() if text} == {n: str(v) for n, v in flat.items() if v != ""}
        assert flat["shape"] == "x".join(map(str, row["shape"]))
        for at, kernel in enumerate(row.get("kernels", ())):
            assert flat[f"kernels.{at}.registers"] == kernel["registers"]
            assert all(flat[f"kernels.{at}.loads.{width}"] == n for width, n in kernel.get("loads", {}).items())


def markdown_tables(text):
    """All tables of a text: rows by head."""
    found = []
    for block in text.split("\n\n"):
        if block.startswith("| "):
            head, _rule, *lines = ([cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines())
            found.append([dict(zip(head, line, strict=True)) for line in lines])
    return found


def test_markdown_equals_the_rows(tmp_path):
    """The bytes of ours and of others, the registers by target; nothing says that it was timed."""
    report("--out", tmp_path / "results.md", "--title", "A title")
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("## A title\n\n**Nothing here was timed on a GPU")
    tables = markdown_tables(text)
    moved = next(table for table in tables if "DRAM, flag-gems" in table[0])
    shown = {(row["shape"], row["layout"], row["dtype"], row["direction"]): row for row in moved}
    checked = 0
    for row in committed("traffic-H100.jsonl") + committed("traffic-H100-rivals.jsonl"):
        line = shown[row["case"], row["layout"], row["dtype"], row["direction"]]
        assert line[f"DRAM, {row['library']}"] == f"{row['dram'] / row['compulsory']:.2f}"
        assert line[f"sectors, {row['library']}"] == f"{row['request'] / row['compulsory']:.2f}"
        assert line[f"launches, {row['library']}"] == render.launches(row)
        checked += 1
    assert checked == 68 + 108
    code = next(table for table in tables if "target" in table[0])
    for row in committed("code-sm_100.jsonl"):
        cell = {"target": "sm_100", "shape": row["case"], "layout": row["layout"], "dtype": row["dtype"]}
        cell |= {"direction": row["direction"], "registers": str(render.most(row, "registers"))}
        assert any(cell.items() <= line.items() for line in code)
    order = dict.fromkeys((row["shape"], row["layout"], row["dtype"]) for row in moved)
    assert list(order) == [(cell.case.name, cell.layout, cell.dtype) for cell in cells()]


def test_times_are_shown_where_there_are_any(few, tmp_path):
    """On which GPU, with which driver; what failed says why, and a tuner's rows are kept."""
    report(few, "--out", tmp_path / "results.md")
    text = (tmp_path / "results.md").read_text()
    assert "Nothing here was timed" not in text
    assert f"12 results timed on {MADE_UP} (driver 0.0). torch 2.13.0, triton 3.9.0." in text
    tables = markdown_tables(text)
    line = next(table for table in tables if "time, torch" in table[0])[0]
    times = {row["library"]: row for row in bench_rows()[:3]}
    for library, row in times.items():
        assert line[f"time, {library}"] == f"{row['us']:.1f}"
        assert line[f"of the ceiling, {library}"] == f"{100 * row['of_ceiling']:.0f}"
    failed = next(table for table in tables if "cause" in table[0])
    assert [(row["library"], row["cause"]) for row in failed] == [("liger-kernel", "OutOfMemory")]
    assert next(table for table in tables if "best.warps" in table[0])[0]["best.warps"] == "4"


def test_predicted_times_are_called_predicted(few, tmp_path):
    """In the caution, the facts, the heads and every row of a CSV; times that were measured are told from them."""
    write(few / "model.jsonl", model_rows())
    report(few / "model.jsonl", "--out", tmp_path / "alone.md")
    text = (tmp_path / "alone.md").read_text()
    assert f"no figure is a measured time. Some times are {PREDICTED}.**" in text
    assert f"- model: 8 results predicted for {MADE_UP} by a model" in text
    assert f"### Times {PREDICTED}" in text
    report(few, "--out", tmp_path / "both.md")
    text = (tmp_path / "both.md").read_text()
    assert "Figures of autotune and bench are from the machine that they name." in text
    assert "All others are simulated, predicted or compiled, not run on a GPU." in text
    report(few, "--out", tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        how = {(line["instrument"], line["how"]) for line in csv.DictReader(file)}
    machine = "from the machine it names"
    assert how == {
        ("bench", machine), ("autotune", machine), ("traffic", "simulated"), ("code", "compiled"), ("model", PREDICTED)
    }  # fmt: skip


def test_predicted_times_equal_the_rows(few, tmp_path):
    """Both bounds, rates, and what the warps of the longest launch wait for; the faster is marked on the page."""
    file = write(few / "model.jsonl", model_rows())
    report(file, "--out", tmp_path / "results.md")
    tables = markdown_tables((tmp_path / "results.md").read_text())
    lines = next(table for table in tables if "predicted µs, normtriton" in table[0])
    shown = {(line["dtype"], line["direction"]): line for line in lines}
    for row in model_rows()[:-1]:
        line, library = shown[row["dtype"], row["direction"]], row["library"]
        assert line[f"predicted µs, {library}"] == f"{row['us']:.1f}"
        assert line[f"alone, µs, {library}"] == f"{row['us_alone']:.1f}"
        assert line[f"GB/s, {library}"] == f"{row['gbps']:,.0f}"
        assert line[f"% of a copy, {library}"] == f"{100 * row['of_ceiling']:.0f}"
        assert line[f"warps wait for, {library}"] == "load 61%, barrier 20%"
    made = contents.gather(rows.read([file]), "")
    (table,) = next(section for section in made.sections if section.name == "predicted").tables
    heads = [head.full for head in table.heads]
    best = [[head for head, cell in zip(heads, line.cells, strict=True) if cell.best] for line in table.lines]
    assert best == [["predicted µs, normtriton", "alone, µs, normtriton"]] * 3 + [[]]


def test_a_predicted_time_is_drawn_between_its_bounds(few):
    """The bar of a mark ends at the other bound; hovering says both, that it is predicted, and what is launched."""
    from normtriton.perf.show.draw import figures

    (chart,) = contents.gather(rows.read([write(few / "model.jsonl", model_rows())]), "").charts
    drawn = figures(chart)
    ours = drawn["predicted time"]["bfloat16"]["forward"]["data"][0]
    assert (ours["x"], ours["error_x"]["array"], ours["error_x"]["arrayminus"]) == ([20.0], [4.0], [0.0])
    rate = drawn["of a copy"]["bfloat16"]["forward"]["data"][0]
    assert rate["x"] == [pytest.approx(80)] and rate["error_x"]["array"] == [0]
    assert rate["error_x"]["arrayminus"] == [pytest.approx(80 - 16 / 0.24)]
    for part in (": 20.0 to 24.0", PREDICTED, "<b>main</b>: 17.0 µs", "132 blocks of 8 warps, 2 resident", "load 61%"):
        assert part in ours["text"][0]


def test_verdicts_count_what_is_predicted_faster(few):
    """By more than the model's error: 4 % forward, 15 % backward; beside the bytes of the same library."""
    write(few / "model.jsonl", model_rows())
    (liger,) = (v for v in contents.gather(rows.read(few.glob("*.jsonl")), "").verdicts if "liger" in v.library)
    facts = {what: (ours, theirs) for what, ours, theirs in liger.facts}
    assert facts[f"predicted faster, {MADE_UP}"] == ("3", "0")  # 20 µs against 21, 24 against 29, 36 against 45
    assert facts[f"% of a copy, predicted, {MADE_UP}, median"] == ("67", "55")
    for direction, least in (("forward", 96), ("backward", 85)):
        theirs = {"us": 100.0, "direction": direction}
        assert contents.faster(theirs | {"us": least - 0.1}, theirs)
        assert not contents.faster(theirs | {"us": least + 0.1}, theirs)


def test_every_series_has_its_own_mark():
    """Libraries the same in all charts, whoever is beside them; others any that is free."""
    from normtriton.perf.show.draw import LIBRARIES, MARKS, marks

    assert list(marks(LIBRARIES).values()) == list(MARKS)
    found = marks(["new", "normtriton", "torch"])
    assert found["torch"] == marks(LIBRARIES)["torch"]
    assert len({(mark.light, mark.symbol) for mark in found.values()}) == 3


def test_of_two_rows_of_one_result_the_later_counts(tmp_path):
    """A file that is named later replaces what an earlier one has of the same cell."""
    first = committed("traffic-A100.jsonl")[:2]
    second = [first[0] | {"launches": 77}]
    found = rows.read([write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)])
    assert [row["launches"] for row in found] == [77, first[1]["launches"]]


def damage(line):
    """What is wrong, and what is said of it."""
    row = json.loads(line)
    return {
        "cut off": (line[:40], "Expecting value"),
        "no row": ("[1, 2]", 'it has no "instrument"'),
        "no figures": (json.dumps({k: v for k, v in row.items() if k not in ("dram", "part")}), "has no dram, part"),
        "no direction": (json.dumps(row | {"direction": "sideways"}), "'sideways', not forward or backward"),
    }


@pytest.mark.parametrize("kind", ["cut off", "no row", "no figures", "no direction"])
def test_a_damaged_line_is_named(tmp_path, kind):
    """The file, the line, what is wrong, and what to do."""
    lines = (render.RESULTS / "traffic-H100.jsonl").read_text().splitlines()[:4]
    lines[2], cause = damage(lines[2])[kind]
    file = tmp_path / "damaged.jsonl"
    file.write_text("\n".join(lines))
    ran = report(file, "--out", tmp_path / "out")
    assert ran.exit_code == 1
    assert f"{file}, line 3: " in ran.output
    assert cause in ran.output
    assert "remove the line, or measure again" in ran.output
    assert not (tmp_path / "out").exists()


def test_refusals_name_cause_and_remedy(tmp_path, few):
    """No results, empty ones, a place that cannot be written, formats that do not fit."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "file").touch()
    for given, said in {
        (tmp_path / "empty",): ("holds no results (*.jsonl)", "make results"),
        (tmp_path / "none.jsonl",): ("none.jsonl does not exist", "bench --out FILE"),
        (tmp_path / "empty.jsonl",): ("the files are empty", "measure first"),
        (few, "--out", tmp_path / "file" / "page.html"): ("file cannot be written", "another place with --out"),
        (few, "--out", tmp_path / "page.png"): ("name a folder", "--format png --out pictures"),
        (few, "--out", tmp_path / "page.md", "--format", "html"): ("page.md is one file", "name a folder"),
        (few, "--format", "html,gif"): ("'gif' is none of html, png, md, csv",),
    }.items():
        ran = report(*given)
        assert ran.exit_code in (1, 2), given
        text = " ".join(ran.output.replace("│", " ").split())
        assert all(part in text for part in said), ran.output


def test_what_is_written_stays_where_it_is_stopped(tmp_path, few, monkeypatch):
    """Ctrl-C in the second of two files: the status of an interrupt, and the first file."""
    import normtriton.perf.commands.report as module

    def stop(_rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "comma_separated", stop)
    ran = report(few, "--format", "md,csv", "--out", tmp_path / "out")
    assert ran.exit_code == 130
    assert f"1 of 2 files are in {tmp_path / 'out'}" in ran.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.md"]


# The page, in a browser without a network.

headless, browser, driver = (
    runpy.run_path(str(ROOT / "docs" / "draw_report.py"))[name] for name in ("headless", "BROWSER", "DRIVER")
)
in_browser = pytest.mark.skipif(
    not (browser.exists() and driver.exists()), reason="no browser: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of the committed results and of made-up predictions, open."""
    folder = tmp_path_factory.mktemp("page")
    file = folder / "report.html"
    ran = report(render.RESULTS, write(folder / "model.jsonl", model_rows()), "--out", file, "--title", TITLE)
    assert ran.exit_code == 0, ran.output
    with headless(1280, 900) as opened:
        opened.get(file.as_uri())
        yield opened


def points(page, chart, direction):
    """What a panel of a plot holds: [series, value] of each mark."""
    return page.execute_script(
        """const panel = document.querySelector(`[id="${arguments[0]}"] [data-direction="${arguments[1]}"]`);
        return panel.data.flatMap((trace) => (trace.customdata ?? []).map((value) => [trace.name, value]));""",
        chart,
        direction,
    )


def wait(page, until):
    """What a function of the page says as soon as it is true."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(page, 60).until(until)


def choose(page, name, value):
    """Press a button of a choice."""
    script = "document.querySelector(`input[name='${arguments[0]}'][value='${arguments[1]}']`).click()"
    page.execute_script(script, name, value)


#: Of all that is on the page.
WIDTH = "return document.documentElement.scrollWidth"


@in_browser
def test_the_page_renders(page):
    """No error in the console, nothing asked of the network, every plot drawn, nothing wider than the window."""
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    marks = page.execute_script(
        "return [...document.querySelectorAll('.panel')].map((panel) => panel.querySelectorAll('.points path').length)"
    )
    assert len(marks) == 2 * len(page.find_elements("class name", "chart")) > 0
    assert min(marks) > 0
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0
    for width in (390, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wait(page, lambda page, width=width: page.execute_script(WIDTH) == width)
    assert page.find_element("tag name", "h1").text == page.title == TITLE
    assert "Nothing here was timed on a GPU" in page.find_element("css selector", ".caution").text


@in_browser
@pytest.mark.parametrize(("dtype", "metric", "name"), [("bfloat16", "DRAM", "dram"), ("float32", "sectors", "request")])
def test_a_plot_has_what_the_file_says(page, dtype, metric, name):
    """As many marks as rows, each with the row's value, whatever is chosen."""
    choose(page, "dtype", dtype)
    choose(page, "bytes-H100", metric)
    found = committed("traffic-H100.jsonl") + committed("traffic-H100-rivals.jsonl")
    for direction in ("forward", "backward"):
        wanted = [row for row in found if (row["dtype"], row["direction"]) == (dtype, direction)]
        shown = points(page, "bytes-H100", direction)
        values = sorted((row["library"], row[name] / row["compulsory"]) for row in wanted)
        assert sorted(map(tuple, shown)) == values
        drawn = page.execute_script(
            f"return document.querySelectorAll(`#bytes-H100 [data-direction='{direction}'] .points path`).length"
        )
        assert drawn == len(wanted)
    choose(page, "dtype", "bfloat16")


@in_browser
def test_hovering_shows_the_value(page):
    """The label beside a mark: the case, the library and the figure of its row."""
    choose(page, "code-sm_90", "registers")
    mark = page.find_element("css selector", "#code-sm_90 [data-direction=forward] .points path")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    from selenium.webdriver import ActionChains

    ActionChains(page).move_to_element(mark).perform()
    label = wait(page, lambda page: page.find_elements("css selector", "#code-sm_90 .hovertext"))
    row = committed("code-sm_90.jsonl")[0]
    text = label[0].text.replace("\n", " ")
    assert all(part in text for part in (row["case"], "normtriton", f"registers: {render.most(row, 'registers')}"))


@in_browser
def test_a_head_sorts_and_sorts_back(page):
    """Numbers as numbers, words as words, by the pointer and by the keyboard; what has no figure stays last."""
    head = page.find_elements("css selector", "#table-code-sm_90 th[data-numeric]")[4]  # spilled, liger-kernel
    button = head.find_element("tag name", "button")
    assert button.text == "liger-kernel"

    def column():
        return page.execute_script(
            """const at = arguments[0].cellIndex;
            return [...document.querySelector("#table-code-sm_90").tBodies[0].rows].map((row) =>
                [row.cells[at].dataset.value ?? null, row.cells[at].textContent]);""",
            head,
        )

    def values():
        return [float(value) for value, _text in column() if value is not None]

    before = column()
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values()) != sorted(values(), key=str)  # numbers, not words
    button.send_keys("\n")
    assert head.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    missing = [value is None for value, _text in column()]
    assert any(missing)
    assert missing == sorted(missing)
    assert sorted(map(str, column())) == sorted(map(str, before))
    spilled = [render.most(r, "stack") for r in committed("code-sm_90-rivals.jsonl") if r["library"] == "liger-kernel"]
    assert values() == sorted(spilled, reverse=True)


@in_browser
def test_a_cell_equals_the_file(page):
    """The exact number to sort by, and what is shown of it; words filter the rows."""
    search = page.find_element("css selector", "[data-table='table-bytes-H100']")
    search.send_keys("group32-8 channels backward")
    shown = page.execute_script(
        """return [...document.querySelectorAll("#table-bytes-H100 tbody tr:not([hidden])")].map((row) =>
            [...row.cells].map((cell) => [cell.textContent, cell.dataset.value ?? null]));"""
    )
    search.clear()
    search.send_keys(" ")
    (line,) = shown
    wanted = {"case": "group32-8x320x64x64", "layout": "channels_last", "dtype": "bfloat16", "direction": "backward"}
    assert [text for text, _value in line[:4]] == list(wanted.values())
    found = committed("traffic-H100.jsonl") + committed("traffic-H100-rivals.jsonl")
    for at, library in enumerate(("normtriton", "liger-kernel", "flag-gems")):
        (row,) = (row for row in found if row["library"] == library and wanted.items() <= row.items())
        ratio = row["dram"] / row["compulsory"]
        assert (line[5 + at][0], float(line[5 + at][1])) == (f"{ratio:.2f}", ratio)


@in_browser
def test_dark_and_light(page):
    """The system's choice and the button change the page and the plots' paper alike, and back."""

    def colors():
        return page.execute_script(
            """const panel = document.querySelector("#bytes-H100 .panel");
            return [getComputedStyle(document.body).backgroundColor, panel.layout.paper_bgcolor,
                    getComputedStyle(panel.querySelector(".main-svg")).backgroundColor];"""
        )

    def prefer(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    light = colors()
    prefer("dark")
    dark = wait(page, lambda _page: (now := colors()) != light and len(set(now)) == 1 and now)
    prefer("light")
    wait(page, lambda _page: colors() == light)
    assert len(set(light)) == 1
    page.execute_script("window.scrollTo(0, 0)")
    button = page.find_element("id", "theme")
    for wanted in (dark, light):
        button.click()
        assert colors() == wanted
