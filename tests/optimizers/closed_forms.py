"""The papers' update equations in NumPy, and what a Keras optimizer makes of the same gradients."""

import numpy as np
import tensorflow as tf

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-2
NUM_STEPS = 50


def rates(num_steps: int) -> np.ndarray:
    """A ramp, a plateau and a drop: [num_steps], float32, as the optimizer stores a rate."""
    steps = np.arange(num_steps)
    return np.float32(np.minimum(0.01 * (1 + steps), 0.2) * np.where(steps < 35, 1, 0.1))


def form_9(w, gradients, learning_rates, nesterov, weight_decay=0.0, momentum=MOMENTUM):
    """The weights after every step of the paper's form (9): [steps, *w.shape], float64."""
    u, trajectory = np.zeros_like(w), []
    for g, eta in zip(gradients, learning_rates, strict=True):
        g = g + weight_decay * w
        u = momentum * u + g
        w = w - eta * (g + momentum * u if nesterov else u)
        trajectory.append(w)
    return np.array(trajectory)


def corrected_form_10(w, gradients, learning_rates, nesterov, momentum):
    """The weights after every step of form (10) with momentum correction: [steps, *w.shape]."""
    v, eta_old, trajectory = np.zeros_like(w), learning_rates[0], []
    for g, eta in zip(gradients, learning_rates, strict=True):
        v = momentum * (float(eta) / float(eta_old)) * v + eta * g
        w = w - (eta * g + momentum * v if nesterov else v)
        eta_old = eta
        trajectory.append(w)
    return np.array(trajectory)


def lars(w, gradients, learning_rates, *, weight_decay, trust, epsilon=0.0, nesterov=False):
    """The weights after every step of LARS: [steps, *w.shape], float64."""
    v, trajectory = np.zeros_like(w), []
    for g, eta in zip(gradients, learning_rates, strict=True):
        w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
        ratio = 1.0
        if w_norm > 0 and g_norm > 0:
            ratio = trust * w_norm / (g_norm + weight_decay * w_norm + epsilon)
        step = eta * ratio * (g + weight_decay * w)
        v = MOMENTUM * v + step
        w = w - (step + MOMENTUM * v if nesterov else v)
        trajectory.append(w)
    return np.array(trajectory)


def average(weights, ema_momentum):
    """The average after every step: the first weights, then rho * a + (1 - rho) * w."""
    averages = [weights[0]]
    for w in weights[1:]:
        averages.append(ema_momentum * averages[-1] + (1 - ema_momentum) * w)
    return np.array(averages)


def descend(optimizer, variable, gradients, learning_rates) -> np.ndarray:
    """The weights after every step of a Keras optimizer: [steps, *variable.shape]."""
    trajectory = []
    for g, eta in zip(gradients, learning_rates, strict=True):
        optimizer.learning_rate = eta
        optimizer.apply([tf.constant(g, variable.dtype)], [variable])
        trajectory.append(variable.numpy())
    return np.array(trajectory)
