"""SimVQ and the rotation trick against formulas and a public implementation; two processes with the same codes.

What holds for every quantizer is in test_quantizers.py. Shapes: N latents of d dimensions, K codes.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import SimVQ as PublicSimVQ
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from lightning_modules.quantizers import (
    QUANTIZERS,
    RotationConfig,
    RotationQuantizer,
    SimVQ,
    SimVQConfig,
    VectorQuantizer,
    VQConfig,
)
from lightning_modules.quantizers.rotation import rotate


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- SimVQ


def test_simvq_trains_one_layer_and_its_table_is_kept() -> None:
    torch.manual_seed(0)
    quantizer = SimVQ(SimVQConfig(), 5000, 16)
    assert {name for name, _ in quantizer.named_parameters()} == {"projector.weight", "projector.bias"}
    assert quantizer.table.shape == (5000, 16) and "table" in quantizer.state_dict()
    assert float(quantizer.table.std()) == pytest.approx(16**-0.5, rel=0.02)
    table, before = quantizer.table.clone(), quantizer.codebook().detach().clone()
    output = quantizer(random(4, 16))
    output.loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    assert torch.equal(quantizer.table, table)
    moved = (quantizer.codebook() - before).norm(dim=1) > 0
    assert len(output.indices.unique()) <= 4 and moved.all(), "few codes are chosen, and all of them move"


def test_simvq_equals_the_public_one() -> None:
    torch.manual_seed(0)
    quantizer = SimVQ(SimVQConfig(), 64, 8)
    torch.nn.init.orthogonal_(quantizer.projector.weight, gain=3)
    torch.nn.init.zeros_(quantizer.projector.bias)  # it has none
    public = PublicSimVQ(8, 64, rotation_trick=False)
    public.load_state_dict({"frozen_codebook": quantizer.table, "code_transform.weight": quantizer.projector.weight})
    z, upstream = random(1, 90, 8).requires_grad_(), random(1, 90, 8, seed=1)
    output, (quantized, indices, loss) = quantizer(z), public(z)
    assert torch.equal(output.indices, indices) and len(indices.unique()) > 20
    torch.testing.assert_close(output.quantized, quantized)
    torch.testing.assert_close(output.loss, loss)
    actual = torch.autograd.grad((output.quantized * upstream).sum() + output.loss, [z, quantizer.projector.weight])
    expected = torch.autograd.grad((quantized * upstream).sum() + loss, [z, public.code_transform.weight])
    torch.testing.assert_close(actual, expected)


def test_simvq_sizes_are_checked_before_the_table_is_drawn() -> None:
    with pytest.raises(ValueError, match="code_dim=0"):
        SimVQ(SimVQConfig(), 8, 0)


# ---- the rotation trick


def rotation_matrix(e: Tensor, q: Tensor) -> Tensor:
    """The rotation (d, d) in the plane of e and q that takes e's direction to q's, from their angle."""
    u = e / e.norm()
    v = q - (q @ u) * u
    v = v / v.norm()
    cosine, sine = (q @ u) / q.norm(), (q @ v) / q.norm()
    inside = cosine * (torch.outer(u, u) + torch.outer(v, v)) + sine * (torch.outer(v, u) - torch.outer(u, v))
    return torch.eye(len(e), dtype=e.dtype) - torch.outer(u, u) - torch.outer(v, v) + inside


def test_rotation_gradient_is_the_rotated_and_scaled_one() -> None:
    torch.manual_seed(0)
    quantizer = RotationQuantizer(RotationConfig(), 30, 5)
    torch.nn.init.normal_(quantizer.codes)
    z, upstream = random(20, 5).requires_grad_(), random(20, 5, seed=1)
    output = quantizer(z)
    (gradient,) = torch.autograd.grad((output.quantized * upstream).sum(), z, retain_graph=True)
    for e, q, g, actual in zip(z.detach().double(), output.quantized.detach().double(), upstream.double(), gradient,
                               strict=True):  # fmt: skip
        R, stretch = rotation_matrix(e, q), q.norm() / e.norm()
        torch.testing.assert_close(stretch * R @ e, q)
        torch.testing.assert_close(actual.double(), stretch * R.T @ g, rtol=1e-4, atol=1e-5)
        # The paper's point: the gradient's angle to the latent is the one it had to the code.
        angles = F.cosine_similarity(actual.double(), e, dim=0), F.cosine_similarity(g, q, dim=0)
        torch.testing.assert_close(*angles, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradient, upstream, atol=0.1), "straight-through"
    codes = torch.autograd.grad((output.quantized * upstream).sum(), quantizer.codes, allow_unused=True)
    assert codes == (None,)


def test_rotation_differs_from_vq_in_the_gradient_alone() -> None:
    torch.manual_seed(0)
    plain, turned = VectorQuantizer(VQConfig(), 30, 5), RotationQuantizer(RotationConfig(), 30, 5)
    turned.load_state_dict(plain.state_dict())
    a, b = plain(random(20, 5)), turned(random(20, 5))
    assert torch.equal(a.indices, b.indices) and torch.equal(a.quantized, b.quantized) and torch.equal(a.loss, b.loss)


def test_rotation_equals_the_public_one() -> None:
    z, codes, upstream = random(50, 8).requires_grad_(), random(50, 8, seed=1), random(50, 8, seed=2)
    actual, expected = rotate(z, codes), rotate_to(z, codes)
    torch.testing.assert_close(actual, codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad((rotated * upstream).sum(), z)[0] for rotated in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_rotation_is_finite_where_no_rotation_is_singled_out() -> None:
    """An opposite code, an equal one, and a latent that is zero."""
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[-2.0, -4.0], [1.0, 2.0], [3.0, 0.0]])
    rotated = rotate(z, codes)
    torch.testing.assert_close(rotated[:2], codes[:2])
    (gradient,) = torch.autograd.grad(rotated.sum(), z)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient[1], torch.ones(2))


# ---- no state of a rank's own


SIZES = {"fsq": (240, 3), "lfq": (64, 6), "simvq": (50, 6), "rotation": (50, 6)}


def train_rank(rank: int, folder: str) -> None:
    """One of two processes, which sees its half of each batch, and draws first values of its own."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    for name, size in SIZES.items():
        cls, config_cls = QUANTIZERS[name]
        torch.manual_seed(rank)
        layer = torch.nn.Linear(size[1], size[1])
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(layer, cls(config_cls(), *size)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            output = model(random(16, size[1], seed=step)[rank::2])
            optimizer.zero_grad()
            (output.loss + output.quantized.square().mean()).backward()
            optimizer.step()
        z = random(16, size[1], seed=9)
        torch.save((model.module.state_dict(), model.module(z).indices), Path(folder) / f"{name}{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes of their own: autograd's threads, should this one have any, do not outlive a fork."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.start_processes(train_rank, (str(folder),), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize("name", SIZES)
def test_two_processes_hold_the_same_codebook(ranks: Path, name: str) -> None:
    (first, indices), (second, others) = (torch.load(ranks / f"{name}{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first and all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(indices, others)
