"""The authors' original layers (trax ReversibleSerial of two half-residuals, float32) reproduced by
both versions.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from reformer_ref.reversible import reversible_stack, reversible_stack_inverse, spec
from reformer_ref.testing import expect_close
from torch import nn

EPS = 1e-6  # of the authors' layer norm
TOLERANCE = 1e-6  # the file holds float32 only


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "trax_lsh_reversible.npz") as file:
        return {name: file[name].astype(np.float64) for name in file.files}


class F:
    """relu(LayerNorm(x) w + b), by hand."""

    def __init__(self, g):
        self.scale, self.bias, self.w, self.b = g["ln_scale"], g["ln_bias"], g["w_a"], g["b_a"]

    def norm(self, x):
        sigma = np.sqrt(x.var(axis=-1, keepdims=True) + EPS)
        return (x - x.mean(axis=-1, keepdims=True)) / sigma, sigma

    def __call__(self, x):
        return np.maximum((self.norm(x)[0] * self.scale + self.bias) @ self.w + self.b, 0)

    def vjp(self, x, d_out):
        normed, sigma = self.norm(x)
        z = normed * self.scale + self.bias
        d_z_out = d_out * (z @ self.w + self.b > 0)
        d_z = d_z_out @ self.w.T
        d_n = d_z * self.scale
        means = d_n.mean(axis=-1, keepdims=True), (d_n * normed).mean(axis=-1, keepdims=True)
        d_params = {
            "ln_scale": (d_z * normed).sum(axis=(0, 1)),
            "ln_bias": d_z.sum(axis=(0, 1)),
            "w_a": np.einsum("bli,blj->ij", z, d_z_out),
            "b_a": d_z_out.sum(axis=(0, 1)),
        }
        return (d_n - means[0] - normed * means[1]) / sigma, d_params


class G:
    """tanh(x w + b)."""

    def __init__(self, g):
        self.w, self.b = g["w_b"], g["b_b"]

    def __call__(self, x):
        return np.tanh(x @ self.w + self.b)

    def vjp(self, x, d_out):
        d_sum = d_out * (1 - self(x) ** 2)
        return d_sum @ self.w.T, {"w_b": np.einsum("bli,blj->ij", x, d_sum), "b_b": d_sum.sum(axis=(0, 1))}


def expect(golden, got):
    return max(expect_close(name, value, golden[name], TOLERANCE) for name, value in got.items())


def test_spec(golden):
    blocks = [(F(golden), G(golden))]
    y1, y2 = spec.reversible_stack(golden["x1"], golden["x2"], blocks)
    got = spec.reversible_stack_vjp(golden["y1"], golden["y2"], blocks, golden["ct1"], golden["ct2"])
    x1, x2, d_x1, d_x2, [(d_f, d_g)] = got
    results = {"y1": y1, "y2": y2, "rec_x1": x1, "rec_x2": x2, "d_x1": d_x1, "d_x2": d_x2}
    worst = expect(golden, results | {f"d_{name}": d for name, d in (d_f | d_g).items()})
    print(f"spec against trax: worst relative error {worst:.1e}")


def linear(w, b):
    layer = nn.Linear(*w.shape, dtype=torch.float64)
    layer.weight.data, layer.bias.data = torch.from_numpy(w.T.copy()), torch.from_numpy(b)
    return layer


@pytest.mark.parametrize("reversible", [True, False])
def test_pytorch(golden, reversible):
    a, b = linear(golden["w_a"], golden["b_a"]), linear(golden["w_b"], golden["b_b"])
    norm = nn.LayerNorm(6, eps=EPS, dtype=torch.float64)
    norm.weight.data, norm.bias.data = (torch.from_numpy(golden["ln_scale"]), torch.from_numpy(golden["ln_bias"]))
    blocks = [(nn.Sequential(norm, a, nn.ReLU()), nn.Sequential(b, nn.Tanh()))]
    g = {name: torch.from_numpy(value) for name, value in golden.items()}
    x1, x2 = g["x1"].clone().requires_grad_(), g["x2"].clone().requires_grad_()
    y1, y2 = reversible_stack(x1, x2, blocks, reversible=reversible)
    torch.autograd.backward([y1, y2], [g["ct1"], g["ct2"]])
    rec_x1, rec_x2 = reversible_stack_inverse(g["y1"], g["y2"], blocks)
    got = {"y1": y1, "y2": y2, "rec_x1": rec_x1, "rec_x2": rec_x2, "d_x1": x1.grad, "d_x2": x2.grad}
    got |= {"d_ln_scale": norm.weight.grad, "d_ln_bias": norm.bias.grad, "d_w_a": a.weight.grad.T, "d_b_a": a.bias.grad}
    got |= {"d_w_b": b.weight.grad.T, "d_b_b": b.bias.grad}
    worst = expect(golden, {name: value.detach().numpy() for name, value in got.items()})
    print(f"PyTorch against trax: worst relative error {worst:.1e}")
