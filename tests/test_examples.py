"""The programs in examples/: they run, a few steps, and what normtriton computes there is what PyTorch does."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch

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


def test_every_example_is_run():
    """Each program in the folder has a test here."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*TRAININGS, "demo", "export_onnx", "per_sample_gradients"}


#: norms in one forward pass
TRAININGS = {"diffusion_block": 2, "llama_block": 5, "residual_network": 3}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_pytorchs(name, launched, capsys):
    """Losses before training amplifies rounding: 32 roundings; doubling a norm's eps gives 1e-5 and more."""
    steps = 3
    theirs, ours = map(torch.tensor, load(name).main(steps=steps, batch=4))
    assert launched["forward"] >= TRAININGS[name] * steps and launched["backward"] >= TRAININGS[name] * steps
    assert theirs[-1] < 0.97 * theirs[0]
    torch.testing.assert_close(ours, theirs, rtol=32 * EPS32, atol=0.0)
    assert len(capsys.readouterr().out.splitlines()) >= 1 + steps


def test_gradients_of_each_sample(launched):
    """As by a loop over the samples, of any of which a norm launches nothing of its own."""
    (distance,) = load("per_sample_gradients").main(steps=1, batch=3)
    assert distance < 64 * EPS32


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # the exporters warn of themselves
def test_an_export(capsys):
    """A batch of another size, by the exported program and by ONNX's runtime."""
    distances = load("export_onnx").main()
    assert {*distances} == {"torch.export", "onnxruntime"}
    assert all(distance < 16 * EPS32 for distance in distances.values())
    assert "1 GroupNormalization, 1 RMSNormalization" in capsys.readouterr().out
