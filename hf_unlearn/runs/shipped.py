"""The settings of whole runs that come with the package: `hf-unlearn unlearn --config clip_openmoji`."""

from difflib import get_close_matches
from pathlib import Path

from hf_unlearn.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"


def shipped_configs() -> list[str]:
    """Names of the shipped configs, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def config_file(name_or_path: str | Path) -> Path:
    """The YAML file that `--config` means: a file that is there, or else the shipped config of that name.

    Raises:
        UserError: when it is neither, naming what is shipped.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(name_or_path) in shipped:
        return FOLDER / f"{name_or_path}.yaml"
    close = get_close_matches(path.stem, shipped, n=3, cutoff=0.4) or shipped
    raise UserError(
        f"--config {name_or_path} does not exist; name a YAML file, or a config of the package: {', '.join(close)}"
    )
