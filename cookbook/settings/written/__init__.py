"""Settings as they are written in files: TOML, JSON and YAML."""
