"""Autotuning with a GPU that is the interpreter and whose times are made up: what is measured, kept and chosen."""

import json
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from made_up import FACTS, pretend
from normtriton.perf.cli import Lines, main
from normtriton.perf.commands import autotune
from normtriton.perf.time import gpu
from normtriton.perf.time.gpu import Times

import normtriton as nt
from normtriton.planning import schedule
from normtriton.planning.plan import UNTUNED, Tuning
from normtriton.runtime import clusters, launch, tuned

INTERPRETER = tuned.device_name(-1)
FASTER = Tuning(per_thread=8)
SLOWER = Tuning(on_chip="nothing")
ROWS = ("--shapes", "layer-2x600", "--dtypes", "float32", "--directions", "forward")


class Gpu:
    """Stands for `normtriton.perf.time.gpu`.

    Times are made up: 100 µs, but for what ``us`` says of a case and a tuning.
    """

    def __init__(self):
        self.timed, self.us, self.raises, self.noise = [], {FASTER: 60.0, SLOWER: 200.0}, {}, 0.05
        self.known = FACTS | {"clusters": "not supported"}

    def facts(self, _device):
        return self.known

    def time(self, run, _device):
        tuning, case = run.args[0].tuned.otherwise, run.func.__self__.case.name
        self.timed.append((case, run.func.__name__, tuning))
        error = self.raises.get(tuning) or self.raises.get(len(self.timed))
        if error is not None:
            raise error
        us = self.us.get((case, tuning), self.us.get(tuning, 100.0))
        return Times(us, us * (1 - self.noise), us * (1 + self.noise), "made up")


class Right:
    """Stands for `autotune.Given` where results are not the matter: nothing is run, and all is right."""

    def __init__(self, cell, *_where):
        self.case, self.tensors = cell.case, SimpleNamespace(x=torch.empty(0))

    def differences(self, _direction, _device):
        return []

    def forward(self, _device):
        raise NotImplementedError

    backward = forward


@pytest.fixture
def fake(checked, monkeypatch):
    """A made-up GPU on which all is right."""
    monkeypatch.setattr(autotune, "Given", Right)
    return checked


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """A made-up GPU, a cache folder of its own, and few tunings, which are quickly planned."""
    made = Gpu()
    monkeypatch.setattr(schedule, "tunings", lambda: (UNTUNED, SLOWER, FASTER, Tuning(on_chip="cluster")))
    pretend(monkeypatch, gpu)
    monkeypatch.setattr(gpu, "facts", made.facts)
    monkeypatch.setattr(gpu, "time", made.time)
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path))
    before = tuned.setting()
    tuned.use("")
    yield made
    tuned.use(before)


def run(*arguments, status=0):
    """The command; what it printed."""
    result = CliRunner().invoke(main, ["autotune", *arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def rows(file):
    """JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_is_faster_becomes_an_entry(checked, tmp_path):
    """Rows for each candidate, a table of the best, a report; and plans are made from the table from then on."""
    text = run(*ROWS).output
    kept = rows(tmp_path / "autotune.jsonl")
    assert [row["tuning"] for row in kept] == [{}, {"on_chip": "nothing"}, {"per_thread": 8}]
    assert len(checked.timed) == 3 and checked.timed[0] == ("layer-2x600", "forward", UNTUNED)
    cell = {"case": "layer-2x600", "norm": "layer", "shape": [2, 600], "groups": 0, "layout": "contiguous"}
    cell |= {"dtype": "float32", "direction": "forward", "library": "normtriton", "instrument": "autotune"}
    cell |= {"machine": "made-up GPU", "us": 60.0, "us_low": 57.0, "us_high": 63.0, "method": "made up"}
    assert cell.items() <= kept[2].items()

    ((subject, (tuning, measured)),) = tuned.read(tmp_path / "tuned.json", INTERPRETER, 2).items()
    assert (subject.direction, subject.r2, tuning) == ("forward", 600, FASTER)
    assert measured == {"planner_us": 100.0, "us": 60.0, "cases": ["layer-2x600 contiguous float32 forward"]}
    for word in (
        "made-up GPU",
        "100.0",
        "60.0",
        "1.67 x",
        "per_thread=8",
        "by more than the noise",
        "0 of 3",
        "1 entries",
    ):
        assert word in text, text

    tuned.use(tmp_path / "tuned.json")
    steps, launched = [], launch._run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_run", lambda step, *args: (steps.append(step), launched(step, *args)))
        nt.layer_norm(torch.randn(5, 600), (600,), torch.ones(600), torch.zeros(600))
    assert [step.num_warps for step in steps] == [2]  # not one


def test_json(checked, tmp_path):
    """A line a direction of a cell; the table's name goes to the other stream."""
    checked.us[SLOWER] = 30.0
    arguments = ("--shapes", "rms-3x40,batch-4x3x5x5", "--dtypes", "float16", "--layouts", "channels_last", "--json")
    result = run(*arguments, "--table", str(tmp_path / "own.json"))
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["case"], row["direction"]) for row in found] == [("batch-4x3x5x5", d) for d in ("forward", "backward")]
    assert all(row["planner_us"] == 100.0 and row["candidates"] > 1 and row["failed"] == 0 for row in found)
    assert [row["tuning"] for row in found] == [{"on_chip": "nothing"}] * 2 and found[0]["gain"] == pytest.approx(
        10 / 3
    )
    assert "own.json has 2 entries for Triton's interpreter" in result.stderr
    assert (tmp_path / "autotune.jsonl").exists()


def test_a_run_goes_on_where_it_was(fake, tmp_path):
    """What is there of the same versions is not measured again, unless it is to be."""
    run(*ROWS)
    fake.timed.clear()
    run(*ROWS)
    assert not fake.timed
    run(*ROWS, "--fresh")
    assert len(fake.timed) == 3 and len(rows(tmp_path / "autotune.jsonl")) == 6  # the last one of a kind counts
    fake.timed.clear()
    fake.known["triton"] = "3"
    run(*ROWS)
    assert len(fake.timed) == 3
    file = tmp_path / "autotune.jsonl"
    file.write_text(file.read_text()[:-9])  # as if the machine had gone down
    fake.timed.clear()
    run(*ROWS)
    assert fake.timed == [("layer-2x600", "forward", FASTER)]
    assert rows(file)[-1]["tuning"] == FASTER.chosen


def test_an_interrupted_run_keeps_what_it_measured(fake, tmp_path):
    """Rows stay, no table is written, and the same command measures the rest."""
    fake.raises[2] = KeyboardInterrupt()
    assert "1 rows are kept: the same command goes on from there" in run(*ROWS, status=130).stderr
    assert not (tmp_path / "tuned.json").exists()
    fake.timed.clear()
    fake.raises.clear()
    run(*ROWS)
    assert [tuning for _case, _direction, tuning in fake.timed] == [SLOWER, FASTER]


def test_a_candidate_that_fails_is_noted(fake, tmp_path):
    """It says why, the others are measured; what ran out of memory is tried again, what fails is not."""
    fake.raises |= {SLOWER: RuntimeError("PassManager::run failed"), FASTER: torch.OutOfMemoryError("out of luck")}
    assert "2 of 3" in run(*ROWS).output
    errors = [row["error"] for row in rows(tmp_path / "autotune.jsonl")[1:]]
    assert errors == ["RuntimeError: PassManager::run failed", "OutOfMemoryError: out of luck"]
    fake.raises.clear()
    fake.timed.clear()
    run(*ROWS)
    assert fake.timed == [("layer-2x600", "forward", FASTER)]


def test_a_planner_that_fails_leaves_nothing_to_compare(fake, tmp_path):
    """Whatever else was faster is no gain over it."""
    fake.raises[UNTUNED] = RuntimeError("no luck")
    assert "the planner's own choice has no time" in run(*ROWS).output
    assert tuned.read(tmp_path / "tuned.json", INTERPRETER, 2) == {}


def test_a_device_that_does_not_work_any_more(fake, monkeypatch, tmp_path):
    """It ends the run, with what is kept."""
    fake.raises[SLOWER] = RuntimeError("an illegal memory access was encountered")
    monkeypatch.setattr(autotune, "still_works", lambda _device: False)
    text = run(*ROWS, status=1).output
    assert "does not work any more after layer-2x600 contiguous float32 forward, on_chip=nothing" in text
    assert len(rows(tmp_path / "autotune.jsonl")) == 2


def test_whether_a_device_works():
    """It makes a tensor."""
    assert autotune.still_works(torch.device("cpu")) and not autotune.still_works(torch.device("cuda", 99))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_result_is_not_timed(direction, checked, tmp_path, monkeypatch):
    """A candidate is compared with float64 first."""
    launched = launch._run

    def lossy(step, kinds, *args):
        launched(step, kinds, *args)
        if step.num_warps == 4 and step.kernel == direction:  # the candidate of 8 elements a thread
            args[1 if direction == "forward" else 2].view(-1)[5] += 0.01

    monkeypatch.setattr(launch, "_run", lossy)
    checked.us[FASTER] = 10.0
    run("--shapes", "instance-1x2x25x25", *ROWS[2:4], "--layouts", "contiguous", "--directions", direction)
    wrong = [row for row in rows(tmp_path / "autotune.jsonl") if "error" in row]
    result = "y" if direction == "forward" else "dx"
    assert [row["tuning"] for row in wrong] == [FASTER.chosen] and f"{result} is off by 0.01" in wrong[0]["error"]
    assert FASTER not in [tuning for _case, _direction, tuning in checked.timed]
    assert tuned.read(tmp_path / "tuned.json", INTERPRETER, 2) == {}


def test_a_refused_cluster_is_no_measurement(checked, tmp_path, monkeypatch):
    """A launch that was made without its cluster is not taken for one with it."""
    checked.known["clusters"] = "used"
    mode = clusters.mode()
    monkeypatch.setattr(clusters, "refused", set())
    clusters.set_mode("on")
    launched = launch._run

    def refuse(step, *args):
        if step.plan.ctas > 1:
            raise RuntimeError("cluster misconfiguration")
        launched(step, *args)

    monkeypatch.setattr(launch, "_run", refuse)
    with pytest.warns(RuntimeWarning, match="cluster misconfiguration"):
        run("--shapes", "rms-1x9000", "--dtypes", "float32", "--directions", "forward")
    errors = [row for row in rows(tmp_path / "autotune.jsonl") if "error" in row]
    assert {(row["tuning"]["on_chip"], row["error"]) for row in errors} == {
        ("cluster", "the device refused its cluster")
    }
    clusters.set_mode(mode)


SHARED = ("--shapes", "layer-2x600,layer-3x600", "--dtypes", "float32", "--directions", "forward", "--json")


@pytest.mark.parametrize(
    ("us", "noise", "entry", "why"),
    [
        ({}, 0.05, FASTER, "in total of 2 shapes that share an entry"),
        ({("layer-3x600", FASTER): 101.0}, 0.05, FASTER, "in total of 2 shapes"),
        ({("layer-3x600", FASTER): 120.0}, 0.05, UNTUNED, "per_thread=8 is faster in total, but slower for layer-3x"),
        ({("layer-2x600", SLOWER): 10.0, ("layer-3x600", SLOWER): 100.0}, 0.05, SLOWER, "in total of 2 shapes"),
        ({}, 0.3, UNTUNED, "nothing else is faster by more than the noise"),
    ],
)  # fmt: skip
def test_shapes_that_share_an_entry(us, noise, entry, why, fake, tmp_path):
    """The choice is by their total, never one that is slower for any of them, and outside the noise."""
    fake.us |= us
    fake.noise = noise
    tuned.write(tmp_path / "tuned.json", INTERPRETER, 2, {})
    found = [json.loads(line) for line in run(*SHARED).stdout.splitlines()]
    assert [Tuning.of(row["tuning"]) for row in found] == [entry] * 2
    assert all(why in row["why"] for row in found)
    held = tuned.read(tmp_path / "tuned.json", INTERPRETER, 2)
    assert [tuning for tuning, _measured in held.values()] == ([] if entry == UNTUNED else [entry])


def test_what_was_measured_before_counts(fake, tmp_path):
    """An entry that a batch of another size shares is not chosen for this one alone."""
    fake.us["layer-3x600", FASTER] = 120.0
    run("--shapes", "layer-3x600,rms-3x600,layer-3x700", *ROWS[2:])
    assert "slower for layer-3x600" in run(*ROWS).output
    file = tmp_path / "autotune.jsonl"
    assert [subject.r2 for subject in tuned.read(tmp_path / "tuned.json", INTERPRETER, 2)] == [600, 700]  # rms, layer
    assert "slower for layer-3x600" in run("--shapes", "layer-9x600", *ROWS[2:]).output  # all three
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))  # not whole any more
    assert "slower for layer-3x600" not in run(*ROWS).output


def test_entries_of_other_groups_stay(fake, tmp_path):
    """What is measured anew takes the place of its own entry, also if the planner is right after all."""
    file = tmp_path / "tuned.json"
    run(*ROWS)
    (first,) = tuned.read(file, INTERPRETER, 2)
    run("--shapes", "layer-2x700", *ROWS[2:])
    assert len(tuned.read(file, INTERPRETER, 2)) == 2
    fake.us.clear()
    assert "has 1 entries" in run(*ROWS, "--fresh").output
    (left,) = tuned.read(file, INTERPRETER, 2)
    assert (first.r2, left.r2) == (600, 700)


@pytest.mark.usefixtures("fake")
def test_a_table_of_other_kernels_begins_anew(tmp_path):
    """Its entries were measured with others; it is said, and devices that are not here stay."""
    file = tmp_path / "tuned.json"
    run(*ROWS)
    content = json.loads(file.read_text())
    content["devices"][INTERPRETER]["kernels"] = "0"
    content["devices"]["another"] = {"entries": []}
    content["devices"][INTERPRETER]["entries"] *= 3
    file.write_text(json.dumps(content))
    text = run(*ROWS).output
    assert "What it had was made with kernels 0 on this device" in text and "has 1 entries" in text
    assert json.loads(file.read_text())["devices"]["another"] == {"entries": []}


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 1}'])
@pytest.mark.usefixtures("fake")
def test_a_file_that_is_no_table_stays(text, tmp_path):
    """It may be of use to someone."""
    (tmp_path / "tuned.json").write_text(text)
    assert "remove it, or name another with --table" in run(*ROWS, status=1).output
    assert (tmp_path / "tuned.json").read_text() == text


@pytest.mark.usefixtures("fake")
def test_the_table_that_is_named_is_written(tmp_path):
    """By default the one that is read."""
    tuned.use(tmp_path / "named.json")
    assert "named.json has 1 entries" in run(*ROWS).output
    tuned.use("off")
    assert "tuned.json has 1 entries" in run(*ROWS).output


@pytest.mark.usefixtures("fake")
def test_refusals(tmp_path):
    """Cause and remedy: nothing to measure, files that cannot be written or hold something else."""
    assert "nothing to measure" in run("--shapes", "layer-2x6", "--layouts", "channels_last", status=1).output
    (tmp_path / "file").write_text("words\n")
    below = str(tmp_path / "file" / "rows.jsonl")
    assert "name another place with --out" in run(*ROWS, "--out", below, status=1).output
    assert "rows of results" in run(*ROWS, "--out", str(tmp_path / "file"), status=1).output
    for foreign in ("words", "[1]\n", '{"a": 1}\n3\n', "\xff\x00"):  # each stays as it is
        (tmp_path / "foreign").write_text(foreign, encoding="latin-1")
        assert "rows of results" in run(*ROWS, "--out", str(tmp_path / "foreign"), status=1).output
        assert (tmp_path / "foreign").read_text(encoding="latin-1") == foreign
    out = str(tmp_path / "rows.jsonl")
    text = run(*ROWS, "--out", out, "--table", str(tmp_path / "file" / "table.json"), status=1).output
    assert "name another place with --table" in text and len(rows(tmp_path / "rows.jsonl")) == 3


def test_a_user_without_a_home_names_a_table(fake, tmp_path, monkeypatch):
    """There is no cache folder then; the table that is named is written, by measured and by predicted times."""
    monkeypatch.delenv("NORMTRITON_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert "the user has no home folder to keep a table in: name one with --table" in run(*ROWS, status=1).output
    assert not fake.timed
    assert "has 1 entries" in run(*ROWS, "--table", str(tmp_path / "table.json")).output
    assert autotune.table_of(tmp_path / "other.json", predicted=True) == tmp_path / "other.json"


def test_runs_that_share_a_file_keep_each_other_s_rows(tmp_path):
    """Rows that one adds while another begins, and of both at once; what was cut off before is gone."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"n": -1}\n{"n": -')

    def add(numbers):
        for number in numbers:
            Lines(file, resume=True).add({"n": number})

    threads = [Thread(target=add, args=(range(i, 200, 4),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["n"] for row in rows(file)) == list(range(-1, 200))


def test_without_a_gpu():
    """It says so."""
    result = CliRunner().invoke(main, ["autotune"])
    assert result.exit_code == 1 and "TRITON_INTERPRET=1" in result.output


# Without a GPU: times that a model predicts.


@pytest.fixture
def modelled(monkeypatch, tmp_path):
    """Predictions that are made up, few tunings, and a cache folder of its own; what was asked for, and the times."""
    asked, us = [], {UNTUNED: (100.0, 110.0), FASTER: (90.0, 105.0)}

    def predicted(jobs, _processes):
        for job in jobs:
            asked.append(job)
            both = us.get(job.tuning, (200.0, 200.0))
            yield job, job.rows({job.directions[0]: dict(zip(("us", "us_alone"), both, strict=True)) | {"kernels": []}})

    monkeypatch.setattr(schedule, "tunings", lambda: (UNTUNED, SLOWER, FASTER))
    monkeypatch.setattr(autotune, "measured", predicted)
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path / "cache"))
    before = tuned.setting()
    tuned.use("")
    yield SimpleNamespace(asked=asked, us=us)
    tuned.use(before)


MODEL = (*ROWS, "--predict", "H100")


def test_a_predicted_table_says_so(modelled, tmp_path):
    """In its section, its entries, its rows and what is printed: by which model, and that nothing ran."""
    table = tmp_path / "h100.json"
    text = " ".join(run(*MODEL, "--table", str(table)).output.split())
    assert "Predicted by a model, not measured: candidates were compiled, and not run." in text
    assert "faster by more than the model's error" in text and "1 entries for H100, sm_90" in text
    kept = rows(tmp_path / "autotune-predicted.jsonl")
    assert {(row["instrument"], row["machine"], row["clusters"]) for row in kept} == {
        ("autotune-predicted", "H100", "used")
    }
    assert [row["us_alone"] for row in kept] == [110.0, 200.0, 105.0] and "us_low" not in kept[0]
    (section,) = json.loads(table.read_text())["devices"].values()
    (entry,) = section["entries"]
    model = kept[0]["model"]
    assert section["predicted"] == f"by version {model} of the model, not measured" and "measured" not in entry
    times = {"planner_us": 100.0, "us": 90.0, "planner_us_alone": 110.0, "us_alone": 105.0, "model": model}
    assert entry["predicted"] == times | {"cases": ["layer-2x600 contiguous float32 forward"]}
    assert len(modelled.asked) == 3
    run(*MODEL, "--table", str(table))
    assert len(modelled.asked) == 3  # what is there is not predicted again


@pytest.mark.parametrize(
    ("direction", "us", "chosen"),
    [
        ("forward", (95.9, 110.0), FASTER),
        ("forward", (96.1, 110.0), UNTUNED),
        ("forward", (50.0, 110.1), UNTUNED),
        ("backward", (85.1, 110.0), UNTUNED),
        ("backward", (84.9, 110.0), FASTER),
    ],
)
def test_a_prediction_is_chosen_beyond_the_error_of_the_model(direction, us, chosen, modelled, tmp_path):
    """4 % forward and 15 % backward if multiprocessors share the bus, and not slower if each has its share alone."""
    modelled.us[FASTER] = us
    asked = ("--shapes", "layer-2x600", "--dtypes", "float32", "--directions", direction, "--json")
    (line,) = run(*asked, "--predict", "H100", "--table", str(tmp_path / "h100.json")).stdout.splitlines()
    assert Tuning.of(json.loads(line)["tuning"]) == chosen


@pytest.mark.usefixtures("modelled", "fake")
def test_predicted_and_measured_times_stay_apart(tmp_path):
    """Never in one table, and never in the one that is read without being named."""
    text = run(*MODEL, status=1).output
    assert "is for measured times: name another table for predicted ones with --table" in text
    predicted, measured = (str(tmp_path / name) for name in ("predicted.json", "measured.json"))
    run(*MODEL, "--table", predicted)
    run(*ROWS, "--table", measured)
    before = [(tmp_path / name).read_text() for name in ("predicted.json", "measured.json")]
    assert "has predicted times, and is no place for measured ones" in run(*ROWS, "--table", predicted, status=1).output
    assert "has measured times, and is no place for predicted" in run(*MODEL, "--table", measured, status=1).output
    assert [(tmp_path / name).read_text() for name in ("predicted.json", "measured.json")] == before


def test_a_real_prediction(monkeypatch, tmp_path):
    """Two candidates of a tiny cell, compiled and run on the model of a GPU, in a process that compiles."""
    monkeypatch.setattr(schedule, "tunings", lambda: (UNTUNED, FASTER))
    run(*MODEL, "--jobs", "1", "--table", str(tmp_path / "h100.json"))
    kept = rows(tmp_path / "autotune-predicted.jsonl")
    assert [row["tuning"] for row in kept] == [{}, {"per_thread": 8}]
    assert all(1 < row["us"] <= row["us_alone"] * 1.1 < 20 for row in kept), kept
    assert kept[0]["us"] != kept[1]["us"]  # the tuning reaches the plan
