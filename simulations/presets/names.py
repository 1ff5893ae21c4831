"""The presets that ship: settings that were chosen together, a TOML file each. Loads nothing else: help lists them."""

from importlib import resources

DEFAULT = "user-eps8"
"""What a run starts from where nothing else is named."""


def preset_names() -> list[str]:
    """Return the names of the presets that ship."""
    files = resources.files("fedrecall.simulations.presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """Return the TOML of a preset that ships."""
    return (resources.files("fedrecall.simulations.presets") / f"{name}.toml").read_text(encoding="utf-8")
