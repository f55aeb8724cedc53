import math

import pytest
import torch
from torch import nn

from core.ema import EMA


def model(value):
    linear = nn.Linear(2, 1, dtype=torch.float64)
    nn.init.constant_(linear.weight, value)
    nn.init.constant_(linear.bias, -value)
    return linear


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_average_is_that_of_a_plain_loop(decay):
    source = model(1.0)
    ema = EMA(source, decay)
    average = 1.0
    for n in range(1, 31):
        value = 0.1 * n**2 - n
        nn.init.constant_(source.weight, value)
        nn.init.constant_(source.bias, -value)
        ema.update()
        rate = min(decay, (1 + n) / (10 + n))
        average = rate * average + (1 - rate) * value
        assert ema.average["weight"].flatten().tolist() == pytest.approx([average] * 2, rel=1e-12)
        assert ema.average["bias"].item() == pytest.approx(-average, rel=1e-12)
    assert ema.updates == 30


def test_average_of_a_jump_in_closed_form():
    # The warm-up's decays 2/11, 3/12, ... telescope: after n updates the start weighs 10! (n + 1)! / (n + 10)!.
    source = model(0.0)
    ema = EMA(source, 0.999)
    nn.init.constant_(source.weight, 1.0)
    for n in range(1, 13):
        ema.update()
        left = math.factorial(10) * math.factorial(n + 1) / math.factorial(n + 10)
        assert 1 - ema.average["weight"][0, 0].item() == pytest.approx(left, rel=1e-10)


def test_averages_are_copies_without_gradients():
    source = model(1.0)
    ema = EMA(source, 0.9)
    nn.init.constant_(source.weight, 5.0)
    assert (ema.average["weight"] == 1).all()
    ema.update()
    assert (source.weight == 5).all()
    assert not any(value.requires_grad for value in ema.average.values())
    assert source.weight.requires_grad


def test_averages_move_between_models():
    first, second = EMA(model(1.0), 0.9), EMA(model(2.0), 0.9)
    second.load(first.average, updates=7)
    assert second.updates == 7
    target = model(3.0)
    second.copy_to(target)
    assert (target.weight == 1).all()
    assert (target.bias == -1).all()
    target.weight.data.fill_(9.0)
    assert (second.average["weight"] == 1).all()
    assert (first.average["weight"] == 1).all()


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="EMA decay"):
        EMA(model(1.0), decay)
