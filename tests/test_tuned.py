"""Tables of tunings: what they may say, which files are refused, and that a sample does not see its batch."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cases import CASES, LAYOUTS, Case, lay_out
from normtriton.perf.cases.shapes import Case as Real
from normtriton.perf.cases.shapes import make
from test_norms import check, parameters

import normtriton as nt
from normtriton.explain import backward_direction, forward_direction
from normtriton.planning.plan import KNOBS, UNTUNED, Device, Tuning, Tunings
from normtriton.planning.schedule import backward_schedule, candidates, forward_schedule, tunings
from normtriton.runtime import clusters, devices, launch, tuned

INTERPRETER = tuned.device_name(-1)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Say which table is read; by default that of a cache folder of its own."""
    monkeypatch.setenv("NORMTRITON_CACHE", str(tmp_path))
    before = tuned.setting()
    tuned.use("")
    yield tuned.use
    tuned.use(before)


def schedules(case, x, weight, bias, device):
    """The forward and the backward schedule of a case."""
    strides = [p if p is None else p.stride() for p in (weight, bias)]
    problem = case.explain(x, weight, bias).problem
    forward = forward_schedule(problem, x.stride(), x.stride(), *strides, (x.dtype, None), device)
    return forward, backward_schedule(
        problem, x.stride(), x.stride(), x.stride(), strides[0], (x.dtype, None), device, weight is not None
    )


def subjects(case):
    """What tunings of a case are for, in the interpreter."""
    x = lay_out(torch.empty(case.shape), case.layout)
    return [s.subject for s in schedules(case, x, *parameters(case), Device(devices.INTERPRETER_SMS))]


def test_a_tuning_is_a_choice_of_knobs():
    """Each knob's first value is the planner's; names and values are checked."""
    assert set(KNOBS) == set(Tuning._fields) and Tuning(*(values[0] for values in KNOBS.values())) == UNTUNED
    for tuning in tunings():
        assert Tuning.of(tuning.chosen) == tuning and len(tuning.chosen) <= 3
    assert tunings()[0] == UNTUNED and str(UNTUNED) == "the planner's own choice"
    assert str(Tuning(per_thread=16, on_chip="nothing")) == "per_thread=16, on_chip=nothing"
    with pytest.raises(ValueError, match="no knob is called 'num_warps'; there are per_thread, on_chip"):
        Tuning.of({"num_warps": 4})
    for value in (33, "32", True, None, 32.0, [32]):
        with pytest.raises(ValueError, match=r"per_thread is one of 32, 16, 8, 64, not "):
            Tuning.of({"per_thread": value})


#: Small cases, with what each is to try: every way to hold a group or to walk it, in rows, columns and cells.
MEASURED = {
    "row": (Case("layer", (2, 700), "", ""), {"resident", "streamed", "split"}),
    "batch": (Case("batch", (5, 2, 40, 45), "", ""), {"resident", "clustered", "streamed", "split"}),
    "batch-column": (Case("batch", (3, 24, 5, 7), "", "", "channels_last"), {"resident", "streamed", "split"}),
    "group-cells": (Case("group", (1, 40, 8, 9), "", "", "channels_last", groups=4), {"clustered", "split"}),
}


@pytest.mark.parametrize(("case", "strategies"), MEASURED.values(), ids=MEASURED)
def test_every_candidate_gives_the_textbook(case, strategies, monkeypatch):
    """Whatever a table may choose is right, and reaches every strategy that fits."""
    before = clusters.mode()
    monkeypatch.setattr(clusters, "changed", lambda: None)  # the device below says what may be used
    clusters.set_mode("on")
    x = lay_out(torch.randn(case.shape) * 2 + 3, case.layout)
    weight, bias = parameters(case)
    dy = lay_out(torch.randn(case.shape), case.layout)
    seen, reached = set(), set()
    for tuning in tunings():
        there = Device(devices.INTERPRETER_SMS, clusters=True, tuned=Tunings({}, tuning))
        both = schedules(case, x, weight, bias, there)
        # what differs in the number of programs or warps alone is one plan here
        plans = {tuple((s.kernel, s.plan, s.grid[1] > 1) for s in schedule.launches) for schedule in both}
        if plans <= seen:
            continue
        seen |= plans
        monkeypatch.setattr(devices, "of", lambda _x, there=there: there)
        for parameter in (weight, bias):
            if parameter is not None:
                parameter.grad = None
        check(case, x, weight, bias, dy)
        reached |= {schedule.strategy for schedule in both}
    clusters.set_mode(before)
    assert reached == strategies and len(seen) > 4


BATCHES = {
    "layer": Real("layer", (1, 4096)),
    "rms-long": Real("rms", (1, 400000)),
    "instance": Real("instance", (1, 3, 64, 64)),
    "instance-column": Real("instance", (1, 64, 64, 64)),
    "group-cells": Real("group", (1, 320, 64, 64), 32),
}


@pytest.mark.parametrize("name", BATCHES)
def test_no_candidate_sees_the_batch(name):
    """Of a batch-invariant norm, what a tuning is for is the same in any batch, and so is the order of every sum."""
    case, seen = BATCHES[name], []
    layout = torch.channels_last if name in ("instance-column", "group-cells") else torch.contiguous_format
    for batch in (1, 7):
        call, x, weight, bias = make(case._replace(shape=(batch, *case.shape[1:])), torch.bfloat16, layout)
        orders = []
        for tuning in (t for t in tunings() if len(t.chosen) <= 2):
            device = Device(132, clusters=True, tuned=Tunings({}, tuning))
            for direction in (forward_direction, backward_direction):
                schedule = direction(call, x, weight, bias, device).schedule
                assert schedule.tuning == tuning
                walks = [s for s in schedule.launches if s.kernel in ("forward", "backward")][
                    : 2 if schedule.apply else 1
                ]
                tiles = [(s.plan.stage, s.plan.block_kept, s.plan.block_r1, s.plan.block_r2) for s in walks]
                shared = [(s.plan.ctas, s.num_warps, s.plan.vector) for s in walks]
                orders.append((schedule.subject, schedule.strategy, schedule.chunks, *tiles, *shared))
        seen.append(orders)
    assert all(orders == seen[0] for orders in seen[1:]) and len(set(seen[0])) > 4
    assert None not in {order[0] for order in seen[0]}


def test_batch_norm_sees_its_batch():
    """There the batch is what a group is made of, so that a tuning is for one batch size."""
    shapes = [(batch, 64, 7, 7) for batch in (32, 64)]
    assert len({subjects(Case("batch", shape, "", "", layout))[0] for shape in shapes for layout in LAYOUTS[:2]}) == 4


def test_layouts_dtypes_and_operands_are_told_apart():
    """What a plan depends on is in the subject; where the batch is the contiguous axis there is none."""
    x = torch.randn(4, 32, 8, 8)
    several = [
        forward_direction(
            nt.functional.group_norm_call(t, groups, w, w, 1e-5), t, w, w, Device(132, on)
        ).schedule.subject
        for t in (x, x.half(), lay_out(x, "channels_last"), x[..., :7], x[:, :, ::2])
        for groups in (4, 8)
        for w in (torch.ones(32), None)
        for on in (True, False)
    ]
    assert len(set(several)) == len(several)
    assert subjects(Case("layer", (64, 48), "", "", "transposed")) == [None, None]


def written(file, *cases, tuning):
    """A table of one tuning for these cases."""
    made = {subject: (tuning, {"us": "made up"}) for case in cases for subject in subjects(case)}
    tuned.write(file, INTERPRETER, devices.INTERPRETER_SMS, made)
    return made


def test_a_table_is_read_back(table, tmp_path):
    """Every subject with its tuning; what the file has of other devices stays."""
    file = tmp_path / "folder" / "table.json"
    tuned.write(file, "Made up, sm_99", 7, {})
    made = written(file, CASES["row"], CASES["batch-split"], CASES["group"], tuning=Tuning(per_thread=16))
    assert tuned.read(file, INTERPRETER, devices.INTERPRETER_SMS) == made
    assert tuned.read(file, "Made up, sm_99", 7) == {}
    assert {path.name for path in file.parent.iterdir()} == {"table.json", ".table.json.lock"}
    table(file)
    assert devices.of(torch.empty(1)).tuned.source == str(file)


def test_entries_are_added_and_taken_away(tmp_path):
    """One by one, as runs for other shapes do; entries that other kernels were measured with are gone, with a word."""
    file = tmp_path / "table.json"
    row, group = (subjects(CASES[name])[0] for name in ("row", "group"))
    eight, sixteen = (Tuning(per_thread=8), {}), (Tuning(per_thread=16), {})
    assert tuned.write(file, INTERPRETER, 2, {row: eight}) == (1, "")
    assert tuned.write(file, INTERPRETER, 2, {group: sixteen, row: sixteen}) == (2, "")
    assert tuned.read(file, INTERPRETER, 2) == {row: sixteen, group: sixteen}
    assert tuned.write(file, INTERPRETER, 2, {row: None}) == (1, "")
    assert tuned.read(file, INTERPRETER, 2) == {group: sixteen}
    count, gone = tuned.write(file, INTERPRETER, 3, {row: eight})
    assert count == 1 and gone == "was made with sms 2 on this device, now it is 3"


def test_two_write_one_table_at_once(tmp_path):
    """Two threads of each of two processes, a device each: nothing is lost, of tables and of verdicts."""
    code = """if True:
        import sys
        from pathlib import Path
        from threading import Thread
        from normtriton import clusters, tuned

        def work(name):
            sys.stdout.write(name + "\\n")  # print() writes the end of a line on its own
            sys.stdout.flush()
            sys.stdin.readline()
            for number in range(20):
                tuned.write(Path(sys.argv[1]), f"{name}{number}, sm_99", 7, {})
                clusters._write(f"{name}{number}", number % 2 == 0)

        threads = [Thread(target=work, args=(sys.argv[2] + letter,)) for letter in "ab"]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """
    file, names = tmp_path / "table.json", []
    environment = os.environ | {"NORMTRITON_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code, file]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen([*command, name], **pipes) for name in "xy"]
    for process in processes:  # each thread says when it is ready
        names += [process.stdout.readline().strip() for _ in range(2)]
    for process in processes:
        process.communicate("go\ngo\n")
        assert process.returncode == 0
    wanted = {f"{name}{number}" for name in names for number in range(20)}
    assert len(wanted) == 80 and set(tuned.sections(file)) == {f"{name}, sm_99" for name in wanted}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMTRITON_CACHE", str(tmp_path))
        assert all(clusters._read(name) is (int(name[2:]) % 2 == 0) for name in wanted)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".txt", ".lock")]
    assert left == ["table.json"]


def test_a_lock_of_another_user(tmp_path, monkeypatch):
    """In a folder that several may write, a lock that one of them made need not be written by the others."""
    file, opened = tmp_path / "table.json", Path.open

    def forbid(self, mode="r", *args, **kwargs):
        if self.suffix == ".lock" and mode != "r":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, mode, *args, **kwargs)

    tuned.write(file, "first, sm_99", 7, {})
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "open", forbid)
    tuned.write(file, "second, sm_99", 7, {})
    assert set(tuned.sections(file)) == {"first, sm_99", "second, sm_99"}


@pytest.mark.parametrize("use", [0, True, None, b"table.json", ["table.json"], float("nan")])
def test_a_table_is_named_by_a_path(use, table):
    """Anything else is a mistake, which changes nothing."""
    table("off")
    with pytest.raises(
        TypeError, match=r"use\(\): argument 'table' must be str or Path, not .*" + re.escape(repr(use))
    ):
        table(use)
    assert tuned.setting() == "off"


def test_where_a_table_is_looked_for(table, tmp_path, monkeypatch):
    """A missing one in the cache folder says nothing, a missing one that is named does; off reads none."""
    monkeypatch.setattr(tuned, "device_name", lambda _index: "Made up, sm_99")
    assert tuned.setting() == "" and tuned.table_for(0, 7) is None
    tuned.write(tmp_path / "tuned.json", "Made up, sm_99", 7, {})
    assert tuned.table_for(0, 7).source == str(tuned.default_file()) == str(tmp_path / "tuned.json")
    assert tuned.table_for(-1, 2) is None  # the interpreter reads what is named
    table("off")
    assert tuned.table_for(0, 7) is None
    table(tmp_path / "nowhere.json")
    with pytest.warns(RuntimeWarning, match=r"nowhere.json cannot be read: No such file.*NORMTRITON_TUNED=off") as said:
        assert [tuned.table_for(0, 7) for _ in range(2)] == [None, None]
    assert len(said) == 1


@pytest.mark.parametrize("value", ["off", "some/where.json", ""])
def test_the_environment_says_which(value, monkeypatch):
    """At first; here of a second copy of the module."""
    monkeypatch.setenv("NORMTRITON_TUNED", value)
    spec = importlib.util.spec_from_file_location("normtriton.runtime.a_copy", tuned.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert copy.setting() == value


def broken(change):
    """A table's text with its content changed by a function."""

    def text(content):
        change(content, content["devices"][INTERPRETER])
        return json.dumps(content)

    return text


REFUSED = {
    "empty": (lambda _content: "", "is damaged: Expecting value"),
    "cut-off": (lambda content: json.dumps(content)[:200], "is damaged: "),
    "too-deep": (lambda _content: "[" * 100_000, "is damaged: "),
    "no-text": (lambda _content: "\x00\ufffd", "is damaged: "),
    "no-table": (lambda _content: "[1]", "is not in format 1 of tuned tables"),
    "other-format": (broken(lambda table, _own: table.update(format=0)), "is not in format 1"),
    "no-devices": (broken(lambda table, _own: table.update(devices=[])), "is damaged: no devices"),
    "other-device": (
        broken(lambda table, own: table.update(devices={"H100, sm_90": own})),
        "was made on H100, sm_90, this is Triton's interpreter",
    ),
    "other-triton": (broken(lambda _table, own: own.update(triton="3.1.0")), "with triton 3.1.0 on this device, now"),
    "other-kernels": (broken(lambda _table, own: own.update(kernels="0")), "with kernels 0 on this device"),
    "other-size": (broken(lambda _table, own: own.update(sms=132)), "with sms 132 on this device, now it is 2"),
    "no-entries": (broken(lambda _table, own: own.pop("entries")), "no list of entries"),
    "no-entry": (broken(lambda _table, own: own.update(entries=[3])), "entry 0: "),
    "unknown-knob": (
        broken(lambda _table, own: own["entries"][1].update(tuning={"num_warps": 4})),
        "entry 1: no knob is called 'num_warps'",
    ),
    "bad-value": (
        broken(lambda _table, own: own["entries"][0].update(tuning={"per_thread": 1024})),
        "entry 0: per_thread is one of 32, 16, 8, 64, not 1024",
    ),
    "no-knobs": (broken(lambda _table, own: own["entries"][0].update(tuning=[])), "entry 0: a tuning turns knobs"),
    "unknown-field": (broken(lambda _table, own: own["entries"][0].update(batch=3)), "entry 0: "),
    "missing-field": (broken(lambda _table, own: own["entries"][0].pop("r2")), "entry 0: "),
    "no-number": (broken(lambda _table, own: own["entries"][0].update(r2=[])), "entry 0: "),
}


def asked_again():
    """What plans depend on of the interpreter, twice."""
    devices.forget()
    first = devices.of(torch.empty(1))
    devices.forget()
    return [first, devices.of(torch.empty(1))]


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_not_for_here_is_refused(text, reason, table, tmp_path):
    """One warning names the file and the reason, and plans are the planner's own."""
    file = tmp_path / "table.json"
    written(file, CASES["row"], tuning=Tuning(per_thread=16))
    file.write_text(text(json.loads(file.read_text())))
    table(file)
    with pytest.warns(RuntimeWarning) as said:
        assert asked_again() == [Device(devices.INTERPRETER_SMS)] * 2
    assert len(said) == 1
    assert str(file) in str(said[0].message) and reason in str(said[0].message)


def test_a_file_that_is_no_table_is_not_written_over(tmp_path):
    """What is not understood may be of use to someone."""
    file = tmp_path / "table.json"
    file.write_text("{}")
    with pytest.raises(tuned.Refused):
        written(file, CASES["row"], tuning=UNTUNED)
    assert file.read_text() == "{}"


@pytest.mark.parametrize("name", ["row", "row-tail", "instance-column", "group-cells"])
def test_a_tuned_sample_does_not_see_its_batch(name, table, tmp_path, monkeypatch):
    """With a table, a sample's bits are the same in a batch of 1 and of 3, and on every run; the table is in force."""
    case = CASES[name]
    tuning = Tuning(per_thread=16, program_bytes=40 * 1024, on_chip="nothing")
    written(tmp_path / "table.json", case._replace(shape=(5, *case.shape[1:])), tuning=tuning)
    table(tmp_path / "table.json")
    sample, dy = torch.randn(2, *case.shape[1:]), torch.randn(2, *case.shape[1:])
    weight, bias = parameters(case)
    results, ran, run = [], [], launch._run
    monkeypatch.setattr(launch, "_run", lambda step, *args: (ran.append(step), run(step, *args)))
    for batch in (1, 2, 1):
        ran.clear()
        x = lay_out(sample[:batch], case.layout).detach().requires_grad_()
        y = case._replace(shape=(batch, *case.shape[1:])).run(x, weight, bias)
        y.backward(lay_out(dy[:batch], case.layout))
        results.append((y[0].detach(), x.grad[0]))
    assert all(torch.equal(y, results[0][0]) and torch.equal(dx, results[0][1]) for y, dx in results[1:])
    both = schedules(case._replace(shape=x.shape), x.detach(), weight, bias, Device(devices.INTERPRETER_SMS))
    assert [s.plan for s in ran] != [s.plan for schedule in both for s in schedule.launches]  # the planner's own


def test_explain_says_so(table, tmp_path):
    """The file, and by direction what it chose; nothing of what has no entry, or is planned for another device."""
    case = CASES["row"]
    file = tmp_path / "table.json"
    forward, _backward = subjects(case)
    tuned.write(file, INTERPRETER, 2, {forward: (Tuning(per_thread=8, on_chip="program"), {})})
    table(file)
    x, weights = torch.randn(case.shape), parameters(case)
    call = nt.functional.layer_norm_call(x, case.features(), *weights, 1e-5)
    device = devices.of(x)
    directions = [made(call, x, *weights, device) for made in (forward_direction, backward_direction)]
    assert [d.schedule.tuning for d in directions] == [Tuning(per_thread=8, on_chip="program"), None]
    text = str(case.explain(x, *weights)._replace(forward=directions[0], backward=directions[1], device=device))
    assert f"thread-block clusters, tuned by {file}" in text
    assert text.count("  tuned: per_thread=8, on_chip=program") == text.count("  tuned: ") == 1
    assert "tuned" not in str(case.explain(x, *weights))


def test_explain_plans_with_the_table_of_a_gpu(monkeypatch):
    """A tensor on a GPU is planned with that GPU's table, unless it is to be planned for another number of SMs."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = Device(132, clusters=True, tuned=Tunings({}, Tuning(per_thread=8), "a made-up table"))
    monkeypatch.setattr(devices, "of", lambda _x: device)
    with FakeTensorMode():
        x = torch.empty(64, 4096, device="cuda")
        told = [
            str(nt.explain(nt.layer_norm, x, (4096,), sms=sms, clusters=on))
            for sms in (None, 132, 100)
            for on in (None, False)
        ]
    assert ["tuned: per_thread=8" in text for text in told] == [True] * 4 + [False] * 2
    assert ["without" in text for text in told] == [False, True] * 3


def test_candidates_begin_with_the_planners_own():
    """Each another schedule, by the fewest knobs."""
    call, x, weight, bias = make(Real("layer", (2048, 4096)), torch.bfloat16, torch.contiguous_format)

    def schedule(device):
        return backward_direction(call, x, weight, bias, device).schedule

    device = Device(132, clusters=True, tuned=Tunings({}, Tuning(per_thread=8)))
    found = candidates(schedule, device)
    own, *others = found.items()
    assert own[0] == UNTUNED and own[1].launches == schedule(Device(132, clusters=True)).launches
    assert len({schedule.launches for schedule in found.values()}) == len(found) > 10
    assert all(made.tuning == tuning and tuning.chosen for tuning, made in others)


@pytest.mark.usefixtures("table")
def test_a_call_without_a_table_is_as_before():
    """No table, no warning, no other plan."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert devices.of(torch.empty(1)) == Device(devices.INTERPRETER_SMS)


H100 = "NVIDIA H100 80GB HBM3, sm_90"


def predicted(file, case, kind="H100, sm_90"):
    """Write a table of one predicted tuning; what it is for."""
    device = Device(132, clusters=True)
    subject = forward_direction(*make(case, torch.bfloat16, torch.contiguous_format), device).schedule.subject
    tuned.write(file, kind, 132, {subject: (Tuning(per_thread=8), {"us": 1.0})}, "by version 0 of the model")
    return subject


@pytest.mark.parametrize(
    ("name", "sms", "refused"),
    [
        (H100, 132, None),
        ("NVIDIA H100 PCIe, sm_90", 114, "with sms 132"),
        ("NVIDIA GH200 480GB, sm_90", 132, "was made on H100, sm_90, this is NVIDIA GH200"),
        ("NVIDIA A100-SXM4-80GB, sm_80", 108, "was made on H100, sm_90"),
    ],
)
def test_a_predicted_table_is_for_a_kind_of_gpu(name, sms, refused, tmp_path):
    """One whose name has its words, with as many multiprocessors."""
    file = tmp_path / "h100.json"
    subject = predicted(file, Real("layer", (64, 4096)))
    if refused is None:
        assert tuned.read(file, name, sms) == {subject: (Tuning(per_thread=8), {"us": 1.0})}
    else:
        with pytest.raises(tuned.Refused, match=refused):
            tuned.read(file, name, sms)


def test_a_measured_table_is_for_its_device_alone(tmp_path):
    """A name that is a part of another's is no match."""
    tuned.write(tmp_path / "table.json", "H100, sm_90", 132, {})
    with pytest.raises(tuned.Refused, match="was made on"):
        tuned.read(tmp_path / "table.json", H100, 132)


def test_a_predicted_table_is_used_where_it_is_named(table, tmp_path, monkeypatch):
    """Not in the cache folder, where measured ones are; and `explain` says by what the plan was tuned."""
    monkeypatch.setattr(tuned, "device_name", lambda _index: H100)
    predicted(tmp_path / "tuned.json", Real("layer", (64, 4096)))
    with pytest.warns(RuntimeWarning, match="has predicted times, and is no place for measured ones"):
        assert tuned.table_for(0, 132) is None
    table(tmp_path / "tuned.json")
    found = tuned.table_for(0, 132)
    assert found is not None and found.predicted and len(found.entries) == 1
    x, device = torch.empty(64, 4096, dtype=torch.bfloat16, device="meta"), Device(132, clusters=True, tuned=found)
    both = nt.explain(nt.layer_norm, x, (4096,), x[0], x[0], sms=132, clusters=True)
    plan = forward_direction(*make(Real("layer", (64, 4096)), torch.bfloat16, torch.contiguous_format), device)
    said = str(both._replace(device=device, forward=plan))
    assert f"thread-block clusters, tuned by predicted time, {tmp_path / 'tuned.json'}" in said
    assert "  tuned by predicted time: per_thread=8" in said
