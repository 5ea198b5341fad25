"""Settings as they are written: in files (TOML, JSON, YAML), and in words, what each takes."""
