"""Samplers written down from their papers, one short function each, to hold the engine's against.

Arguments: clean(x, alpha, sigma) -> estimate of x0; x [B, ...], the first iterate; levels, pairs (alpha, sigma) from
noise to data; draws, an iterator of standard normal noise. All return the iterates that entered the network, and the
result.
"""

import math
from itertools import pairwise

import numpy as np


def lam(level):
    alpha, sigma = level
    return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)


def ddim(clean, x, levels, draws, eta=0.0):
    """Song et al. 2021, eq. 12 and 16, for variance-preserving levels."""
    iterates = [x]
    for (alpha, sigma), (alpha1, _) in pairwise(levels):
        bar, bar1 = alpha**2, alpha1**2
        x0 = clean(x, alpha, sigma)
        noise = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
        deviation = eta * math.sqrt((1 - bar1) / (1 - bar)) * math.sqrt(1 - bar / bar1)
        x = math.sqrt(bar1) * x0 + math.sqrt(max(0.0, 1 - bar1 - deviation**2)) * noise
        if deviation:
            x = x + deviation * next(draws)
        iterates.append(x)
    return iterates


def ddpm(clean, x, levels, draws, large=False):
    """Ho et al. 2020, eq. 6 and 7 and section 3.2, with beta = 1 - abar / abar_prev; no noise in the last step."""
    iterates = [x]
    for (alpha, sigma), (alpha1, _) in pairwise(levels):
        bar, bar1 = alpha**2, alpha1**2
        beta = 1 - bar / bar1
        on_x0, on_x = math.sqrt(bar1) * beta / (1 - bar), math.sqrt(1 - beta) * (1 - bar1) / (1 - bar)
        x = on_x0 * clean(x, alpha, sigma) + on_x * x
        if bar1 < 1:
            x = x + math.sqrt(beta if large else beta * (1 - bar1) / (1 - bar)) * next(draws)
        iterates.append(x)
    return iterates


def dpm(clean, x, levels, order, draws=None):
    """DPM-Solver++ (Lu et al. 2022, algorithm 2 for 2M), or its SDE version where draws are given.

    Order 3 integrates, by Gauss and Legendre's quadrature, the parabola through the last three estimates against the
    exact solution's kernel (their eq. 8; for the SDE eq. 18).
    """
    iterates, past = [x], []
    rate = 1 if draws is None else 2
    for start, end in pairwise(levels):
        here, there = lam(start), lam(end)
        h = there - here
        d = clean(x, *start)
        past = [*past, (here, d)][-order:]
        known = [(at, estimate) for at, estimate in past if at > -math.inf]
        alpha1, sigma1 = end
        if sigma1 == 0 or len(known) < 2:
            integral = -math.expm1(-rate * h) * d
        elif len(known) == 2:
            r = (here - known[0][0]) / h
            integral = -math.expm1(-rate * h) * ((1 + 1 / (2 * r)) * d - 1 / (2 * r) * known[0][1])
        else:
            integral = sum(w * rate * math.exp(-rate * (there - u)) * parabola(known, u) for u, w in nodes(here, there))
        x = sigma1 / start[1] * (1 if draws is None else math.exp(-h)) * x + alpha1 * integral
        if draws is not None and sigma1 > 0:
            x = x + sigma1 * math.sqrt(-math.expm1(-2 * h)) * next(draws)
        iterates.append(x)
    return iterates


def dpm_3m_as_usual(clean, x, levels, factor=1.0):
    """3M as diffusers and others write it, with their D2 times `factor`: it is half of the second derivative."""
    iterates, past = [x], []
    for start, end in pairwise(levels):
        here, d = lam(start), clean(x, *start)
        past = [(here, d), *past][:3]
        if end[1] == 0:
            return [*iterates, d]
        alpha1, h = end[0], lam(end) - here
        x = end[1] / start[1] * x - alpha1 * math.expm1(-h) * d
        if len(past) > 1:
            r0 = (here - past[1][0]) / h
            d1 = (d - past[1][1]) / r0
        if len(past) == 2:
            x = x - 0.5 * alpha1 * math.expm1(-h) * d1
        if len(past) == 3:
            r1 = (past[1][0] - past[2][0]) / h
            change = d1 - (past[1][1] - past[2][1]) / r1
            x = x + alpha1 * (math.expm1(-h) / h + 1) * (d1 + r0 / (r0 + r1) * change)
            x = x - alpha1 * ((math.expm1(-h) + h) / h**2 - 0.5) * factor * change / (r0 + r1)
        iterates.append(x)
    return iterates


def nodes(low, high):
    places, weights = np.polynomial.legendre.leggauss(20)
    return zip((low + high) / 2 + (high - low) / 2 * places, (high - low) / 2 * weights, strict=True)


def parabola(known, u):
    """Lagrange's form."""
    return sum(
        estimate * math.prod((u - other) / (at - other) for other, _ in known if other != at) for at, estimate in known
    )


def dpm_2s(clean, x, levels, middles, draws=None):
    """DPM-Solver++(2S) with r = 1/2 (Lu et al. 2022, algorithm 1): the estimate at the middle stands for the step.

    With draws, its SDE version: two steps of order 1 to the middle and on along one Brownian path, of which the second
    estimate then stands for both. middles: levels, None where a step is of order 1.
    """
    iterates = [x]
    for (alpha, sigma), (alpha1, sigma1), middle in zip(levels[:-1], levels[1:], middles, strict=True):
        here, there = lam((alpha, sigma)), lam((alpha1, sigma1))
        h, d, first = there - here, clean(x, alpha, sigma), 0.0
        if draws is None:
            if middle:
                d = clean(middle[1] / sigma * x - middle[0] * math.expm1(here - lam(middle)) * d, *middle)
            x = sigma1 / sigma * x - alpha1 * math.expm1(-h) * d
        else:
            if middle:
                # The noise of either half, as it stands at the end of the step.
                half = lam(middle) - here
                z = next(draws)
                u = middle[1] / sigma * math.exp(-half) * x - middle[0] * math.expm1(-2 * half) * d
                d = clean(u + middle[1] * math.sqrt(-math.expm1(-2 * half)) * z, *middle)
                first = sigma1 * math.exp(half - h) * math.sqrt(-math.expm1(-2 * half)) * z
                h_left = h - half
            else:
                h_left = h
            x = sigma1 / sigma * math.exp(-h) * x - alpha1 * math.expm1(-2 * h) * d + first
            if sigma1 > 0:
                x = x + sigma1 * math.sqrt(-math.expm1(-2 * h_left)) * next(draws)
        iterates.append(x)
    return iterates


def heun(clean, x, times, draws=None, churn=0.0, churn_min=0.0, churn_max=math.inf, churn_noise=1.0):
    """Karras et al. 2022, algorithm 2, for clean(x, t) and dx/dt = (x - clean) / t; times end at 0.

    One departure, which the engine documents: noise is not raised above times[0].
    """
    iterates, steps = [], len(times) - 1
    for t, t1 in pairwise(times):
        gamma = min(churn / steps, math.sqrt(2) - 1) if churn_min <= t <= churn_max else 0.0
        hat = min(t + gamma * t, times[0])
        if hat > t:
            x = x + math.sqrt(hat**2 - t**2) * churn_noise * next(draws)
        iterates.append(x)
        slope = (x - clean(x, hat)) / hat
        euler = x + (t1 - hat) * slope
        x = euler if t1 == 0 else x + (t1 - hat) * (slope / 2 + (euler - clean(euler, t1)) / (2 * t1))
    return [*iterates, x]


def euler_ancestral(clean, x, sigmas, draws):
    """k-diffusion's sample_euler_ancestral, for clean(x, sigma); sigmas end at 0."""
    iterates = [x]
    for sigma, sigma1 in pairwise(sigmas):
        up = min(sigma1, math.sqrt(sigma1**2 * (sigma**2 - sigma1**2) / sigma**2))
        down = math.sqrt(sigma1**2 - up**2)
        x = x + (x - clean(x, sigma)) / sigma * (down - sigma)
        if sigma1 > 0:
            x = x + up * next(draws)
        iterates.append(x)
    return iterates


def consistency(function, x, levels, draws):
    """Song et al. 2023, algorithm 1, with their epsilon at the data (sigma = 0), for function(x, alpha, sigma)."""
    iterates = [x]
    for alpha, sigma in levels[1:]:
        x = alpha * function(x, *levels[len(iterates) - 1]) + sigma * next(draws)
        iterates.append(x)
    return [*iterates, function(x, *levels[-1])]
