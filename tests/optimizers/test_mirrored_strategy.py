"""All optimizers on two replicas of one process."""

import subprocess
import sys
import textwrap

# A process of its own: the number of logical devices cannot change once TensorFlow has started.
MIRRORED_SCRIPT = """
    import keras
    import numpy as np
    import tensorflow as tf

    from tf_lbsgd.optimizers import LARS, MomentumCorrectedSGD, MomentumSGD
    from tf_lbsgd.schedules import WarmupPiecewiseConstantDecay

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        variables = [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "gamma")]
        optimizer = MomentumSGD(0.5, momentum=0.9, weight_decay=0.1)
        optimizer.build(variables)

    @tf.function
    def step_by_keras():  # replica r contributes r + 1; Keras sums over replicas
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer.apply([tf.cast(replica + 1, tf.float32) * tf.ones(2)] * 2)

        strategy.run(replica_step)

    @tf.function
    def step_in_cross_replica_context():  # the gradient is already the sum
        # `apply` cannot start here: Keras enters its own merge_call, from a replica context.
        for variable in variables:
            strategy.extended.update(
                variable.value,
                lambda copy, gradient: optimizer.update_step(gradient, copy, 0.5),
                args=(3.0 * tf.ones(2),),
            )

    expected = np.array([[1.0, 2.0], [1.0, 2.0]])
    u = np.zeros((2, 2))
    for step in [step_by_keras, step_in_cross_replica_context] * 2:
        step()
        g = 3.0 + np.array([[0.1], [0.0]]) * expected
        u = 0.9 * u + g
        expected = expected - 0.5 * (g + 0.9 * u)
        for variable, w, slot, state in zip(variables, expected, optimizer.momentums, u):
            for container, value in ((variable.value, w), (slot.value, state)):
                copies = [copy.numpy() for copy in strategy.experimental_local_results(container)]
                assert len(copies) == 2
                np.testing.assert_allclose(copies, [value, value], rtol=1e-6)
    assert optimizer.iterations.numpy() == 2

    # All the state of every optimizer, against a single replica that is given the sum.
    def build(make):
        variables = [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "gamma")]
        optimizer = make(WarmupPiecewiseConstantDecay(0.1, 0.8, 2, (4,)))
        optimizer.build(variables)
        return variables, optimizer

    for make in (
        lambda rate: MomentumSGD(rate, weight_decay=0.1, ema_momentum=0.75),
        lambda rate: LARS(rate, weight_decay=0.1, trust_coefficient=0.1, ema_momentum=0.75),
        lambda rate: MomentumCorrectedSGD(rate, momentum=0.9, nesterov=True),
    ):
        variables, optimizer = build(make)
        with strategy.scope():
            mirrored_variables, mirrored = build(make)

        @tf.function
        def mirrored_step(gradient):
            def replica_step():
                replica = tf.distribute.get_replica_context().replica_id_in_sync_group
                mirrored.apply([tf.cast(replica + 1, tf.float32) / 3 * gradient] * 2)

            strategy.run(replica_step)

        for step in range(6):
            gradient = tf.constant([1.0 - step, 0.5 * step])
            optimizer.apply([gradient] * 2)
            mirrored_step(gradient)
            for one, two in zip(
                variables + optimizer.variables, mirrored_variables + mirrored.variables
            ):
                copies = strategy.experimental_local_results(two.value)
                assert len(copies) == 2
                for copy in copies:
                    np.testing.assert_allclose(copy.numpy(), one.numpy(), rtol=1e-5, atol=1e-6)
    print("MIRRORED-OK")
"""


def test_every_replica_of_a_mirrored_strategy_takes_the_same_step():
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MIRRORED_SCRIPT)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "MIRRORED-OK" in child.stdout, child.stderr[-4000:]
