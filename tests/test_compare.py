"""Comparing results: a regression is found, named and measured, and nothing else is."""

import json

import pytest
from click.testing import CliRunner
from normtriton.perf.cli import main
from normtriton.perf.show.render import RESULTS


def compare(*arguments):
    """The command's exit status, and all that it said."""
    ran = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    return ran.exit_code, ran.output


def altered(folder, name, direction, change):
    """The committed results with one row of one file changed by a function; the row's cell."""
    lines = (RESULTS / name).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    row = next(r for r in rows if r["direction"] == direction and "error" not in r)
    change(row)
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return row


def one_more_pass(row):
    """Live bytes and dram of reading x once more."""
    row["live"] += row["compulsory"] // 2
    row["dram"] += row["compulsory"] // 2


def spill(row):
    """Eight bytes of a register's."""
    row["kernels"][0]["stack"] += 8


def halve_the_grid(row):
    """Fewer thread blocks."""
    row["blocks"] //= 2


def narrow(row):
    """Accesses of four bytes."""
    row["kernels"][0]["tensors"] = {"4": 32}


def fail(row):
    """Not measured any more."""
    row["error"] = "OutOfResources: shared memory"


@pytest.mark.parametrize(
    ("name", "direction", "change", "said"),
    [
        ("traffic-H100.jsonl", "forward", one_more_pass, "| live | "),
        ("code-sm_90.jsonl", "backward", spill, "| stack | 0 | 8 | +8 | worse |"),
        ("code-sm_90.jsonl", "forward", halve_the_grid, "| -50.0% | worse |"),
        ("code-sm_90.jsonl", "forward", narrow, "| narrowest access | 16 | 4 | -75.0% | worse |"),
        ("code-sm_90.jsonl", "forward", fail, "| measured | 1 | 0 | -100.0% | worse |"),
    ],
)
def test_a_regression_is_named(tmp_path, name, direction, change, said):
    """Which cell, which figure, by how much; and the status says so."""
    row = altered(tmp_path, name, direction, change)
    status, text = compare(RESULTS, tmp_path)
    assert status == 1
    assert said in text
    assert f"{row['case']} {row['layout']} {row['dtype']} {direction} normtriton" in text


def test_an_improvement_is_no_regression(tmp_path):
    """The other way round the same changes are shown, and the status is good."""
    altered(tmp_path, "traffic-H100.jsonl", "forward", one_more_pass)
    status, text = compare(tmp_path, RESULTS)
    assert status == 0
    assert "0 figures are worse" in text
    assert "| live | " in text


def test_a_threshold(tmp_path):
    """Half as much again is allowed if one says so; one more launch never is."""
    altered(tmp_path, "traffic-H100.jsonl", "forward", one_more_pass)
    assert compare(RESULTS, tmp_path, "--threshold", "0.6")[0] == 0
    altered(tmp_path, "traffic-H100.jsonl", "forward", lambda row: row.update(launches=row["launches"] + 1))
    assert "nan is no change" in compare(RESULTS, tmp_path, "--threshold", "nan")[1]
    status, text = compare(RESULTS, tmp_path, "--threshold", "9", "--json")
    assert status == 1
    assert [json.loads(line)["figure"] for line in text.splitlines()] == ["launches"]


def test_files(tmp_path):
    """Single files, of any name, are compared as folders are; rows say what they are of."""
    altered(tmp_path, "code-sm_90.jsonl", "backward", spill)
    after = (tmp_path / "code-sm_90.jsonl").rename(tmp_path / "after.jsonl")
    status, text = compare(RESULTS / "code-sm_90.jsonl", after)
    assert status == 1
    assert "| stack | 0 | 8 | +8 | worse |" in text


def test_out(tmp_path):
    """What is printed, in a file as well; where that cannot be written, the reason and the remedy."""
    altered(tmp_path, "code-sm_90.jsonl", "backward", spill)
    status, text = compare(RESULTS, tmp_path, "--out", tmp_path / "below" / "report.md")
    assert status == 1
    assert (tmp_path / "below" / "report.md").read_text() == text
    (tmp_path / "file").write_text("")
    status, text = compare(RESULTS, tmp_path, "--out", tmp_path / "file" / "report.md")
    assert status == 1
    assert "cannot be written" in text and "--out" in text


#: No measurement: made up, for these tests.
TIMED = {"case": "layer-8192x4096", "layout": "contiguous", "dtype": "bfloat16", "direction": "forward"}
TIMED |= {
    "library": "normtriton",
    "norm": "layer",
    "torch": "2",
    "triton": "3",
    "instrument": "bench",
    "machine": "none",
    "us": 50.0,
    "us_low": 48.0,
    "us_high": 53.0,
}


@pytest.mark.parametrize(
    ("us", "status"), [(52.9, 0), (53.1, 1), (40.0, 0)], ids=["within the quantiles", "beyond them", "faster"]
)
def test_times(tmp_path, us, status):
    """A time is worse if it grew by more than the threshold, and out of the range in which it was before."""
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    before.write_text(json.dumps(TIMED))
    after.write_text(json.dumps(TIMED | {"us": us}))
    assert compare(before, after)[0] == status
    assert compare(before, after, "--threshold", "0.2")[0] == 0


#: No prediction: made up, for these tests.
PREDICTED = TIMED | {"instrument": "model", "us_alone": 55.0, "kernels": [{"us": 50.0}]}
PREDICTED |= {"of_ceiling": 0.5, "of_ceiling_alone": 0.4, "compulsory": 1}


@pytest.mark.parametrize(
    ("change", "worse"),
    [
        ({"us": 50.4}, []),
        ({"us": 50.6}, ["predicted us"]),
        ({"us": 40.0}, []),
        ({"us_alone": 55.6}, ["predicted us alone"]),
        ({"kernels": [{"us": 25.0}] * 2}, ["launches"]),
        ({"error": "OutOfResources"}, ["measured"]),
    ],
    ids=["within the threshold", "above it", "faster", "alone", "one more launch", "failed"],
)
def test_predicted_times(tmp_path, change, worse):
    """A predicted time is worse above the threshold, whatever it lies between: predictions do not scatter."""
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    before.write_text(json.dumps(PREDICTED))
    after.write_text(json.dumps(PREDICTED | change))
    status, text = compare(before, after, "--json")
    assert [c["figure"] for c in map(json.loads, text.splitlines()) if c["worse"]] == worse
    assert status == (1 if worse else 0)
    assert compare(before, after, "--threshold", "0.2")[0] == (1 if worse and "us" not in worse[0] else 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "make results"), ("{}\n", "no row of results"), (json.dumps(TIMED), "no cell in common")],
    ids=["empty", "not results", "others"],
)
def test_nothing_to_compare(tmp_path, text, said):
    """Results that are none, or are of other cells, are an error of its own; it says what to do."""
    (tmp_path / "some.jsonl").write_text(text)
    status, output = compare(tmp_path, RESULTS)
    assert status == 2
    assert said in output
