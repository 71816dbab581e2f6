"""Independent answers in NumPy, for the tests. Nothing here is imported from jaxqn, or from JAX.

The updates are the product forms and the published parameter formulas, written from the textbook
(Nocedal & Wright, Numerical Optimization, 2006, "N&W") and the papers; all in float64.
"""

import functools

import numpy as np


def bfgs(H, s, y):
    """N&W eq. 6.17, as printed."""
    rho, eye = 1 / (y @ s), np.eye(len(s))
    return (eye - rho * np.outer(s, y)) @ H @ (eye - rho * np.outer(y, s)) + rho * np.outer(s, s)


def dfp(H, s, y):
    """N&W eq. 6.15, as printed."""
    Hy = H @ y
    return H - np.outer(Hy, Hy) / (y @ Hy) + np.outer(s, s) / (y @ s)


def sr1(H, s, y):
    """N&W eq. 6.25, as printed."""
    v = s - H @ y
    return H + np.outer(v, v) / (v @ y)


def broyden(H, s, y, phi):
    """The class as the straight line through its two ends, DFP at 0 and BFGS at 1."""
    return (1 - phi) * dfp(H, s, y) + phi * bfgs(H, s, y)


def self_scaled(H, s, y, phi, tau):
    """(1/tau) times the part of the update that carries H, plus rho s sᵀ."""
    own = np.outer(s, s) / (y @ s)
    return (broyden(H, s, y, phi) - own) / tau + own


def ssbfgs(H, s, y):
    """tau = min(1, 1/b), phi = 1."""
    b = s @ np.linalg.solve(H, s) / (y @ s)
    return self_scaled(H, s, y, 1.0, min(1.0, 1 / b))


def osbfgs(H, s, y):
    """tau = min(1, 1/b) where h < b, and 1 elsewhere; phi = 1."""
    b = s @ np.linalg.solve(H, s) / (y @ s)
    h = y @ H @ y / (y @ s)
    return self_scaled(H, s, y, 1.0, min(1.0, 1 / b) if h < b else 1.0)


def ssbroyden_parameters(H, s, y):
    """(phi, tau) of Al-Baali & Khalfan (2005), as in Urbán, Stefanou & Pons (2025)."""
    n = len(s)
    b = s @ np.linalg.solve(H, s) / (y @ s)
    h = y @ H @ y / (y @ s)
    a = h * b - 1
    c = np.sqrt(a / (a + 1))
    rho_m = min(1.0, h * (1 - c))
    theta_m, theta_p = (rho_m - 1) / a, 1 / rho_m
    theta = max(theta_m, min(theta_p, (1 - b) / b))
    sigma = 1 + a * theta
    tau1 = min(1.0, 1 / b)
    shrink = sigma ** (-1 / (n - 1))
    tau = tau1 * min(shrink, 1 / theta) if theta > 0 else min(tau1 * shrink, sigma)
    return (1 - theta) / (1 + a * theta), tau


def ssbroyden(H, s, y):
    return self_scaled(H, s, y, *ssbroyden_parameters(H, s, y))


def member(phi):
    return functools.partial(broyden, phi=phi)


def strong_wolfe(phi0, dphi0, alpha, phi, dphi, c1, c2, slack=0.0):
    """N&W eq. 3.7. ``slack`` is the absolute error granted to a difference of values."""
    return phi <= phi0 + c1 * alpha * dphi0 + slack and abs(dphi) <= c2 * abs(dphi0)


def approximate_wolfe(phi0, dphi0, phi, dphi, c1, c2, noise):
    """Hager & Zhang (2005), eq. 4.1, where values tell no more than ``noise``."""
    return (2 * c1 - 1) * dphi0 >= dphi >= c2 * dphi0 and phi <= phi0 + noise


def random_spd(rng, n, condition=100.0):
    """A symmetric positive definite matrix with that condition number."""
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    H = Q @ np.diag(np.geomspace(1 / np.sqrt(condition), np.sqrt(condition), n)) @ Q.T
    return (H + H.T) / 2


def random_pair(rng, n):
    """A step and a gradient change with sᵀy > 0, through a random Hessian."""
    s = rng.normal(size=n)
    return s, random_spd(rng, n, 10.0) @ s


def structured(S, s, y, y_sharp, tau=None, weights=None):
    """N&W eqs. 10.32 and 10.33; with v = W s for y where sᵀy is not clearly positive."""
    w = np.ones_like(s) if weights is None else weights
    cosine = (s @ y) / np.sqrt((s @ (w * s)) * (y @ (y / w)))
    v = y if cosine > 1e-3 else w * s
    if tau is None:
        tau = min(1.0, abs(s @ y_sharp) / abs(s @ S @ s))
    e = y_sharp - tau * S @ s
    mixed = (np.outer(e, v) + np.outer(v, e)) / (s @ v)
    return tau * S + mixed - (s @ e) / (s @ v) ** 2 * np.outer(v, v)


def trust_region(B, g, radius):
    """The multiplier and the step of N&W theorem 4.1, by eigenvalues and bisection."""
    values, Q = np.linalg.eigh(B)
    inner = Q.T @ g

    def length(mu):
        return np.linalg.norm(inner / (values + mu))

    if values[0] > 0 and length(0.0) <= radius:
        return 0.0, -Q @ (inner / values)
    lo = max(0.0, -values[0])
    hi = lo + np.linalg.norm(g) / radius
    for _ in range(200):
        mu = (lo + hi) / 2
        lo, hi = (mu, hi) if length(mu) > radius else (lo, mu)
    return hi, -Q @ (inner / (values + hi))
