"""The programs in examples/: they run, a few steps, and what normtriton computes there is what PyTorch does."""

import importlib.util
from collections import Counter
from functools import partial
from pathlib import Path

import across_cases
import pytest
import torch
import worlds

from normtriton.runtime import launch

EXAMPLES = Path(__file__).parent.parent / "examples"
EPS32 = 2.0**-24


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launched(monkeypatch):
    """How often each kernel is launched."""
    counts, run = Counter(), launch._run
    monkeypatch.setattr(launch, "_run", lambda what, *args: (counts.update([what.kernel]), run(what, *args))[1])
    return counts


#: norms in one forward pass
TRAININGS = {"diffusion_block": 2, "llama_block": 5, "residual_network": 3}
PARALLEL = ["data_parallel", "tensor_parallel", "unet_3d"]


def test_every_example_is_run():
    """Each program in the folder has a test here."""
    others = {"demo", "export_onnx", "per_sample_gradients"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*TRAININGS, *PARALLEL, *others}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_pytorchs(name, launched, capsys):
    """The losses differ by roundings: 2e-7 were seen, and 1.4e-5 or more of a dx that is 0.1 % too large."""
    steps = 8
    theirs, ours = map(torch.tensor, load(name).main(steps=steps, batch=4))
    assert launched["forward"] >= TRAININGS[name] * steps and launched["backward"] >= TRAININGS[name] * steps
    assert theirs[-1] < 0.7 * theirs[0]
    torch.testing.assert_close(ours, theirs, rtol=32 * EPS32, atol=0.0)
    assert len(capsys.readouterr().out.splitlines()) >= 1 + steps


@pytest.mark.parametrize("name", PARALLEL)
def test_processes_train_as_one(name):
    """Losses, gradients and parameters, which are about 1, differ by roundings."""
    assert max(worlds.run(partial(across_cases.example, name=name), 2)) < 16 * EPS32


def test_the_classifier(monkeypatch, tmp_path, capsys):
    """The demo exits with an error where its own bounds do not hold."""
    demo, picture = load("demo"), tmp_path / "losses.png"
    monkeypatch.setattr(demo, "TEST", 20)
    monkeypatch.setattr(demo, "NORMS", {name: demo.NORMS[name] for name in ("batch", "group")})
    monkeypatch.setattr("sys.argv", ["demo", "--steps", str(demo.FIRST), "--out", str(picture)])
    try:
        demo.main()
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert picture.stat().st_size > 0
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in demo.NORMS)


def test_gradients_of_each_sample(launched, capsys):
    """Those of a loop; and more samples are no more launches."""
    example = load("per_sample_gradients")
    (distance,) = example.main(steps=1, batch=3)
    assert distance < 64 * EPS32
    assert "distance from a loop" in capsys.readouterr().out
    model, counts = example.network(), []
    for batch in (2, 5):
        launched.clear()
        example.per_sample_gradients(model, torch.randn(batch, 3, 8, 8), torch.zeros(batch, dtype=torch.int64))
        counts.append(dict(launched))
    assert counts[0] == counts[1] and counts[0]["forward"] == 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # the exporters warn of themselves
def test_an_export(capsys):
    """A batch of another size, by the exported program and by ONNX's runtime."""
    distances = load("export_onnx").main()
    assert {*distances} == {"torch.export", "onnxruntime"}
    assert all(distance < 16 * EPS32 for distance in distances.values())
    assert "1 GroupNormalization, 1 RMSNormalization" in capsys.readouterr().out
