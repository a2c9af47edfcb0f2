"""Real shapes, shared by tests and reports, and the cells that are made of them."""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from normtriton import functional
from normtriton.modulation import NAMES as MODULATION
from normtriton.modulation import modulated
from normtriton.planning.stages import ACTIVATIONS, ALONE, Stages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from normtriton.autograd.call import Call


class Case(NamedTuple):
    """One norm of one shape.

    Attributes:
        norm: "layer", "rms", "batch", "instance" or "group".
        shape: of the input.
        groups: of a group norm.
        around: one of `FORMS`, what surrounds it; "" for nothing.
    """

    norm: str
    shape: tuple[int, ...]
    groups: int = 0
    around: str = ""

    @property
    def name(self) -> str:
        """For people, test ids and the command line."""
        around = f"+{self.around}" if self.around else ""
        return f"{self.norm}{self.groups or ''}-{'x'.join(map(str, self.shape))}{around}"

    @classmethod
    def named(cls, name: str) -> Case:
        """The case of a name such as "layer-8192x4096", "group32-8x320x64x64" or "rms-8192x4096+residual".

        Raises:
            ValueError: no such norm, a shape that it cannot have, groups that do not divide the channels, or nothing
                that may surround a norm.
        """
        match = re.fullmatch(r"([a-z]+?)(\d*)-(\d+(?:x\d+)+)(?:\+([a-z_-]+))?", name)
        if match is None or match[1] not in NORMS:
            raise ValueError(
                f"{name!r} is not NORM-SHAPE, as layer-8192x4096 or group32-8x320x64x64: {', '.join(NORMS)}"
            )
        if match[4] and match[4] not in FORMS:
            raise ValueError(f"{name!r}: what surrounds a norm is one of {', '.join(FORMS)}")
        case = cls(match[1], tuple(map(int, match[3].split("x"))), int(match[2] or 0), match[4] or "")
        if min(case.shape) < 1:
            raise ValueError(f"{name!r} has an empty axis")
        if (case.norm == "group") != bool(case.groups) or (case.groups and case.shape[1] % case.groups):
            raise ValueError(f"{name!r}: a group norm, and only that, has groups, which divide its channels")
        if case.norm in ("instance", "group") and len(case.shape) < 3:
            raise ValueError(f"{name!r}: an {case.norm} norm has a batch, channels and space")
        return case

    def tensors(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What surrounds the norm of x, by name, without numbers."""
        names = FORMS[self.around].tensors if self.around else ()
        tensors = {name: torch.empty_like(x) for name in names}
        channels = [1] * x.dim()
        channels[-1 if self.norm in ("layer", "rms") else 1] = self.shape[-1 if self.norm in ("layer", "rms") else 1]
        if "x_scale" in names:
            tensors["x_scale"] = x.new_empty(channels)
        tensors |= dict.fromkeys({*MODULATION} & {*names}, x.new_empty(self.shape[0], *channels[1:]))
        if "mask" in names:  # of tokens, or of positions
            whole = (self.shape[0], 1, *self.shape[2:]) if self.norm not in ("layer", "rms") else self.shape
            tensors["mask"] = x.new_empty(whole, dtype=torch.bool)
        return tensors


class Form(NamedTuple):
    """What surrounds a norm: tensors, by name, and settings."""

    tensors: tuple[str, ...] = ()
    stages: Stages = ALONE


#: Each activation alone, and what models put around a norm.
FORMS = {name: Form(stages=Stages(name)) for name in ACTIVATIONS} | {
    "residual": Form(("residual",)),
    "llama": Form(("residual",), Stages(offset=1.0, round_first=True)),
    "skip-relu": Form(("skip",), Stages("relu")),
    "gate": Form(("gate",), Stages("silu")),
    "gate-first": Form(("gate",), Stages("silu", gate_first=True)),
    "all": Form(("residual", "skip", "gate"), Stages("gelu_tanh", offset=1.0)),
    "x-scale": Form(("x_scale", "residual")),
    "modulated": Form(("scale", "shift")),
    "mask": Form(("mask",), Stages("silu", masked=True)),
    "all-mask": Form(("residual", "skip", "gate", "x_scale", "mask"), Stages("gelu", offset=1.0, masked=True)),
    "x-scale-alone": Form(("x_scale", "gate"), Stages("silu", gate_first=True)),
    "all-gate-first": Form(("residual", "skip", "gate"), Stages("sigmoid", offset=1.0, gate_first=True)),
}

NORMS = ("layer", "rms", "batch", "instance", "group")

#: Language models, vision transformers, ResNet-50, U-Nets, segmentation.
CASES = (
    Case("layer", (8192, 4096)),
    Case("layer", (8192, 768)),
    Case("layer", (4096, 12288)),
    Case("layer", (1024, 65536)),
    Case("layer", (8192, 1000)),
    Case("rms", (8192, 4096)),
    Case("group", (8, 320, 64, 64), 32),
    Case("group", (2, 512, 128, 128), 32),
    Case("instance", (8, 64, 256, 256)),
    Case("batch", (256, 64, 56, 56)),
    Case("batch", (32, 2048, 7, 7)),
    Case("batch", (1024, 256)),
)

#: Others, by which hardly anything was chosen: few rows, odd widths, 24 and 40 channels, images of 14x14, one image.
OTHERS = (
    Case("layer", (64, 4096)),
    Case("layer", (1024, 4096)),
    Case("layer", (4096, 1001)),
    Case("rms", (2048, 5120)),
    Case("group", (8, 24, 112, 112), 8),
    Case("group", (8, 40, 56, 56), 8),
    Case("group", (2, 320, 64, 64), 32),
    Case("instance", (1, 32, 512, 512)),
    Case("instance", (16, 24, 63, 65)),
    Case("batch", (64, 256, 14, 14)),
    Case("batch", (32, 24, 112, 112)),
    Case("batch", (1, 64, 256, 256)),
)

#: Norms with what surrounds them in models: residual streams of transformers, Mamba's gates, U-Nets, residual networks.
FUSED = (
    Case("rms", (8192, 4096), around="residual"),
    Case("layer", (8192, 768), around="residual"),
    Case("rms", (8192, 4096), around="gate"),
    Case("rms", (8192, 4096), around="gate-first"),
    Case("group", (8, 320, 64, 64), 32, "silu"),
    Case("group", (2, 512, 128, 128), 32, "silu"),
    Case("batch", (256, 64, 56, 56), around="relu"),
    Case("batch", (256, 64, 56, 56), around="skip-relu"),
    Case("layer", (16, 256, 1152), around="modulated"),
    Case("layer", (64, 197, 768), around="x-scale"),
)

#: Shapes by the models they come from.
SETS = {
    # hidden sizes of 2048 tokens and of one generated for each of 64 requests: Llama 8B and 70B, Gemma 9B
    "llm": tuple(
        Case(norm, (rows, size)) for norm in ("rms", "layer") for rows in (2048, 64) for size in (3584, 4096, 8192)
    ),
    # 64 images of 197 patches: ViT-S, B and L
    "vit": tuple(Case("layer", (64 * 197, size)) for size in (384, 768, 1024)),
    # ResNet-50, 64 images of 224x224: the first norm of each stage, its widest, and the last
    "resnet": tuple(
        Case("batch", (64, channels, side, side))
        for channels, side in (
            (64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7)
        )
    ),
    # Stable Diffusion's U-Net on a latent of 64x64, two images for guidance, and its decoder at 512x512
    "unet": tuple(
        Case("group", (batch, channels, side, side), 32)
        for batch, channels, side in (
            (2, 320, 64), (2, 640, 32), (2, 1280, 16), (2, 2560, 8), (1, 512, 64), (1, 512, 256), (1, 128, 512)
        )
    ),
    # nnU-Net on patches of 128x128x128, two at a time
    "segmentation-3d": tuple(
        Case("instance", (2, channels, side, side, side))
        for channels, side in ((32, 128), (64, 64), (128, 32), (256, 16), (320, 8))
    ),
    "reports": CASES,
    "others": OTHERS,
    "fused": FUSED,
}  # fmt: skip

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = ("bfloat16", "float32")
DIRECTIONS = ("forward", "backward")

#: The norms that other libraries offer in Triton.
OFFERED = {
    "liger-kernel": ("layer", "rms", "group"),
    "flag-gems": ("layer", "rms", "group", "batch", "instance"),
}
#: What other libraries compute around a norm in its own pass, with what the result lacks.
OFFERED_AROUND = {
    "liger-kernel": {("rms", "residual"): ""},
    "flag-gems": {("rms", "residual"): "in place", ("layer", "residual"): "without the sum"},
    "stable-fast": {("group", "silu"): ""},
}
#: The norms whose times can be predicted of other libraries: what torch.compile generates is Triton's, too.
TIMED = {**OFFERED, "torch.compile": NORMS}
#: All other libraries.
LIBRARIES = tuple(dict.fromkeys((*TIMED, *OFFERED_AROUND)))


def offered(instrument: str) -> dict[str, tuple[str, ...]]:
    """The norms of other libraries that an instrument can look at."""
    return TIMED if instrument == "model" else OFFERED


def offers(library: str, case: Case, instrument: str) -> bool:
    """Whether an instrument can look at another library's code for a case: the model alone at what surrounds a norm."""
    if not case.around:
        return case.norm in offered(instrument).get(library, ())
    known = library == "torch.compile" or (case.norm, case.around) in OFFERED_AROUND.get(library, ())
    return known and instrument == "model"


class Cell(NamedTuple):
    """A case in one of `LAYOUTS` and a dtype, by name."""

    case: Case
    layout: str
    dtype: str

    @property
    def options(self) -> tuple[torch.dtype, torch.memory_format]:
        """The dtype and the memory format of x: channels_last of a volume is PyTorch's channels_last_3d."""
        volume = self.layout == "channels_last" and len(self.case.shape) == 5
        return getattr(torch, self.dtype), torch.channels_last_3d if volume else LAYOUTS[self.layout]


#: What training steps meet, by the models that it is met in.
STEPS = {
    "transformer": Cell(Case("layer", (8192, 4096)), "contiguous", "bfloat16"),
    "vision transformer": Cell(Case("layer", (8192, 768)), "contiguous", "bfloat16"),
    "Llama": Cell(Case("rms", (8192, 4096)), "contiguous", "bfloat16"),
    "Llama, with its residual sum": Cell(Case("rms", (8192, 4096), around="residual"), "contiguous", "bfloat16"),
    "diffusion U-Net": Cell(Case("group", (8, 320, 64, 64), 32, "silu"), "channels_last", "bfloat16"),
    "segmentation": Cell(Case("instance", (8, 64, 256, 256)), "contiguous", "bfloat16"),
    "ResNet-50, its first blocks": Cell(Case("batch", (256, 64, 56, 56), around="relu"), "channels_last", "bfloat16"),
    "ResNet-50, its last blocks": Cell(Case("batch", (32, 2048, 7, 7)), "contiguous", "bfloat16"),
}


def cells(
    cases: Iterable[Case] = CASES, layouts: Iterable[str] = tuple(LAYOUTS), dtypes: Iterable[str] = DTYPES
) -> list[Cell]:
    """Every case in every layout that its input can have, in every dtype."""
    return [
        Cell(case, layout, dtype)
        for dtype, case, layout in product(dtypes, cases, layouts)
        if layout == "contiguous" or len(case.shape) in (4, 5)
    ]


def make(
    case: Case,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    device: str = "meta",
    parameters: torch.dtype | None = None,
) -> tuple[Call, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(call, x, weight, bias) of a case, in training, batch norm with running statistics.

    ``parameters`` is their dtype and that of running statistics, None for x's.
    """
    x = torch.empty(case.shape, dtype=dtype, device=device)
    if x.dim() in (4, 5):
        x = x.to(memory_format=memory_format)
    features = case.shape[-1:] if case.norm in ("layer", "rms") else case.shape[1:2]
    options: dict[str, Any] = {"dtype": parameters or dtype, "device": device}
    weight = torch.ones(features, **options)
    bias: torch.Tensor | None = torch.zeros(features, **options)
    call: Call
    if case.norm == "layer":
        call = functional.layer_norm_call(x, features, weight, bias, 1e-5)
    elif case.norm == "rms":
        call, bias = functional.rms_norm_call(x, features, weight, None), None
    elif case.norm == "group":
        call = functional.group_norm_call(x, case.groups, weight, bias, 1e-5)
    elif case.norm == "instance":
        call = functional.instance_norm_call(x, None, None, weight, bias, True, 0.1, 1e-5)
    else:
        mean, var = torch.zeros(features, **options), torch.ones(features, **options)
        batches = torch.zeros((), dtype=torch.int64, device=device)
        call = functional.batch_norm_call(x, mean, var, weight, bias, True, 0.1, 1e-5, batches)
    if case.around:
        call = call._replace(problem=call.problem._replace(stages=FORMS[case.around].stages))
    modulation = {name: t for name, t in case.tensors(x).items() if name in MODULATION}
    if modulation:  # as of adaLN, of a norm without parameters of its own
        call, weight, bias = modulated(call, None, None, modulation)  # type: ignore[assignment]  # a scale is a weight
    return call, x, weight, bias
