"""AdaLomo's steps by hand, by the equations in fp64, and as the Adafactor that it is."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adafactor

from lion_lightning.optim.adalomo import AdaLomo

MATRIX, GRADIENT = [[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 2.0]]


def step(optimizer: Any, parameter: nn.Parameter, gradient: Any) -> Any:
    parameter.grad = torch.as_tensor(gradient, dtype=parameter.dtype)
    optimizer.step()
    return parameter.tolist()


def test_two_steps_of_a_matrix_by_hand() -> None:
    # r = c = (0.5, 2), v = [[.2, .8], [.8, 3.2]], u = diag(sqrt 5, sqrt 1.25) of RMS 1.25, RMS(W) = sqrt 7.5
    weight = nn.Parameter(torch.tensor(MATRIX))
    optimizer = AdaLomo([weight], lr=0.1)
    first = [[1 - 0.2 * 6**0.5, 2.0], [3.0, 3.7550510]]
    assert step(optimizer, weight, GRADIENT) == [pytest.approx(line, abs=1e-6) for line in first]
    second = [[0.0422506, 2.0], [3.0, 3.5211253]]
    assert step(optimizer, weight, GRADIENT) == [pytest.approx(line, abs=1e-6) for line in second]
    state = optimizer.state[weight]
    assert (state["step"], state["rows"].tolist(), state["columns"].tolist()) == (2, [0.5, 2.0], [0.5, 2.0])


def test_a_vector_by_hand() -> None:
    bias = nn.Parameter(torch.tensor([3.0, 4.0]))
    after = step(AdaLomo([bias], lr=0.1), bias, [0.5, -2.0])  # u = (1, -1) of RMS 1, RMS(b) = sqrt 12.5
    assert after == pytest.approx([2.6464466, 4.3535534], abs=1e-6)


def test_weights_of_zero_move_and_rows_without_a_gradient_do_not() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    after = step(AdaLomo([weight], lr=0.1), weight, GRADIENT)
    assert after == [pytest.approx([-1.7888544e-4, 0]), pytest.approx([0, -0.8944272e-4])]
    weight = nn.Parameter(torch.tensor(MATRIX))
    optimizer = AdaLomo([weight], lr=0.1)
    for scale in (1.0, 1e5, 1e-5):
        after = step(optimizer, weight, [[scale, 2 * scale], [0.0, 0.0]])
        assert after[1] == MATRIX[1]
        assert torch.isfinite(weight).all()
    assert step(AdaLomo([weight]), weight, torch.zeros(2, 2))[1] == MATRIX[1]


def rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def by_the_equations(weight: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """The paper's algorithm as its authors' code runs it, in fp64."""
    p = weight.double()
    r, c, v = p.new_zeros(p.shape[:-1]), p.new_zeros(p.shape[:-2] + p.shape[-1:]), torch.zeros_like(p)
    for t, g in enumerate((gradient.double() for gradient in gradients), start=1):
        beta, squares = 1 - t**-0.8, g * g + 1e-30
        if p.dim() > 1:
            r = beta * r + (1 - beta) * squares.mean(-1)
            c = beta * c + (1 - beta) * squares.mean(-2)
            v = r[..., :, None] * c[..., None, :] / r.mean(-1)[..., None, None]
        else:
            v = beta * v + (1 - beta) * squares
        u = g / v.sqrt()
        u = u / rms(u).clamp(min=1.0)
        eta = lr * rms(p).clamp(min=1e-3)
        p = (1 - eta * decay) * p - eta * u
    return p


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (2, 5, 3), (2, 3, 5, 4)])
@pytest.mark.parametrize(("scale", "decay"), [(1.0, 0.0), (1.0, 0.1), (1e-3, 0.1), (1e-6, 0.0)])
def test_twenty_steps_by_the_equations(shape: tuple[int, ...], scale: float, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    gradients = [scale * torch.randn(shape, generator=generator) for _ in range(20)]
    parameter = nn.Parameter(start.clone())
    optimizer = AdaLomo([parameter], lr=0.02, weight_decay=decay)
    for gradient in gradients:
        step(optimizer, parameter, gradient)
    expected = by_the_equations(start, gradients, 0.02, decay)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=0, atol=2e-6)
    assert (parameter - start).abs().min() > 1e-4


def test_it_is_adafactor_without_momentum() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 4, generator=generator)
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = AdaLomo([mine], lr=0.02), Adafactor([theirs], lr=0.02, weight_decay=0.0)  # where lr <= 1 / sqrt(t)
    for _ in range(20):
        gradient = torch.randn(6, 4, generator=generator)
        for optimizer, parameter in zip(optimizers, (mine, theirs), strict=True):
            step(optimizer, parameter, gradient)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_groups_have_their_own_rates_and_decay() -> None:
    one, other = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    groups = [{"params": [one]}, {"params": [other], "lr": 0.0, "weight_decay": 0.5}]
    optimizer = AdaLomo(groups, lr=0.1)
    other.grad = torch.ones(2)
    step(optimizer, one, [1.0, 1.0])
    assert other.tolist() == [3.0, 4.0]
    assert one.tolist() == pytest.approx([3 - 0.1 * 12.5**0.5, 4 - 0.1 * 12.5**0.5])


def test_weights_in_fp64_are_stepped_too() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    step(AdaLomo([weight], lr=0.1, weight_decay=0.5), weight, [1.0, 1.0])
    rate = 0.1 * 12.5**0.5
    assert weight.tolist() == pytest.approx([3 - rate * (1 + 0.5 * 3), 4 - rate * (1 + 0.5 * 4)])


def test_the_state_of_bf16_weights_is_fp32_and_comes_back_so() -> None:
    def made() -> tuple[nn.Parameter, AdaLomo]:
        weight = nn.Parameter(torch.tensor(MATRIX, dtype=torch.bfloat16))
        return weight, AdaLomo([weight], lr=0.1)

    weight, optimizer = made()
    for gradient in ([[0.3, 0.1], [0.2, 0.7]], [[0.5, 0.2], [0.3, 0.1]]):
        step(optimizer, weight, gradient)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again, resumed = made()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    again.data.copy_(weight.data)
    state = resumed.state[again]
    for name, value in optimizer.state[weight].items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], value)
    assert step(resumed, again, GRADIENT) == step(optimizer, weight, GRADIENT)
    assert state["step"] == 3


def test_a_closure_is_run_with_gradients() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def closure() -> float:
        loss = weight.square().sum() / 2
        torch.autograd.backward(loss)
        return loss.item()

    assert AdaLomo([weight], lr=0.1).step(closure) == 12.5


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"weight_decay": -0.1}, {"clip_threshold": 0.0}, {"decay_rate": 0.0}, {"lr": float("nan")}],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; give a number"):
        AdaLomo([nn.Parameter(torch.ones(2))], **wrong)
