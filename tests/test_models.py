"""Real models, tiny and with random weights, whose norms are replaced: the same results, gradients and training."""

import copy
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everyone knows it by
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import normtriton as nt
from normtriton.runtime import launch

EPS32 = 2.0**-24
STEPS = 3


class Residual(nn.Module):
    """The basic block of He et al. 2015, arXiv:1512.03385."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.silu(self.bn1(self.conv1(x)))))  # smooth, so that rounding switches nothing off
        return F.silu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.SiLU())
        self.blocks = nn.Sequential(Residual(6, 6, 1), Residual(6, 10, 2))
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


WORDS = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
CERTAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # float64 would drop others
BLOCKS = {"block_out_channels": (4,), "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 4}


def bert():
    return BertForMaskedLM(BertConfig(**WORDS, **CERTAIN, max_position_embeddings=8))


def llama():
    return LlamaForCausalLM(LlamaConfig(**WORDS, num_key_value_heads=1))


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**WORDS, num_key_value_heads=1, head_dim=6))


def vit():
    size = {key: value for key, value in WORDS.items() if key != "vocab_size"}
    return ViTForImageClassification(ViTConfig(**size, **CERTAIN, image_size=6, patch_size=3, num_labels=5))


def t5():
    size = {"vocab_size": 40, "d_model": 12, "d_kv": 6, "d_ff": 20, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**size, dropout_rate=0.0, decoder_start_token_id=0))


def unet():
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(**BLOCKS, **kinds, attention_head_dim=4)


def unet_with_text():
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return UNet2DConditionModel(**BLOCKS, **kinds, attention_head_dim=4, cross_attention_dim=6)


def vae():
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return AutoencoderKL(**BLOCKS, **kinds, latent_channels=2)


def words():
    """Two sentences, and the words to predict."""
    return {"input_ids": torch.randint(40, (2, 5)), "labels": torch.randint(40, (2, 5))}


def image(channels, **others):
    return {"sample": torch.randn(1, channels, 4, 4), **others}


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict]  #: arguments of a call
    result: str  #: the attribute of interest in what a call returns, if it returns no tensor
    norms: dict[str, int]  #: how many modules of which class are replaced


MODELS = {
    "resnet": Case(ResNet, lambda: {"x": torch.randn(4, 3, 6, 6)}, "", {"BatchNorm2d": 6}),
    "bert": Case(bert, words, "logits", {"LayerNorm": 6}),
    "llama": Case(llama, words, "logits", {"LlamaRMSNorm": 5}),
    "gemma2": Case(gemma2, words, "logits", {"Gemma2RMSNorm": 9}),
    "vit": Case(
        vit,
        lambda: {"pixel_values": torch.randn(2, 3, 6, 6), "labels": torch.tensor([1, 4])},
        "logits",
        {"LayerNorm": 5},
    ),
    "t5": Case(t5, words, "logits", {"T5LayerNorm": 7}),
    "unet": Case(unet, lambda: image(3, timestep=7), "sample", {"GroupNorm": 12}),
    "unet with text": Case(
        unet_with_text,
        lambda: image(4, timestep=7, encoder_hidden_states=torch.randn(1, 3, 6)),
        "sample",
        {"GroupNorm": 15, "LayerNorm": 12},
    ),
    "vae": Case(vae, lambda: image(3), "sample", {"GroupNorm": 18}),
}


def build(case):
    """The model, with norm parameters that matter."""
    model = case.make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.train()


def call(case, model, inputs):
    """The output and the loss."""
    dtype = next(model.parameters()).dtype
    cast = {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}
    returned = model(**cast)
    output = getattr(returned, case.result) if case.result else returned
    loss = getattr(returned, "loss", None)
    if loss is None:
        target = torch.linspace(-1, 1, output.numel(), dtype=dtype).sin().view(output.shape)
        loss = F.mse_loss(output, target)
    return output, loss


def train(case, model, inputs):
    """Every tensor that a training gives: outputs, losses, gradients, parameters, buffers, output in evaluation."""
    seen = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        output, loss = call(case, model, inputs)
        loss.backward()
        gradients = {
            f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
        }
        optimizer.step()
        seen |= {f"step {step}: {k}": v for k, v in {"output": output, "loss": loss, **gradients}.items()}
    seen |= {f"afterwards: {name}": tensor for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        seen["evaluation"] = call(case, model.eval(), inputs)[0]
    return {name: tensor.detach().double() for name, tensor in seen.items()}


def farthest(got, exact):
    """The largest difference of any tensor, relative to its largest value, and which one that is.

    Some gradients are zero but for rounding, as those of a bias before a softmax. They are measured by the largest.
    """
    largest = max(tensor.abs().max() for name, tensor in exact.items() if "gradient" in name)
    floors = {name: 1e-3 * largest if "gradient" in name else torch.tensor(1e-6).double() for name in exact}
    assert got.keys() == exact.keys()
    differences = {
        name: ((got[name] - want).abs().max() / want.abs().max().maximum(floors[name])).item()
        for name, want in exact.items()
    }
    worst = max(differences, key=differences.get)
    return differences[worst], worst


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_computes_and_trains_as_before(name, monkeypatch):
    """Outputs, losses, gradients and parameters over some steps are as near float64's as the original's are."""
    case = MODELS[name]
    original, inputs = build(case), case.inputs()
    exact = train(case, copy.deepcopy(original).double(), inputs)
    before = train(case, copy.deepcopy(original), inputs)

    launched, run = Counter(), launch._run
    monkeypatch.setattr(launch, "_run", lambda what, *args: (launched.update([what.kernel]), run(what, *args))[1])
    converted = copy.deepcopy(original)
    report = nt.convert(converted)
    assert Counter(change.before.__name__ for change in report.converted) == case.norms and not report.left_alone
    after = train(case, converted, inputs)
    norms = sum(case.norms.values())
    assert launched["forward"] >= norms * (STEPS + 1) and launched["backward"] >= norms * STEPS

    (theirs, _), (ours, where), (apart, _) = farthest(before, exact), farthest(after, exact), farthest(after, before)
    print(f"{name}: {theirs:.1e} from float64, converted {ours:.1e}; {apart:.1e} apart")  # noqa: T201  shown on request
    assert ours <= 4 * theirs + 16 * EPS32, f"{where}: {ours:.1e} where the original has {theirs:.1e}"


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_and_the_way_back(name):
    """A state dict goes from either to the other; restored, the model gives the original's bits."""
    case = MODELS[name]
    model, other = build(case).eval(), build(case).eval()
    inputs, kinds = case.inputs(), [type(module) for module in model.modules()]
    converted = copy.deepcopy(other)
    nt.convert(converted)
    with torch.no_grad():
        wants = [call(case, each, inputs)[0] for each in (model, other)]
        converted.load_state_dict(model.state_dict())
        torch.testing.assert_close(call(case, converted, inputs)[0], wants[0], rtol=1e-4, atol=1e-5)
        nt.restore(converted)
        assert [type(module) for module in converted.modules()] == kinds
        assert torch.equal(call(case, converted, inputs)[0], wants[0])

        nt.convert(converted)
        converted.load_state_dict(other.state_dict())
        model.load_state_dict(converted.state_dict())
        assert torch.equal(call(case, model, inputs)[0], wants[1])


ROOT = Path(__file__).parent.parent
EXAMPLES = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", ROOT / "docs" / "convert.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
    if "normtriton as nt" in block
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_the_examples_run(block, capsys):
    """The documentation's examples, and what they say is printed."""
    exec(compile(block, "example", "exec"), {})  # noqa: S102  our own
    printed = capsys.readouterr().out
    for line in re.findall(r"^# > (.*)$", block, re.MULTILINE):
        assert line in printed, printed


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
