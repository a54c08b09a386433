"""How Hydra reads a file of conf/: with a sentence, file and line for a mistake in it."""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from tencrop.config.yaml_files import yaml_mapping, yaml_text


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's, with a sentence for a mistake in a file. It bears the same name, or the registry would refuse it."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path)).resolve()
        if not path.exists():
            return super().load_config(config_path)  # which says so
        yaml_text(path)
        try:
            result = super().load_config(config_path)
        except Exception:  # whatever PyYAML and OmegaConf raise; parsing twice costs 20 ms, so only now
            yaml_mapping(path)
            raise
        config = result.config
        if not isinstance(config, DictConfig) or len(config) < 2:  # OmegaConf takes a text alone for a key
            yaml_mapping(path)
        return result


def register_config_source() -> None:
    """Hydra reads files by the class above; its registry keeps the one that was there first."""
    SourcesRegistry.instance().register(FileConfigSource)
