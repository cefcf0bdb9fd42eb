"""What a run was computed with. It is recorded and compared, but not hashed into the run's name."""

import platform
from importlib import metadata

_PACKAGES = ("innerloop", "jax", "jaxlib", "equinox", "optax", "numpy")


def environment() -> dict[str, str]:
    """Versions, backend and device of this process."""
    import jax

    device = jax.devices()[0]
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        **versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": jax.default_backend(),
        "device": f"{len(jax.devices())} x {device.device_kind}",
    }


def differences(recorded: dict[str, str], current: dict[str, str]) -> list[str]:
    """One line per entry that differs, for a report beside results computed elsewhere."""
    return [
        f"{name}: recorded {recorded.get(name, 'nothing')}, here {current.get(name, 'nothing')}"
        for name in sorted(recorded.keys() | current.keys())
        if recorded.get(name) != current.get(name)
    ]
