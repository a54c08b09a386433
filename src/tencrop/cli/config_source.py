"""Makes Hydra report a mistake in a YAML file as one sentence with file and line."""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from tencrop.config.yaml_files import yaml_mapping, yaml_text


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's source of files, with a UserError for a mistake in one.

    It has the class name of the original, since Hydra's registry compares classes by name.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        if not path.exists():
            return super().load_config(config_path)  # raises Hydra's error
        yaml_text(path)
        try:
            result = super().load_config(config_path)
        except Exception:  # PyYAML and OmegaConf raise several types. Parsing again takes 20 ms, so only after an error
            yaml_mapping(path)
            raise
        config = result.config
        if not isinstance(config, DictConfig) or len(config) < 2:  # OmegaConf reads a bare word as a key without value
            yaml_mapping(path)
        return result


def register_config_source() -> None:
    """Make Hydra read files with the class above.

    Must run before hydra.main: the registry keeps the class that was registered first.
    """
    SourcesRegistry.instance().register(FileConfigSource)
