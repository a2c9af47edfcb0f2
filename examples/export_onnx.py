"""A model with normtriton's norms, exported by `torch.export` and to ONNX, with an open batch size.

An exported program has one operator for each norm, ``torch.ops.normtriton.normalize``. ONNX's exporter turns it into
ONNX's own norm: BatchNormalization, LayerNormalization, InstanceNormalization, from version 21 on GroupNormalization,
from 23 on RMSNormalization. Other norms are composed of smaller operators. The file needs neither PyTorch nor Triton.

    python examples/export_onnx.py

ONNX takes ``pip install onnx onnxscript``, and ``onnxruntime`` to run the file here. Without them the example ends
after `torch.export`.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

os.environ.setdefault("TRITON_INTERPRET", "1")  # runs the kernels on the CPU, slowly; set before the import

import normtriton as nt

OPSET = 23  # the first version of ONNX with an operator for RMS norm


class Network(nn.Module):
    """A convolution with group norm, and a linear layer with RMS norm."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.conv, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nt.GroupNorm(4, 8)
        self.linear, self.norm2 = nn.Linear(8, 16), nt.RMSNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        """Take (batch, 3, height, width), return (batch, 4)."""
        x = torch.relu(self.norm1(self.conv(image))).mean((2, 3))
        return self.head(torch.relu(self.norm2(self.linear(x))))


def to_onnx(program: torch.export.ExportedProgram, path: Path) -> dict[str, int]:
    """Write an exported program as ONNX; return how many operators of each kind it has."""
    onnx = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    assert onnx is not None
    onnx.save(path)
    kinds = [node.op_type for node in onnx.model.graph]
    return {kind: kinds.count(kind) for kind in sorted({*kinds})}


def run_onnx(path: Path, image: Tensor) -> Tensor:
    """Run a file by ONNX's runtime."""
    import onnxruntime  # noqa: PLC0415  it may be missing

    session = onnxruntime.InferenceSession(path)
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return torch.from_numpy(result)


def main() -> dict[str, float]:
    """Export, run each form on another batch size, print and return its largest distance from the model's result."""
    torch.manual_seed(0)
    model = Network().eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    image = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        want = model(image)
        results = {"torch.export": program.module()(image)}
    print(program.graph_module.code.count("normtriton.normalize"), "norms in the exported program")

    if find_spec("onnx") and find_spec("onnxscript"):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            print("ONNX:", ", ".join(f"{number} {kind}" for kind, number in to_onnx(program, path).items()))
            if find_spec("onnxruntime"):
                results["onnxruntime"] = run_onnx(path, image)
    else:
        print("no ONNX: the packages onnx and onnxscript are not installed")

    distances = {name: (got - want).abs().max().item() for name, got in results.items()}
    for name, distance in distances.items():
        print(f"{name}: a batch of {len(image)}, at most {distance:.1e} from the model")
    return distances


if __name__ == "__main__":
    main()
