"""Comparing results: a regression is found, named and measured, and nothing else is."""

import json

import pytest
from normtriton.perf.compare import main
from normtriton.perf.render import RESULTS


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
def test_a_regression_is_named(tmp_path, capsys, name, direction, change, said):
    """Which cell, which figure, by how much; and the status says so."""
    row = altered(tmp_path, name, direction, change)
    assert main([str(RESULTS), str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert said in text
    assert f"{row['case']} {row['layout']} {row['dtype']} {direction} normtriton" in text


def test_an_improvement_is_no_regression(tmp_path, capsys):
    """The other way round the same changes are shown, and the status is good."""
    altered(tmp_path, "traffic-H100.jsonl", "forward", one_more_pass)
    assert main([str(tmp_path), str(RESULTS)]) == 0
    text = capsys.readouterr().out
    assert "0 figures are worse" in text
    assert "| live | " in text


def test_a_threshold(tmp_path, capsys):
    """Half as much again is allowed if one says so; one more launch never is."""
    altered(tmp_path, "traffic-H100.jsonl", "forward", one_more_pass)
    assert main([str(RESULTS), str(tmp_path), "--threshold", "0.6"]) == 0
    altered(tmp_path, "traffic-H100.jsonl", "forward", lambda row: row.update(launches=row["launches"] + 1))
    assert main([str(RESULTS), str(tmp_path), "--threshold", "9", "--json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["figure"] for line in lines if line.startswith("{")] == ["launches"]


def test_no_results(tmp_path, capsys):
    """A folder without results is an error that says how to make them."""
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(RESULTS)])
    assert "make results" in capsys.readouterr().err
