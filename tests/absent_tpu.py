"""Programs for a TPU v5e that is not there. Tests are skipped where its compiler is not installed."""

import jax
import pytest

from dctps_jax.ops.target import tracing_for


def absent_devices(monkeypatch):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install -e '.[tpu]'")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices


def text_of_program(monkeypatch, function, arguments, platform):
    """The program that the TPU's compiler makes of `function`, traced for `platform`; `arguments` may be abstract."""
    there = jax.sharding.SingleDeviceSharding(absent_devices(monkeypatch)[0])
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), arguments)
    with tracing_for(platform):
        return jax.jit(function).lower(*arguments).compile().as_text() or ""
